"""What a perturbation set is: the inputs that an adversary can choose, in one interface for bounds and attacks.

A set is a small frozen object that holds for any input. Around the inputs of a batch it is a *region*: all that bounds
ask for.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.bounds.affine import affine_rows
from paperlib.bounds.box import Interval
from paperlib.bounds.interval import propagate
from paperlib.bounds.linear import concretize


class Region(ABC):
    """A perturbation set around each input of a batch.

    Attributes:
        box: contains the region, [batch, *data_shape].
        coordinates: where few numbers decide x', the box that they lie in, [batch, *coordinates]; else None. Then
            `points` and `part` are defined.
    """

    box: Interval

    @property
    def coordinates(self) -> Interval | None:
        return None

    @abstractmethod
    def concretize(self, coefficients: Tensor) -> Tensor:
        """The minimum of  coefficients . x'  over the region, or a number below it, [*rows, batch]; differentiable.

        Args:
            coefficients: [*rows, batch, *data_shape].
        """

    @abstractmethod
    def first_layer(self, layer: nn.Module) -> Interval:
        """A box that contains  layer(x')  for every x' of the region, [batch, *out_shape]; differentiable.

        Args:
            layer: affine, with an interval and a relaxation rule; or a `nn.Sequential` of such.
        """

    def zonotope(self, coefficients: Tensor) -> tuple[Tensor, Tensor] | None:
        """Center [*rows, batch] and generators [*rows, batch, errors] so that  coefficients . x'  is
        center + generators . eta  for some eta in [-1, 1] that all rows share. A `ChangeRegion` may have none.

        Args:
            coefficients: [*rows, batch, *data_shape].
        """
        return BoxRegion(self.box).zonotope(coefficients)

    @abstractmethod
    def project(self, x_adv: Tensor) -> Tensor:
        """See `PerturbationSet.project`, for [batch, *data_shape]."""

    @abstractmethod
    def __getitem__(self, rows: Tensor | slice) -> Self:
        """The region around some inputs of the batch."""

    def points(self, coordinates: Tensor, rows: Tensor) -> Tensor:
        """The x' of these coordinates, [count, *data_shape]. Raises NotImplementedError without coordinates.

        Args:
            coordinates: [count, *coordinates].
            rows: the input of the batch to which each of them belongs, [count].
        """
        raise NotImplementedError(f"no few coordinates decide the points of a {type(self).__name__}")

    def part(self, box: Interval, rows: Tensor) -> "Region":
        """All points whose coordinates lie in these boxes: a region around `count` inputs. Arguments as of `points`."""
        raise NotImplementedError(f"no few coordinates decide the points of a {type(self).__name__}")


class ChangeRegion(Region):
    """A region that bounds ask for how far x' can be from x, rather than for its box.

    Attributes:
        x: the inputs that it is around, [batch, *data_shape].
    """

    x: Tensor

    def zonotope(self, coefficients: Tensor) -> tuple[Tensor, Tensor] | None:
        return None

    @abstractmethod
    def change(self, rows: Tensor) -> Interval:
        """A box that contains  rows . (x' - x)  for every x' of the region, [batch, units], outward of its own
        rounding; differentiable.

        Args:
            rows: [units, *data_shape].
        """

    @abstractmethod
    def spread(self, weights: Tensor) -> Tensor:
        """The maximum of  sum_i weights_i |x'_i - x_i|  over the region, or a number above it, [*rows, batch];
        differentiable.

        Args:
            weights: not negative, [*rows, batch, *data_shape].
        """

    def first_layer(self, layer: nn.Module) -> Interval:
        """In real arithmetic, but for what the layer itself rounds at x. See `Region.first_layer`."""
        center = layer(self.x)
        ends = [[*self.change(rows)] for rows in affine_rows(layer, self.x)]
        lower, upper = (torch.cat(parts, 1).view_as(center) for parts in zip(*ends, strict=True))
        return Interval(center + lower, center + upper)


@dataclass(frozen=True)
class BoxRegion(Region):
    """All inputs of a box."""

    box: Interval

    def concretize(self, coefficients: Tensor) -> Tensor:
        return concretize(coefficients, self.box)

    def first_layer(self, layer: nn.Module) -> Interval:
        return propagate(layer, self.box)

    def zonotope(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        data = 1 - self.box.lower.ndim
        center = (coefficients * self.box.center).flatten(data).sum(-1)
        return center, (coefficients * self.box.radius).flatten(data)

    def project(self, x_adv: Tensor) -> Tensor:
        return x_adv.clamp(*self.box)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(self.box.map(lambda end: end[rows]))

    @property
    def coordinates(self) -> Interval:
        return self.box

    def points(self, coordinates: Tensor, rows: Tensor) -> Tensor:
        return coordinates

    def part(self, box: Interval, rows: Tensor) -> "BoxRegion":
        return BoxRegion(box)


class PerturbationSet(ABC):
    """The inputs x' that an adversary can choose instead of x, all of them in the data range [low, high].

    Every set holds x itself.
    """

    low: float
    high: float

    @abstractmethod
    def unchecked_region(self, x: Tensor) -> Region:
        """`region` for inner loops over data that were checked before."""

    @abstractmethod
    def sound_region(self, x: Tensor) -> Region:
        """A region in float64 that holds whatever `project` and `sample` return in the precision of x, rounded as they
        are. Raises ValueError as `check`.
        """

    @abstractmethod
    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random point of the set around each x, of the shape of x."""

    @abstractmethod
    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        """The change within `scale` times the set's size along which a function of this gradient rises most, of the
        shape of x; it may leave the data range.
        """

    def scaled(self, factor: float) -> "PerturbationSet":
        """The set of changes that are `factor` times as large: its size is that times `size`, in the same data range. A
        set of a smaller factor is part of it. Raises NotImplementedError for a set whose size is no such number.
        """
        raise NotImplementedError(f"a {type(self).__name__} has no size that a factor scales")

    @property
    @abstractmethod
    def size(self) -> float:
        """The radius in its own norm and unit, which results are listed by; of several the largest. 0 if x is alone."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What progress lines and captions call the set, such as "eps=0.1"."""

    def region(self, x: Tensor) -> Region:
        """The set around each x. Raises ValueError unless x is finite and in range, and fits the set."""
        self.check(x)
        return self.unchecked_region(x)

    def box(self, x: Tensor) -> Interval:
        """A box of the shape of x that contains the set around x. Raises as `region`."""
        return self.region(x).box

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the set around x that is nearest to x_adv (or near to it, where a class says so)."""
        return self.region(x).project(x_adv)

    def concretize(self, coefficients: Tensor, x: Tensor) -> Tensor:
        """The minimum of  coefficients . x'  over the set around each x, or a number below it, [*rows, batch].

        Args:
            coefficients: [*rows, batch, *data_shape].
        """
        return self.region(x).concretize(coefficients)

    def first_layer(self, layer: nn.Module, x: Tensor) -> Interval:
        """A box that contains  layer(x')  for every x' of the set and an affine layer, [batch, *out_shape]."""
        return self.region(x).first_layer(layer)

    def rows(self, rows: Tensor | slice, x: Tensor) -> "PerturbationSet":
        """The set for some of the inputs x, where it has a size for each of them."""
        return self

    def check(self, x: Tensor) -> None:
        """Raises ValueError, naming the first offender, if x holds a value outside [low, high] or not finite."""
        if x.numel() == 0:
            return
        least, most = x.aminmax()  # both are NaN if any value is, and a comparison with NaN is False
        if not (least >= self.low and most <= self.high and torch.isfinite(least) and torch.isfinite(most)):
            bad = ~((x >= self.low) & (x <= self.high) & torch.isfinite(x))
            index = bad.nonzero()[0].tolist()
            raise ValueError(
                f"x must be finite and in [{self.low}, {self.high}], got {x[tuple(index)]} at index {index}"
            )


def check_range(low: float, high: float) -> None:
    """Raises ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"the data range needs low < high, got low={low}, high={high}")
