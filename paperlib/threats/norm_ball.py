"""What balls of a norm have in common: all inputs within a radius of x, and in the data range.

Such a ball is the same in all orthants: everything about it is said by the sizes  m = |x' - x|  and by caps, how far
each feature can move before it meets the end of the range. Gains are  max { w . m : 0 <= m <= caps, ||m|| <= eps }.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.rounding import gamma, unit_roundoff
from paperlib.threats.perturbation import ChangeRegion, PerturbationSet, check_range

BLOCK = 2**16  # numbers whose minima are sought at a time: they stay in the cache
LARGEST = torch.finfo(torch.float32).max  # change that `project` tells apart from an infinite one


@dataclass(frozen=True)
class NormRegion(ChangeRegion):
    """All x' with ||x' - x|| <= eps for each example and low <= x' <= high."""

    box: Interval
    x: Tensor
    eps: float
    low: float
    high: float

    @classmethod
    def around(cls, x: Tensor, eps: float, low: float, high: float) -> Self:
        """The region around each x [batch, *data_shape]."""
        return cls(Interval((x - eps).clamp(min=low), (x + eps).clamp(max=high)), x, eps, low, high)

    @abstractmethod
    def gain(self, weights: Tensor, caps: Tensor) -> Tensor:
        """The maximum of  weights . m  over  0 <= m <= caps, ||m|| <= eps,  or a number above it, [*rows, batch];
        differentiable.

        Args:
            weights, caps: not negative, [*rows, batch, features].
        """

    @abstractmethod
    def nearest(self, sizes: Tensor, caps: Tensor, eps: float) -> Tensor:
        """The m nearest to `sizes` with  0 <= m <= caps, ||m|| <= eps,  [batch, features].

        Args:
            sizes, caps: not negative, [batch, features]; min(sizes, caps) is outside the ball, or the row is not used.
        """

    @abstractmethod
    def norm(self, change: Tensor) -> Tensor:
        """||change|| of each row of [batch, features]: [batch]."""

    @property
    def down(self) -> Tensor:
        """How far each feature can fall, [batch, *data_shape]."""
        return (self.x - self.low).clamp(max=self.eps)

    @property
    def up(self) -> Tensor:
        """How far each feature can rise, [batch, *data_shape]."""
        return (self.high - self.x).clamp(max=self.eps)

    def concretize(self, coefficients: Tensor) -> Tensor:
        start = 1 - self.x.ndim
        flat, x = coefficients.flatten(start), self.x.flatten(1)
        rows = flat.reshape(math.prod(flat.shape[:-2]), *flat.shape[-2:])
        down, up = self.down.flatten(1), self.up.flatten(1)
        parts = []
        for part in rows.split(max(1, BLOCK // max(1, x.numel()))):
            rises = part.detach().sign().clamp_(min=0)  # not a mask, which is slower
            gain = self.gain(part.abs(), torch.lerp(up, down, rises))
            parts.append((part * x).sum(-1) - gain)
        return torch.cat(parts).view(*flat.shape[:-2], len(x))

    def spread(self, weights: Tensor) -> Tensor:
        start = 1 - self.x.ndim
        return self.gain(weights.flatten(start), torch.maximum(self.down, self.up).flatten(start))

    @torch.no_grad()
    def project(self, x_adv: Tensor) -> Tensor:
        x = self.x.double().flatten(1)
        change = (x_adv.double().flatten(1) - x).clamp(-LARGEST, LARGEST)
        sizes, caps = change.abs(), torch.where(change > 0, self.high - x, x - self.low)
        inside = self.norm(torch.minimum(sizes, caps)) <= self.eps
        sizes = self.nearest(sizes, caps, self.eps * (1 - 64 * unit_roundoff(self.x.dtype)))
        point = (x + change.sign() * sizes).to(self.x.dtype)
        # towards x, so that rounding takes no point out of the ball
        beyond = (point.double() - x).abs() > sizes
        point = torch.where(beyond, point.nextafter(x.to(point)), point).view_as(self.x)
        return torch.where(inside.view(-1, *[1] * (self.x.ndim - 1)), x_adv, point).clamp(self.low, self.high)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        box = self.box.map(lambda end: end[rows])
        return type(self)(box, self.x[rows], self.eps, self.low, self.high)


@dataclass(frozen=True)
class NormBall(PerturbationSet):
    """All x' with ||x' - x|| <= eps for each example and low <= x' <= high, in the norm of the subclass."""

    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be finite and not negative, got {self.eps}")
        check_range(self.low, self.high)

    @property
    @abstractmethod
    def kind(self) -> type[NormRegion]:
        """The region around inputs."""

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """A uniform draw from the ball of radius 1 for each x, [batch, features]."""

    def unchecked_region(self, x: Tensor) -> NormRegion:
        return self.kind.around(x, self.eps, self.low, self.high)

    def sound_region(self, x: Tensor) -> NormRegion:
        self.check(x)
        # `project` leaves no rounded point outside; its norms are taken in float64, and the range's ends rounded
        low, high = (torch.tensor(end, dtype=x.dtype).item() for end in (self.low, self.high))
        eps = self.eps * (1 + gamma(x[:1].numel() + 8, unit_roundoff(torch.float64)))
        return self.kind.around(x.double(), eps, min(self.low, low), max(self.high, high))

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each x, of the shape of x: uniform in the whole ball, then brought into the data range feature
        by feature. So features that the range stops are at its end with positive probability.
        """
        return self.project(x + self.eps * self.draw(x, generator).view_as(x), x)

    def scaled(self, factor: float) -> Self:
        return type(self)(self.eps * factor, self.low, self.high)

    @property
    def size(self) -> float:
        return self.eps
