"""Perturbation sets: which inputs an adversary can choose."""

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval


@dataclass(frozen=True)
class LinfBall:
    """All x' with max|x' - x| <= eps and low <= x' <= high. eps is in the units of the data (pixels in [0, 1]).

    Raises ValueError for a negative or non-finite eps, or low >= high.
    """

    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps must be finite and not negative, got {self.eps}")
        if not self.low < self.high:
            raise ValueError(f"the data range needs low < high, got low={self.low}, high={self.high}")

    def box(self, x: Tensor) -> Interval:
        """The ball around x as a box of the same shape. Raises ValueError unless x is finite and in range."""
        self.check(x)
        return self.unchecked_box(x)

    def unchecked_box(self, x: Tensor) -> Interval:
        """`box` for inner loops over data that were checked before."""
        return Interval((x - self.eps).clamp(min=self.low), (x + self.eps).clamp(max=self.high))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the ball around x that is nearest to x_adv."""
        lower, upper = self.box(x)
        return x_adv.clamp(lower, upper)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One uniform draw from the ball around each x, clipped to the data range, of the shape of x."""
        lower, upper = self.box(x)
        draw = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (lower + (upper - lower) * draw).clamp(lower, upper)

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
