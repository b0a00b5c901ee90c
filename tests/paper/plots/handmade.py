"""Rows made by hand for the tests of the figures, and what these read from a drawn figure."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paperlib.paper.front import BASE, NOTEBOOK_2, OURS, RECIPES
from paperlib.paper.plots import cost as cost_plots
from paperlib.paper.plots.style import COLORS

NAMES = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]
SHOWN = ["VAE", "proVAE $\\kappa=0$", "proVAE $\\kappa=0.5$"]
EPS = [0.0, 0.01, 0.1, 0.2]
CAPTION = "full MNIST, first 7 test images, one noise draw"
METHODS = {"ibp": "intervals", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
DIGITS = torch.rand(3, 784, generator=torch.Generator().manual_seed(0))


def lines(axis: Axes, name: str, **look: Any) -> list[Line2D]:
    """The lines of a model's colour on an axis that look as given; no helper lines."""
    found = [line for line in axis.get_lines() if to_rgb(line.get_color()) == to_rgb(COLORS[name])]
    return [line for line in found if all(getattr(line, f"get_{key}")() == value for key, value in look.items())]


def xy(line: Line2D) -> list[list[float]]:
    return np.asarray(line.get_xydata()).tolist()


def points(axis: Axes, label: str) -> list[list[float]]:
    """The points of the line with this label."""
    (line,) = [line for line in axis.get_lines() if line.get_label() == label]
    return xy(line)


def legend_texts(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def attacked_rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"model": name, "eps": eps, "index": i, "attacked": -100 * (k + 1) - 900 * eps - rng.random()}
        | {"attacked_kl": 10 * (k + 1) + rng.random(), "certified": -400 * (k + 1) - 2_000 * eps}
        for k, name in enumerate(NAMES)
        for eps in EPS
        for i in range(7)
    ]
    return pd.DataFrame(rows)


def certified_rows() -> pd.DataFrame:
    rows = [
        {"model": name, "eps": eps, "clean": -90.0 - k, "clean_se": 0.5 + k, "certified_se": 2.0 + k}
        | {"certified": -400.0 * (k + 1) - 2_000 * eps}
        for k, name in enumerate(NAMES)
        for eps in reversed(EPS)  # the figure sorts
    ]
    return pd.DataFrame(rows)


def strength_rows() -> pd.DataFrame:
    rows = []
    for k, name in enumerate(NAMES):
        levels = [("none", 0, 1, -90.0), ("random", 0, 1, -95.0), ("shift", 0, 1, -110.0), ("fgsm", 1, 1, -150.0)]
        levels += [("pgd", s, r, -150.0 - s - r) for s in (1, 5, 40) for r in (1, 4)]
        rows += [{"model": name, "attack": a, "steps": s, "restarts": r, "elbo": v - k} for a, s, r, v in levels]
    return pd.DataFrame(rows)


def loose_rows() -> pd.DataFrame:
    rows = [
        {"model": name, "stage": stage, "box": 2.0 * (i + 1) * (k + 1), "reached": 2.0 / (i + 1)}
        for k, name in enumerate(NAMES)
        for i, stage in enumerate(("input", "encoder 1", "latent", "ELBO"))
    ]
    return pd.DataFrame(rows)


def histories() -> dict[str, pd.DataFrame]:
    return {
        name: pd.DataFrame(
            {"step": [10, 20, 30], "clean": [-300.0 - k, -200.0, -150.0], "certified": [-310.0, -390.0 - k, -380.0]}
            | {"kl": [0.5, 5.0 + k, 9.0], "eps": [0.0, 0.05, 0.1] if k else [0.0] * 3}
        )
        for k, name in enumerate(NAMES)
    }


def fields() -> dict[str, dict[str, torch.Tensor]]:
    return {
        toy: {"clean": torch.arange(9.0).view(3, 3) - 20 - k, "certified": -torch.arange(9.0).view(3, 3) * 90}
        for k, toy in enumerate(("two-moons", "pinwheel"))
    }


def truth(shift: float) -> dict[str, torch.Tensor]:
    points = torch.cartesian_prod(torch.linspace(0, 1, 5), torch.linspace(0, 1, 5)).flip(1).double() + shift
    values = -points.square().sum(1)
    scalars = {"exact": values.min(), "attacked": values.min() + 0.01, "certified": torch.tensor(-9.999)}
    return {"points": points, "values": values, "worst": points[-1], "pgd": points[-2], **scalars}


def growth() -> pd.DataFrame:
    rows = [
        {"model": name, "stage": stage, "box": 1.0 + i + k, "exact": 1.0 + 0.1 * i}
        for k, name in enumerate(("VAE", "proVAE"))
        for i, stage in enumerate(("input", "encoder 1", "latent"))
    ]
    return pd.DataFrame(rows)


def method_rows() -> pd.DataFrame:
    """Like `attacked_rows`, which has one radius more, in another order."""
    loose = {"ibp": 300.0, "crown-ibp": 30.0, "crown": 3.0}
    rows = attacked_rows().sample(frac=1, random_state=0)
    certified = {method: rows["attacked"] - gap * (1 + rows["index"] / 10) for method, gap in loose.items()}
    return rows[["model", "eps", "index"]].assign(**certified)[rows["eps"] > 0]


def tradeoff_rows() -> pd.DataFrame:
    points = [(0.0, 0.095), (0.5, 0.1), (0.75, 0.12)]
    rows = [
        {"bound": bound, "kappa": kappa, "train_eps": eps, "seed": seed}
        | {"subset_clean": -200.0 + 60 * kappa + 9 * (bound == "crown-ibp") + seed - 100 * (eps - 0.1)}
        | {"subset_crown": -350.0 - 9 * kappa - seed, "subset_attacked": -335.0 - 6 * kappa + seed}
        for bound in ("ibp", "crown-ibp")
        for kappa, eps in points
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def front_rows() -> pd.DataFrame:
    """Of notebook 12: ours and those of notebook 2 with three seeds, among them a plain VAE, and four recipes."""
    kept = [
        {"group": group, "recipe": group, "kappa": kappa, "clean": clean + seed, "crown_ibp": certified - 10 * kappa}
        for group, clean, certified in ((OURS, -150.0, -335.0), (NOTEBOOK_2, -190.0, -345.0))
        for kappa in (0.0, 0.5)
        for seed in range(3)
    ]
    vae = {"group": NOTEBOOK_2, "recipe": "VAE", "kappa": 1.0, "clean": -102.0, "crown_ibp": -3e5}
    recipes = [
        {"group": RECIPES, "recipe": name, "kappa": 0.5, "clean": -170.0 + place, "crown_ibp": -365.0 + 3 * place}
        for name, place in ((BASE, 0), ("one", 2), ("another", -1), ("a third", 1))
    ]
    return pd.DataFrame([*kept, vae, *recipes])


def cost_rows() -> pd.DataFrame:
    """Three rounds, of which the second is slower in all; a step's products are half of it."""
    steps = {("step", name): 0.01 * (1 + k) for k, name in enumerate(cost_plots.STEP_LABELS)}
    bare = {("products", name): second / 2 for (_, name), second in steps.items() if not name.startswith("conv")}
    images = {("image", name): 1e-4 * 3**k for k, name in enumerate(cost_plots.IMAGE_LABELS)}
    return pd.DataFrame(
        {"kind": kind, "name": name, "round": number, "seconds": seconds * slower}
        for number, slower in enumerate((1, 5, 1))
        for (kind, name), seconds in {**steps, **bare, **images}.items()
    )


def cost_targets() -> pd.DataFrame:
    targets = [
        (("step", "proVAE kappa=0"), ("step", "VAE"), 2.3),
        (("step", "proVAE kappa=0"), ("products", "proVAE kappa=0"), 1.6),
        (("step", "conv proVAE kappa=0"), ("step", "conv VAE"), 3.0),
        (("image", "crown-ibp"), ("image", "ibp"), 2.5),
        (("image", "crown"), None, 10.0),
    ]
    return pd.DataFrame([{"of": of, "against": against, "most": most} for of, against, most in targets])


def ceiling_rows() -> pd.DataFrame:
    values = [-45.0 - 1_000 * eps for eps in EPS]
    return pd.DataFrame({"eps": EPS, "ceiling": values, "attacked_ceiling": [value + 1 for value in values]})
