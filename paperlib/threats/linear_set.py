"""Linear sets: changes along a few directions, such as lighting or low frequencies, in the data range.

    x' = clamp(x + sum_k delta_k * direction_k, low, high)   with  |delta_k| <= radius_k

A camera saturates: that is the clamp. It is relaxed for each pixel over the box of the deltas, so that bounds are exact
where no pixel saturates, and close as the box of the deltas shrinks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import outward
from paperlib.bounds.linear import LinearRelaxation, backward_substitute, concretize, initial_alpha
from paperlib.bounds.relaxation import relaxation_rule
from paperlib.bounds.rounding import gamma, unit_roundoff
from paperlib.threats.perturbation import ChangeRegion, PerturbationSet, check_range

UNBOUNDED = 1e30  # stands for an infinite end of the range
VERTICES = 3  # directions up to which all corners of their box are tried


@dataclass(frozen=True)
class LinearRegion(ChangeRegion):
    """All  clamp(x + sum_k delta_k * direction_k, low, high)  with deltas in a box of their own for each example.

    Attributes:
        unclamped: the exact box of x + sum_k delta_k * direction_k.
        rounding: how far computed points may be from exact ones, [batch, *data_shape]; None in real arithmetic.
    """

    box: Interval
    x: Tensor
    directions: Tensor  # [batch, K, *data_shape]
    deltas: Interval  # [batch, K]
    low: float
    high: float
    unclamped: Interval
    rounding: Tensor | None

    @classmethod
    def around(
        cls, x: Tensor, directions: Tensor, deltas: Interval, low: float, high: float, rounding: Tensor | None = None
    ) -> "LinearRegion":
        """The region around each x [batch, *data_shape]; its box is exact."""
        first, last = (_along(end, directions) for end in deltas)
        changes = Interval(torch.minimum(first, last).sum(1), torch.maximum(first, last).sum(1))
        unclamped = changes.map(lambda end: x + end)
        box = unclamped.map(lambda end: end.clamp(low, high))
        box = box if rounding is None else box.widen(rounding)
        return cls(box, x, directions, deltas, low, high, unclamped, rounding)

    @property
    def coordinates(self) -> Interval:
        return self.deltas

    def points(self, coordinates: Tensor, rows: Tensor) -> Tensor:
        return self[rows]._points(coordinates)

    def part(self, box: Interval, rows: Tensor) -> "LinearRegion":
        rounding = None if self.rounding is None else self.rounding[rows]
        return LinearRegion.around(self.x[rows], self.directions[rows], box, self.low, self.high, rounding)

    def __getitem__(self, rows: Tensor | slice) -> "LinearRegion":
        rounding = None if self.rounding is None else self.rounding[rows]
        deltas = self.deltas.map(lambda end: end[rows])
        return LinearRegion.around(self.x[rows], self.directions[rows], deltas, self.low, self.high, rounding)

    def concretize(self, coefficients: Tensor) -> Tensor:
        """Exact where no pixel saturates; never looser than over the box."""
        start = 1 - self.x.ndim
        slopes, offset = backward_substitute(coefficients, self._clamp)
        along = torch.einsum("...bn,bkn->...bk", slopes.flatten(start), self.directions.flatten(2))
        least = (offset + slopes * self.x).flatten(start).sum(-1) + concretize(along, self.deltas)
        if self.rounding is not None:
            least = least - (coefficients.abs() * self.rounding).flatten(start).sum(-1)
        return torch.maximum(least, concretize(coefficients, self.box))

    def change(self, rows: Tensor) -> Interval:
        """From the relaxed clamp: exact where no pixel saturates. K + 1 products of matrices for each sign and end."""
        flat, clamp = rows.flatten(1), self._clamp
        positive, negative = flat.clamp(min=0).T, flat.clamp(max=0).T
        lines = initial_alpha(clamp.lower), initial_alpha(clamp.upper)
        x, directions = self.x.flatten(1), self.directions.flatten(2)
        slopes = [line.slope.flatten(1) for line in lines]
        shifts = [slope * x + line.offset.flatten(1) - x for slope, line in zip(slopes, lines, strict=True)]
        slopes_along = [slope.unsqueeze(1) * directions for slope in slopes]
        factor = outward(flat.shape[1] + self.directions.shape[1] + 8, rows.dtype) - 1
        ends = []
        for sign, one, other in ((-1, 0, 1), (1, 1, 0)):  # below by the lower line where a weight is positive
            middle = shifts[one] @ positive + shifts[other] @ negative
            along = slopes_along[one] @ positive + slopes_along[other] @ negative
            first, last = (end.unsqueeze(2) * along for end in self.deltas)
            extreme = torch.minimum(first, last) if sign < 0 else torch.maximum(first, last)
            margin = factor * (middle.abs() + extreme.abs().sum(1))
            if self.rounding is not None:
                margin = margin + self.rounding.flatten(1) @ flat.abs().T
            ends.append(middle + extreme.sum(1) + sign * margin)
        return Interval(*ends)

    def spread(self, weights: Tensor) -> Tensor:
        """Exact where no pixel saturates, for at most `VERTICES` directions; never looser than over the box."""
        start = 1 - self.x.ndim
        saturates = (self.unclamped.lower < self.low) | (self.unclamped.upper > self.high)
        furthest = torch.maximum(*((end - self.x).abs() for end in self.box))
        count = self.deltas.lower.shape[1]
        if count > VERTICES:
            return (weights * furthest).flatten(start).sum(-1)
        # a sum of |linear functions| is convex in the deltas, and so largest at a corner of their box
        most = torch.full_like(weights.flatten(start)[..., 0], -math.inf)
        for high in product([False, True], repeat=count):
            deltas = torch.where(torch.tensor(high, device=self.x.device), self.deltas.upper, self.deltas.lower)
            sizes = torch.where(saturates, furthest, _along(deltas, self.directions).sum(1).abs())
            most = torch.maximum(most, (weights * sizes).flatten(start).sum(-1))
        if self.rounding is not None:
            most = most + (weights * self.rounding).flatten(start).sum(-1)
        return most

    @torch.no_grad()
    def project(self, x_adv: Tensor) -> Tensor:
        """Near to x_adv: the deltas of least squares over the pixels of x_adv that are inside the data range, brought
        into their box. A point of the region whose other pixels leave its deltas no choice is its own projection.
        """
        inside = ((x_adv > self.low) & (x_adv < self.high)).flatten(1)
        change = torch.where(inside, (x_adv - self.x).flatten(1), 0.0).double()
        directions = (self.directions.flatten(2) * inside.unsqueeze(1)).double()
        gram, image = directions @ directions.mT, directions @ change.unsqueeze(2)
        deltas = (torch.linalg.pinv(gram, hermitian=True) @ image).squeeze(2)
        return self._points(deltas.to(self.x).clamp(*self.deltas))

    def _points(self, deltas: Tensor) -> Tensor:
        return (self.x + _along(deltas, self.directions).sum(1)).clamp(self.low, self.high)

    @property
    def _clamp(self) -> LinearRelaxation:
        """clamp(v, low, high), relaxed over the box of v."""
        clamp = nn.Hardtanh(max(self.low, -UNBOUNDED), min(self.high, UNBOUNDED))
        relaxation = relaxation_rule(clamp, self.unclamped)
        assert isinstance(relaxation, LinearRelaxation)
        return relaxation


def _along(deltas: Tensor, directions: Tensor) -> Tensor:
    """delta_k * direction_k, [batch, K, *data_shape]: the same order of sums for points and box."""
    return deltas.view(*deltas.shape, *[1] * (directions.ndim - 2)) * directions


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
        size = x.double().abs() + _along(deltas.upper, directions).abs().sum(1)
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
        return _along(scale * radius * signs, directions).sum(1)

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
