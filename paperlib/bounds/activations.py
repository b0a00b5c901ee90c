"""GELU and SiLU: their boxes, their linear relaxations and their rounding.

Both fall to a single minimum below 0 and rise from there. They are concave, then convex between two inflections, then
concave again.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import Curve
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import LinearRelaxation
from paperlib.bounds.relaxation import relaxation_rule
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding, magnitude, rounding_rule
from paperlib.bounds.smooth import SmoothCurve, smooth

# Errors in unit roundoffs of |v|. GELU is v Phi(v). In float32 oneDNN may take a polynomial for erf, with an error of
# up to 1.5e-7 (Abramowitz & Stegun 7.1.26), which is 2.5 units; torch's own is good to 1 ulp on the CPU (SLEEF), 2 on
# CUDA; then come three products and a sum. By tanh: its argument z is a cubic that is off by some units of itself,
# which moves tanh by less than half of them, for |z| / cosh(z)^2 < 1/2.
GELU_ERRORS = {"none": 16, "tanh": 24}


@dataclass(frozen=True)
class Dip:
    """Where a curve is least and its value there, rounded to nearest, and its inflections."""

    at: float
    value: float
    inflection: float  # here, and at the negative


SILU = Dip(at=-1.2784645427610737, value=-0.2784645427610738, inflection=2.3993572805154677)
GELU = {
    "none": Dip(at=-0.75179152469356446, value=-0.16997120747990366, inflection=math.sqrt(2)),
    "tanh": Dip(at=-0.75246142207101626, value=-0.17004075057125405, inflection=1.4185040087908283),
}


@interval_rule.register
def _(layer: nn.GELU, box: Interval) -> Interval:
    return _image(layer, GELU[layer.approximate], box)


@interval_rule.register
def _(layer: nn.SiLU, box: Interval) -> Interval:
    return _image(layer, SILU, box)


def _image(layer: nn.Module, dip: Dip, box: Interval) -> Interval:
    # the function at both ends, and its minimum where the box may reach it; minus infinity times 0 is not a number
    first, last = box.map(lambda end: layer(end.clamp(min=torch.finfo(end.dtype).min)))
    left, right = _around(dip.at, first)
    least, _ = _around(dip.value, first)
    dips = (box.lower < box.upper) & (box.lower <= right) & (box.upper >= left)
    return Interval(torch.where(dips, least, torch.minimum(first, last)), torch.maximum(first, last))


def _around(value: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers of a tensor's precision with the value, which was rounded before, between them."""
    rounded = torch.full((), value, dtype=like.dtype, device=like.device)
    return rounded.nextafter(rounded - 1), rounded.nextafter(rounded + 1)


@relaxation_rule.register
def _(layer: nn.GELU, box: Interval) -> LinearRelaxation:
    slope = _tanh_gelu_slope if layer.approximate == "tanh" else _gelu_slope
    return _smooth(partial(F.gelu, approximate=layer.approximate), slope, GELU[layer.approximate], box)


@relaxation_rule.register
def _(layer: nn.SiLU, box: Interval) -> LinearRelaxation:
    return _smooth(F.silu, _silu_slope, SILU, box)  # never in place


def _smooth(function: Curve, derivative: Curve, dip: Dip, box: Interval) -> LinearRelaxation:
    return smooth(SmoothCurve(function, derivative, (-dip.inflection, dip.inflection), convex_first=False), box)


def _gelu_slope(v: Tensor) -> Tensor:
    """Phi(v) + v phi(v)"""
    return torch.erfc(v * -math.sqrt(1 / 2)) / 2 + v * torch.exp(v.square() / -2) / math.sqrt(2 * math.pi)


def _tanh_gelu_slope(v: Tensor) -> Tensor:
    """Of  v (1 + tanh z) / 2 = v sigmoid(2 z)  with  z = sqrt(2 / pi) (v + 0.044715 v^3)"""
    v = v.clamp(-100, 100)  # beyond, the slope is 0 or 1, and squares might overflow
    square = v.square()
    twice = 2 * math.sqrt(2 / math.pi) * v * (1 + 0.044715 * square)
    rate = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * square)
    return torch.sigmoid(twice) * (1 + v * rate * torch.sigmoid(-twice))


def _silu_slope(v: Tensor) -> Tensor:
    return torch.sigmoid(v) * (1 + v * torch.sigmoid(-v))


@rounding_rule.register
def _(layer: nn.GELU, box: Interval) -> Rounding:
    size = magnitude(box)
    return Rounding(GELU_ERRORS[layer.approximate], size, peak=size**3 if layer.approximate == "tanh" else 0.0)


@rounding_rule.register
def _(layer: nn.SiLU, box: Interval) -> Rounding:
    # v / (1 + exp(-v)): overflow of exp leaves 0 beside less than 1e-36
    return Rounding(FUNCTION_ERRORS["sigmoid"] + 1, magnitude(interval_rule(layer, box)))
