"""The configuration of one training run: a frozen dataclass whose digest names the run in checkpoints and rows."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from paperlib.models.likelihood import Bernoulli, Gaussian, Likelihood
from paperlib.models.vae import VAE, mlp_vae


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of `train`. Raises ValueError naming the first field out of range.

    proVAE maximises kappa * ELBO + (1 - kappa) * certificate (paper, section 4); kappa = 1 is the plain VAE.
    eps rises linearly from 0 between `ramp_start` and `ramp_end`, and kappa falls from 1 at the same time; after the
    ramp the learning rate falls linearly to `lr_final` of its value. Both ramp ends are fractions of `steps`.
    """

    dataset: str = "mnist"  # or fashion-mnist, mnist5k (embedded), auto, two-moons, eight-gaussians, pinwheel
    data_shape: tuple[int, ...] = (784,)  # of one example
    hidden: tuple[int, ...] = (512,)  # widths of the encoder's hidden layers, which the decoder mirrors
    latent_dim: int = 20  # number of latent coordinates
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"  # of a pixel, given the decoder's output
    scale: float = 1.0  # standard deviation of the Gaussian likelihood, in data units
    target: Literal["perturbed", "clean"] = "perturbed"  # what the decoder must explain
    eps: float = 0.1  # radius of the ball, in data units (pixels in [0, 1])
    kappa: float = 0.5  # weight of the clean ELBO against the certificate; 1 is the plain VAE
    bound: Literal["ibp", "crown-ibp"] = "ibp"  # which certificate to train on
    steps: int = 6_900  # of the optimizer
    batch_size: int = 256  # of all processes together
    lr: float = 2e-3  # learning rate of Adam, up to the end of the ramp
    lr_final: float = 0.02  # its fraction that is left at the last step
    ramp_start: float = 0.1  # when eps begins to rise and kappa to fall, as a fraction of steps
    ramp_end: float = 0.5  # when both are where they stay
    clip: float = 1e3  # largest gradient norm, in nats
    seed: int = 0  # of weights, batches and noise

    def __post_init__(self) -> None:
        # An eps of 0 and one of 0.0 are the same configuration and must have the same digest.
        for name in ("scale", "eps", "kappa", "lr", "lr_final", "ramp_start", "ramp_end", "clip"):
            object.__setattr__(self, name, float(getattr(self, name)))
        rules = {
            "data_shape": bool(self.data_shape) and all(side > 0 for side in self.data_shape),
            "hidden": all(width > 0 for width in self.hidden),
            "latent_dim": self.latent_dim > 0,
            "likelihood": self.likelihood in ("bernoulli", "gaussian"),
            "scale": 0 < self.scale < math.inf,
            "target": self.target in ("perturbed", "clean"),
            "eps": 0 <= self.eps < math.inf,
            "kappa": 0 <= self.kappa <= 1,
            "bound": self.bound in ("ibp", "crown-ibp"),
            "steps": self.steps > 0,
            "batch_size": self.batch_size > 0,
            "lr": 0 < self.lr < math.inf,
            "lr_final": 0 < self.lr_final <= 1,
            "ramp_start": 0 <= self.ramp_start <= self.ramp_end,
            "ramp_end": self.ramp_end <= 1,
            "clip": self.clip > 0,
        }
        for name, holds in rules.items():
            if not holds:
                raise ValueError(f"TrainConfig.{name} is out of range: {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `as_dict`; raises ValueError for a missing or unknown field."""
        names = {field.name for field in dataclasses.fields(cls)}
        if fields.keys() != names:
            raise ValueError(
                f"a TrainConfig has fields {sorted(names)}; "
                f"missing {sorted(names - fields.keys())}, unknown {sorted(fields.keys() - names)}"
            )
        return cls(**{**fields, "data_shape": tuple(fields["data_shape"]), "hidden": tuple(fields["hidden"])})

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, so that it equals itself after a round trip through a file."""
        return {**dataclasses.asdict(self), "data_shape": list(self.data_shape), "hidden": list(self.hidden)}

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of all fields: the name of the run."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def build(self) -> VAE:
        """The untrained model in float32 on the CPU; its weights are determined by `seed` alone."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # whatever the default is: the seed promises these weights
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(self.seed)
                likelihood: Likelihood = Bernoulli() if self.likelihood == "bernoulli" else Gaussian(self.scale)
                return mlp_vae(self.data_shape, self.hidden, self.latent_dim, likelihood)
        finally:
            torch.set_default_dtype(default)
