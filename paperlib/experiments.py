"""The experiments on digits: which models, which perturbations, how many images. Everything that a row file depends on.

Rows are made here and drawn in `plots`. Each `*_config` is what a row file's header must say for it to be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.attack import fgsm, pgd
from paperlib.certify import certify
from paperlib.config import TrainConfig
from paperlib.data import Dataset
from paperlib.elbo import elbo
from paperlib.looseness import looseness
from paperlib.vae import VAE

EPS = 0.1  # of training, and of every single-eps result
EPS_GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
NOISE_SEED = 1


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the full size of the committed results, or small enough for minutes."""

    steps: int  # of training
    hidden: int  # width of the hidden layers
    attacked: int  # images, the first of the test set
    attack_steps: int
    certified: int  # images, the first of the test set
    draws: int  # noise draws of each certified image
    strength: int  # images, the first of the test set
    looseness: int  # images, the first of the test set
    strength_steps: tuple[int, ...]
    strength_restarts: tuple[int, ...] = (1, 4)


SIZES = {
    "paper": Sizes(6_900, 512, 1_000, 40, 10_000, 8, 200, 16, (1, 2, 5, 10, 20, 40, 80)),
    "smoke": Sizes(200, 64, 50, 10, 100, 2, 20, 4, (1, 2, 5, 10)),
}


def digit_models(dataset: str, profile: str) -> dict[str, TrainConfig]:
    """The three models of the paper's comparison, by the name that rows and legends use."""
    size = SIZES[profile]
    base = TrainConfig(dataset=dataset, steps=size.steps, hidden=(size.hidden,), eps=EPS)
    return {
        "VAE": replace(base, eps=0.0, kappa=1.0),
        "proVAE kappa=0": replace(base, kappa=0.0),
        "proVAE kappa=0.5": replace(base, kappa=0.5),
    }


def file_name(model: str) -> str:
    """The file name of a model's checkpoint and history: `02_provae_kappa_0.5` for "proVAE kappa=0.5"."""
    return "02_" + model.lower().replace(" ", "_").replace("=", "_")


def test_noise(images: int, latent_dim: int, draws: int) -> Tensor:
    """The noise of all test results, [draws, images, latent_dim]; draw d of image i is the same whatever the counts."""
    return torch.stack(
        [
            torch.randn(10_000, latent_dim, generator=torch.Generator().manual_seed(NOISE_SEED + draw))[:images]
            for draw in range(draws)
        ]
    )


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
    x = test.x[: size.attacked]
    frames = []
    for name, vae in models.items():
        noise = test_noise(len(x), vae.latent_dim, draws=1)
        for eps in EPS_GRID:
            frame = certify(vae, x, test.ball(eps), noise, attack={"steps": size.attack_steps})
            frames.append(frame.drop(columns="draw").assign(model=name))
    return pd.concat(frames, ignore_index=True)


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
    x = test.x[: size.strength].double()
    ball = test.ball(EPS)
    rows = []
    for name, model in models.items():
        vae = model.in_float64()
        noise = test_noise(len(x), vae.latent_dim, draws=1)[0].double()
        random = ball.sample(x, torch.Generator().manual_seed(NOISE_SEED))
        points = {("none", 0, 1): x, ("random", 0, 1): random, ("shift", 0, 1): ball.project(x + EPS, x)}
        points["fgsm", 1, 1] = fgsm(vae, x, ball, noise)
        for steps in size.strength_steps:
            for restarts in size.strength_restarts:
                generator = torch.Generator().manual_seed(NOISE_SEED)
                points["pgd", steps, restarts] = pgd(vae, x, ball, noise, steps, restarts, generator)
        with torch.no_grad():
            values = {key: elbo(vae, point, noise) for key, point in points.items()}
        for (attack, steps, restarts), value in values.items():
            rows.append(
                {
                    "model": name,
                    "attack": attack,
                    "steps": steps,
                    "restarts": restarts,
                    "images": len(x),
                    "elbo": value.mean().item(),
                    "se": (value.std() / len(x) ** 0.5).item(),
                    "worse_than_fgsm": int((value > values["fgsm", 1, 1]).sum()),
                }
            )
    return pd.DataFrame(rows)


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
    """Clean and certified ELBO of the test images at several noise draws.

    Returns one row per model and eps (means over images of each image's mean over draws, with their standard errors;
    `draw_sd` is the deviation of the certified mean from draw to draw), and one row per model and image at EPS.
    """
    size = SIZES[profile]
    x = test.x[: size.certified]
    summary, images = [], []
    for name, vae in models.items():
        noise = test_noise(len(x), vae.latent_dim, size.draws)
        for eps in EPS_GRID:
            rows = certify(vae, x, test.ball(eps), noise)
            by_image = rows.groupby("index")[["clean", "log_likelihood", "kl", "certified"]].mean()
            row = {"model": name, "eps": eps, "images": len(by_image), "draws": size.draws, **by_image.mean()}
            row |= {f"{column}_se": by_image[column].sem() for column in ("clean", "certified")}
            row["draw_sd"] = rows.groupby("draw")["certified"].mean().std()
            summary.append(row)
            if eps == EPS:
                images.append(by_image.reset_index().assign(model=name))
    return pd.DataFrame(summary), pd.concat(images, ignore_index=True)


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
