"""Bounds of the Bernoulli log-likelihood  t * l - softplus(l)  over a box of logits l and a box of targets t.

It is concave in l and linear in t: the smallest value over both boxes sits at a corner, and the largest at the logit
nearest to the maximiser l* = logit(t). The linear bounds replace the product t * l by McCormick's planes.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import chord_below, is_nonnegative, relu_chord, tangent
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction, LinearFunction
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding, magnitude
from paperlib.certificates.likelihood_bounds import LikelihoodBounds, likelihood_bounds
from paperlib.models.likelihood import Bernoulli, softplus, sum_per_example


class BernoulliBounds(LikelihoodBounds):
    """Exact intervals, and linear bounds, of the Bernoulli log-likelihood."""

    def lower(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(_BernoulliLower.apply(*output, *target))

    def upper(self, output: Interval, target: Interval) -> Tensor:
        # For a fixed l the best t is an end of its interval; for that t the best l is its logit, clipped to the box.
        # Inside the box the derivative in l vanishes there, so no gradient is lost by detaching the logit. A target
        # beyond [0, 1] has its maximiser at infinity, like 0 and 1 themselves.
        best = None
        for t in target:
            logit = torch.logit(t.detach().clamp(0, 1)).clamp(output.lower, output.upper)
            value = t * logit - softplus(logit)
            best = value if best is None else torch.maximum(best, value)
        assert best is not None
        return sum_per_example(best)

    def target_slope(self, output: Interval) -> Interval:
        return output

    def mean(self, output: Interval) -> Interval:
        return output.map(torch.sigmoid)

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        # A summand t * l - softplus(l) takes a few roundings of its two parts (and of 1, as `softplus` adds 1), and all
        # summands share those of the sum. Where the fit is good a summand is far smaller than its parts:
        # |t * l - softplus(l)| <= |l| |t - [l > 0]| + log1p(exp(-|l|)).
        few = FUNCTION_ERRORS["softplus"] + 4
        low, high = output
        parts = magnitude(target) * magnitude(output) + 1 + softplus(high)
        misfit = torch.maximum(
            high.clamp(min=0) * magnitude(target.map(lambda t: t - 1)), (-low).clamp(min=0) * magnitude(target)
        )
        summands = misfit + softplus(-torch.maximum(low, -high).clamp(min=0))
        count = few + math.prod(summands.shape[1:])
        return Rounding(count, sum_per_example(summands + parts * few / count), peak=sum_per_example(parts))

    def linear_below(self, output: Interval, target: Interval) -> AlphaRelaxation[JointLinearFunction]:
        # t * l by McCormick's two planes, and the concave -softplus(l) by its chord
        chord = chord_below(_minus_softplus, _minus_sigmoid, output)
        return _mccormick(chord, output, target.lower, target.upper)

    def linear_above(self, output: Interval, target: Interval) -> AlphaRelaxation[JointLinearFunction]:
        # The tangent touches where the fit of the middle target is best.
        best = torch.logit(target.center.clamp(0, 1)).clamp(output.lower, output.upper)
        line = tangent(_minus_softplus, _minus_sigmoid, best)
        return _mccormick(line, output, target.upper, target.lower)

    def decrease_bound(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        # the derivative t - sigmoid(l) lies between t - 1 and t whatever the logit
        return torch.maximum(target.upper, 1 - target.lower), torch.zeros_like(output.lower)


likelihood_bounds.register(Bernoulli, BernoulliBounds)


class _BernoulliLower(torch.autograd.Function):
    """The smallest t * l - softplus(l) over both boxes, elementwise, with the derivative of the corner it sits at."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor, target_low: Tensor, target_high: Tensor) -> Tensor:
        # concave in l, so smallest at an end, and there linear in t
        at_low = torch.minimum(target_low * low, target_high * low).sub_(softplus(low))
        at_high = torch.minimum(target_low * high, target_high * high).sub_(softplus(high))
        is_low = is_nonnegative(at_high - at_low)
        logit = torch.lerp(high, low, is_low)
        ctx.save_for_backward(logit, target_low, target_high, is_low)
        return torch.minimum(at_low, at_high, out=at_low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logit, target_low, target_high, is_low = ctx.saved_tensors
        at_lower = is_nonnegative(logit)  # t * l is smallest at the lower t where l >= 0
        logit_gradient = torch.lerp(target_high, target_low, at_lower).sub_(torch.sigmoid(logit)).mul_(gradient)
        low_gradient = logit_gradient * is_low
        ends = low_gradient, logit_gradient.sub_(low_gradient)
        if not any(ctx.needs_input_grad[2:]):
            return (*ends, None, None)
        target_gradient = gradient * logit
        target_low_gradient = target_gradient * at_lower
        return (*ends, target_low_gradient, target_gradient.sub_(target_low_gradient))


def _mccormick(
    function: LinearFunction, output: Interval, at_low: Tensor, at_high: Tensor
) -> AlphaRelaxation[JointLinearFunction]:
    """t * l + function(l), with the product replaced by either of two planes on the same side of it (McCormick 1976).

    Over l in [low, high] the first plane agrees with t * l at low and at the target `at_low`, the second at high and at
    the target `at_high`:

        at_low * l + low * t - at_low * low    and    at_high * l + high * t - at_high * high

    They are below t * l where at_low and at_high are the lower and the upper target, and above it where they are the
    upper and the lower one. Every mixture of them is a bound, too: alpha is the share of the second.
    """
    low, high = output
    span = at_high - at_low
    # Initially the coefficient of the target is as near to 0 as it can be, at alpha = -low / (high - low), clipped.
    # That is 1 - high / (high - low), so that ReLU's chord gives it and its gradient.
    first_share, chord_offset = relu_chord(output)
    above, below = F.relu(low), F.relu(-high)
    initial = JointLinearFunction(
        torch.addcmul(function.slope + at_high, first_share, span, value=-1),
        above - below,
        function.offset - at_low * above + at_high * below - chord_offset * span,
    )

    def at(alpha: Tensor) -> JointLinearFunction:
        product = torch.lerp(at_low * low, at_high * high, alpha)
        output_slope = function.slope + torch.lerp(at_low, at_high, alpha)
        return JointLinearFunction(output_slope, torch.lerp(low, high, alpha), function.offset - product)

    return AlphaRelaxation(initial, 1 - first_share.detach(), at)


def _minus_softplus(logit: Tensor) -> Tensor:
    return -softplus(logit)


def _minus_sigmoid(logit: Tensor) -> Tensor:
    return -torch.sigmoid(logit)
