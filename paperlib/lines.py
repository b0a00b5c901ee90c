"""Linear functions below and above curves over a box, and how a linear form is pulled back through them (CROWN: Zhang
et al. 2018, arXiv 1811.00866; Xu et al. 2020, arXiv 2002.12920).

A linear form is a tensor of coefficients [*rows, batch, *shape] on a layer's output; rows are optional.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paperlib.interval import Interval


@dataclass(frozen=True)
class Line:
    """v -> slope * v + offset, elementwise; both are [batch, *shape] or broadcast to it."""

    slope: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Plane:
    """(output, target) -> output_slope * output + target_slope * target + offset, each [batch, *data_shape]."""

    output_slope: Tensor
    target_slope: Tensor
    offset: Tensor


Linear = TypeVar("Linear", Line, Plane)


@dataclass(frozen=True)
class Choice(Generic[Linear]):
    """Bounds on the same side, one for each weight, elementwise in [0, 1]: any of them may be used."""

    start: Linear  # at(weight), where a search for the best begins; it alone has a gradient in the box
    weight: Tensor
    at: Callable[[Tensor], Linear]

    @property
    def first(self) -> Linear:
        return self.at(torch.zeros_like(self.weight))

    @property
    def second(self) -> Linear:
        return self.at(torch.ones_like(self.weight))


@dataclass(frozen=True)
class Band:
    """An elementwise layer over its box:  lower(v) <= layer(v) <= upper(v)  for every v of the box."""

    lower: Line | Choice[Line]
    upper: Line | Choice[Line]


Function = Callable[[Tensor], Tensor]  # elementwise
Settle = Callable[[Any], Any]  # Choice[Linear] | Linear -> Linear


def start(bound: Linear | Choice[Linear]) -> Linear:
    """The bound itself; of a choice, the one at its own weight."""
    return bound.start if isinstance(bound, Choice) else bound


def pull(form: Tensor, band: Band, settle: Settle = start) -> tuple[Tensor, Tensor]:
    """A linear form on f(v) bounded below by one on v:  c . f(v) >= c' . v + d,  for every v of the band's box.

    Args:
        form: c, [*rows, batch, *shape].
        settle: picks the mixture where the band leaves a choice.

    Returns:
        c' of the same shape, and the summands of d, to be added up over `shape`.
    """
    lower, upper = settle(band.lower), settle(band.upper)
    return _Pull.apply(form, lower.slope, lower.offset, upper.slope, upper.offset)


class _Pull(torch.autograd.Function):
    """`pull`: positive coefficients go through the lower line, negative ones through the upper line.

    In sums and products alone, as choosing by a mask is several times as dear: that is not vectorised on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, form: Tensor, *lines: Tensor) -> tuple[Tensor, Tensor]:
        low_slope, low_offset, high_slope, high_offset = lines
        positive = form.sign().clamp_(min=0)
        slope, offset = torch.lerp(high_slope, low_slope, positive), torch.lerp(high_offset, low_offset, positive)
        ctx.save_for_backward(form, slope, offset)
        ctx.shapes = [line.shape for line in lines]
        return form * slope, form * offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_slope: Tensor, of_offset: Tensor) -> tuple[Tensor | None, ...]:
        form, slope, offset = ctx.saved_tensors
        needs_form, *needs_lines = ctx.needs_input_grad
        of_form = torch.addcmul(of_slope * slope, of_offset, offset) if needs_form else None
        positive, negative = form.clamp(min=0), form.clamp(max=0)
        pairs = ((positive, of_slope), (positive, of_offset), (negative, of_slope), (negative, of_offset))
        return of_form, *(
            (part * gradient).sum_to_size(shape) if needed else None
            for (part, gradient), shape, needed in zip(pairs, ctx.shapes, needs_lines, strict=True)
        )


@dataclass(frozen=True)
class Strip:
    """|f(v) - slope * v - middle| <= radius for every v of a box, elementwise."""

    slope: Tensor
    middle: Tensor
    radius: Tensor


def strip(band: Band, box: Interval) -> Strip:
    """The band between two lines of one slope, that of the upper line: its error has no part that is linear in v."""
    upper, lower = start(band.upper), start(band.lower)
    if isinstance(band.lower, Choice):
        first = band.lower.first.slope
        span = band.lower.second.slope - first
        lower = band.lower.at(((upper.slope - first) / torch.where(span == 0, 1.0, span)).clamp(0, 1))
    tilt = lower.slope - upper.slope
    bottom = lower.offset + torch.minimum(tilt * box.lower, tilt * box.upper)
    return Strip(upper.slope, (upper.offset + bottom) / 2, (upper.offset - bottom) / 2)


# A chord's slope is clamped to the derivatives at both ends, between which it lies: where the ends almost coincide the
# quotient is rounding noise. For any slope the offset is then chosen so that the line is a bound.


def chord_above(function: Function, derivative: Function, box: Interval) -> Line:
    """The line through both ends of a convex function, above it."""
    return _chord(torch.maximum, function, box, box.map(lambda end: derivative(end.detach())))


def chord_below(function: Function, derivative: Function, box: Interval) -> Line:
    """The line through both ends of a concave function, below it."""
    steep, flat = box.map(lambda end: derivative(end.detach()))
    return _chord(torch.minimum, function, box, Interval(flat, steep))


def _chord(farther: Any, function: Function, box: Interval, slopes: Interval) -> Line:
    return Line(*_Chord.apply(*box, *box.map(function), *slopes, farther))


class _Chord(torch.autograd.Function):
    """Slope and offset of the line through two points: autograd would record a dozen operations."""

    @staticmethod
    def forward(
        ctx: Any, low: Tensor, high: Tensor, at_low: Tensor, at_high: Tensor, least: Tensor, most: Tensor, farther: Any
    ) -> tuple[Tensor, Tensor]:
        inverse = inverse_of((high - low).clamp_(min=0))
        slope = (at_high - at_low).mul_(inverse).clamp_(least, most)
        ctx.save_for_backward(low, inverse, slope)
        return slope, farther(at_low - slope * low, at_high - slope * high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_slope: Tensor, of_offset: Tensor) -> tuple[Tensor | None, ...]:
        # slope = (at_high - at_low) / (high - low)  and  offset = at_low - slope * low
        low, inverse, slope = ctx.saved_tensors
        turn = torch.addcmul(of_slope, of_offset, low, value=-1).mul_(inverse)
        tilt = turn * slope
        return tilt - of_offset * slope, tilt.neg(), of_offset - turn, turn, None, None, None


def inverse_of(width: Tensor) -> Tensor:
    """1 / width for each width > 0, and 0 for 0; without overflow."""
    return width.sign().div_(width.add_(torch.finfo(width.dtype).tiny))


def tangent(function: Function, derivative: Function, at: Tensor) -> Line:
    """The tangent at a point: below a convex function, above a concave one."""
    slope = derivative(at)
    return Line(slope, function(at) - slope * at)


def convex(function: Function, derivative: Function, box: Interval) -> Band:
    """Chord above, tangent at the middle below."""
    return Band(tangent(function, derivative, box.center), chord_above(function, derivative, box))


def concave(function: Function, derivative: Function, box: Interval) -> Band:
    """Chord below, tangent at the middle above."""
    return Band(chord_below(function, derivative, box), tangent(function, derivative, box.center))


def sigmoidal(function: Function, derivative: Function, box: Interval) -> Band:
    """For an increasing function whose derivative rises to one peak and falls: least slope, through either end.

    Over a box such a derivative is smallest at an end (Singh et al. 2018, "Fast and effective robustness
    certification").
    """
    slope = torch.minimum(*(derivative(end) for end in box))
    return Band(*(Line(slope, function(end) - slope * end) for end in box))


def from_zero_on(values: Tensor) -> Tensor:
    """1 where a value is not negative and 0 elsewhere, to multiply with: masks are not vectorised on the CPU."""
    return values.sign().add_(1).clamp_(max=1)


def relu_chord(box: Interval) -> tuple[Tensor, Tensor]:
    """Slope and offset of the line through both ends of relu: p / (p + q) and p q / (p + q) over [-q, p]."""
    return _ReluChord.apply(*box)


class _ReluChord(torch.autograd.Function):
    """`relu_chord`; where the sign is known p or q is 0, and the slope is 0 or 1."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        p, q = high.clamp(min=0), low.clamp(max=0).neg_()
        inverse = inverse_of(p + q)
        slope = (p * inverse).clamp_(max=1)
        ctx.save_for_backward(p, q, inverse)
        return slope, torch.maximum(slope * q, torch.addcmul(p, slope, p, value=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_slope: Tensor, of_offset: Tensor) -> tuple[Tensor, Tensor]:
        p, q, inverse = ctx.saved_tensors
        of_slope, share, rest = of_slope * inverse, p * inverse, q * inverse
        of_p = torch.addcmul(of_slope, of_offset, rest).mul_(rest)
        of_low = torch.addcmul(of_slope, of_offset, share, value=-1).mul_(share)
        return of_low.mul_(q.sign()), of_p.mul_(p.sign())
