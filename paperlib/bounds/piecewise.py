"""Hardtanh, ReLU6, PReLU and SELU, which bend at one point or two: their boxes, linear relaxations and rounding."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import mirror, relu_chord, sigmoidal
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import AlphaRelaxation, LinearFunction, LinearRelaxation
from paperlib.bounds.relaxation import relaxation_rule
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding, magnitude, rounding_rule

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717  # torch's constants

# Hardtanh, and ReLU6, which is Hardtanh from 0 to 6


@interval_rule.register
def _(layer: nn.Hardtanh | nn.ReLU6, box: Interval) -> Interval:
    return box.map(layer)  # non-decreasing


@relaxation_rule.register
def _(layer: nn.Hardtanh | nn.ReLU6, box: Interval) -> LinearRelaxation:
    upper = _above_clamp(box, layer.min_val, layer.max_val)
    # below it is what its mirror image is above:  clamp(v, low, high) = -clamp(-v, -high, -low)
    mirrored = _above_clamp(Interval(-box.upper, -box.lower), -layer.max_val, -layer.min_val)
    lower = AlphaRelaxation(mirror(mirrored.initial), mirrored.alpha, lambda share: mirror(mirrored.at(share)))
    return LinearRelaxation(lower, upper)


def _above_clamp(box: Interval, low: float, high: float) -> AlphaRelaxation[LinearFunction]:
    """Lines above clamp(v, low, high) over the box.

    They pass through its last point at or before the upper bend: (high, high), or the upper end of the box. With the
    bend inside, each slope between 0 and that of the chord from the lower end to the bend will do; else there is one.
    """

    def line(ends: Interval, share: Tensor) -> LinearFunction:
        start, last = ends.map(lambda end: end.clamp(max=high))
        chord, _ = relu_chord(Interval(start - low, last - low))  # so far the layer is  low + relu(v - low)
        bends = (ends.upper > high).to(chord.dtype)
        flat = bends * (ends.lower >= high)
        slope = chord * (1 - bends * (1 - share)) * (1 - flat)
        return LinearFunction(slope, last.clamp(min=low) - slope * last)

    alpha = (box.lower + box.upper < 2 * high).to(box.lower.dtype)  # leaves the smaller area
    return AlphaRelaxation(line(box, alpha), alpha, partial(line, box))


@rounding_rule.register
def _(layer: nn.Hardtanh | nn.ReLU6, box: Interval) -> Rounding:
    return Rounding(2, magnitude(interval_rule(layer, box)))  # both limits are rounded when the layer is used


# PReLU, whose slope below 0 is a parameter of any sign and size:  a v + (1 - a) relu(v)


@interval_rule.register
def _(layer: nn.PReLU, box: Interval) -> Interval:
    first, last = box.map(layer)
    # with a negative slope it falls to 0 and rises again
    bend = torch.where((box.lower < 0) & (box.upper > 0), torch.zeros_like(first), first)
    return Interval(torch.minimum(torch.minimum(first, last), bend), torch.maximum(torch.maximum(first, last), bend))


@relaxation_rule.register
def _(layer: nn.PReLU, box: Interval) -> LinearRelaxation:
    alpha = (box.lower + box.upper).detach().sign().clamp_(min=0)  # leaves the smaller area, as for relu
    return LinearRelaxation(*(AlphaRelaxation(at(alpha), alpha, at) for at in _prelu_lines(layer.weight, box)))


def _prelu_lines(weight: Tensor, box: Interval) -> tuple[Callable[[Tensor], LinearFunction], ...]:
    """Two families of lines, each by its alpha: below the layer, and above it.

    Below relu is each line alpha * v, above it the chord; in 1 - a times relu they change sides where a > 1. Where the
    unit's sign is fixed, alpha is 0 or 1.
    """
    slope, chord = _per_channel(weight, box), LinearFunction(*relu_chord(box))
    first, last = (end.detach().sign().clamp_(min=0) for end in box)
    convex_part, concave_part = (1 - slope).clamp(min=0), (1 - slope).clamp(max=0)

    def line(through_zero: Tensor, along_chord: Tensor, share: Tensor) -> LinearFunction:
        free = through_zero * torch.lerp(first, last, share)
        return LinearFunction(slope + free + along_chord * chord.slope, along_chord * chord.offset)

    return partial(line, convex_part, concave_part), partial(line, concave_part, convex_part)


def _per_channel(weight: Tensor, box: Interval) -> Tensor:
    """One slope, or one for each channel, in the shape that broadcasts over batch and space."""
    return weight.view(1, -1, *[1] * (box.lower.ndim - 2))


@rounding_rule.register
def _(layer: nn.PReLU, box: Interval) -> Rounding:
    return Rounding(1, _per_channel(layer.weight, box).abs() * box.lower.clamp(max=0).abs())


# SELU: an exponential below 0 whose slope at 0 is larger than that of the line above it


@interval_rule.register
def _(layer: nn.SELU, box: Interval) -> Interval:
    return box.map(layer)  # increasing


@relaxation_rule.register
def _(layer: nn.SELU, box: Interval) -> LinearRelaxation:
    return sigmoidal(F.selu, _selu_slope, box)  # convex up to 0, where its slope jumps down to that of the line


def _selu_slope(v: Tensor) -> Tensor:
    return SELU_SCALE * torch.where(v > 0, 1.0, SELU_ALPHA * torch.exp(v.clamp(max=0)))


@rounding_rule.register
def _(layer: nn.SELU, box: Interval) -> Rounding:
    # scale * v, or (scale * alpha) * expm1(v) with the product of both constants rounded
    return Rounding(FUNCTION_ERRORS["expm1"] + 3, magnitude(interval_rule(layer, box)))
