"""Linear relaxations of smooth curves whose curvature changes its sign, such as GELU and SiLU, over any box.

For any slope s the line  s v + d  is below the curve f if  d = min over the box of  f(v) - s v.  Where f is concave the
minimum sits at an end. Where it is convex it sits where f' = s, which bisection encloses, and a tangent at one end of
the enclosure bounds what lies between. So each line holds whatever its slope, which is chosen for tightness alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import Curve
from paperlib.bounds.linear import AlphaRelaxation, LinearFunction, LinearRelaxation


@dataclass(frozen=True)
class SmoothCurve:
    """An elementwise function with a continuous derivative, both differentiable by autograd.

    Args:
        inflections: where the curvature changes its sign, in ascending order.
        convex_first: whether the curve is convex below the first inflection; else it is concave there.
    """

    function: Curve
    derivative: Curve
    inflections: Sequence[float]
    convex_first: bool


def smooth(curve: SmoothCurve, box: Interval) -> LinearRelaxation:
    """Linear functions below and above the curve over the box, which touch it.

    The upper one has the slope of the chord. A lower one may have any slope that the curve has in the box, the initial
    one that in the middle.
    """
    pieces = _Pieces.of(curve, box)
    slopes = torch.stack([curve.derivative(cut.detach()) for cut in pieces.cuts])
    least, most = slopes.amin(0), slopes.amax(0)
    chord = _chord_slope(curve, box).clamp(least, most)
    middle = curve.derivative(box.center).clamp(least, most)
    span = most - least
    alpha = ((middle.detach() - least) / torch.where(span > 0, span, 1.0)).clamp(0, 1)

    def below(share: Tensor) -> LinearFunction:
        slope = torch.lerp(least, most, share)
        return LinearFunction(slope, _least_gap(pieces, slope))

    lower = AlphaRelaxation(LinearFunction(middle, _least_gap(pieces, middle)), alpha, below)
    return LinearRelaxation(lower, LinearFunction(chord, -_least_gap(pieces.negated(), -chord)))


def _chord_slope(curve: SmoothCurve, box: Interval) -> Tensor:
    """(f(u) - f(l)) / (u - l),  with the quotient's gradient in l and u; 0 where u = l."""
    width = (box.upper - box.lower).detach()
    inverse = width.sign() / (width + torch.finfo(width.dtype).tiny)
    rise = curve.function(box.upper) - curve.function(box.lower)
    slope = (rise * inverse).detach()
    change = (rise - slope * (box.upper - box.lower)) * inverse  # about 0: only its gradient is used
    return slope + (change - change.detach())


@dataclass(frozen=True)
class _Pieces:
    """A box cut where the curvature changes sign. A piece that is outside of the box is one point, an end of it."""

    curve: SmoothCurve
    cuts: list[Tensor]  # ascending, from the lower to the upper end of the box
    convex: list[bool]  # for each two neighbouring cuts, whether the curve is convex between them

    @classmethod
    def of(cls, curve: SmoothCurve, box: Interval) -> "_Pieces":
        inside = [
            torch.minimum(torch.maximum(box.lower, torch.full_like(box.lower, at)), box.upper)
            for at in curve.inflections
        ]
        convex = [(number % 2 == 0) == curve.convex_first for number in range(len(inside) + 1)]
        return cls(curve, [box.lower, *inside, box.upper], convex)

    def negated(self) -> "_Pieces":
        """The same box under the curve's negative."""
        function, derivative = self.curve.function, self.curve.derivative
        negative = SmoothCurve(
            lambda v: -function(v), lambda v: -derivative(v), self.curve.inflections, not self.curve.convex_first
        )
        return _Pieces(negative, self.cuts, [not convex for convex in self.convex])


def _least_gap(pieces: _Pieces, slope: Tensor) -> Tensor:
    """A number below  f(v) - slope * v  for every v in the box, and attained by a v but for rounding.

    Its gradient is that of the gap at this v, which is an end of the box, or else moves without changing the gap.
    """
    least = torch.stack([pieces.curve.function(cut) - slope * cut for cut in pieces.cuts]).amin(0)
    for low, high, convex in zip(pieces.cuts[:-1], pieces.cuts[1:], pieces.convex, strict=True):
        if convex:
            low, high, at = torch.broadcast_tensors(low.detach(), high.detach(), slope.detach())
            dips = (pieces.curve.derivative(low) < at) & (pieces.curve.derivative(high) > at)
            bottom = _bottom(pieces.curve, slope[dips], low[dips], high[dips])
            least = least.masked_scatter(dips, torch.minimum(least[dips], bottom))
    return least


def _bottom(curve: SmoothCurve, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The minimum of  f(v) - slope * v  over [low, high], where the curve is convex and has this slope, or less."""
    width = high - low
    # An enclosure of half the digits is enough: the gap is flat there, and the tangent accounts for what is left.
    for _ in range(2 - int(torch.tensor(torch.finfo(width.dtype).eps).log2()) // 2):
        width = width / 2
        middle = low + width
        low = torch.where(curve.derivative(middle) < slope.detach(), middle, low)
    # the gap falls from `low` on, and by convexity no faster than there:  gap(v) >= gap(low) + gap'(low) (v - low)
    beyond = (slope.detach() - curve.derivative(low)).clamp(min=0) * width
    return curve.function(low) - slope * low - beyond
