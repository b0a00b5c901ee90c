"""The experiments of notebook 1, in the plane, where a dense grid shows the worst case between bound and attack."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.api import elbo_bounds
from paperlib.certificates.branch_and_bound import BranchAndBound
from paperlib.certificates.crown import Crown
from paperlib.certificates.evaluation import certify
from paperlib.data.arrays import Dataset
from paperlib.data.datasets import load_dataset
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.paper.looseness import stage_boxes, stage_values
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.attacks import pgd
from paperlib.training.config import TrainConfig

TOYS = ("two-moons", "eight-gaussians", "pinwheel")
EPS = 0.15  # in units of the plane, whose data fill about [-3, 3]^2
GRID = 61  # points along a side of a landscape
BALL_GRID = 101  # points along a side of a ball
DRAWS = 32
BALL_POINT = 0  # the test point whose ball is shown
SUMMARY_POINTS = 200  # of each test set
TOL = 1e-3  # nats between the exact worst case and what is said of it
TRAINING_STEPS = {"paper": 2_000, "smoke": 200}


def toy_models(toy: str, profile: str) -> dict[str, TrainConfig]:
    """VAE and proVAE for one toy set, by the name that rows and legends use."""
    base = TrainConfig(
        dataset=toy,
        data_shape=(2,),
        hidden=(64, 64),
        latent_dim=2,
        likelihood="gaussian",
        scale=0.3,
        eps=EPS,
        kappa=0.5,
        steps=TRAINING_STEPS[profile],
        lr=3e-3,
    )
    return {"VAE": replace(base, eps=0.0, kappa=1.0), "proVAE": base}


def toy_config(profile: str) -> dict[str, Any]:
    """What all toy results depend on."""
    models = {toy: {name: c.as_dict() for name, c in toy_models(toy, profile).items()} for toy in TOYS}
    sizes = {
        "grid": GRID,
        "ball_grid": BALL_GRID,
        "draws": DRAWS,
        "point": BALL_POINT,
        "points": SUMMARY_POINTS,
        "tol": TOL,
    }
    return {"models": models, "eps": EPS, **sizes}


def landscape(vae: VAE, data: Dataset) -> dict[str, Tensor]:
    """ELBO and certificate over the square [-4, 4]^2, [GRID, GRID] (rows: second coordinate), means of DRAWS draws."""
    axis = torch.linspace(data.low, data.high, GRID)
    points = torch.cartesian_prod(axis, axis).flip(1)
    noise = torch.randn(DRAWS, 1, vae.latent_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        per_draw = [draw.expand(len(points), -1) for draw in noise]
        clean = torch.stack([elbo(vae, points, draw) for draw in per_draw]).mean(0)
        ball = data.ball(EPS)
        certified = torch.stack([elbo_bounds(vae, points, ball, draw).lower for draw in per_draw]).mean(0)
    return {"clean": clean.view(GRID, GRID), "certified": certified.view(GRID, GRID)}


def ball_truth(vae: VAE, x: Tensor, data: Dataset) -> dict[str, Tensor]:
    """One point's ball in float64: the ELBO on a dense grid with its lowest point, the PGD point and the certificates.

    `exact` is the certified minimum of branch and bound, at most TOL below the truth; `certified` is the interval's.

    Args:
        x: [1, 2], the centre.

    Returns:
        points [BALL_GRID ** 2, 2], values [BALL_GRID ** 2], worst [2], pgd [2], and exact, attacked, certified.
    """
    vae, x, ball = vae.in_float64(), x.double(), data.ball(EPS)
    noise = torch.randn(1, vae.latent_dim, generator=torch.Generator().manual_seed(1)).double()
    points = _grid(x, data)
    with torch.no_grad():
        values = elbo(vae, points, noise.expand(len(points), -1))
        x_adv = pgd(vae, x, ball, noise)
        attacked = elbo(vae, x_adv, noise)[0]
        certified = elbo_bounds(vae, x, ball, noise).lower[0]
        exact = elbo_bounds(vae, x, ball, noise, method=BranchAndBound(TOL)).lower[0]
    return {
        "points": points,
        "values": values,
        "worst": points[values.argmin()],
        "pgd": x_adv[0],
        "exact": exact,
        "attacked": attacked,
        "certified": certified,
    }


def box_growth(vae: VAE, x: Tensor, data: Dataset) -> pd.DataFrame:
    """Mean width of the certificate's boxes after each layer beside the width that the dense grid reaches."""
    vae, x = vae.in_float64(), x.double()
    noise = torch.randn(1, vae.latent_dim, generator=torch.Generator().manual_seed(1)).double()
    points = _grid(x, data)
    with torch.no_grad():
        boxes = stage_boxes(vae, data.ball(EPS).box(x), noise)
        values = stage_values(vae, points, noise.expand(len(points), -1))
    return pd.DataFrame(
        {
            "stage": name,
            "box": (box.upper - box.lower).mean().item(),
            "exact": (values[name].amax(0) - values[name].amin(0)).mean().item(),
        }
        for name, box in boxes.items()
    )


def summary_rows(models: Mapping[tuple[str, str], VAE]) -> pd.DataFrame:
    """A row for each data set and model: means over the first SUMMARY_POINTS test points at one noise draw, in nats.

    Clean and its two parts, attacked, exact (the certified minimum, at most TOL below the truth), and the certificates
    by linear bounds and by intervals.
    """
    works = [(vae, load_dataset(toy, "test")) for (toy, _), vae in models.items()]
    summaries = zip(models, in_parallel(_summary, works, name="models"), strict=True)
    return pd.DataFrame({"data": toy, "model": name, **row} for (toy, name), row in summaries)


def _summary(work: tuple[VAE, Dataset]) -> dict[str, float]:
    vae, data = work
    x, ball = data.x[:SUMMARY_POINTS], data.ball(EPS)
    noise = torch.randn(len(x), vae.latent_dim, generator=torch.Generator().manual_seed(1))
    rows = certify(vae, x, ball, noise, attack={"steps": 40})
    by_method = {
        "exact": certify(vae, x, ball, noise, method=BranchAndBound(TOL)),
        "crown": certify(vae, x, ball, noise, method=Crown(alpha_steps=10)),
        "certified": rows,
    }
    means = rows[["clean", "log_likelihood", "kl", "attacked"]].mean()
    return {
        "points": len(x),
        **{str(name): float(value) for name, value in means.items()},
        **{name: float(certified["certified"].mean()) for name, certified in by_method.items()},
    }


def _grid(x: Tensor, data: Dataset) -> Tensor:
    # includes the corners and, as the count is odd, the centre
    lower, upper = (end[0] for end in data.ball(EPS).box(x))
    steps = torch.linspace(0, 1, BALL_GRID, dtype=x.dtype)
    return lower + torch.cartesian_prod(steps, steps).flip(1) * (upper - lower)
