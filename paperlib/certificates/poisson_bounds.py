"""Bounds of the Poisson log-likelihood  t * l - exp(l) - log Gamma(t + 1)  over boxes of log-rates l and of counts t.

The count of a perturbed input is any real number of its interval. In it log Gamma is convex.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import chord_below, tangent
from paperlib.bounds.linear import LinearFunction
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding, magnitude, rounding_of_sum
from paperlib.certificates.exponential_bounds import ExponentialFamilyBounds
from paperlib.certificates.likelihood_bounds import likelihood_bounds
from paperlib.models.exponential import Poisson


class PoissonBounds(ExponentialFamilyBounds):
    """Exact intervals, and linear bounds, of the Poisson log-likelihood of counts that are not negative.

    There is no `decrease_bound`: exp(l) outgrows every quadratic, so that `certify_expected` refuses this likelihood.
    """

    likelihood: Poisson

    def best_targets(self, output: Interval, target: Interval) -> Sequence[Tensor]:
        """The count at which the best fit is best.

        For counts in exp(output) the best output is log(t), where t log t - t - log Gamma(t + 1) falls with t, as
        log t < digamma(t + 1); above, the upper end is best and log p falls, too. Below them the lower end l is best,
        and log p has its maximum in t where digamma(t + 1) = l.
        """
        return (_inverse_digamma(output.lower.detach()).sub(1).clamp(*target),)

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        # t + 1 is rounded, which moves log Gamma by |digamma(t + 1)| (t + 1) u, and |digamma(v)| <= max(log v, 0.58)
        few = FUNCTION_ERRORS["lgamma"] + 4
        most = target.upper + 1
        gamma = torch.lgamma(most).abs() + 1 + most * (most.log() + 0.58) / few
        parts = target.upper * magnitude(output) + output.upper.exp() + gamma
        return rounding_of_sum(few, parts, self.largest_term(output, target))

    def base_below(self, target: Interval) -> LinearFunction:
        return chord_below(self.likelihood.log_base_measure, _minus_digamma, target)

    def base_above(self, target: Interval) -> LinearFunction:
        return tangent(self.likelihood.log_base_measure, _minus_digamma, target.center)


likelihood_bounds.register(Poisson, PoissonBounds)


def _minus_digamma(target: Tensor) -> Tensor:
    return -torch.digamma(target + 1)


def _inverse_digamma(value: Tensor) -> Tensor:
    """v >= 1 with digamma(v) = value, or 1 for a value below digamma(1).

    By Newton's method, which from below meets a concave function in one step at most from above and then from below.
    """
    dtype, value = value.dtype, value.double().clamp(max=700)  # whose v is above any count
    v = value.exp() + 0.5  # above by at most 0.06 (Minka 2000, "Estimating a Dirichlet")
    for _ in range(5):
        v = (v - (torch.digamma(v) - value) / torch.polygamma(1, v)).clamp(min=1)
    return v.to(dtype)
