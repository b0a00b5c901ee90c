"""Decoder likelihoods log p(target | z), each with the exact range over a box of decoder outputs and of targets.

A likelihood sees the decoder's raw output [batch, *data_shape] (logits, or means) and the target of the same shape;
its values are [batch], in nats. A user's own likelihood subclasses `Likelihood` with three methods.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paperlib.interval import Interval
from paperlib.lines import Choice, Line, Plane, chord_below, from_zero_on, relu_chord, tangent
from paperlib.rounding import UNITS, Rounding, magnitude


class Likelihood(nn.Module, ABC):
    """p(target | output). `bounds` must contain `log_prob` for all outputs and targets of the two boxes."""

    @abstractmethod
    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """log p(target | output) summed over all but the batch dimension: [batch], in nats."""

    @abstractmethod
    def lower(self, output: Interval, target: Interval) -> Tensor:
        """A lower bound of `log_prob` over both boxes, [batch]. Apart from `upper`, as training needs only this end."""

    @abstractmethod
    def upper(self, output: Interval, target: Interval) -> Tensor:
        """An upper bound of `log_prob` over both boxes, [batch]."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """The expected data under the likelihood, [batch, *data_shape]: what a reconstruction shows."""

    def plane_below(self, output: Interval, target: Interval) -> Plane | Choice[Plane]:
        """Planes in output and target, one for each element, whose sum is below `log_prob` over both boxes.

        Only the linear bounds need this and `plane_above`; raises NotImplementedError where a likelihood has none.
        """
        raise NotImplementedError(
            f'{type(self).__name__} has no plane_below, which linear bounds need: use method="ibp"'
        )

    def plane_above(self, output: Interval, target: Interval) -> Plane | Choice[Plane]:
        """Planes in output and target, one for each element, whose sum is above `log_prob` over both boxes."""
        raise NotImplementedError(
            f'{type(self).__name__} has no plane_above, which linear bounds need: use method="ibp"'
        )

    def decline(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        """Slope and curvature, each [batch, *data_shape] and not negative, that bound how far `log_prob` can fall:

            log_prob(output + d, target)  >=  log_prob(output, target) - sum( slope * |d| + curvature * d^2 / 2 )

        for output and target of the boxes and d of any size. Only `certify_expected` needs this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decline, which certify_expected needs")

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        """How `log_prob` rounds, at worst over both boxes and in any order of summation, [batch].

        Only sound bounds need this; raises NotImplementedError where a likelihood has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rounding, which sound bounds need: use sound=False")

    def bounds(self, output: Interval, target: Interval) -> Interval:
        """An interval that contains `log_prob` over both boxes, [batch]."""
        return Interval(self.lower(output, target), self.upper(output, target))


class _Softplus(torch.autograd.Function):
    """log(1 + exp(l)) in float32, within 8 unit roundoffs of 1 + its value.

    torch's own takes log1p, which for float32 is not vectorised on the CPU and then costs as much as a layer's product.
    """

    @staticmethod
    def forward(ctx: Any, logit: Tensor) -> Tensor:
        ctx.save_for_backward(logit)
        return logit.abs().neg_().exp_().add_(1).log_().add_(logit.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (logit,) = ctx.saved_tensors
        return gradient * torch.sigmoid(logit)


def _softplus(logit: Tensor) -> Tensor:
    # torch steps from log(1 + exp(l)) down to l at its default threshold of 20, by 2e-9; at 50 by less than rounding.
    return _Softplus.apply(logit) if logit.dtype == torch.float32 else F.softplus(logit, threshold=50)


def _minus_softplus(logit: Tensor) -> Tensor:
    return -_softplus(logit)


def _minus_sigmoid(logit: Tensor) -> Tensor:
    return -torch.sigmoid(logit)


def _mccormick(line: Line, output: Interval, at_low: Tensor, at_high: Tensor) -> Choice[Plane]:
    # target * output + line(output), where the product is replaced by a mixture of two planes: the first agrees with it
    # at the lower output and one target, the second at the upper output and the other target (McCormick 1976).
    low, high = output
    span = at_high - at_low
    # Start where the form on the target is nearest to 0: at the weight -low / (high - low), clipped, or 1 - of_low.
    of_low, between = relu_chord(output)
    above, below = F.relu(low), F.relu(-high)
    start = Plane(
        torch.addcmul(line.slope + at_high, of_low, span, value=-1),
        above - below,
        line.offset - at_low * above + at_high * below - between * span,
    )

    def at(weight: Tensor) -> Plane:
        product = torch.lerp(at_low * low, at_high * high, weight)
        return Plane(
            line.slope + torch.lerp(at_low, at_high, weight), torch.lerp(low, high, weight), line.offset - product
        )

    return Choice(start, 1 - of_low.detach(), at)


def _total(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1)


class _BernoulliLower(torch.autograd.Function):
    """The smallest t * l - softplus(l) over both boxes, elementwise, with the derivative of the corner it sits at."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor, target_low: Tensor, target_high: Tensor) -> Tensor:
        # concave in l, so smallest at an end, and there linear in t
        at_low = torch.minimum(target_low * low, target_high * low).sub_(_softplus(low))
        at_high = torch.minimum(target_low * high, target_high * high).sub_(_softplus(high))
        is_low = from_zero_on(at_high - at_low)
        logit = torch.lerp(high, low, is_low)
        ctx.save_for_backward(logit, target_low, target_high, is_low)
        return torch.minimum(at_low, at_high, out=at_low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logit, target_low, target_high, is_low = ctx.saved_tensors
        at_lower = from_zero_on(logit)  # t * l is smallest at the lower t where l >= 0
        of_logit = torch.lerp(target_high, target_low, at_lower).sub_(torch.sigmoid(logit)).mul_(gradient)
        of_low = of_logit * is_low
        ends = of_low, of_logit.sub_(of_low)
        if not any(ctx.needs_input_grad[2:]):
            return (*ends, None, None)
        of_target = gradient * logit
        of_target_low = of_target * at_lower
        return (*ends, of_target_low, of_target.sub_(of_target_low))


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels with the output as logit l: log p(t | l) = t * l - softplus(l), for t in [0, 1].

    For grey values in between it is the usual unnormalised VAE objective. Each term is concave in l and linear in t, so
    the smallest value over a box sits at a corner, and the largest at the logit nearest to the maximiser l* = logit(t).
    """

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return _total(target * output - _softplus(output))

    def lower(self, output: Interval, target: Interval) -> Tensor:
        return _total(_BernoulliLower.apply(*output, *target))

    def upper(self, output: Interval, target: Interval) -> Tensor:
        # For a fixed l the best t is an end of its interval; for that t the best l is its logit, clipped to the box.
        # Inside the box the derivative in l vanishes there, so no gradient is lost by detaching the logit. A target
        # beyond [0, 1] has its maximiser at infinity, like 0 and 1 themselves.
        best = None
        for t in target:
            logit = torch.logit(t.detach().clamp(0, 1)).clamp(output.lower, output.upper)
            value = t * logit - _softplus(logit)
            best = value if best is None else torch.maximum(best, value)
        assert best is not None
        return _total(best)

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        # A summand t * l - softplus(l) takes a few roundings of its two parts (and of 1: see `_Softplus`), and all
        # summands share those of the sum. It is far smaller than its parts where the fit is good:
        # |t * l - softplus(l)| <= |l| |t - [l > 0]| + log1p(exp(-|l|)).
        few = UNITS["softplus"] + 4
        low, high = output
        parts = magnitude(target) * magnitude(output) + 1 + _softplus(high)
        misfit = torch.maximum(
            high.clamp(min=0) * magnitude(target.map(lambda t: t - 1)), (-low).clamp(min=0) * magnitude(target)
        )
        summands = misfit + _softplus(-torch.maximum(low, -high).clamp(min=0))
        count = few + summands[0].numel()
        return Rounding(count, _total(summands + parts * few / count), peak=_total(parts))

    # Planes: t * l by either of McCormick's planes, and the concave -softplus(l) by its chord or a tangent.

    def plane_below(self, output: Interval, target: Interval) -> Choice[Plane]:
        line = chord_below(_minus_softplus, _minus_sigmoid, output)
        return _mccormick(line, output, target.lower, target.upper)

    def plane_above(self, output: Interval, target: Interval) -> Choice[Plane]:
        # The tangent touches where the fit of the middle target is best.
        best = torch.logit(target.center.clamp(0, 1)).clamp(output.lower, output.upper)
        line = tangent(_minus_softplus, _minus_sigmoid, best)
        return _mccormick(line, output, target.upper, target.lower)

    def decline(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        # the derivative t - sigmoid(l) lies between t - 1 and t whatever the logit
        return torch.maximum(target.upper, 1 - target.lower), torch.zeros_like(output.lower)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)


class Gaussian(Likelihood):
    """Independent Gaussian pixels around the output: log N(target; output, scale^2), in nats of a density.

    Args:
        scale: standard deviation in data units, one for all pixels.
        learned: whether training adapts the scale (its logarithm is then a parameter).

    Raises:
        ValueError: a scale that is not positive and finite.
    """

    def __init__(self, scale: float = 1.0, learned: bool = False):
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        log_scale = torch.tensor(math.log(scale))
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return self._log_density((target - output).abs())

    def lower(self, output: Interval, target: Interval) -> Tensor:
        farthest = torch.maximum(target.upper - output.lower, output.upper - target.lower)
        return self._log_density(farthest)

    def upper(self, output: Interval, target: Interval) -> Tensor:
        nearest = torch.maximum(target.lower - output.upper, output.lower - target.upper).clamp(min=0)
        return self._log_density(nearest)

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        # exp and the distance round before they are squared; the constant is rounded when it is used
        inverse = torch.exp(-self.log_scale)
        farthest = torch.maximum(target.upper - output.lower, output.upper - target.lower)
        summands = (farthest * inverse).square() / 2 + self.log_scale.abs() + math.log(2 * math.pi) / 2
        count = 2 * UNITS["exp"] + 8 + summands[0].numel()
        return Rounding(count, _total(summands), peak=torch.maximum(inverse, 1 / inverse))

    def plane_below(self, output: Interval, target: Interval) -> Plane:
        # concave in the distance output - target: chord
        distance = Interval(output.lower - target.upper, output.upper - target.lower)
        line = chord_below(self._log_density_terms, self._slope, distance)
        return Plane(line.slope, -line.slope, line.offset)

    def plane_above(self, output: Interval, target: Interval) -> Plane:
        # tangent at the best distance
        best = torch.zeros_like(output.lower).clamp(output.lower - target.upper, output.upper - target.lower)
        line = tangent(self._log_density_terms, self._slope, best)
        return Plane(line.slope, -line.slope, line.offset)

    def decline(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        farthest = torch.maximum(target.upper - output.lower, output.upper - target.lower)
        precision = torch.exp(-2 * self.log_scale)
        return farthest * precision, precision.expand_as(farthest)

    def mean(self, output: Tensor) -> Tensor:
        return output

    def _log_density(self, distance: Tensor) -> Tensor:
        return _total(self._log_density_terms(distance))

    def _log_density_terms(self, distance: Tensor) -> Tensor:
        standardized = distance * torch.exp(-self.log_scale)
        return -standardized.square() / 2 - self.log_scale - math.log(2 * math.pi) / 2

    def _slope(self, distance: Tensor) -> Tensor:
        return -distance * torch.exp(-2 * self.log_scale)
