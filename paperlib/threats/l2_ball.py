"""The l2 ball: all inputs within a Euclidean distance of x, and in the data range.

    max  w . m   over  0 <= m <= caps,  ||m||_2 <= eps        (features move by m, each at most as far as the range)

is reached at  m = min(t w, caps)  with the t at which ||m|| = eps, or at the caps where they are all inside the ball.
Its dual: for every t > 0 the maximum is at most

    sum_i ( w_i m_i - m_i^2 / (2 t) ) + eps^2 / (2 t)   with  m = min(t w, caps).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import outward
from paperlib.threats.norm_ball import NormBall, NormRegion

STEPS = 24  # of Newton's method, at most; three to five are usual, and any number gives a bound
LARGE = 2.0**100  # t beyond which it is not followed; it and its inverse are normal numbers of float32


@dataclass(frozen=True)
class L2Region(NormRegion):
    """All x' with ||x' - x||_2 <= eps and low <= x' <= high. `concretize` and `spread` are exact."""

    def gain(self, weights: Tensor, caps: Tensor) -> Tensor:
        largest = _largest(weights.detach())
        relative = weights.detach() / largest
        t, inverse = multiplier(relative, caps.detach(), self.eps)
        # The multiplier is a constant for autograd, and so is m where no cap holds it: at the optimum the dual does not
        # change with them (envelope theorem).
        m = torch.minimum(relative.mul_(t), caps)
        penalty = inverse * largest / 2
        return ((weights - penalty * m) * m).sum(-1) + penalty.squeeze(-1) * self.eps**2

    def nearest(self, sizes: Tensor, caps: Tensor, eps: float) -> Tensor:
        largest = _largest(sizes)
        t, _ = multiplier(sizes / largest, caps, eps)
        return torch.minimum(torch.minimum(sizes * (t / largest), caps), sizes)

    def norm(self, change: Tensor) -> Tensor:
        return change.norm(dim=-1)

    def change(self, rows: Tensor) -> Interval:
        """eps times the norm of each row over the features that can move to lower it, or to raise it: outside of the
        intersection of ball and range, but exact where the range stops no feature on its way. Two products of matrices
        for each end.
        """
        flat, factor = rows.flatten(1), self.eps * outward(rows[0].numel() + 4, rows.dtype)
        rising, falling = flat.clamp(min=0).square(), flat.clamp(max=0).square()
        can_fall, can_rise = ((cap > 0).to(rows.dtype).flatten(1) for cap in (self.down, self.up))
        lower = _root(can_fall @ rising.T + can_rise @ falling.T)
        upper = _root(can_rise @ rising.T + can_fall @ falling.T)
        return Interval(-factor * lower, factor * upper)


def multiplier(weights: Tensor, caps: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The t at which  ||min(t weights, caps)||_2 = eps,  never above it but for rounding, and 1 / t, [*rows, batch, 1].

    Where all caps are inside the ball, t is `LARGE` and 1 / t is given as 0.

    Args:
        weights: between 0 and 1, the largest of each row is 1 or all are 0, [*rows, batch, features].
    """
    # ||min(t w, caps)||^2 is concave in t^2 and piecewise linear: Newton's method rises to its root and stays below.
    tolerance = torch.finfo(weights.dtype).eps ** 0.5  # of the last step; the error of the dual is of second order
    t = (eps / _norm(weights)).clamp(max=LARGE)
    for _ in range(STEPS):
        m = torch.minimum(weights * t, caps)
        rest = (eps**2 - _norm(m).square()).clamp(min=0)
        free = _norm((caps - m).sign_().mul_(m)).square()  # of what is not at its cap; a mask would be slower
        new = torch.fmax(t, t * (1 + rest / free).sqrt()).clamp(max=LARGE)  # all at its cap: infinite, or 0 / 0
        arrived = weights.device.type == "cpu" and bool((new <= t * (1 + tolerance)).all())  # others are not waited for
        t = new
        if arrived:
            break
    return t, torch.where((t > 0) & (t < LARGE), 1 / t, 0.0)


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=-1, keepdim=True)


def _largest(weights: Tensor) -> Tensor:
    largest = weights.amax(-1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


def _root(squares: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    positive = squares > 0
    return torch.where(positive, squares, 1.0).sqrt() * positive


@dataclass(frozen=True)
class L2Ball(NormBall):
    """All x' with ||x' - x||_2 <= eps for each example and low <= x' <= high.

    Linear functions are minimised exactly over this intersection; the box of a first layer is an outer bound, see
    `L2Region.change`.

    Args:
        eps: the Euclidean length of a change, in the units of the data (pixels in [0, 1]).
        low, high: the data range.

    Raises ValueError for a negative or non-finite eps, or low >= high.
    """

    @property
    def kind(self) -> type[L2Region]:
        return L2Region

    def draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device).flatten(1)
        share = torch.rand(len(x), 1, generator=generator, dtype=x.dtype, device=x.device)
        length = direction.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return direction / length * share ** (1 / x[:1].numel())

    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        flat = gradient.flatten(1)
        flat = flat / _largest(flat.abs())
        length = flat.norm(dim=1, keepdim=True)
        return (scale * self.eps * flat / torch.where(length > 0, length, 1.0)).view_as(gradient)

    @property
    def label(self) -> str:
        return f"l2 eps={self.eps:g}"
