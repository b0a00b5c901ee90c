"""The configuration of one training run: a frozen dataclass whose digest names the run in checkpoints and rows."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from paperlib.data.arrays import Norm
from paperlib.models.discretized_logistic import DiscretizedLogistic
from paperlib.models.exponential import ContinuousBernoulli, Poisson
from paperlib.models.likelihood import Bernoulli, Gaussian, Likelihood
from paperlib.models.vae import VAE, mlp_vae
from paperlib.training.init import interval_aware_
from paperlib.training.objective import full_name

LikelihoodName = Literal["bernoulli", "gaussian", "continuous-bernoulli", "poisson", "discretized-logistic"]
LIKELIHOODS: Mapping[str, Callable[[float], Likelihood]] = {
    "bernoulli": lambda scale: Bernoulli(),
    "gaussian": Gaussian,
    "continuous-bernoulli": lambda scale: ContinuousBernoulli(),
    "poisson": lambda scale: Poisson(),
    "discretized-logistic": DiscretizedLogistic,
}

# Fields that files and digests from before do not have, with the value that those were made with.
LATER_FIELDS: Mapping[str, Any] = {
    "beta": 1.0,
    "objective": "provae",
    "weight_decay": 0.0,
    "threat": "linf",
    "init": "torch",
    "kappa_start": 1.0,
    "averaging": 0.0,
    "input_clip": 0.0,
}


def _whole(name: str, value: Any) -> int:
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != value:
        raise ValueError(f"TrainConfig.{name} must be a whole number, got {value!r}")
    return whole


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of `train`. Raises ValueError naming the first field out of range.

    proVAE maximises kappa * ELBO + (1 - kappa) * certificate (paper, section 4); kappa = 1 is the plain VAE. With a
    `beta` other than 1 both are of  log p - beta * KL  instead (beta-VAE: Higgins et al. 2017).
    eps rises linearly from 0 between `ramp_start` and `ramp_end`, and kappa goes from `kappa_start` to its value at the
    same time; after the ramp the learning rate falls linearly to `lr_final` of its value. Both ramp ends are fractions
    of `steps`.

    Another `objective` than "provae" puts its own robust term in the place of the certificate, see `paperlib.rivals`.
    Kappa, eps, the ramp, beta and target keep their meaning. `bound` is then only that of the history's certificate.
    """

    # Name of the data set: mnist, fashion-mnist, mnist5k, ecg5000 (both embedded), wdbc, auto or a toy set.
    dataset: str = "mnist"
    data_shape: tuple[int, ...] = (784,)  # Shape of one example.
    hidden: tuple[int, ...] = (512,)  # Widths of the encoder's hidden layers, which the decoder mirrors.
    latent_dim: int = 20  # Number of latent coordinates.
    likelihood: LikelihoodName = "bernoulli"  # Density of the data, given the decoder's output.
    scale: float = 1.0  # Standard deviation of gaussian, or scale of discretized-logistic, in data units.
    target: Literal["perturbed", "clean"] = "perturbed"  # Which input the decoder must explain.
    eps: float = 0.1  # Radius of the ball, in data units (pixels in [0, 1]).
    kappa: float = 0.5  # Weight of the clean ELBO against the certificate; 1 is the plain VAE.
    # Certificate that is trained on.
    bound: Literal["ibp", "crown-ibp", "hybrid-zonotope", "zonotope", "dual-network"] = "ibp"
    steps: int = 6_900  # Number of the optimizer's steps.
    batch_size: int = 256  # Examples in a step, of all processes together.
    lr: float = 2e-3  # Learning rate of Adam, up to the end of the ramp.
    lr_final: float = 0.02  # Fraction of the learning rate that is left at the last step.
    ramp_start: float = 0.1  # When eps begins to rise and kappa to fall, as a fraction of the steps.
    ramp_end: float = 0.5  # When eps and kappa are where they stay, as a fraction of the steps.
    clip: float = 1e3  # Largest gradient norm, in nats.
    seed: int = 0  # Seed of weights, batches and noise.
    beta: float = 1.0  # Weight of the KL in the objective; certificates and history are of the ELBO itself, at 1.
    # One of provae, adversarial, smooth-encoder, noise, detector, civet, sabr, mtl-ibp, exp-ibp, interval-regularised;
    # with options: "civet delta=0.01".
    objective: str = "provae"
    weight_decay: float = 0.0  # Each step shrinks all parameters by lr * weight_decay (AdamW); 0 is Adam.
    threat: Norm = "linf"  # Norm of the ball that is trained on: linf, l2 or l1.
    init: Literal["torch", "interval"] = "torch"  # First weights: torch's own, or those that keep boxes small.
    kappa_start: float = 1.0  # Weight of the clean ELBO up to the start of the ramp; it then goes to kappa.
    averaging: float = 0.0  # Decay of the moving average of the weights that is the result; 0 is the last weights.
    input_clip: float = 0.0  # The encoder sees data in [0, 1] clipped to [this, 1 - this]; 0 is the data themselves.

    def __post_init__(self) -> None:
        # Equal values are the same configuration and must have the same digest: an eps of 0 and one of 0.0, 1e3 steps
        # and 1000, a list and a tuple, numbers of numpy.
        for name in ("data_shape", "hidden"):
            sides = getattr(self, name)
            if isinstance(sides, str) or not isinstance(sides, Iterable):
                raise ValueError(f"TrainConfig.{name} takes several whole numbers, such as (8,), got {sides!r}")
            object.__setattr__(self, name, tuple(_whole(name, side) for side in sides))
        for name in ("latent_dim", "steps", "batch_size", "seed"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for field in dataclasses.fields(self):
            if field.type is float:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        rules = {
            "data_shape": bool(self.data_shape) and all(side > 0 for side in self.data_shape),
            "hidden": all(width > 0 for width in self.hidden),
            "latent_dim": self.latent_dim > 0,
            "likelihood": self.likelihood in LIKELIHOODS,
            "scale": 0 < self.scale < math.inf,
            "target": self.target in ("perturbed", "clean"),
            "eps": 0 <= self.eps < math.inf,
            "kappa": 0 <= self.kappa <= 1,
            "bound": self.bound in ("ibp", "crown-ibp", "hybrid-zonotope", "zonotope", "dual-network"),
            "steps": self.steps > 0,
            "batch_size": self.batch_size > 0,
            "lr": 0 < self.lr < math.inf,
            "lr_final": 0 < self.lr_final <= 1,
            "ramp_start": 0 <= self.ramp_start <= self.ramp_end,
            "ramp_end": self.ramp_end <= 1,
            "clip": self.clip > 0,
            "beta": 0 <= self.beta < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "threat": self.threat in get_args(Norm),
            "init": self.init in ("torch", "interval"),
            "kappa_start": 0 <= self.kappa_start <= 1,
            "averaging": 0 <= self.averaging < 1,
            "input_clip": 0 <= self.input_clip < 0.5,
        }
        for name, holds in rules.items():
            if not holds:
                raise ValueError(f"TrainConfig.{name} is out of range: {getattr(self, name)!r}")
        try:
            object.__setattr__(self, "objective", full_name(self.objective))
        except ValueError as error:
            raise ValueError(f"TrainConfig.objective is out of range: {self.objective!r}: {error}") from error

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `as_dict`; raises ValueError for a missing or unknown field."""
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {**LATER_FIELDS, **fields}
        if fields.keys() != names:
            raise ValueError(
                f"a TrainConfig has fields {sorted(names)}; "
                f"missing {sorted(names - fields.keys())}, unknown {sorted(fields.keys() - names)}"
            )
        return cls(**{**fields, "data_shape": tuple(fields["data_shape"]), "hidden": tuple(fields["hidden"])})

    def as_dict(self) -> dict[str, Any]:
        """JSON types only, so that it equals itself after a round trip through a file.

        Fields of LATER_FIELDS are left out where they are as they were before there was such a field.
        """
        shown = {**dataclasses.asdict(self), "data_shape": list(self.data_shape), "hidden": list(self.hidden)}
        return {name: value for name, value in shown.items() if LATER_FIELDS.get(name) != value}

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of `as_dict`: the name of the run."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def build(self) -> VAE:
        """The untrained model in float32 on the CPU; its weights are determined by `seed` alone."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # whatever the default is: the seed promises these weights
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(self.seed)
                likelihood = LIKELIHOODS[self.likelihood](self.scale)
                vae = mlp_vae(self.data_shape, self.hidden, self.latent_dim, likelihood, self.input_clip)
                return interval_aware_(vae) if self.init == "interval" else vae
        finally:
            torch.set_default_dtype(default)
