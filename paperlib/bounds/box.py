"""Boxes: the sets of all tensors between two, elementwise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CROSSING = 2**12  # rounding errors of two bounds' size by which they may lie apart


@dataclass(frozen=True)
class Interval:
    """The set of all tensors t with lower <= t <= upper, elementwise. Both ends have the same shape and dtype."""

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"the ends of an interval differ in shape: {self.lower.shape} and {self.upper.shape}")

    @classmethod
    def from_bounds(cls, lower: Tensor, upper: Tensor) -> "Interval":
        """The interval between two tensors; raises ValueError where lower > upper or an end is NaN."""
        interval = cls(lower, upper)
        if not (lower <= upper).all():
            where = (~(lower <= upper)).nonzero()[0].tolist()
            raise ValueError(f"lower <= upper fails at index {where}: ends must be ordered and not NaN")
        return interval

    @property
    def center(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    def contains(self, value: Tensor) -> Tensor:
        """Elementwise and exact, without a tolerance: bool tensor of the shape of `value`."""
        return (self.lower <= value) & (value <= self.upper)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Interval":
        """The image of the box under an elementwise non-decreasing function or a pure reshaping: exact."""
        return Interval(function(self.lower), function(self.upper))

    def chunk(self, chunks: int, dim: int) -> Iterator["Interval"]:
        return (Interval(low, up) for low, up in zip(*(e.chunk(chunks, dim) for e in self), strict=True))

    def widen(self, radius: Tensor) -> "Interval":
        """The box with `radius` more on both sides."""
        return Interval(self.lower - radius, self.upper + radius)

    def intersect(self, other: "Interval") -> "Interval":
        """What lies in both boxes: two bounds of the same quantity are one that is at least as tight.

        An end that is NaN bounds nothing. Where boxes are disjoint by rounding alone, the result holds both.

        Raises ArithmeticError for boxes farther apart, which cannot bound the same quantity.
        """
        lower, upper = torch.fmax(self.lower, other.lower), torch.fmin(self.upper, other.upper)
        crossed = lower > upper
        if crossed.any():
            size = torch.stack([*self, *other]).abs().amax(0)
            if (lower - upper > CROSSING * torch.finfo(lower.dtype).eps * (1 + size)).any():
                worst = (lower - upper)[crossed].max()
                raise ArithmeticError(
                    f"two bounds of one quantity are {worst:g} apart: {lower.dtype} rounds more than they are wide; "
                    "use float64, or sound=True"
                )
            lower = torch.where(crossed, torch.minimum(self.lower, other.lower), lower)
            upper = torch.where(crossed, torch.maximum(self.upper, other.upper), upper)
        return Interval(lower, upper)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.lower, self.upper))
