"""Linear sets: changes along a few directions, such as lighting or low frequencies, in the data range.

    x' = clamp(x + sum_k delta_k * direction_k, low, high)   with  |delta_k| <= radius_k

A camera saturates: that is the clamp. It is relaxed for each pixel over the box of the deltas, so that bounds are exact
where no pixel saturates, and close as the box of the deltas shrinks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.rounding import gamma, unit_roundoff
from paperlib.threats.linear_region import LinearRegion, scaled
from paperlib.threats.perturbation import PerturbationSet, check_range


@dataclass(frozen=True)
class LinearSet(PerturbationSet):
    """All  x' = clamp(x + sum_k delta_k * direction_k, low, high)  with |delta_k| <= radius_k.

    Linear functions are bounded exactly where no pixel saturates, else from outside, see `LinearRegion`. With at most
    three directions branch and bound over the deltas finds the exact worst x' of images of any size.

    Args:
        directions: [K, *data_shape]; or a function of x that gives [batch, K, *data_shape].
        radius: one for all directions, or K of them.
        low, high: the data range. Infinite ends clamp nothing.

    Raises ValueError for a negative or non-finite radius, directions that are not finite or not as many as radii, or
    low >= high; and where it is used, for directions that do not fit x.
    """

    directions: Tensor | Callable[[Tensor], Tensor]
    radius: float | Sequence[float]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not all(0 <= radius < math.inf for radius in self._radii) or not self._radii:
            raise ValueError(f"each radius must be finite and not negative, got {self.radius}")
        check_range(self.low, self.high)
        if isinstance(self.directions, Tensor):
            if self.directions.ndim < 2 or len(self.directions) == 0 or not self.directions.isfinite().all():
                raise ValueError(f"directions must be finite and [K, *data_shape], got {list(self.directions.shape)}")
            self._check_count(len(self.directions))

    def unchecked_region(self, x: Tensor) -> LinearRegion:
        directions = self._directions(x)
        radius = torch.tensor(self._radii, dtype=x.dtype, device=x.device).expand(directions.shape[:2])
        return LinearRegion.around(x, directions, Interval(-radius, radius), self.low, self.high)

    def sound_region(self, x: Tensor) -> LinearRegion:
        self.check(x)
        region, info = self.unchecked_region(x), torch.finfo(x.dtype)
        directions, deltas = region.directions.double(), region.deltas.map(Tensor.double)
        # each of K products is rounded, and so are K sums
        size = x.double().abs() + scaled(deltas.upper, directions).abs().sum(1)
        rounding = gamma(directions.shape[1] + 2, unit_roundoff(x.dtype)) * size + info.smallest_normal * info.eps
        low, high = (torch.tensor(end, dtype=x.dtype).item() for end in (self.low, self.high))
        return LinearRegion.around(
            x.double(), directions, deltas, min(self.low, low), max(self.high, high), rounding=rounding
        )

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The point of deltas that are drawn uniformly from their box, for each x, of the shape of x."""
        self.check(x)
        region = self.unchecked_region(x)
        lower, upper = region.deltas
        draw = torch.rand(lower.shape, generator=generator, dtype=x.dtype, device=x.device)
        return region._points((lower + (upper - lower) * draw).clamp(lower, upper))

    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        directions = self._directions(x)
        signs = (directions * gradient.unsqueeze(1)).flatten(2).sum(2).sign()
        radius = torch.tensor(self._radii, dtype=x.dtype, device=x.device)
        return scaled(scale * radius * signs, directions).sum(1)

    def scaled(self, factor: float) -> "LinearSet":
        return LinearSet(self.directions, tuple(factor * radius for radius in self._radii), self.low, self.high)

    @property
    def size(self) -> float:
        return float(max(self._radii))

    @property
    def label(self) -> str:
        return f"directions up to {self.size:g}"

    def check(self, x: Tensor) -> None:
        super().check(x)
        directions = self._directions(x)
        if directions.ndim != x.ndim + 1 or directions.shape[2:] != x.shape[1:] or len(directions) != len(x):
            asked = "[K, *data_shape]" if isinstance(self.directions, Tensor) else "[batch, K, *data_shape]"
            shape = list(directions.shape[1:] if isinstance(self.directions, Tensor) else directions.shape)
            raise ValueError(f"directions of shape {shape} do not fit x of {list(x.shape)}: they are {asked}")
        self._check_count(directions.shape[1])

    @property
    def _radii(self) -> tuple[float, ...]:
        return (self.radius,) if isinstance(self.radius, int | float) else tuple(self.radius)

    def _check_count(self, count: int) -> None:
        if len(self._radii) not in (1, count):
            raise ValueError(f"there are {count} directions, but {len(self._radii)} radii")

    def _directions(self, x: Tensor) -> Tensor:
        """[batch, K, *data_shape]"""
        if isinstance(self.directions, Tensor):
            return self.directions.to(x).expand(len(x), *self.directions.shape)
        return self.directions(x)
