"""The layers of a Lipschitz VAE beside linear ones, with their three rules: none moves its output more than its input.

GroupSort (Anil et al. 2019, arXiv 1811.05381) sorts pairs of units. It keeps the gradient's norm where ReLU loses it,
so that networks of orthonormal layers stay expressive.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import concave
from paperlib.bounds.interval import affine, interval_rule
from paperlib.bounds.linear import LinearFunction, LinearRelaxation, initial_alpha
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.residual import Residual
from paperlib.bounds.rounding import FLOOR, FUNCTION_ERRORS, Rounding, magnitude, rounding_rule
from paperlib.bounds.rules import apply_rule, named_layers


class GroupSort(Residual):
    """Each pair (p, q) of neighbouring units, sorted: [batch, width] -> [batch, width].

        (max(p, q), min(p, q)) = (p, q) + (1, -1) * relu(q - p)

    So linear bounds see one ReLU for each pair, and nothing else is relaxed. Interval bounds are those of the sum.

    Raises ValueError for an odd width.
    """

    def __init__(self, width: int) -> None:
        if width % 2:
            raise ValueError(f"GroupSort sorts pairs of units: the width must be even, got {width}")
        super().__init__(nn.Sequential(_Difference(), nn.ReLU(), _Spread()), (width,))


class _Difference(nn.Module):
    """(p, q) -> q - p  for each pair."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 1::2] - x[..., ::2]


class _Spread(nn.Module):
    """d -> (d, -d):  minus the transpose of the difference."""

    def forward(self, d: Tensor) -> Tensor:
        return torch.stack([d, -d], -1).flatten(-2)


class TwoLinear(nn.Module):
    """One layer of two networks side by side:  (u, v) -> (mean(u), sigma(v)).

    Args:
        mean, sigma: linear layers, of as many inputs as each other.
        shared: both read the whole input, as the first layers of both networks do.
    """

    def __init__(self, mean: nn.Linear, sigma: nn.Linear, shared: bool) -> None:
        super().__init__()
        self.mean, self.sigma, self.shared = mean, sigma, shared

    def forward(self, x: Tensor) -> Tensor:
        u, v = (x, x) if self.shared else x.chunk(2, -1)
        return torch.cat([self.mean(u), self.sigma(v)], -1)

    def of_both(self, rules: Any, box: Interval) -> tuple[Any, Any]:
        """What the rule in `rules` says of each of the two layers."""
        boxes = (box, box) if self.shared else box.chunk(2, -1)
        (mean,), (sigma,) = (named_layers(getattr(self, name), name) for name in ("mean", "sigma"))
        return tuple(apply_rule(rules, *layer, own) for layer, own in zip((mean, sigma), boxes, strict=True))


class LogVariance(nn.Module):
    """(mean, v) -> (mean, log sigma^2)  for  sigma = sigmoid(v):  what the two networks say, as an encoder says it."""

    def forward(self, x: Tensor) -> Tensor:
        mean, v = x.chunk(2, -1)
        return torch.cat([mean, log_variance(v)], -1)


def log_variance(v: Tensor) -> Tensor:
    """log sigmoid(v)^2"""
    return 2 * F.logsigmoid(v)


# Intervals


@interval_rule.register
def _(layer: _Difference, box: Interval) -> Interval:
    return affine(box, layer, lambda radius: radius[..., 1::2] + radius[..., ::2], summands=2)


@interval_rule.register
def _(layer: _Spread, box: Interval) -> Interval:
    return Interval(*(torch.stack(ends, -1).flatten(-2) for ends in ((box.lower, -box.upper), (box.upper, -box.lower))))


@interval_rule.register
def _(layer: TwoLinear, box: Interval) -> Interval:
    return Interval(*(torch.cat(ends, -1) for ends in zip(*layer.of_both(interval_rule, box), strict=True)))


@interval_rule.register
def _(layer: LogVariance, box: Interval) -> Interval:
    return box.map(layer)  # increasing


# Linear relaxations


@relaxation_rule.register
def _(layer: _Difference, box: Interval) -> Affine:
    return Affine(lambda c: -_Spread()(c), torch.zeros_like(box.lower[0, ::2]))


@relaxation_rule.register
def _(layer: _Spread, box: Interval) -> Affine:
    return Affine(lambda c: -_Difference()(c), torch.zeros_like(layer(box.lower[0])))


@relaxation_rule.register
def _(layer: TwoLinear, box: Interval) -> Affine:
    mean, sigma = layer.of_both(relaxation_rule, box)

    def transpose(coefficients: Tensor) -> Tensor:
        of_mean, of_sigma = coefficients.split([len(mean.offset), len(sigma.offset)], -1)
        parts = mean.transpose(of_mean), sigma.transpose(of_sigma)
        return torch.add(*parts) if layer.shared else torch.cat(parts, -1)

    return Affine(transpose, torch.cat([mean.offset, sigma.offset]))


@relaxation_rule.register
def _(layer: LogVariance, box: Interval) -> LinearRelaxation:
    _, v = box.chunk(2, -1)
    curve = concave(log_variance, lambda at: 2 * torch.sigmoid(-at), v)

    def beside(own: LinearFunction) -> LinearFunction:
        ones, zeros = torch.ones_like(own.slope), torch.zeros_like(own.offset)
        return LinearFunction(torch.cat([ones, own.slope], -1), torch.cat([zeros, own.offset], -1))

    return LinearRelaxation(beside(initial_alpha(curve.lower)), beside(initial_alpha(curve.upper)))


# Rounding


@rounding_rule.register
def _(layer: _Difference, box: Interval) -> Rounding:
    size = magnitude(box)
    return Rounding(1, size[..., 1::2] + size[..., ::2])


@rounding_rule.register
def _(layer: _Spread, box: Interval) -> Rounding:
    return Rounding(0, layer(magnitude(box)).abs())


@rounding_rule.register
def _(layer: TwoLinear, box: Interval) -> Rounding:
    mean, sigma = layer.of_both(rounding_rule, box)  # of linear layers, which have neither a peak nor a jump
    return Rounding(max(mean.count, sigma.count), torch.cat([mean.size, sigma.size], -1))


@rounding_rule.register
def _(layer: LogVariance, box: Interval) -> Rounding:
    # min(v, 0) - log1p(e) with e = exp(-|v|), twice: an error of e moves log1p(e) by less than as much of its own size
    count = FUNCTION_ERRORS["exp"] + FUNCTION_ERRORS["log1p"] + 2
    mean, log_var = interval_rule(layer, box).chunk(2, -1)
    return Rounding(count, torch.cat([magnitude(mean), magnitude(log_var).clamp(min=FLOOR)], -1))
