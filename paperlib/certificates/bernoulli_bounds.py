"""Bounds of the Bernoulli log-likelihood  t * l - softplus(l),  and of the continuous Bernoulli density."""

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding, magnitude, rounding_of_sum
from paperlib.certificates.exponential_bounds import ExponentialFamilyBounds
from paperlib.certificates.likelihood_bounds import likelihood_bounds
from paperlib.models.exponential import ContinuousBernoulli
from paperlib.models.likelihood import Bernoulli, softplus


class UnitBounds(ExponentialFamilyBounds):
    """For a family of means in (0, 1)."""

    def decrease_bound(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        # the derivative t - A'(l) lies between t - 1 and t whatever the logit
        return torch.maximum(target.upper, 1 - target.lower), torch.zeros_like(output.lower)


class BernoulliBounds(UnitBounds):
    """Exact intervals, and linear bounds, of the Bernoulli log-likelihood."""

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
        return rounding_of_sum(few, parts, summands)


class ContinuousBernoulliBounds(UnitBounds):
    """Exact intervals, and linear bounds, of the continuous Bernoulli log-density."""

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        # A takes the log of a quotient, which is off by expm1 and the division and moves the log by as much. Then there
        # are A's own sum, t * l and the difference.
        few = FUNCTION_ERRORS["expm1"] + 2 * FUNCTION_ERRORS["log"] + 4
        largest = magnitude(output)
        parts = (magnitude(target) + 1) * largest + torch.log1p(largest) + 1
        return rounding_of_sum(few, parts, self.largest_term(output, target))


likelihood_bounds.register(Bernoulli, BernoulliBounds)
likelihood_bounds.register(ContinuousBernoulli, ContinuousBernoulliBounds)
