"""How far a layer evaluated in floating point strays from the same layer in real arithmetic.

A sum of n products, or n roundings one after the other, err by at most  gamma_n = n u / (1 - n u)  of the magnitudes
that enter: in any order of summation, with or without fused multiply-add, u being the unit roundoff (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", chapters 3 and 4). Bounds that ignore this can be broken by a network
that is verified on paper (Jia & Rinard 2021, arXiv 2003.03021).
"""

import math
import os
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.rules import UnsupportedLayerError

FLOOR = 1e-30  # gamma_1 times it is above the smallest normal number of float32: room for all that underflows

# Error of elementary functions in unit roundoffs of their value; one unit in the last place (ulp) is up to two of them.
# On the CPU torch takes SLEEF ("u10": 1 ulp), MKL's VML (high accuracy: 1 ulp) or the C library (glibc's manual: 1 ulp
# for these), on CUDA the device library (CUDA C++ Programming Guide, mathematical functions: 2 ulp). Sigmoid and
# softplus are compositions: 1 / (1 + exp(-v)) and log1p(exp(v)), v at most the threshold of 50. That of lgamma is for
# arguments of at least 1, and of its value or 1, whichever is larger (SLEEF 1 ulp, glibc 7, CUDA 6).
FUNCTION_ERRORS = {
    **{"exp": 4, "expm1": 4, "log": 4, "log1p": 4, "tanh": 4, "rsqrt": 4},
    **{"sigmoid": 8, "softplus": 8, "lgamma": 16},
}


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding to nearest. Raises ValueError for anything but float32 and float64."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"sound bounds are for float32 and float64, not {dtype}")
    return torch.finfo(dtype).eps / 2


def gamma(count: int, unit: float) -> float:
    """Higham's gamma_n, a millionth larger for the float64 rounding of what it multiplies; infinite where it ends."""
    return (1 + 2**-20) * count * unit / (1 - count * unit) if count * unit < 1 / 2 else math.inf


@dataclass(frozen=True)
class Rounding:
    """An evaluation in floating point:  |computed - exact| <= gamma(count, u) * size + jump,  elementwise.

    Nothing on the way is larger than `size` or `peak`, the exact result is not larger than `size`, and what underflows
    is below `FLOOR` times a factor in `size`. No rounding at all is a `count` of 0.
    """

    count: int
    size: Tensor
    peak: Tensor | float = 0.0
    jump: Tensor | float = 0.0  # where rounding may decide a branch of a function that is not continuous

    def bound(self, deployed: torch.dtype) -> Tensor:
        """The error in precision `deployed` and that of the interval rule in float64 together; of the shape of size.

        The interval rule takes the same operations on float64 ends, at most four more, then one to widen its box.
        Infinite where the deployed evaluation may overflow, or where `size` is not a number.
        """
        own = self.count + 6 if self.count else 0
        factor = gamma(self.count, unit_roundoff(deployed)) + gamma(own, unit_roundoff(torch.float64))
        fits = (self.size < torch.finfo(deployed).max / 8) & (
            torch.as_tensor(self.peak) < torch.finfo(deployed).max / 8
        )
        return torch.where(fits, factor * (self.size + FLOOR) + self.jump, math.inf)


def rounding_of_sum(few: int, parts: Tensor, terms: Tensor) -> Rounding:
    """Of the sum over all but the batch dimension of terms, each of which errs by `few` unit roundoffs of its parts.

    The sum adds errors of the terms themselves, which are far smaller than their parts where these cancel.

    Args:
        parts: the size of all that enters a term, [batch, *shape].
        terms: the largest magnitude of each, [batch, *shape].
    """
    count = few + math.prod(terms.shape[1:])
    return Rounding(count, (terms + parts * few / count).flatten(1).sum(1), peak=parts.flatten(1).sum(1))


def magnitude(box: Interval) -> Tensor:
    """The largest |v| of the box, elementwise."""
    return torch.maximum(box.lower.abs(), box.upper.abs())


@singledispatch
def rounding_rule(layer: nn.Module, box: Interval) -> Rounding:
    """(layer, box) -> Rounding

    The rule for one type of layer: how its evaluation rounds, at worst, for any floating-point input in the box. Layer
    and box are in float64; the layer's weights are the deployed ones, its Python numbers are rounded when it is used.
    """
    raise UnsupportedLayerError(f"no rounding rule for {type(layer).__name__}")


def _affine(layer: nn.Module, box: Interval, summands: int) -> Rounding:
    # Over [-m, m] the interval rule finds b -+ |W| m, whose magnitude is |W| m + |b|.
    largest = magnitude(box)
    return Rounding(summands + 1, magnitude(interval_rule(layer, Interval(-largest, largest))))


@rounding_rule.register
def _(layer: nn.Linear, box: Interval) -> Rounding:
    return Rounding(layer.in_features + 1, linear_size(layer, magnitude(box)))


def linear_size(layer: nn.Linear, largest: Tensor) -> Tensor:
    """|W| largest + |b|,  the size of all that enters the layer's sums: half the cost of its interval rule."""
    return F.linear(largest, layer.weight.abs(), None if layer.bias is None else layer.bias.abs())


@rounding_rule.register
def _(layer: nn.Conv2d, box: Interval) -> Rounding:
    return _affine(layer, box, layer.weight[0].numel())


@rounding_rule.register
def _(layer: nn.ConvTranspose2d, box: Interval) -> Rounding:
    return _affine(layer, box, layer.weight[:, 0].numel() // layer.groups)


@rounding_rule.register
def _(layer: nn.AvgPool2d, box: Interval) -> Rounding:
    sides = (layer.kernel_size,) * 2 if isinstance(layer.kernel_size, int) else layer.kernel_size
    return _affine(layer, box, math.prod(sides))


@rounding_rule.register
def _(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Interval) -> Rounding:
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None and var is not None  # else the interval rule has refused the layer
    if not layer.eps > FLOOR:
        raise ValueError(f"batch normalisation with eps below {FLOOR} has no rounding rule")
    scale = ((var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)).abs()
    shift = 0 if layer.bias is None else layer.bias.abs()
    scale, mean, shift = (
        torch.as_tensor(t).expand_as(mean).view(-1, *[1] * (box.lower.ndim - 2)) for t in (scale, mean.abs(), shift)
    )
    # (v - mean) * scale + shift in any order; var + eps rounds twice, then root, two products, sums
    return Rounding(FUNCTION_ERRORS["rsqrt"] + 8, scale.clamp(min=FLOOR) * (magnitude(box) + mean) + shift, peak=scale)


def _exact(layer: nn.Module, box: Interval) -> Rounding:
    return Rounding(0, magnitude(interval_rule(layer, box)))


for _layer in (nn.ReLU, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout):
    rounding_rule.register(_layer, _exact)


@rounding_rule.register
def _(layer: nn.LeakyReLU, box: Interval) -> Rounding:
    return Rounding(3, max(layer.negative_slope, FLOOR) * box.lower.clamp(max=0).abs())  # the slope is rounded, too


@rounding_rule.register
def _(layer: nn.ELU, box: Interval) -> Rounding:
    return Rounding(FUNCTION_ERRORS["expm1"] + 3, max(layer.alpha, FLOOR) * torch.expm1(box.lower.clamp(max=0)).abs())


@rounding_rule.register
def _(layer: nn.Sigmoid, box: Interval) -> Rounding:
    return Rounding(FUNCTION_ERRORS["sigmoid"], magnitude(interval_rule(layer, box)))


@rounding_rule.register
def _(layer: nn.Tanh, box: Interval) -> Rounding:
    return Rounding(FUNCTION_ERRORS["tanh"], magnitude(interval_rule(layer, box)))


@rounding_rule.register
def _(layer: nn.Softplus, box: Interval) -> Rounding:
    # At t = beta * v, rounded twice, softplus(t) moves by sigmoid(t) |t| u: for t > 0 less than softplus(t) u, for
    # t < 0 less than softplus(t) |t| u, and softplus(t) (1 + |t|) is largest at the upper end.
    low, high = (layer.beta * end for end in box)
    most = high.clamp(max=layer.threshold)
    # Rounding of t and of the threshold decides which side of torch's switch to the identity is taken.
    margin = 2**-20 * abs(layer.threshold) + FLOOR  # beta * v may underflow
    switches = (low <= layer.threshold + margin) & (high >= layer.threshold - margin)
    jump = switches.to(box.lower) * (math.log1p(math.exp(-layer.threshold)) / layer.beta)
    size = (magnitude(interval_rule(layer, box)) + jump).clamp(min=FLOOR / layer.beta) * (1 + F.relu(-most))
    return Rounding(FUNCTION_ERRORS["softplus"] + 8, size, peak=most.exp().clamp(min=1 / layer.beta), jump=jump)


def check_deployed(network: nn.Module, x: Tensor) -> None:
    """Raises ValueError where what evaluates `network` at x rounds in another way than `gamma` describes.

    That is: another precision than one of float32 and float64; autocast, TF32 or bfloat16 inside; convolutions by
    Winograd or FFT; subnormal numbers flushed to zero; weights that are computed on each use; another device than CPU
    and CUDA.
    """
    tensors = [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
    for dtype in {x.dtype, *(t.dtype for t in tensors)}:
        unit_roundoff(dtype)
        if dtype != x.dtype:
            raise ValueError(f"sound bounds need one precision throughout: x is {x.dtype}, the network holds {dtype}")
    device = x.device.type
    if device not in ("cpu", "cuda"):
        raise ValueError(f"sound bounds are for CPU and CUDA, not for {device}: its rounding is not documented")
    if any(parametrize.is_parametrized(module) for module in network.modules()):
        raise ValueError("sound bounds need plain weights: call torch.nn.utils.parametrize.remove_parametrizations")
    if torch.is_autocast_enabled(device):
        raise ValueError("autocast computes in lower precision: sound bounds need it disabled")
    convolutions = any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in network.modules())
    if convolutions:
        _check_convolutions(device)
    if x.dtype == torch.float32:
        _check_settings(device, convolutions)
    if torch.finfo(x.dtype).tiny * x.new_tensor(0.5) == 0:
        raise ValueError("subnormal numbers are flushed to zero: call torch.set_flush_denormal(False)")


def _check_convolutions(device: str) -> None:
    if device == "cuda" and torch.backends.cudnn.enabled:
        raise ValueError(
            "cuDNN may convolve in TF32, by Winograd or by FFT, which round in another way: "
            "set torch.backends.cudnn.enabled = False"
        )
    mkldnn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if device == "cpu" and not mkldnn and torch.backends.nnpack.is_available() and torch._C._get_nnpack_enabled():
        raise ValueError(
            "NNPACK may convolve by Winograd or FFT, which round in another way: "
            "call torch.backends.nnpack.set_flags(False)"
        )


def _check_settings(device: str, convolutions: bool) -> None:
    # torch.set_float32_matmul_precision and the switches called allow_tf32 show here, too
    name = "mkldnn" if device == "cpu" else "cuda"
    for part in ("matmul", "conv") if device == "cpu" and convolutions else ("matmul",):
        precision = getattr(getattr(torch.backends, name), part).fp32_precision
        if precision not in ("none", "ieee"):
            raise ValueError(
                f"float32 products may be taken in {precision}, which rounds more: "
                f'set torch.backends.{name}.{part}.fp32_precision = "ieee"'
            )
    for variable in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        if os.environ.get(variable, "STRICT").upper() != "STRICT":
            raise ValueError(f"{variable} allows float32 products in lower precision: unset it")
