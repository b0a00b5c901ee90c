"""Standard units inside, the user's units outside: what a detector does to features of different size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paperlib.bounds.scaling import Scaling
from paperlib.data.arrays import Dataset, Norm
from paperlib.models.likelihood import Gaussian
from paperlib.models.vae import VAE
from paperlib.threats.balls import LinfBall
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

Radii = float | Sequence[float] | NDArray[np.float64] | Tensor
FLATTEST = 1e5  # spreads that a mean may be away from 0: the numbers then lose five of their 16 digits


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of each feature, [features], float64."""

    mean: Tensor
    spread: Tensor

    def standardized(self, x: Tensor) -> Tensor:
        """x in standard units, in float32: those that a model is trained in."""
        return ((x - self.mean) / self.spread).float()

    def in_user_units(self, vae: VAE) -> VAE:
        """A model that was trained in standard units, as one of rows in the user's units: with a layer in front of the
        encoder and one behind the decoder, and a Gaussian of one scale a feature. In float64 and evaluation mode.
        """
        inside = vae.in_float64()
        assert isinstance(inside.likelihood, Gaussian)
        encoder = nn.Sequential(Scaling(1 / self.spread, -self.mean / self.spread), inside.encoder)
        decoder = nn.Sequential(inside.decoder, Scaling(self.spread, self.mean))
        likelihood = Gaussian(inside.likelihood.log_scale.exp() * self.spread)
        return VAE(encoder, decoder, likelihood, inside.latent_dim).eval()

    @classmethod
    def of(cls, rows: Tensor, names: Sequence[Any]) -> "Scaler":
        """That of rows [count, features]. Raises ValueError, naming it, for a feature that is or seems constant."""
        constant = (rows == rows[0]).all(0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"column {names[constant[0]]!r} is constant in the {len(rows)} rows to train on, so that it has no "
                "spread to standardize by: leave it out"
            )
        mean, spread = rows.mean(0), rows.std(0)
        flat = (mean.abs() > FLATTEST * spread).nonzero().flatten().tolist()
        if flat:
            raise ValueError(
                f"column {names[flat[0]]!r} varies by {spread[flat[0]]:g} only around a mean of {mean[flat[0]]:g}, too "
                "little for the precision of such numbers: subtract the mean"
            )
        return cls(mean, spread)


class TrainingRows(Dataset):
    """Rows to train on, with one radius a feature: the `eps` of a run is a factor of these radii.

    Args:
        radius: in the units of x, [features].
    """

    radius: Tensor

    def __init__(self, x: Tensor, radius: Tensor, low: float, high: float):
        super().__init__("own rows", x, None, low, high)
        object.__setattr__(self, "radius", radius.to(x))

    def ball(self, eps: float, norm: Norm = "linf") -> LinfBall:
        return LinfBall(eps * self.radius, self.low, self.high)


def feature_radii(eps: Radii, features: int) -> Tensor:
    """One radius a feature, [features], float64, of one number or one a feature.

    Raises ValueError for a negative or infinite radius, or another number of them.
    """
    try:
        # an array is copied, as that of a table's column is read-only
        radius = torch.as_tensor(np.array(eps) if isinstance(eps, np.ndarray) else eps, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"eps must be numbers, got {eps!r}") from error
    if radius.shape not in ((), (features,)):
        raise ValueError(f"eps must be one number or {features}, one a feature, got shape {list(radius.shape)}")
    if not (radius.isfinite() & (radius >= 0)).all():
        raise ValueError(f"eps must be finite and not negative, got {eps!r}")
    return radius.expand(features).clone()


def training_config(parameters: Mapping[str, Any], rows: Tensor, seed: int) -> TrainConfig:
    """The run of a detector with these parameters on rows [count, features]; its `eps` is a factor of radii.

    Raises ValueError for the first parameter out of range.
    """
    hidden = parameters["hidden"]
    shared = ("latent_dim", "likelihood", "scale", "kappa", "steps", "lr")
    weight = float(parameters["outlier_weight"])
    return TrainConfig(
        dataset="own rows",
        data_shape=(rows.shape[1],),
        hidden=tuple(hidden) if isinstance(hidden, list) else hidden,
        eps=1.0,
        bound="crown-ibp",
        batch_size=min(parameters["batch_size"], len(rows) - max(1, len(rows) // 10)),  # `train` holds out a tenth
        seed=seed,
        objective=f"detector outlier_weight={weight}" if weight else "provae",
        **{name: parameters[name] for name in shared},
    )


def trained_on(
    rows: Tensor, radius: Tensor, config: TrainConfig, scaler: Scaler | None, low: float, high: float
) -> VAE:
    """A model of rows in the user's units, trained by `config` with its `eps` as a factor of `radius`.

    With a scaler it is trained in standard units, where no common data range can clip the perturbations.

    Args:
        rows: [count, features], float64.
        radius: of each feature, in the user's units, [features].
        low, high: the data range.
    """
    if scaler is None:
        return train(config, data=TrainingRows(rows.float(), radius, low, high)).vae.in_float64()
    data = TrainingRows(scaler.standardized(rows), radius / scaler.spread, -math.inf, math.inf)
    return scaler.in_user_units(train(config, data=data).vae)
