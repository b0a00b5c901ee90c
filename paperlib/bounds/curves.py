"""Linear relaxations of scalar curves over a box: chords, tangents, and the triangle of ReLU.

A convex curve lies below its chord and above each of its tangents; for a concave one it is the other way round.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaRelaxation, LinearFunction, LinearRelaxation

BISECTIONS = 16  # for a tangent, which is a bound however near it comes

Curve = Callable[[Tensor], Tensor]  # elementwise


def tangent(function: Curve, derivative: Curve, at: Tensor) -> LinearFunction:
    """The tangent at a point: below a convex function, above a concave one."""
    slope = derivative(at)
    return LinearFunction(slope, function(at) - slope * at)


def convex(function: Curve, derivative: Curve, box: Interval) -> LinearRelaxation:
    """Chord above, tangent at the middle below."""
    return LinearRelaxation(tangent(function, derivative, box.center), chord_above(function, derivative, box))


def concave(function: Curve, derivative: Curve, box: Interval) -> LinearRelaxation:
    """Chord below, tangent at the middle above."""
    return LinearRelaxation(chord_below(function, derivative, box), tangent(function, derivative, box.center))


def sigmoidal(function: Curve, derivative: Curve, box: Interval) -> LinearRelaxation:
    """For an increasing function whose derivative rises up to 0 and falls from there: two families of lines.

    Where the function is convex up to 0 and concave from there, the lower line is a tangent at a point of the convex
    part, or a line through the lower end; the upper one likewise from the other side. The initial lines are CROWN's
    (Zhang et al. 2018): the tangent through the other end, the chord, or over a convex part the tangent at its middle.
    Of the first ones (alpha 0) at least one has the least slope of the box, which lies at one of its ends: that of
    both parallel lines of Singh et al. 2018, "Fast and effective robustness certification".

    Args:
        derivative: even where it jumps at 0, its value there is its peak. A function that bends elsewhere is not meant,
            such as a shifted sigmoid: its lines would cross it.
    """
    lower = _sigmoidal_below(function, derivative, box)
    # above it is what its image under v -> -v is below:  f(v) = -g(-v)  with  g(v) = -f(-v)
    mirrored = _sigmoidal_below(lambda v: -function(-v), lambda v: derivative(-v), Interval(-box.upper, -box.lower))
    upper = AlphaRelaxation(mirror(mirrored.initial), mirrored.alpha, lambda share: mirror(mirrored.at(share)))
    return LinearRelaxation(lower, upper)


def mirror(function: LinearFunction) -> LinearFunction:
    """What a line above a curve becomes, below it or above, when the curve is turned by half a turn around 0."""
    return LinearFunction(function.slope, -function.offset)


def _sigmoidal_below(function: Curve, derivative: Curve, box: Interval) -> AlphaRelaxation[LinearFunction]:
    # Each line is the highest one of its slope that is below the curve at both ends of the box and at one point of the
    # convex part, where it is a tangent if that point is not the lower end. So it is below the curve between them,
    # wherever the point is: above the tangent where the curve is convex, and lowest at an end where it is concave.
    fixed = box.map(Tensor.detach)
    low, high = fixed
    middle, first = _convex_end(fixed), derivative(low)
    tangents = (low < middle) & (function(high) - function(low) > first * (high - low))  # else the chord is below
    touch = torch.where(high > middle, _touching(function, derivative, fixed), (low + middle) / 2)
    alpha = torch.where(tangents, (touch - low) / torch.where(tangents, middle - low, 1.0), 1.0).clamp(0, 1)

    def lines(ends: Interval) -> Callable[[Tensor], LinearFunction]:
        at_low, at_high = ends.map(function)
        last, slopes = _convex_end(ends), ends.map(derivative)
        least, chord = torch.minimum(*slopes), chord_below(function, derivative, ends).slope
        # where the derivative jumps at 0, all slopes between both are those of a tangent: also that to the upper end
        run = ends.upper - last
        to_end = (at_high - function(last)) / torch.where(run > 0, run, 1.0)
        at_last = torch.maximum(torch.minimum(to_end, derivative(last)), derivative(_before_0(last)))

        def line(share: Tensor) -> LinearFunction:
            point = torch.where(tangents, torch.lerp(ends.lower, last, share), ends.lower)
            of_tangent = torch.where(point < last, derivative(point), at_last)
            slope = torch.where(tangents, of_tangent, torch.lerp(least, chord, share))
            at_ends = torch.minimum(at_low - slope * ends.lower, at_high - slope * ends.upper)
            return LinearFunction(slope, torch.minimum(at_ends, function(point) - slope * point))

        return line

    line = lines(box)
    return AlphaRelaxation(line(alpha), alpha, line)


def _convex_end(box: Interval) -> Tensor:
    """Where in the box the convex part up to 0 ends: its lower end, if it has none."""
    return torch.maximum(box.lower, box.upper.clamp(max=0))


def _before_0(at: Tensor) -> Tensor:
    """Points up to 0, where 0 itself stands for its left: a derivative may jump there."""
    return at.clamp(max=-torch.finfo(at.dtype).tiny)


def _touching(function: Curve, derivative: Curve, box: Interval) -> Tensor:
    """Roughly where the tangent at a point of the convex part meets the curve at the upper end of the box.

    By bisection: from that point on the tangent is above the curve there.
    """
    low, touch, at_high = box.lower, _convex_end(box), function(box.upper)
    for _ in range(BISECTIONS):
        point = (low + touch) / 2
        above = function(point) + derivative(_before_0(point)) * (box.upper - point) >= at_high
        low, touch = torch.where(above, low, point), torch.where(above, point, touch)
    return touch


# A chord's slope is clamped to the derivatives at both ends, between which it lies: where the ends almost coincide the
# quotient is rounding noise. For any slope the offset is then chosen so that the line is a bound.


def chord_above(function: Curve, derivative: Curve, box: Interval) -> LinearFunction:
    """The line through both ends of a convex function, above it."""
    return _chord(torch.maximum, function, box, box.map(lambda end: derivative(end.detach())))


def chord_below(function: Curve, derivative: Curve, box: Interval) -> LinearFunction:
    """The line through both ends of a concave function, below it."""
    steepest, flattest = box.map(lambda end: derivative(end.detach()))
    return _chord(torch.minimum, function, box, Interval(flattest, steepest))


def _chord(outer: Any, function: Curve, box: Interval, slopes: Interval) -> LinearFunction:
    return LinearFunction(*_Chord.apply(*box, *box.map(function), *slopes, outer))


class _Chord(torch.autograd.Function):
    """Slope and offset of the line through two points; autograd alone would record a dozen operations.

    `outer` picks, of the lines of this slope through either point, the one outside the curve: the minimum is below it,
    the maximum above.
    """

    @staticmethod
    def forward(
        ctx: Any, low: Tensor, high: Tensor, at_low: Tensor, at_high: Tensor, least: Tensor, most: Tensor, outer: Any
    ) -> tuple[Tensor, Tensor]:
        inverse = _inverse_width((high - low).clamp_(min=0))
        slope = (at_high - at_low).mul_(inverse).clamp_(least, most)
        ctx.save_for_backward(low, inverse, slope)
        return slope, outer(at_low - slope * low, at_high - slope * high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_gradient: Tensor, offset_gradient: Tensor) -> tuple[Tensor | None, ...]:
        # slope = (at_high - at_low) / (high - low)  and  offset = at_low - slope * low
        low, inverse, slope = ctx.saved_tensors
        rise = torch.addcmul(slope_gradient, offset_gradient, low, value=-1).mul_(inverse)
        run = rise * slope
        return run - offset_gradient * slope, run.neg(), offset_gradient - rise, rise, None, None, None


def _inverse_width(width: Tensor) -> Tensor:
    """1 / width for each width > 0, and 0 for 0; without overflow. Overwrites `width`."""
    return width.sign().div_(width.add_(torch.finfo(width.dtype).tiny))


def is_nonnegative(values: Tensor) -> Tensor:
    """1 where a value is not negative and 0 elsewhere, to multiply with: masks are not vectorised on the CPU."""
    return values.sign().add_(1).clamp_(max=1)


def relu_chord(box: Interval) -> tuple[Tensor, Tensor]:
    """Slope and offset of the line through both ends of ReLU, above it.

    u / (u - l)  and  -l u / (u - l)  over [l, u] with l < 0 < u;  else 0 and 0 (u <= 0), or 1 and 0 (l >= 0)
    """
    return _ReluChord.apply(*box)


class _ReluChord(torch.autograd.Function):
    """`relu_chord` by p = max(u, 0) and q = max(-l, 0), of which one is 0 where the unit's sign is fixed."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        p, q = high.clamp(min=0), low.clamp(max=0).neg_()
        inverse = _inverse_width(p + q)
        slope = (p * inverse).clamp_(max=1)
        ctx.save_for_backward(p, q, inverse)
        return slope, torch.maximum(slope * q, torch.addcmul(p, slope, p, value=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_gradient: Tensor, offset_gradient: Tensor) -> tuple[Tensor, Tensor]:
        p, q, inverse = ctx.saved_tensors
        slope_gradient, p_share, q_share = slope_gradient * inverse, p * inverse, q * inverse
        p_gradient = torch.addcmul(slope_gradient, offset_gradient, q_share).mul_(q_share)
        low_gradient = torch.addcmul(slope_gradient, offset_gradient, p_share, value=-1).mul_(p_share)
        return low_gradient.mul_(q.sign()), p_gradient.mul_(p.sign())
