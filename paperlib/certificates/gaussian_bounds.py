"""Bounds of the Gaussian log-likelihood over a box of decoder means and a box of targets.

The log-density of an element depends on its distance d = mean - target alone, in which it is even and concave: it is
smallest at the largest |d| over both boxes, and largest at the smallest.

In natural parameters it is an exponential family, too, with the same intervals. Above, the tangent in d is tighter than
the planes of `ExponentialFamilyBounds`, as log p is concave in mean and target together; below, the chord in d is one
of the family's bounds, at alpha = 1/2.
"""

import math

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import chord_below, tangent
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction, LinearFunction
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding
from paperlib.certificates.likelihood_bounds import LikelihoodBounds, NaturalForm, likelihood_bounds
from paperlib.models.likelihood import Gaussian, normal_log_density, sum_per_example


class GaussianBounds(LikelihoodBounds):
    """Exact intervals, and linear bounds, of the Gaussian log-likelihood."""

    likelihood: Gaussian

    def lower(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(self._log_density(_farthest(output, target)))

    def upper(self, output: Interval, target: Interval) -> Tensor:
        nearest = torch.maximum(target.lower - output.upper, output.lower - target.upper).clamp(min=0)
        return sum_per_example(self._log_density(nearest))

    def mean(self, output: Interval) -> Interval:
        return output

    def natural_form(self) -> NaturalForm:
        precision = torch.exp(-2 * self.likelihood.log_scale)
        return NaturalForm(precision, lambda v: precision * v.square() / 2, lambda v: precision * v, self.likelihood)

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        # exp and the distance round before they are squared; the constant is rounded when it is used
        inverse = torch.exp(-self.likelihood.log_scale)
        farthest = _farthest(output, target)
        summands = (farthest * inverse).square() / 2 + self.likelihood.log_scale.abs() + math.log(2 * math.pi) / 2
        count = 2 * FUNCTION_ERRORS["exp"] + 8 + math.prod(summands.shape[1:])
        return Rounding(count, sum_per_example(summands), peak=torch.maximum(inverse, 1 / inverse).amax())

    def linear_below(self, output: Interval, target: Interval) -> AlphaRelaxation[JointLinearFunction]:
        # The chord over the distance is the middle between the bounds by McCormick's two planes of the product of mean
        # and target, with chords of both squares: as good to begin with, and alpha chooses between them.
        chord = _of_both(chord_below(self._log_density, self._slope, _distance(output, target)))
        precision = torch.exp(-2 * self.likelihood.log_scale)
        output_span, target_span = (precision * (box.upper - box.lower) for box in (output, target))
        product = precision * (target.upper * output.upper - target.lower * output.lower)
        middle = torch.full_like(output.lower, 0.5)

        def at(alpha: Tensor) -> JointLinearFunction:
            share = alpha - middle
            return JointLinearFunction(
                chord.output_slope + share * target_span,
                chord.target_slope + share * output_span,
                chord.offset - share * product,
            )

        return AlphaRelaxation(chord, middle, at)

    def linear_above(self, output: Interval, target: Interval) -> JointLinearFunction:
        distance = _distance(output, target)
        best = torch.zeros_like(output.lower).clamp(*distance)
        return _of_both(tangent(self._log_density, self._slope, best))

    def decrease_bound(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        farthest = _farthest(output, target)
        precision = torch.exp(-2 * self.likelihood.log_scale)
        return farthest * precision, precision.expand_as(farthest)

    def _log_density(self, distance: Tensor) -> Tensor:
        return normal_log_density(distance, self.likelihood.log_scale)

    def _slope(self, distance: Tensor) -> Tensor:
        return -distance * torch.exp(-2 * self.likelihood.log_scale)


likelihood_bounds.register(Gaussian, GaussianBounds)


def _distance(output: Interval, target: Interval) -> Interval:
    return Interval(output.lower - target.upper, output.upper - target.lower)


def _farthest(output: Interval, target: Interval) -> Tensor:
    return torch.maximum(target.upper - output.lower, output.upper - target.lower)


def _of_both(function: LinearFunction) -> JointLinearFunction:
    """A function of the distance output - target as one of output and target."""
    return JointLinearFunction(function.slope, -function.slope, function.offset)
