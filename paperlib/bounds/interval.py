"""Interval bound propagation (IBP): boxes through torch modules.

Interval bound propagation is Gowal et al. 2018 (arXiv 1810.12715); the paper applies it to both halves of a VAE
(arXiv 2004.10608, section 3). Every bound here holds in real arithmetic, but for what the layer itself rounds when it
is evaluated at the point of the box nearest to 0: about 1e-6 of a value's size in float32, 1e-15 in float64. A box is
enlarged by what its own width can round, so that neither of its ends is lost beside the other.
"""

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.rules import UnsupportedLayerError, apply_rule, named_layers


def propagate(module: nn.Module, box: Interval, name: str = "") -> Interval:
    """A box that contains module(x) for every x in `box`; differentiable in the parameters and in both ends.

    Args:
        module: a layer with an interval rule, or a `nn.Sequential` of such. Own layers need one rule:
            `@interval_rule.register(MyLayer)` above a function `(layer, box) -> Interval`.
        box: [batch, *shape].
        name: the module's place in a larger network, for messages.

    Raises:
        UnsupportedLayerError: a layer without a rule, or one that hooks make compute something else; with its place.
        ValueError: batch normalisation or dropout in training mode, where the output is no function of one example.
    """
    return propagate_all(module, box, name)[-1]


def propagate_all(module: nn.Module, box: Interval, name: str = "") -> list[Interval]:
    """`propagate` with every box on the way: the input's, and after each layer its output's. Errors as there."""
    boxes = [box]
    for place, layer in named_layers(module, name):
        boxes.append(apply_rule(interval_rule, place, layer, boxes[-1]))
    return boxes


@singledispatch
def interval_rule(layer: nn.Module, box: Interval) -> Interval:
    """(layer, box) -> Interval

    The rule for one type of layer: a box that contains layer(x) for all x in the given box.
    """
    raise UnsupportedLayerError(f"no interval rule for {type(layer).__name__}")


def affine(
    box: Interval, linear: Callable[[Tensor], Tensor], absolute: Callable[[Tensor], Tensor], summands: int
) -> Interval:
    """The box of an affine map, exact if each input enters W once: centre through W and b, radius through |W|.

    Args:
        summands: how many inputs an output sums, at most.
    """
    center, radius = linear(box.center), absolute(box.radius * outward(summands, box.lower.dtype))
    return Interval(center - radius, center + radius)


def outward(summands: int, dtype: torch.dtype) -> float:
    """A factor above 1 for radii, with which centre and radius, as computed, are outward of their own rounding.

    Each is a sum of products that is rounded by at most  gamma_n = n u / (1 - n u)  of  |W| |v|,  u the unit roundoff
    (Higham 2002, chapter 3), and |v| is at most the radius plus the smallest |v| of the box. Twice gamma_n of the
    radius is added; what is left is the share of the smallest |v|, which the layer itself rounds there, too.
    """
    rounded = (summands + 4) * torch.finfo(dtype).eps / 2  # middle, half width, bias and the ends round as well
    return 1 + 2 * rounded / (1 - rounded) if rounded < 1 / 2 else math.inf


class _LinearBox(torch.autograd.Function):
    """`affine` of a linear layer. Its backward pass adds the gradients of both products with W in place."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.outward = outward(weight.shape[1], weight.dtype)
        center, radius, absolute = (low + high).div_(2), (high - low).mul_(ctx.outward / 2), weight.abs()
        ctx.save_for_backward(center, radius, weight, absolute)
        center, radius = F.linear(center, weight, bias), F.linear(radius, absolute)
        return center - radius, center.add_(radius)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, low_gradient: Tensor, high_gradient: Tensor) -> tuple[Tensor | None, ...]:
        center, radius, weight, absolute = ctx.saved_tensors
        # low = c - r and high = c + r, where c = W center + b and r = |W| radius
        c_gradient, r_gradient = low_gradient + high_gradient, high_gradient - low_gradient
        end_gradients: tuple[Tensor | None, ...] = (None, None)
        if any(ctx.needs_input_grad[:2]):
            through_center, through_radius = c_gradient @ weight, r_gradient @ absolute
            end_gradients = (
                torch.sub(through_center, through_radius, alpha=ctx.outward).div_(2),
                through_center.add_(through_radius, alpha=ctx.outward).div_(2),
            )
        weight_gradient = bias_gradient = None
        c_gradient, r_gradient, center, radius = (
            t.reshape(-1, t.shape[-1]) for t in (c_gradient, r_gradient, center, radius)
        )
        if ctx.needs_input_grad[2]:
            weight_gradient = (r_gradient.T @ radius).mul_(weight.sgn()).addmm_(c_gradient.T, center)
        if ctx.needs_input_grad[3]:
            bias_gradient = c_gradient.sum(0)
        return (*end_gradients, weight_gradient, bias_gradient)


@interval_rule.register
def _(layer: nn.Linear, box: Interval) -> Interval:
    return Interval(*_LinearBox.apply(*box, layer.weight, layer.bias))


@interval_rule.register
def _(layer: nn.Conv2d, box: Interval) -> Interval:
    # Padding other than with zeros copies inputs: |W| over copied radii is right for every padding mode.
    return affine(
        box, layer, lambda r: layer._conv_forward(r, layer.weight.abs(), None), summands=layer.weight[0].numel()
    )


@interval_rule.register
def _(layer: nn.ConvTranspose2d, box: Interval) -> Interval:
    def absolute(radius: Tensor) -> Tensor:
        return F.conv_transpose2d(
            radius,
            layer.weight.abs(),
            stride=layer.stride,
            padding=layer.padding,  # type: ignore[arg-type]
            output_padding=layer.output_padding,
            groups=layer.groups,
            dilation=layer.dilation,
        )

    return affine(box, layer, absolute, summands=layer.weight[:, 0].numel() // layer.groups)


@interval_rule.register
def _(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Interval) -> Interval:
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise ValueError("batch statistics depend on the other examples: call .eval() and track running statistics")
    scale = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
    # [features] -> [1, features, 1, ...], the shape that broadcasts over batch and space
    scale = scale.view(1, -1, *[1] * (box.lower.ndim - 2))
    return affine(box, layer, lambda r: r * scale.abs(), summands=8)  # the scale itself is rounded, too


@interval_rule.register
def _(layer: nn.AvgPool2d, box: Interval) -> Interval:
    if layer.divisor_override is not None and layer.divisor_override < 0:
        raise ValueError("a negative divisor is not monotone; only divisor_override > 0 has a rule")
    return box.map(layer)  # non-negative weights: non-decreasing in every input


def _monotone(layer: nn.Module, box: Interval) -> Interval:
    return box.map(layer)


for _layer in (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Flatten, nn.Unflatten, nn.Identity):
    interval_rule.register(_layer, _monotone)


@interval_rule.register
def _(layer: nn.LeakyReLU, box: Interval) -> Interval:
    if layer.negative_slope < 0:
        raise ValueError("a negative slope below zero is not monotone; only negative_slope >= 0 has a rule")
    return box.map(layer)


@interval_rule.register
def _(layer: nn.ELU, box: Interval) -> Interval:
    if layer.alpha < 0:
        raise ValueError("ELU with alpha < 0 is not monotone; only alpha >= 0 has a rule")
    return box.map(layer)


@interval_rule.register
def _(layer: nn.Softplus, box: Interval) -> Interval:
    if layer.beta <= 0:
        raise ValueError("Softplus with beta <= 0 has no rule; only beta > 0 has")
    # torch returns x itself above the switch: there the function steps down, from `top` to the switch
    switch, margin = softplus_switch(layer, box.lower.dtype)
    top = switch + math.log1p(math.exp(-layer.threshold)) / layer.beta
    steps = (box.lower <= switch + margin) & (box.upper >= switch - margin) & (box.lower < box.upper)
    image = box.map(layer)
    return Interval(
        torch.where(steps, image.lower.clamp(max=switch - margin), image.lower),
        torch.where(steps, image.upper.clamp(min=top + margin), image.upper),
    )


def softplus_switch(layer: nn.Softplus, dtype: torch.dtype) -> tuple[float, float]:
    """Where torch steps from log(1 + exp(beta x)) / beta to x itself, x = threshold / beta, and how far from there
    rounding may move the step.
    """
    switch, info = layer.threshold / layer.beta, torch.finfo(dtype)
    return switch, 8 * info.eps * (abs(switch) + 1 / layer.beta) + info.tiny * (1 + 1 / layer.beta)


@interval_rule.register
def _(layer: nn.Dropout, box: Interval) -> Interval:
    if layer.training and layer.p > 0:
        raise ValueError("dropout in training mode is random: call .eval() before bounding")
    return box
