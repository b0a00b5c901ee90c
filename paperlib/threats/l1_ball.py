"""The l1 ball: all inputs whose absolute changes sum to at most a radius, in the data range.

    max  w . m   over  0 <= m <= caps,  sum_i m_i <= eps        (features move by m, each at most as far as the range)

is a fractional knapsack: features of the largest w are filled to their caps until eps is spent. Its dual: for every
threshold s >= 0 the maximum is at most

    sum_i max(w_i - s, 0) caps_i + eps s.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import outward
from paperlib.bounds.rounding import unit_roundoff
from paperlib.threats.norm_ball import NormBall, NormRegion

STEPS = 100  # of the search for a projection, at most; about ten are usual
FEW = 64  # largest weights that are tried before all of them are sorted
SHARE = 0.01  # of the features among which `steepest` spreads its change, at least


@dataclass(frozen=True)
class L1Region(NormRegion):
    """All x' with ||x' - x||_1 <= eps and low <= x' <= high. `concretize` and `spread` are exact."""

    def gain(self, weights: Tensor, caps: Tensor) -> Tensor:
        weights, caps = torch.broadcast_tensors(weights, caps)
        fixed, limits = weights.detach(), caps.detach()
        threshold = _threshold(fixed, limits, self.eps)
        side = (fixed - threshold).sign_()  # not masks, which are slower
        full, at_threshold = side.clamp(min=0), 1 - side.abs()
        # what is left goes to the features at the threshold, which adds nothing but makes m attain the maximum
        rest = (self.eps - (limits * full).sum(-1, keepdim=True)).clamp(min=0)
        room = limits * at_threshold
        share = (rest / room.sum(-1, keepdim=True).clamp(min=torch.finfo(caps.dtype).tiny)).clamp(max=1)
        m = caps * full + room * share
        return ((weights - threshold) * m).sum(-1) + threshold.squeeze(-1) * self.eps

    def nearest(self, sizes: Tensor, caps: Tensor, eps: float) -> Tensor:
        """m = min(max(sizes - s, 0), caps)  with the least s at which it sums to eps, by Newton's method in a bracket
        whose upper end stays in the ball.
        """
        low, high = torch.zeros_like(sizes[:, :1]), sizes.amax(1, keepdim=True)
        room = 32 * unit_roundoff(sizes.dtype) * eps  # for sums that no s makes exact
        s, m = low, torch.minimum(sizes, caps)
        for _ in range(STEPS):
            excess = m.sum(1, keepdim=True) - eps
            low, high = torch.where(excess > room, s, low), torch.where(excess > room, high, s)
            arrived = (excess.abs() <= room) | (high - low <= 4 * unit_roundoff(sizes.dtype) * high)
            if s.device.type == "cpu" and bool(arrived.all()):  # no other device is waited for
                break
            falling = ((m > 0) & (m < caps)).sum(1, keepdim=True)
            new = s + excess / falling
            new = torch.where((new > low) & (new < high), new, (low + high) / 2)
            s = torch.where(arrived, s, new)
            m = torch.minimum((sizes - s).clamp(min=0), caps)
        return torch.minimum((sizes - high).clamp(min=0), caps)

    def norm(self, change: Tensor) -> Tensor:
        return change.abs().sum(-1)

    def change(self, rows: Tensor) -> Interval:
        """For each row the largest weights, filled to at most high - low each until eps is spent: the same for all x,
        an outer bound of the intersection of ball and range.
        """
        flat = rows.flatten(1)
        width = min(self.eps, self.high - self.low)
        filled = math.ceil(self.eps / width) if width > 0 else 0
        if filled >= flat.shape[1]:
            reach = flat.abs().sum(1) * width
        else:
            largest = flat.abs().topk(max(filled, 1), dim=1).values
            amounts = [width] * (filled - 1) + [self.eps - width * (filled - 1)]
            reach = largest @ largest.new_tensor(amounts if filled else [0.0])
        reach = (reach * outward(flat.shape[1] + 4, rows.dtype)).expand(len(self.x), -1)
        return Interval(-reach, reach)


def _threshold(weights: Tensor, caps: Tensor, eps: float) -> Tensor:
    """The weight at which eps is spent, [*rows, batch, 1], or 0 where the caps leave some of it."""
    features, on_cpu = weights.shape[-1], weights.device.type == "cpu"
    useful = weights * caps.sign()
    # a few of the largest often spend all; asking for that would keep another device waiting
    for count in (min(FEW, features), features) if on_cpu else (features,):
        ordered, index = useful.topk(count, -1)
        spent = caps.gather(-1, index).cumsum(-1)
        if count < features and bool((spent[..., -1] >= eps).all()):
            break
    filled = (spent < eps).sum(-1, keepdim=True)
    return torch.cat([ordered, torch.zeros_like(ordered[..., :1])], -1).gather(-1, filled)


@dataclass(frozen=True)
class L1Ball(NormBall):
    """All x' with ||x' - x||_1 <= eps for each example and low <= x' <= high.

    Linear functions are minimised exactly over this intersection; the box of a first layer is an outer bound, see
    `L1Region.change`.

    Args:
        eps: the sum of all absolute changes, in the units of the data (pixels in [0, 1]).
        low, high: the data range.

    Raises ValueError for a negative or non-finite eps, or low >= high.
    """

    @property
    def kind(self) -> type[L1Region]:
        return L1Region

    def draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        count = x[:1].numel()
        # features of n + 1 exponential numbers over their sum are uniform in the simplex
        parts = torch.empty(len(x), count + 1, dtype=x.dtype, device=x.device).exponential_(generator=generator)
        signs = torch.rand(len(x), count, generator=generator, dtype=x.dtype, device=x.device) - 0.5
        return parts[:, 1:] / parts.sum(1, keepdim=True) * signs.sign()

    def steepest(self, gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        """Equal changes of the features of largest |gradient|, as in the sparse attack SLIDE (Tramèr & Boneh 2019,
        arXiv 1904.13000): one feature alone would be stopped by the range. They are at least one in a hundred, and
        twice as many as it takes to spend the change, since the range stops about half of them.
        """
        flat, total = gradient.flatten(1), scale * self.eps
        count = min(flat.shape[1], math.ceil(max(SHARE * flat.shape[1], 2 * total / (self.high - self.low))))
        index = flat.abs().topk(max(count, 1), dim=1).indices
        signs = flat.sign().gather(1, index)
        return torch.zeros_like(flat).scatter(1, index, signs * (total / max(count, 1))).view_as(gradient)

    @property
    def label(self) -> str:
        return f"l1 eps={self.eps:g}"
