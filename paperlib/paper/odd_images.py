"""Digits against the rest, for notebook 8: the AUC that is left whatever an adversary does to the outliers.

Training sees digits alone, and outliers made of them and of noise; no image of the sets that are measured here.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.data.datasets import data_origin, load_dataset
from paperlib.data.outliers import inverted, rotated, shuffled, uniform
from paperlib.detection import CertifiedDetector
from paperlib.detection.ranking import auc, guaranteed_auc, two_sided_guaranteed_auc
from paperlib.models.likelihood import Bernoulli
from paperlib.models.vae import VAE
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

RADII = (0.1, 0.3)
MEANS = "pixel means"  # the constant decoder
SHARED: dict[str, Any] = {"hidden": (64,), "latent_dim": 4, "bound": "crown-ibp", "eps": 0.3}
RECIPES: dict[str, dict[str, Any]] = {"VAE": {"kappa": 1.0}, "proVAE": {"kappa": 0.5}, "detector": {"kappa": 0.5}}
STEPS = {"paper": 3_000, "smoke": 30}
IMAGES = {"paper": 10_000, "smoke": 50}  # of each set, the first
SEED = 0  # of shuffled pixels and uniform noise
METHOD = "crown-ibp"


def configs(dataset: str, profile: str) -> dict[str, TrainConfig]:
    """The models that are trained, by name."""
    return {name: TrainConfig(dataset, steps=STEPS[profile], **SHARED | recipe) for name, recipe in RECIPES.items()}


def outlier_names(dataset: str) -> tuple[str, ...]:
    """What digits are told from: other images where the full sets are, and digits made abnormal."""
    made = ("uniform noise", "inverted digits", "rotated digits", "shuffled digits")
    return ("fashion-mnist", "notmnist", *made) if dataset == "mnist" else made


def images_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `image_rows` depend on."""
    return {
        "configs": {name: config.as_dict() for name, config in configs(dataset, profile).items()},
        "data": {name: data_origin(name) for name in outlier_names(dataset) if " " not in name},
        "radii": list(RADII),
        "images": IMAGES[profile],
        "outliers": list(outlier_names(dataset)),
        "method": METHOD,
        "seed": SEED,
    }


def outliers(dataset: str, name: str, count: int) -> Tensor:
    """The first images of an outlier set, [count, 784], float64 in [0, 1]."""
    if " " not in name:
        return load_dataset(name, "test").x[:count].double()
    generator = torch.Generator().manual_seed(SEED)
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "uniform noise": partial(uniform, generator=generator),
        "inverted digits": inverted,
        "rotated digits": rotated,
        "shuffled digits": partial(shuffled, generator=generator),
    }
    return made[name](load_dataset(dataset, "test").x[:count].double())


def pixel_means(x: Tensor) -> VAE:
    """A constant decoder: each pixel has its mean over x [count, pixels] as its probability, and the KL is 0."""
    encoder, decoder = nn.Linear(x.shape[1], 2), nn.Linear(1, x.shape[1])
    with torch.no_grad():
        for parameter in (*encoder.parameters(), decoder.weight):
            parameter.zero_()
        # where no image has ink, a mean of one in ten thousand images stands for none
        decoder.bias.copy_(torch.logit(x.mean(0).clamp(1e-4, 1 - 1e-4)))
    return VAE(nn.Sequential(encoder), nn.Sequential(decoder), Bernoulli(), latent_dim=1).eval()
