"""Balls: all inputs within a radius of x in some norm, and in the data range."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.rounding import gamma, unit_roundoff
from paperlib.threats.perturbation import BoxRegion, PerturbationSet, check_range


@dataclass(frozen=True)
class LinfBall(PerturbationSet):
    """All x' with |x' - x| <= eps for each feature and low <= x' <= high.

    Args:
        eps: in the units of the data (pixels in [0, 1]). A number; or a tensor that broadcasts to x: of the data's
            shape for one radius a feature (0 freezes it), or [count, *1s] for one an example.
        low, high: the data range.

    Raises ValueError for a negative or non-finite eps, or low >= high; and where it is used, for a tensor that does not
    broadcast to x.
    """

    eps: float | Tensor
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.eps, Tensor):
            valid = bool(((self.eps >= 0) & self.eps.isfinite()).all())
        else:
            valid = 0 <= self.eps < math.inf  # no tensor: no device is waited for
        if not valid:
            raise ValueError(f"eps must be finite and not negative, got {self.eps}")
        check_range(self.low, self.high)

    def unchecked_region(self, x: Tensor) -> BoxRegion:
        eps = self._radius(x)
        return BoxRegion(Interval((x - eps).clamp(min=self.low), (x + eps).clamp(max=self.high)))

    def sound_region(self, x: Tensor) -> BoxRegion:
        self.check(x)
        deployed, center = x.dtype, x.double()
        # eps is rounded, to nothing if it is small enough, and then the difference
        eps = self.eps.to(x).double() if isinstance(self.eps, Tensor) else self.eps
        smallest = torch.finfo(deployed).smallest_normal * torch.finfo(deployed).eps
        radius = gamma(4, unit_roundoff(deployed)) * (center.abs() + eps) + smallest
        low, high = (torch.tensor(end, dtype=deployed).item() for end in (self.low, self.high))
        lower = (center - eps - radius).clamp(min=min(self.low, low))
        upper = (center + eps + radius).clamp(max=max(self.high, high))
        return BoxRegion(Interval(lower, upper))

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One uniform draw from the ball around each x, clipped to the data range, of the shape of x."""
        lower, upper = self.box(x)
        draw = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (lower + (upper - lower) * draw).clamp(lower, upper)

    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return self._radius(x) * scale * gradient.sign()

    def scaled(self, factor: float | Tensor) -> "LinfBall":
        """See `PerturbationSet.scaled`; a tensor [count, *1s] is one factor an example."""
        return LinfBall(self.eps * factor, self.low, self.high)

    @property
    def size(self) -> float:
        return self.eps.max().item() if isinstance(self.eps, Tensor) else self.eps

    @property
    def label(self) -> str:
        return f"eps up to {self.size:g}" if isinstance(self.eps, Tensor) else f"eps={self.eps:g}"

    def rows(self, rows: Tensor | slice, x: Tensor) -> "LinfBall":
        if not isinstance(self.eps, Tensor) or self.eps.ndim < x.ndim or len(self.eps) == 1:
            return self
        return LinfBall(self.eps[rows], self.low, self.high)

    def check(self, x: Tensor) -> None:
        super().check(x)
        if isinstance(self.eps, Tensor):
            try:
                fits = torch.broadcast_shapes(self.eps.shape, x.shape) == x.shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(
                    f"eps of shape {list(self.eps.shape)} does not broadcast to x of {list(x.shape)}: one radius a "
                    f"feature is {list(x.shape[1:])}, one an example is {[len(x), *[1] * (x.ndim - 1)]}"
                )

    def _radius(self, x: Tensor) -> float | Tensor:
        return self.eps.to(x) if isinstance(self.eps, Tensor) else self.eps
