"""Bounds of exponential families  log p(t | l) = t * l - A(l) + h(t)  over a box of outputs l and a box of targets t.

With A convex and h concave or 0 it is concave in l and concave in t: its smallest value over both boxes sits at a
corner. The largest at one target sits at the output nearest to the one whose mean is this target. The linear bounds
replace the product t * l by McCormick's planes, and A and h by chords and tangents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import Curve, chord_below, is_nonnegative, relu_chord, tangent
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction, LinearFunction
from paperlib.bounds.rounding import magnitude
from paperlib.certificates.likelihood_bounds import LikelihoodBounds, NaturalForm
from paperlib.models.likelihood import ExponentialFamily, sum_per_example


class ExponentialFamilyBounds(LikelihoodBounds):
    """Exact intervals, and linear bounds, for a family whose h is 0.

    Others subclass this with `best_targets`, `base_below` and `base_above`; without, their lower bound alone is there.
    No rounding: a family with bounds of what its functions round subclasses this with a method `rounding`.
    """

    likelihood: ExponentialFamily

    def lower(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(self.least(output, target))

    def least(self, output: Interval, target: Interval) -> Tensor:
        """The smallest term of each element, [batch, *data_shape]."""
        family = self.likelihood
        base = (family.log_base_measure(end) for end in target)
        return _LeastAtCorners.apply(*output, *target, *base, family.log_normalizer, family.mean_parameter)

    def upper(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(self.largest(output, target))

    def largest(self, output: Interval, target: Interval) -> Tensor:
        """The largest term of each element, [batch, *data_shape]."""
        # At the best output inside the box the derivative in l vanishes, so no gradient is lost by detaching it. A
        # target beyond the means of the family has it at infinity.
        values = [
            self.likelihood.log_density(self.likelihood.natural_parameter(t.detach()).clamp(*output), t)
            for t in self.best_targets(output, target)
        ]
        return values[0] if len(values) == 1 else torch.maximum(*values)

    def largest_term(self, output: Interval, target: Interval) -> Tensor:
        """The largest magnitude of the term of each element, [batch, *data_shape]."""
        return magnitude(Interval(self.least(output, target), self.largest(output, target)))

    def best_targets(self, output: Interval, target: Interval) -> Sequence[Tensor]:
        """One or two targets of the box, at one of which  max over l of log p  is largest."""
        # with h = 0 it is a maximum of functions that are linear in t, hence convex
        self._check_no_base("best_targets")
        return tuple(target)

    @property
    def has_base(self) -> bool:
        """Whether the family has an h."""
        return type(self.likelihood).log_base_measure is not ExponentialFamily.log_base_measure

    def _check_no_base(self, method: str) -> None:
        if self.has_base:
            raise NotImplementedError(
                f"{type(self).__name__} has no {method}, which a family with a base measure needs"
            )

    def target_slope(self, output: Interval) -> Interval:
        return super().target_slope(output) if self.has_base else output

    def mean(self, output: Interval) -> Interval:
        return output.map(self.likelihood.mean_parameter)

    def natural_form(self) -> NaturalForm:
        family = self.likelihood
        return NaturalForm(1.0, family.log_normalizer, family.mean_parameter, family if self.has_base else None)

    def linear_below(self, output: Interval, target: Interval) -> AlphaRelaxation[JointLinearFunction]:
        # t * l by McCormick's two planes, and the concave -A(l) by its chord
        chord = chord_below(self._minus_normalizer, self._minus_mean, output)
        return _mccormick(chord, output, target.lower, target.upper, self.base_below(target))

    def linear_above(self, output: Interval, target: Interval) -> AlphaRelaxation[JointLinearFunction]:
        # The tangent touches where the fit of the middle target is best.
        best = self.likelihood.natural_parameter(target.center).clamp(*output)
        line = tangent(self._minus_normalizer, self._minus_mean, best)
        return _mccormick(line, output, target.upper, target.lower, self.base_above(target))

    def base_below(self, target: Interval) -> LinearFunction | None:
        """A line below h(t) over the box; None for an h of 0."""
        self._check_no_base("base_below")
        return None

    def base_above(self, target: Interval) -> LinearFunction | None:
        """A line above h(t) over the box; None for an h of 0."""
        self._check_no_base("base_above")
        return None

    def _minus_normalizer(self, output: Tensor) -> Tensor:
        return -self.likelihood.log_normalizer(output)

    def _minus_mean(self, output: Tensor) -> Tensor:
        return -self.likelihood.mean_parameter(output)


class _LeastAtCorners(torch.autograd.Function):
    """The smallest t * l - A(l) + h(t) over both boxes, elementwise, with the derivative of the corner it sits at.

    `base_low` and `base_high` are h at both ends of the target, None for 0; A and A' are functions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        low: Tensor,
        high: Tensor,
        target_low: Tensor,
        target_high: Tensor,
        base_low: Tensor | None,
        base_high: Tensor | None,
        normalizer: Curve,
        mean: Curve,
    ) -> Tensor:
        def fit(target: Tensor, logit: Tensor, base: Tensor | None) -> Tensor:
            return target * logit if base is None else target * logit + base

        # concave in l, so smallest at an end, and there concave in t
        at_low = torch.minimum(fit(target_low, low, base_low), fit(target_high, low, base_high)).sub_(normalizer(low))
        at_high = torch.minimum(fit(target_low, high, base_low), fit(target_high, high, base_high)).sub_(
            normalizer(high)
        )
        is_low = is_nonnegative(at_high - at_low)
        logit = torch.lerp(high, low, is_low)
        ctx.save_for_backward(logit, target_low, target_high, is_low, base_low, base_high)
        ctx.mean = mean
        return torch.minimum(at_low, at_high, out=at_low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logit, target_low, target_high, is_low, base_low, base_high = ctx.saved_tensors
        # t * l is smallest at the lower t where l >= 0
        rise = logit if base_low is None else (target_high - target_low) * logit + (base_high - base_low)
        at_lower = is_nonnegative(rise)
        logit_gradient = torch.lerp(target_high, target_low, at_lower).sub_(ctx.mean(logit)).mul_(gradient)
        low_gradient = logit_gradient * is_low
        ends = low_gradient, logit_gradient.sub_(low_gradient)
        if not any(ctx.needs_input_grad[2:4]):
            return (*ends, *[None] * 6)
        target_gradient = gradient * logit
        target_low_gradient = target_gradient * at_lower
        targets = target_low_gradient, target_gradient.sub_(target_low_gradient)
        if base_low is None:
            return (*ends, *targets, *[None] * 4)
        base_low_gradient = gradient * at_lower
        return (*ends, *targets, base_low_gradient, gradient - base_low_gradient, None, None)


def _mccormick(
    function: LinearFunction, output: Interval, at_low: Tensor, at_high: Tensor, base: LinearFunction | None = None
) -> AlphaRelaxation[JointLinearFunction]:
    """t * l + function(l) + base(t), with the product replaced by either of two planes on the same side of it
    (McCormick 1976).

    Over l in [low, high] the first plane agrees with t * l at low and at the target `at_low`, the second at high and at
    the target `at_high`:

        at_low * l + low * t - at_low * low    and    at_high * l + high * t - at_high * high

    They are below t * l where at_low and at_high are the lower and the upper target, and above it where they are the
    upper and the lower one. Every mixture of them is a bound, too: alpha is the share of the second.
    """
    if base is not None:
        return _mccormick_beside(function, output, at_low, at_high, base)
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


def _mccormick_beside(
    function: LinearFunction, output: Interval, at_low: Tensor, at_high: Tensor, base: LinearFunction
) -> AlphaRelaxation[JointLinearFunction]:
    """`_mccormick` with a line in t, whose slope moves the output:  t * l + slope * t = t * (l + slope).

    The planes are the same, and with the output moved the initial one has a small coefficient of t all in all.
    """
    moved = _mccormick(
        LinearFunction(function.slope, function.offset - function.slope * base.slope + base.offset),
        output.map(lambda end: end + base.slope),
        at_low,
        at_high,
    )

    def back(plane: JointLinearFunction) -> JointLinearFunction:
        return JointLinearFunction(
            plane.output_slope, plane.target_slope, plane.offset + plane.output_slope * base.slope
        )

    return AlphaRelaxation(back(moved.initial), moved.alpha, lambda alpha: back(moved.at(alpha)))
