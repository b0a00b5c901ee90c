"""Linear relaxations of layers: for each type of layer, linear functions below and above it over a box, or how a linear
form goes through it (CROWN: Zhang et al. 2018, arXiv 1811.00866; Xu et al. 2020, arXiv 2002.12920).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.interval import Interval, UnsupportedLayerError, interval_rule
from paperlib.lines import Band, Choice, Line, concave, convex, relu_chord, sigmoidal


@dataclass(frozen=True)
class Affine:
    """An affine layer:  c . layer(v) == transpose(c) . v + c . offset  for every form c; exact, on no box at all."""

    transpose: Callable[[Tensor], Tensor]
    offset: Tensor  # [*out_shape]: the layer's value at 0


Relaxation = Band | Affine


@singledispatch
def relaxation_rule(layer: nn.Module, box: Interval) -> Relaxation:
    """(layer, box) -> Band | Affine

    The rule for one type of layer: a `Band` around an elementwise layer over the box, or an `Affine` layer's transpose.
    """
    raise UnsupportedLayerError(f"no relaxation rule for {type(layer).__name__}")


# Elementwise layers


@relaxation_rule.register
def _(layer: nn.ReLU | nn.LeakyReLU, box: Interval) -> Band:
    leak = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
    if leak > 1:
        function = partial(F.leaky_relu, negative_slope=leak)  # never in place
        return concave(function, lambda v: torch.where(v >= 0, torch.ones_like(v), leak), box)
    # leak * v + (1 - leak) * relu(v). Below relu is each line through 0 of a slope between those at both ends; start at
    # the one that leaves the smaller area.
    first, second, weight = (v.detach().sign().clamp_(min=0) for v in (*box, box.lower + box.upper))

    def line(slope: Tensor, offset: Tensor) -> Line:
        return Line(leak + (1 - leak) * slope, (1 - leak) * offset) if leak else Line(slope, offset)

    def below(slope: Tensor) -> Line:
        return line(slope, torch.zeros_like(slope))

    choice = Choice(below(weight), weight, lambda share: below(torch.lerp(first, second, share)))
    return Band(choice, line(*relu_chord(box)))


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
