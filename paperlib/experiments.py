"""The experiments on digits: which models, which perturbations, how many images. Everything that a row file depends on.

Rows are made here and drawn in `plots`. Each `*_config` is what a row file's header must say for it to be used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.attack import fgsm, pgd
from paperlib.certify import certify, noise_draws
from paperlib.config import TrainConfig
from paperlib.data import Dataset
from paperlib.elbo import elbo
from paperlib.interval import LinfBall
from paperlib.looseness import looseness
from paperlib.parallel import in_parallel
from paperlib.vae import VAE

EPS = 0.1  # of training, and of every single-eps result
EPS_GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
NOISE_SEED = 1


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the full size of the committed results, or small enough for minutes."""

    steps: int  # of training; half as many more where the loss is the certificate alone
    hidden: int  # width of the hidden layers
    attacked: int  # images, the first of the test set
    attack_steps: int
    certified: int  # images, the first of the test set
    draws: int  # noise draws of each image certified at EPS; one at other radii
    strength: int  # images, the first of the test set
    looseness: int  # images, the first of the test set
    strength_steps: tuple[int, ...]
    strength_restarts: tuple[int, ...] = (1, 4)


SIZES = {
    "paper": Sizes(4_600, 512, 1_000, 40, 10_000, 8, 100, 16, (1, 2, 5, 10, 20, 40, 80)),
    "smoke": Sizes(200, 64, 50, 10, 100, 2, 20, 4, (1, 2, 5, 10)),
}


def digit_models(dataset: str, profile: str) -> dict[str, TrainConfig]:
    """The three models of the paper's comparison, by the name that rows and legends use."""
    size = SIZES[profile]
    base = TrainConfig(dataset=dataset, steps=size.steps, hidden=(size.hidden,), eps=EPS)
    return {
        "VAE": replace(base, eps=0.0, kappa=1.0),
        "proVAE kappa=0": replace(base, kappa=0.0, steps=size.steps * 3 // 2),
        "proVAE kappa=0.5": replace(base, kappa=0.5),
    }


def file_name(model: str) -> str:
    """The file name of a model's checkpoint and history: `02_provae_kappa_0.5` for "proVAE kappa=0.5"."""
    return "02_" + model.lower().replace(" ", "_").replace("=", "_")


def test_noise(images: int, latent_dim: int, draws: int) -> Tensor:
    """The noise of all test results, [draws, images, latent_dim]; draw d of image i is the same whatever the counts."""
    return noise_draws(images, latent_dim, draws, NOISE_SEED)


@dataclass(frozen=True)
class Cell:
    """One model at one radius on the first test images: the work of one process."""

    model: str
    ball: LinfBall
    vae: VAE = field(repr=False)
    x: Tensor = field(repr=False)

    def noise(self, draws: int = 1) -> Tensor:
        return test_noise(len(self.x), self.vae.latent_dim, draws)


def cells(models: Mapping[str, VAE], test: Dataset, images: int, radii: Sequence[float]) -> list[Cell]:
    """All models at all radii, in the order of both."""
    return [Cell(name, test.ball(eps), vae, test.x[:images]) for name, vae in models.items() for eps in radii]


def attack_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `attacked_rows` depend on."""
    size = SIZES[profile]
    return {
        **models_config(dataset, profile),
        "eps": list(EPS_GRID),
        "images": size.attacked,
        "steps": size.attack_steps,
    }


def attacked_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """Rows of `certify` with the attack, for each model and each eps, at one noise draw; checked for the sandwich."""
    size = SIZES[profile]
    task = partial(_attacked, steps=size.attack_steps)
    frames = in_parallel(task, cells(models, test, size.attacked, EPS_GRID), name="attacks")
    return pd.concat(frames, ignore_index=True)


def _attacked(cell: Cell, steps: int) -> pd.DataFrame:
    rows = certify(cell.vae, cell.x, cell.ball, cell.noise(), attack={"steps": steps})
    return rows.drop(columns="draw").assign(model=cell.model)


def strength_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `strength_rows` depend on."""
    size = SIZES[profile]
    return {
        **models_config(dataset, profile),
        "eps": EPS,
        "images": size.strength,
        "steps": list(size.strength_steps),
        "restarts": list(size.strength_restarts),
    }


def strength_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """Is the attack weak? One row per model and attack at EPS: mean and standard error over the images, in nats.

    `worse_than_fgsm` counts the images on which an attack ends above FGSM; for `pgd` it must be 0.
    """
    size = SIZES[profile]
    attacks = [("none", 0, 1), ("random", 0, 1), ("shift", 0, 1), ("fgsm", 1, 1)]
    attacks += [("pgd", steps, restarts) for steps in size.strength_steps for restarts in size.strength_restarts]
    works = [(cell, attack) for cell in cells(models, test, size.strength, [EPS]) for attack in attacks]
    values = {
        (cell.model, *attack): value
        for (cell, attack), value in zip(works, in_parallel(_strength, works, name="attacks"), strict=True)
    }
    return pd.DataFrame(
        {
            "model": model,
            "attack": attack,
            "steps": steps,
            "restarts": restarts,
            "images": len(value),
            "elbo": value.mean().item(),
            "se": (value.std() / len(value) ** 0.5).item(),
            "worse_than_fgsm": int((value > values[model, "fgsm", 1, 1]).sum()),
        }
        for (model, attack, steps, restarts), value in values.items()
    )


def _strength(work: tuple[Cell, tuple[str, int, int]]) -> Tensor:
    """The ELBO where one attack ends, [images], in float64."""
    cell, (attack, steps, restarts) = work
    vae, x, noise, ball = cell.vae.in_float64(), cell.x.double(), cell.noise()[0].double(), cell.ball
    generator = torch.Generator().manual_seed(NOISE_SEED)
    if attack == "pgd":
        point = pgd(vae, x, ball, noise, steps, restarts, generator)
    elif attack == "fgsm":
        point = fgsm(vae, x, ball, noise)
    else:
        point = {"none": x, "random": ball.sample(x, generator), "shift": ball.project(x + ball.eps, x)}[attack]
    with torch.no_grad():
        return elbo(vae, point, noise)


def certified_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `certified_rows` depend on."""
    size = SIZES[profile]
    return {
        **models_config(dataset, profile),
        "eps": list(EPS_GRID),
        "images": size.certified,
        "draws": size.draws,
    }


def certified_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clean and certified ELBO of the test images, at EPS for several noise draws.

    Returns one row per model and eps (means over images of each image's mean over draws, with their standard errors;
    `draw_sd` is the deviation of the certified mean from draw to draw), and one row per model and image at EPS.
    """
    size = SIZES[profile]
    every = cells(models, test, size.certified, EPS_GRID)
    summary, images = [], []
    for cell, rows in zip(every, in_parallel(partial(_certified, draws=size.draws), every, name="radii"), strict=True):
        by_image = rows.groupby("index")[["clean", "log_likelihood", "kl", "certified"]].mean()
        row = {"model": cell.model, "eps": cell.ball.eps, "images": len(by_image), "draws": rows["draw"].nunique()}
        row |= dict(by_image.mean())
        row |= {f"{column}_se": by_image[column].sem() for column in ("clean", "certified")}
        row["draw_sd"] = rows.groupby("draw")["certified"].mean().std()
        summary.append(row)
        if cell.ball.eps == EPS:
            images.append(by_image.reset_index().assign(model=cell.model))
    return pd.DataFrame(summary), pd.concat(images, ignore_index=True)


def _certified(cell: Cell, draws: int) -> pd.DataFrame:
    return certify(cell.vae, cell.x, cell.ball, cell.noise(draws if cell.ball.eps == EPS else 1))


def looseness_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `looseness_rows` depend on."""
    return {**models_config(dataset, profile), "eps": EPS, "images": SIZES[profile].looseness}


def looseness_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """The stages of `looseness` at EPS for each model, in float64."""
    x = test.x[: SIZES[profile].looseness].double()
    frames = [
        looseness(vae.in_float64(), x, test.ball(EPS), test_noise(len(x), vae.latent_dim, draws=1)[0].double()).assign(
            model=name
        )
        for name, vae in models.items()
    ]
    return pd.concat(frames, ignore_index=True)


def models_config(dataset: str, profile: str) -> dict[str, Any]:
    """What every result on the digit models depends on."""
    models = {name: config.as_dict() for name, config in digit_models(dataset, profile).items()}
    return {"models": models, "noise_seed": NOISE_SEED}
