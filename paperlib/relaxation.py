"""Linear relaxations: for each type of layer, linear functions below and above it over a box, and how to pull a
linear form back through them (CROWN: Zhang et al. 2018, arXiv 1811.00866; Xu et al. 2020, arXiv 2002.12920).

A linear form is a tensor of coefficients [*rows, batch, *shape] on a layer's output; rows are optional.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paperlib.interval import Interval, UnsupportedLayerError, interval_rule


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


@dataclass(frozen=True)
class Affine:
    """An affine layer:  c . layer(v) == transpose(c) . v + c . offset  for every form c; exact, on no box at all."""

    transpose: Callable[[Tensor], Tensor]
    offset: Tensor  # [*out_shape]: the layer's value at 0


Relaxation = Band | Affine
Function = Callable[[Tensor], Tensor]  # elementwise
Settle = Callable[[Any], Any]  # Choice[Linear] | Linear -> Linear


@singledispatch
def relaxation_rule(layer: nn.Module, box: Interval) -> Relaxation:
    """(layer, box) -> Band | Affine

    The rule for one type of layer: a `Band` around an elementwise layer over the box, or an `Affine` layer's transpose.
    """
    raise UnsupportedLayerError(f"no relaxation rule for {type(layer).__name__}")


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
    def forward(
        ctx: Any, form: Tensor, low_slope: Tensor, low_offset: Tensor, high_slope: Tensor, high_offset: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(form, low_slope, low_offset, high_slope, high_offset)
        positive, negative = form.clamp(min=0), form.clamp(max=0)
        return (
            torch.addcmul(positive * low_slope, negative, high_slope),
            torch.addcmul(positive * low_offset, negative, high_offset),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_slope: Tensor, of_offset: Tensor) -> tuple[Tensor | None, ...]:
        form, low_slope, low_offset, high_slope, high_offset = ctx.saved_tensors
        positive, negative = form.clamp(min=0), form.clamp(max=0)
        of_form = None
        if ctx.needs_input_grad[0]:
            from_low = torch.addcmul(of_slope * low_slope, of_offset, low_offset)
            from_high = torch.addcmul(of_slope * high_slope, of_offset, high_offset)
            of_form = torch.lerp(from_high, from_low, form.sign().clamp_(min=0))
        factors = (
            (positive, low_slope, of_slope),
            (positive, low_offset, of_offset),
            (negative, high_slope, of_slope),
            (negative, high_offset, of_offset),
        )
        of_lines = (
            (part * gradient).sum_to_size(line.shape) if needed else None
            for (part, line, gradient), needed in zip(factors, ctx.needs_input_grad[1:], strict=True)
        )
        return of_form, *of_lines


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


# Elementwise layers. A chord's slope is clamped to the derivatives at both ends, between which it lies: where the ends
# almost coincide the quotient is rounding noise. For any slope the offset is then chosen so that the line is a bound.


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


@relaxation_rule.register
def _(layer: nn.ReLU | nn.LeakyReLU, box: Interval) -> Band:
    leak = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
    function = partial(F.leaky_relu, negative_slope=leak)  # never in place
    if leak > 1:
        return concave(function, lambda v: torch.where(v >= 0, torch.ones_like(v), leak), box)
    # Below: a line through 0 of a slope between those of both ends. Start: the smaller area.
    low, high = (end.detach() for end in box)
    first, second = from_zero_on(low), high.sign().clamp_(min=0)
    weight = (low + high).sign_().clamp_(min=0)

    def below(weight: Tensor) -> Line:
        return Line(torch.lerp(first, second, weight).mul_(1 - leak).add_(leak), torch.zeros_like(weight))

    slope, offset = (part * (1 - leak) for part in _ReluChord.apply(*box))
    return Band(Choice(below(weight), weight, below), Line(slope + leak, offset))


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


@relaxation_rule.register
def _(layer: nn.ELU, box: Interval) -> Band:
    kind = convex if layer.alpha <= 1 else sigmoidal
    function = partial(F.elu, alpha=layer.alpha)  # never in place
    return kind(function, lambda v: torch.where(v >= 0, 1.0, layer.alpha * torch.exp(v.clamp(max=0))), box)


@relaxation_rule.register
def _(layer: nn.Softplus, box: Interval) -> Band:
    # torch steps down to v itself above threshold / beta, by less than exp(-threshold) / beta: see the interval rule
    def softplus(v: Tensor) -> Tensor:
        return torch.logaddexp(layer.beta * v, torch.zeros_like(v)) / layer.beta

    band = convex(softplus, lambda v: torch.sigmoid(layer.beta * v), box)
    step = math.log1p(math.exp(-layer.threshold)) / layer.beta * (box.upper > layer.threshold / layer.beta)
    assert isinstance(band.lower, Line)
    return Band(Line(band.lower.slope, band.lower.offset - step), band.upper)


@relaxation_rule.register
def _(layer: nn.Sigmoid, box: Interval) -> Band:
    return sigmoidal(layer, lambda v: torch.sigmoid(v) * torch.sigmoid(-v), box)


@relaxation_rule.register
def _(layer: nn.Tanh, box: Interval) -> Band:
    # 1 / cosh^2 in a form whose gradient does not overflow
    return sigmoidal(layer, lambda v: 4 * torch.sigmoid(2 * v) * torch.sigmoid(-2 * v), box)


# Affine layers


@relaxation_rule.register
def _(layer: nn.Linear, box: Interval) -> Affine:
    offset = torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
    return Affine(lambda c: c @ layer.weight, offset)


def _affine(layer: nn.Module, box: Interval) -> Affine:
    # The transpose of any affine map is its backward pass, whatever its padding, stride or groups.
    shape = box.lower.shape[1:]
    at_zero = layer(torch.zeros_like(box.lower[:1]))

    def transpose(coefficients: Tensor) -> Tensor:
        lead = coefficients.shape[: coefficients.ndim - at_zero.ndim + 1]
        with torch.enable_grad():
            zero = torch.zeros(math.prod(lead), *shape, dtype=at_zero.dtype, device=at_zero.device, requires_grad=True)
            image = layer(zero)
        flat = coefficients.reshape(-1, *at_zero.shape[1:])
        learns = flat.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())
        (pulled,) = torch.autograd.grad(image, zero, flat, create_graph=learns and torch.is_grad_enabled())
        return pulled.view(*lead, *shape)

    return Affine(transpose, at_zero[0])


for _layer in (nn.Conv2d, nn.ConvTranspose2d, nn.AvgPool2d, nn.Flatten, nn.Unflatten, nn.Identity):
    relaxation_rule.register(_layer, _affine)


@relaxation_rule.register
def _(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout, box: Interval) -> Affine:
    apply = interval_rule.dispatch(type(layer))
    apply(layer, box)  # refuses what is random or depends on the batch
    return _affine(layer, box)
