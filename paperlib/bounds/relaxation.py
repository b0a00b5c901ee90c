"""Linear relaxations of layers: for each type of layer, linear functions below and above it over a box, or its
transpose if it is affine (CROWN: Zhang et al. 2018, arXiv 1811.00866; Xu et al. 2020, arXiv 2002.12920).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import concave, convex, relu_chord, sigmoidal
from paperlib.bounds.interval import interval_rule, softplus_switch
from paperlib.bounds.linear import AlphaRelaxation, LinearFunction, LinearRelaxation
from paperlib.bounds.rules import UnsupportedLayerError


@dataclass(frozen=True)
class Affine:
    """An affine layer:  c . layer(v) == transpose(c) . v + c . offset  for all coefficients c; exact on any box."""

    transpose: Callable[[Tensor], Tensor]
    offset: Tensor  # [*out_shape]: the layer's value at 0


Relaxation = LinearRelaxation | Affine


@singledispatch
def relaxation_rule(layer: nn.Module, box: Interval) -> Relaxation:
    """(layer, box) -> LinearRelaxation | Affine

    The rule for one type of layer: a `LinearRelaxation` of an elementwise layer over the box, or the transpose of an
    `Affine` one.
    """
    raise UnsupportedLayerError(f"no relaxation rule for {type(layer).__name__}")


# Elementwise layers


@relaxation_rule.register
def _(layer: nn.ReLU | nn.LeakyReLU, box: Interval) -> LinearRelaxation:
    leak = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
    if leak > 1:
        function = partial(F.leaky_relu, negative_slope=leak)  # never in place
        return concave(function, lambda v: torch.where(v >= 0, torch.ones_like(v), leak), box)
    # The layer is  leak * v + (1 - leak) * relu(v).  Below relu lies each line alpha * v with alpha in [0, 1]; where a
    # unit's sign is fixed, alpha is 0 or 1. The initial alpha leaves the smaller area between line and relu.
    first, second, alpha = (v.detach().sign().clamp_(min=0) for v in (*box, box.lower + box.upper))

    def leaky(slope: Tensor, offset: Tensor) -> LinearFunction:
        if not leak:
            return LinearFunction(slope, offset)
        return LinearFunction(leak + (1 - leak) * slope, (1 - leak) * offset)

    def below(slope: Tensor) -> LinearFunction:
        return leaky(slope, torch.zeros_like(slope))

    lower = AlphaRelaxation(below(alpha), alpha, lambda share: below(torch.lerp(first, second, share)))
    return LinearRelaxation(lower, leaky(*relu_chord(box)))


@relaxation_rule.register
def _(layer: nn.ELU, box: Interval) -> LinearRelaxation:
    kind = convex if layer.alpha <= 1 else sigmoidal
    function = partial(F.elu, alpha=layer.alpha)  # never in place
    return kind(function, lambda v: torch.where(v > 0, 1.0, layer.alpha * torch.exp(v.clamp(max=0))), box)


@relaxation_rule.register
def _(layer: nn.Softplus, box: Interval) -> LinearRelaxation:
    # torch steps down to v itself above the switch: see the interval rule
    def softplus(v: Tensor) -> Tensor:
        return torch.logaddexp(layer.beta * v, torch.zeros_like(v)) / layer.beta

    relaxation = convex(softplus, lambda v: torch.sigmoid(layer.beta * v), box)
    switch, margin = softplus_switch(layer, box.lower.dtype)
    steps = (box.upper >= switch - margin).to(box.upper)
    step = math.log1p(math.exp(-layer.threshold)) / layer.beta * steps
    assert isinstance(relaxation.lower, LinearFunction)
    lower = LinearFunction(relaxation.lower.slope, relaxation.lower.offset - step)
    return LinearRelaxation(lower, relaxation.upper)


@relaxation_rule.register
def _(layer: nn.Sigmoid, box: Interval) -> LinearRelaxation:
    return sigmoidal(layer, lambda v: torch.sigmoid(v) * torch.sigmoid(-v), box)


@relaxation_rule.register
def _(layer: nn.Tanh, box: Interval) -> LinearRelaxation:
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
    at_zero = layer(box.lower.new_zeros(1, *shape))

    def transpose(coefficients: Tensor) -> Tensor:
        lead = coefficients.shape[: coefficients.ndim - at_zero.ndim + 1]
        with torch.enable_grad():
            zero = torch.zeros(math.prod(lead), *shape, dtype=at_zero.dtype, device=at_zero.device, requires_grad=True)
            image = layer(zero)
        flat = coefficients.reshape(-1, *at_zero.shape[1:])
        learns = flat.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())
        (transposed,) = torch.autograd.grad(image, zero, flat, create_graph=learns and torch.is_grad_enabled())
        return transposed.view(*lead, *shape)

    return Affine(transpose, at_zero[0])


for _layer in (nn.AvgPool2d, nn.Flatten, nn.Unflatten, nn.Identity):
    relaxation_rule.register(_layer, _affine)


# A convolution and a transposed one are each other's transposes: their own kernels, forward and for the gradient, cost
# about half as much as a backward pass and its gradient.


@relaxation_rule.register
def _(layer: nn.Conv2d, box: Interval) -> Affine:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return _affine(layer, box)
    channels, *sides = box.lower.shape[1:]
    dilation, stride, padding = layer.dilation, layer.stride, layer.padding
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, layer.kernel_size, strict=True)]
    # inputs beyond the last window
    left = [(n + 2 * p - r) % s for n, p, r, s in zip(sides, padding, reach, stride, strict=True)]
    transpose = partial(
        F.conv_transpose2d,
        weight=layer.weight,
        stride=stride,
        padding=padding,
        output_padding=left,
        groups=layer.groups,
        dilation=dilation,
    )
    return Affine(_over_rows(transpose, (channels, *sides)), layer(box.lower.new_zeros(1, channels, *sides))[0])


@relaxation_rule.register
def _(layer: nn.ConvTranspose2d, box: Interval) -> Affine:
    channels, height, width = box.lower.shape[1:]

    def transpose(coefficients: Tensor) -> Tensor:
        whole = F.conv2d(
            coefficients,
            layer.weight,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
        )
        return whole[..., :height, :width]  # output padding of a whole stride or more makes room for further windows

    at_zero = layer(box.lower.new_zeros(1, channels, height, width))
    return Affine(_over_rows(transpose, (channels, height, width)), at_zero[0])


def _over_rows(apply: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """A map of [batch, channels, height, width] to [batch, *shape] for coefficients [*rows, batch, ...]."""
    return lambda c: apply(c.flatten(0, -4)).view(*c.shape[:-3], *shape)


@relaxation_rule.register
def _(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout, box: Interval) -> Affine:
    apply = interval_rule.dispatch(type(layer))
    apply(layer, box)  # refuses what is random or depends on the batch
    return _affine(layer, box)
