"""The digit models of notebook 2, and what all experiments on them share: radii, sizes, noise.

Each `*_config` of the experiments is what a row file's header must say for it to be used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from paperlib.certificates.evaluation import NOISE_SEED, evaluation_noise
from paperlib.data.arrays import Dataset
from paperlib.models.vae import VAE
from paperlib.threats.balls import LinfBall
from paperlib.training.config import TrainConfig

EPS = 0.1  # of training, and of every result at a single radius
EPS_GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)


@dataclass(frozen=True)
class ProfileSizes:
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
    "paper": ProfileSizes(4_600, 512, 1_000, 40, 10_000, 8, 100, 16, (1, 2, 5, 10, 20, 40, 80)),
    "smoke": ProfileSizes(200, 64, 50, 10, 100, 2, 20, 4, (1, 2, 5, 10)),
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


def models_config(dataset: str, profile: str) -> dict[str, Any]:
    """What every result on the digit models depends on."""
    models = {name: config.as_dict() for name, config in digit_models(dataset, profile).items()}
    return {"models": models, "noise_seed": NOISE_SEED}


@dataclass(frozen=True)
class ModelAtRadius:
    """One model at one radius on the first test images: the work of one process."""

    name: str  # of the model
    ball: LinfBall
    vae: VAE = field(repr=False)
    x: Tensor = field(repr=False)

    def noise(self, draws: int = 1) -> Tensor:
        """[draws, images, latent_dim]"""
        return evaluation_noise(len(self.x), self.vae.latent_dim, draws)


def models_at_radii(
    models: Mapping[str, VAE], test: Dataset, images: int, radii: Sequence[float]
) -> list[ModelAtRadius]:
    """All models at all radii, in the order of both."""
    return [ModelAtRadius(name, test.ball(eps), vae, test.x[:images]) for name, vae in models.items() for eps in radii]
