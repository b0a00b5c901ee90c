"""Certified l2 radii of analysis by synthesis on digits, for notebook 9: a VAE of two latents for each class."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from paperlib.data.arrays import Dataset
from paperlib.data.datasets import load_dataset
from paperlib.detection import latent_search
from paperlib.detection.manifold import ManifoldClassifier
from paperlib.detection.manifold_attack import nearest_other_class
from paperlib.models.vae import VAE
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

CLASSES = 10
WEIGHT = 0.05  # of ||z||^2: of the size of a pixel's mean squared error
TOL = {"paper": 0.01, "smoke": 0.05}  # of an l2 distance
IMAGES = {"paper": 100, "smoke": 2}  # of the test set, the first
PART = {"paper": 50, "smoke": 2}  # of them in one process
ROUNDS = {"paper": 10, "smoke": 1}  # of the attack
SEED = 0  # of the search


def class_models(dataset: str, profile: str) -> list[TrainConfig]:
    """The training of each class's VAE, on the images of that class alone."""
    steps, hidden, batch = (1_200, 64, 128) if profile == "paper" else (40, 16, 32)
    return [
        TrainConfig(
            dataset=dataset, hidden=(hidden,), latent_dim=2, eps=0.0, kappa=1.0, steps=steps, batch_size=batch, seed=c
        )
        for c in range(CLASSES)
    ]


def manifold_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `manifold_rows` depend on."""
    return {
        "models": [config.as_dict() for config in class_models(dataset, profile)],
        "weight": WEIGHT,
        "tol": TOL[profile],
        "images": IMAGES[profile],
        "part": PART[profile],
        "rounds": ROUNDS[profile],
        "search": [latent_search.SAMPLES, latent_search.STEPS, latent_search.LR, SEED],
    }


def manifold_rows(dataset: str, profile: str, folder: Path) -> pd.DataFrame:
    """A row for each of the first test images: index, digit (its true class), right, what
    `ManifoldClassifier.certify` says of it, and attacked: the l2 distance of the nearest input of another class that an
    attack met, infinity where it met none.
    """
    models = list(enumerate(class_models(dataset, profile)))
    vaes = in_parallel(partial(_trained, folder=folder), models, jobs=training_jobs(), name="models")
    starts = list(range(0, IMAGES[profile], PART[profile]))
    task = partial(_certified, classifier=ManifoldClassifier.of(vaes, WEIGHT), dataset=dataset, profile=profile)
    return pd.concat(in_parallel(task, starts, name="images"), ignore_index=True)


def _trained(model: tuple[int, TrainConfig], folder: Path) -> VAE:
    label, config = model
    data = load_dataset(config.dataset)
    own = Dataset(f"{config.dataset}, class {label}", data.x[data.y == label], None, data.low, data.high)
    return train(config, data=own, device="cpu", folder=folder / f"class-{label}-{config.digest}").vae


def _certified(start: int, classifier: ManifoldClassifier, dataset: str, profile: str) -> pd.DataFrame:
    test = load_dataset(dataset, "test")
    assert test.y is not None
    images = slice(start, min(start + PART[profile], IMAGES[profile]))
    x, digit = test.x[images].double(), test.y[images].numpy()
    rows = classifier.certify(x, TOL[profile], torch.Generator().manual_seed(SEED))
    _, attacked = nearest_other_class(classifier, x, ROUNDS[profile], torch.Generator().manual_seed(SEED))
    about = pd.DataFrame({"index": range(images.start, images.stop), "digit": digit, "right": rows["label"] == digit})
    return pd.concat([about, rows, pd.Series(attacked.numpy(), name="attacked")], axis=1)
