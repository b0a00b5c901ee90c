"""The rows of a certified detector: score, certified and attacked bounds, verdict and its radius; and their summary."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.evaluation import ALLOWANCE, SandwichViolationError, chunk_size
from paperlib.certificates.method import Method
from paperlib.detection.radius import certified_radius
from paperlib.detection.ranking import auc, guaranteed_auc, two_sided_guaranteed_auc
from paperlib.detection.score import score, score_bounds
from paperlib.models.vae import VAE
from paperlib.runtime.progress import Progress
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.search import lowest

MEMORY = 1.0  # GiB for intermediate results
ATTACK_STEPS = 40  # of projected gradient descent, in each direction


@dataclass(frozen=True)
class Certification:
    """How rows are certified: the fields are the arguments of `CertifiedDetector.certify`, and those of its model.

    Args:
        noise: of the score, [draws, latent_dim].
        threshold: a score below it raises an alarm. A verdict is certified if the bounds are on its side by more than
            float64 rounds a score, or with `sound`, which allows for rounding, if they are on its side at all.
    """

    vae: VAE
    noise: Tensor
    threshold: float
    method: str | Method
    sound: bool
    radius: bool
    attack: bool

    @torch.no_grad()
    def rows(self, x: Tensor, perturbation: PerturbationSet) -> pd.DataFrame:
        """One row for each of x [count, features], in chunks: beside the table itself memory is constant in the rows.

        Raises SandwichViolationError unless  lower <= attacked_lower <= score <= attacked_upper <= upper.
        """
        perturbation.check(x)
        if self.radius:
            perturbation.scaled(1.0)  # before any work, as some sets cannot be
        size = chunk_size(self.vae, x[:1], self.noise[:1], self.method, MEMORY)
        frames = []
        with Progress(f"certify {perturbation.label}", len(x)) as progress:
            for start in range(0, len(x), size):
                rows = slice(start, start + size)
                frames.append(self._chunk(x[rows], perturbation.rows(rows, x)))
                progress.step(len(frames[-1]))
        return pd.concat(frames, ignore_index=True)

    def _chunk(self, x: Tensor, perturbation: PerturbationSet) -> pd.DataFrame:
        value = score(self.vae, x, self.noise)
        bounds = around(value, self._bounds(x, perturbation))
        alarm, calm = self._certified(bounds)
        unknown = torch.full_like(value, torch.nan)
        radius, attacked = unknown, Interval(unknown, unknown)
        if self.radius:
            raises = value < self.threshold

            def certified(scaled: PerturbationSet, rows: Tensor) -> Tensor:
                return torch.where(raises[rows], *self._certified(self._bounds(x[rows], scaled)))

            radius = certified_radius(x, perturbation, alarm | calm, certified)
        if self.attack:
            attacked = self._attacked(x, perturbation)
            for end in attacked:
                around(end, bounds)  # raises for one that passes a bound
        columns = {"score": value, "lower": bounds.lower, "upper": bounds.upper}
        columns |= {"certified_radius": radius, "attacked_lower": attacked.lower, "attacked_upper": attacked.upper}
        frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        frame.insert(3, "verdict", np.select([alarm.numpy(), calm.numpy()], ["alarm", "calm"], "undecided"))
        return frame

    def _certified(self, bounds: Interval) -> tuple[Tensor, Tensor]:
        """Whether an alarm and whether calm is certified, each [batch]."""
        margin = 0.0 if self.sound else ALLOWANCE * (1 + abs(self.threshold))
        return bounds.upper < self.threshold - margin, bounds.lower >= self.threshold + margin

    def _bounds(self, x: Tensor, perturbation: PerturbationSet) -> Interval:
        return score_bounds(self.vae, x, perturbation, self.noise, self.method, self.sound)

    def _attacked(self, x: Tensor, perturbation: PerturbationSet) -> Interval:
        """The lowest and the highest score that projected gradient descent meets, [batch]."""

        def value(point: Tensor) -> Tensor:
            return score(self.vae, point, self.noise)

        _, least = lowest(value, x, perturbation, [x], ATTACK_STEPS)
        _, negated = lowest(lambda point: -value(point), x, perturbation, [x], ATTACK_STEPS)
        return Interval(least, -negated)


def around(value: Tensor, bounds: Interval) -> Interval:
    """The bounds, enlarged to hold a score that is reached, which rounding may have put outside of them.

    Raises SandwichViolationError where more than rounding did.
    """
    allowed = ALLOWANCE * (1 + value.abs())
    # an infinite score is compared as it is: what it allows is infinite, too
    below = (bounds.lower <= value) | (bounds.lower <= value + allowed)
    holds = below & ((value <= bounds.upper) | (value <= bounds.upper + allowed))
    if not holds.all():
        row = int((~holds).nonzero()[0])
        raise SandwichViolationError(
            f"the score {value[row]:g} is outside of its certified bounds [{bounds.lower[row]:g}, "
            f"{bounds.upper[row]:g}] in {int((~holds).sum())} of {len(holds)} rows"
        )
    return Interval(torch.minimum(bounds.lower, value), torch.maximum(bounds.upper, value))


@dataclass(frozen=True)
class Summary:
    """Shares of rows, in [0, 1]: `alarms` by their own score; certified within the set: `certified_alarms`,
    `certified_calm` and `undecided`, which are 1 together.
    """

    rows: int
    alarms: float
    certified_alarms: float
    certified_calm: float
    undecided: float

    @classmethod
    def of(cls, frame: pd.DataFrame, threshold: float) -> "Summary":
        """That of the rows of `CertifiedDetector.certify`. Raises ValueError without rows."""
        if frame.empty:
            raise ValueError("there is no row to sum up")
        shares = [float((frame["verdict"] == word).mean()) for word in ("alarm", "calm", "undecided")]
        return cls(len(frame), float((frame["score"] < threshold).mean()), *shares)


@dataclass(frozen=True)
class Separation:
    """How well scores tell outliers from normal rows, in [0, 1]: `auc` of clean scores; `guaranteed`, whatever is done
    to outliers within their set; `two_sided`, whatever is done to outliers and to normal rows.
    """

    auc: float
    guaranteed: float
    two_sided: float

    @classmethod
    def of(cls, normal: pd.DataFrame, outliers: pd.DataFrame) -> "Separation":
        """That of two frames of `CertifiedDetector.certify`. Raises ValueError where one has no rows."""
        clean, lower, outlier, upper = (
            torch.from_numpy(frame[name].to_numpy(dtype=np.float64, copy=True))
            for frame, name in ((normal, "score"), (normal, "lower"), (outliers, "score"), (outliers, "upper"))
        )
        return cls(auc(clean, outlier), guaranteed_auc(clean, upper), two_sided_guaranteed_auc(lower, upper))
