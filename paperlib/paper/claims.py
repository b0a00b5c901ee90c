"""What the notebooks say about results in words, each statement beside the condition on this run's rows that it needs.

A smoke run or another data set may contradict what holds for the published results. So a statement about results is
never fixed text: `said` and `verdict` show which of them the rows bear out, and `by_eye` keeps what only an eye can
judge to the pictures that were looked at.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from paperlib.paper.results import Results

NOT_HERE = "**Not in this run:**"
LOST = -5_000  # nats: a mean certificate below this says nothing about a digit
Statements = Mapping[str, bool]


def said(statements: Statements) -> str:
    """The statements that hold, as prose; then, marked, those that this run contradicts."""
    holding = " ".join(statement for statement, holds in statements.items() if holds)
    others = " ".join(statement for statement, holds in statements.items() if not holds)
    return f"{holding}\n\n{NOT_HERE} {others}".strip() if others else holding


def verdict(statements: Statements) -> str:
    """Whether the claim at the notebook's top holds in this run, and which parts of it do."""
    opening = "The claim holds in this run." if all(statements.values()) else "The claim does not hold in this run."
    return f"**{opening}** {said(statements)}"


def by_eye(results: Results, text: str) -> str:
    """The text for the published results; for any other run, that it is not said of them."""
    if (results.profile, results.dataset) == ("paper", "mnist"):
        return text
    return "What an eye sees in the pictures was written down for the published ones, and is not said of this run's."


def landscapes(fields: Mapping[str, Mapping[str, Tensor]], table: pd.DataFrame) -> dict[str, bool]:
    """Of notebook 1: fields by data set and kind, [side, side]; the clean ELBO of the test points in the table."""
    clean = table.set_index(["data", "model"])["clean"]
    models = ("VAE", "proVAE")
    learned = [clean[toy, m] > field[f"{m}, clean ELBO"].median() for toy, field in fields.items() for m in models]
    apart = {
        kind: [(field[f"VAE, {kind}"] - field[f"proVAE, {kind}"]).abs().median() for field in fields.values()]
        for kind in ("clean ELBO", "certified")
    }
    keeps = {
        m: [_alike(field[f"{m}, clean ELBO"], field[f"{m}, certified"]) for field in fields.values()] for m in models
    }
    return {
        "Both models learn where the data are.": all(learned),
        "Their clean landscapes are much more alike than their certified ones.": all(
            bool(near < far / 5) for near, far in zip(apart["clean ELBO"], apart["certified"], strict=True)
        ),
        "The proVAE's certified landscape keeps the shape of its clean one, the VAE's does not.": all(
            robust > 0.8 and robust > plain for robust, plain in zip(keeps["proVAE"], keeps["VAE"], strict=True)
        ),
    }


def _alike(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two fields."""
    ranks = torch.stack([field.flatten().argsort().argsort().double() for field in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def training(last: pd.DataFrame, dimension: int) -> dict[str, bool]:
    """Of notebook 2: the last row of each history, by model; a pixel whose probability is 1/2 costs log 2 nats."""
    robust = last.drop("VAE")
    return {
        "The certificates of the proVAEs are above the ELBO of a model that predicts one half for each pixel.": (
            bool((robust["certified"] > -dimension * math.log(2)).all())
        ),
        "No proVAE has collapsed: each has a KL above one nat.": bool((robust["kl"] > 1).all()),
        "The clean ELBO is the higher the more weight it has.": bool(
            last["clean"].loc[["proVAE kappa=0", "proVAE kappa=0.5", "VAE"]].is_monotonic_increasing
        ),
    }


def reconstructions(original: Tensor, rebuilt: Mapping[str, Tensor]) -> dict[str, bool]:
    """Of notebook 2: images [count, side * side] and what each model makes of them."""
    side = math.isqrt(original.shape[1])
    edges = {
        name: images.unflatten(1, (side, side)).diff(dim=2).abs().mean().item() for name, images in rebuilt.items()
    }
    paper = {name: images[original == 0].mean().item() for name, images in rebuilt.items()}
    order = [edges[name] for name in ("VAE", "proVAE kappa=0.5", "proVAE kappa=0")]
    return {
        "The plain VAE rebuilds more sharply than the proVAEs, which are blurred the more the less weight the clean "
        "ELBO has.": order == sorted(order, reverse=True),
        "The empty paper of the proVAEs is grey: an adversary may ink any pixel up to $\\epsilon$, and a decoder that "
        "is sure of white pays for it without limit.": min(p for name, p in paper.items() if name != "VAE")
        > 2 * paper["VAE"],
    }


def perturbations(x: Tensor, attacked: Mapping[str, Tensor]) -> dict[str, bool]:
    """Of notebook 3: images and the points where PGD ends for each model, [count, pixels]."""
    inked = {name: (x_adv > x)[x == 0].double().mean().item() for name, x_adv in attacked.items()}
    strokes = [(x_adv - x)[x > 0.5].mean().item() for name, x_adv in attacked.items() if name != "VAE"]
    robust = [share for name, share in inked.items() if name != "VAE"]
    return {
        "Against the plain VAE the attack is patterned: it inks some of the paper and spares the rest.": (
            0.1 < inked["VAE"] < 0.95
        ),
        "Against the proVAEs hardly any pattern is left to find: it greys the paper and pales the strokes.": (
            min(robust) > 0.95 and max(strokes) < 0
        ),
    }


def attacks(means: pd.DataFrame, ceiling: pd.Series, eps: float, changes: Mapping[str, float]) -> dict[str, bool]:
    """Of notebook 3: means by (model, eps), the ceiling by eps, what the strongest setting adds by proVAE, in nats."""
    attacked = means["attacked"].xs(eps, level="eps")
    below = ceiling[eps] - attacked
    return {
        "The attack drives the plain VAE more than three times as far below the ceiling as the proVAEs.": bool(
            below["VAE"] > 3 * below.drop("VAE").max()
        ),
        "Against the proVAEs more steps and starts change the mean by less than a hundredth of it.": all(
            abs(change) < abs(attacked[model]) / 100 for model, change in changes.items()
        ),
    }


def losses(means: pd.DataFrame) -> dict[str, bool]:
    """Of notebook 3: means by (model, eps)."""
    clean = means["clean"].groupby("model").first()
    far = means.xs(means.index.get_level_values("eps").max(), level="eps")
    near = means.xs(0.0, level="eps")
    by_kl = (far["attacked_kl"] - near["attacked_kl"]).abs()
    return {
        "All models lose nearly everything in the likelihood.": bool(
            (by_kl < (near["attacked"] - far["attacked"]) / 10).all()
        ),
        "Robustness is paid for in clean ELBO.": bool((clean.drop("VAE") < clean["VAE"]).all()),
    }


def certificates(certified: pd.Series, attacked: pd.Series) -> dict[str, bool]:
    """Of notebook 4: means at one radius, by model."""
    gap = attacked - certified
    return {
        "What an attack reaches lies close above the certificate of a proVAE, by less than a tenth of it.": bool(
            (gap.drop("VAE") < -attacked.drop("VAE") / 10).all()
        ),
        "For the plain VAE intervals say nothing.": bool(certified["VAE"] < LOST),
    }


def stages(rows: pd.DataFrame) -> dict[str, bool]:
    """Of notebook 5: rows of `stage_gaps`."""
    at = {key: part.set_index("stage")["gap"] for key, part in rows.groupby(["model", "method"], sort=False)}
    robust = [model for model in rows["model"].unique() if model != "VAE"]
    steps = {model: -at[model, "crown-ibp"].diff().dropna() for model in robust}
    return {
        "For the proVAEs the largest step is the decoder's last layer, where the logits stop being independent of each "
        "other.": all(step.idxmax() == "decoder, after ReLU" for step in steps.values()),
        "The last step counts, where each pixel stops being two.": all(
            step.iloc[-1] > 0.1 * step.sum() for step in steps.values()
        ),
        "For the plain VAE the bound stays vacuous at every stage over the boxes of intervals; over tighter ones it "
        "does not.": bool((at["VAE", "crown-ibp"] > -LOST).all() and at["VAE", "crown"].iloc[-1] < -LOST / 10),
    }


def coefficients(pictures: Mapping[str, Tensor], pictured: Sequence[tuple[str, float]]) -> dict[str, bool]:
    """Of notebook 5: rows of `coefficient_pictures` for these models and radii, one of them a proVAE."""
    wide = max((eps, row) for row, (name, eps) in enumerate(pictured) if name == "VAE")[1]
    (robust,) = (row for row, (name, _) in enumerate(pictured) if name != "VAE")
    as_input, as_target = pictures["as_input"], pictures["as_target"]
    acting = as_input[robust].abs() > as_input[robust].abs().max() / 20
    reached = {row: _reached(pictures, row) for row in (wide, robust)}
    return {
        "In the proVAE hardly any pixel acts through the posterior: its encoder ignores the others, because during "
        "training they only made boxes wider.": bool(acting.double().mean() < 0.15),
        "For the plain VAE at the larger radius the target has hardly a coefficient, as nearly all boxes of logits "
        "contain 0, and the lowest point of the bound is a poor attack.": bool(
            as_target[wide].abs().mean() < as_input[wide].abs().mean() / 20 and reached[wide] < 0.8
        ),
        "For the proVAE the lowest point of the bound is nearly as good an attack as PGD.": reached[robust] > 0.95,
    }


def _reached(pictures: Mapping[str, Tensor], row: int) -> float:
    """What the lowest point of the bound takes off the clean ELBO, as a share of what PGD takes off it."""
    clean, worst, attacked = (pictures[f"elbo_{key}"][row].item() for key in ("x", "worst", "attacked"))
    return (clean - worst) / (clean - attacked) if clean > attacked else 1.0


def methods(gaps: pd.DataFrame, eps: float, small: float) -> dict[str, bool]:
    """Of notebook 5: mean gaps by (model, eps), a column for each method; at both radii."""
    robust = gaps.drop("VAE", level="model").xs(eps, level="eps")
    plain = gaps.xs("VAE", level="model")
    return {
        "Where training has kept the boxes narrow, as in the proVAEs, one backward pass over the boxes of intervals "
        "closes most of the gap.": bool((robust["crown-ibp"] < robust["ibp"] / 2).all()),
        "Tighter boxes and a search for $\\alpha$ close some more.": bool(
            (robust["crown"] < robust["crown-ibp"]).all()
        ),
        "Where the boxes are wide, as in the plain VAE, they have to be tightened first; at the small radius that is "
        "enough.": bool(plain["crown-ibp"][small] > -LOST > -LOST / 10 > plain["crown"][small]),
        "At the radius that the proVAEs were trained for no boxes here are tight enough for the plain VAE.": bool(
            plain["crown"][eps] > -LOST
        ),
    }


def tighter_training(gain: pd.DataFrame) -> dict[str, bool]:
    """Of notebook 6: what training on the linear bound changes, a row for each kappa, in nats."""
    return {
        "The clean ELBO is clearly higher, by more than ten nats.": bool((gain["clean"] > 10).all()),
        "The certificate is no worse.": bool((gain[["subset_crown", "crown_ibp"]] >= 0).all(axis=None)),
    }
