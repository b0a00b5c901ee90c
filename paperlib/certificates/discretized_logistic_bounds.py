"""Bounds of the discretised logistic log-likelihood over a box of decoder means and a box of targets.

A bin is closed, or open below, or open above. For each kind log p is a concave function of the distance
d = mean - target. With the logarithms B, increasing, and T, decreasing, of the probabilities above a lower and below an
upper edge, and a constant c <= 0, it is

    T (open below),    B + T + c (closed, even in d),    B (open above)

so that at the same distance an open bin holds more than a closed one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import chord_below, tangent
from paperlib.bounds.linear import JointLinearFunction
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding, magnitude, rounding_of_sum
from paperlib.certificates.likelihood_bounds import LikelihoodBounds, likelihood_bounds
from paperlib.models.discretized_logistic import DiscretizedLogistic
from paperlib.models.likelihood import sum_per_example


class DiscretizedLogisticBounds(LikelihoodBounds):
    """Exact intervals, from the infimum to the supremum where log p jumps, and linear bounds."""

    likelihood: DiscretizedLogistic

    def lower(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(self._terms(output, target).lower)

    def upper(self, output: Interval, target: Interval) -> Tensor:
        return sum_per_example(self._terms(output, target).upper)

    def mean(self, output: Interval) -> Interval:
        return output.map(self.likelihood.mean)

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        # Which bins are open is exact. The distance of a mean from an edge takes three roundings, in which a logarithm
        # moves by no more than it; that of the width is off by what its argument and expm1 are.
        few, width = FUNCTION_ERRORS["softplus"] + 6, self.likelihood.log_width().abs()
        farthest = magnitude(_distance(output, target)) + self.likelihood.half_bin
        parts = 2 * (farthest / self.likelihood.scale + 1) + width + 1
        return rounding_of_sum(few, parts, magnitude(self._terms(output, target)))

    def linear_below(self, output: Interval, target: Interval) -> JointLinearFunction:
        # with each edge that a bin of the box has: the least of the kinds at any distance
        kinds = self._kinds(target)
        edges = _Edges(self.likelihood, kinds.closed | kinds.open_above, kinds.closed | kinds.open_below)
        line = chord_below(edges.log_density, edges.slope, _distance(output, target))
        return JointLinearFunction(line.slope, -line.slope, line.offset)

    def linear_above(self, output: Interval, target: Interval) -> JointLinearFunction:
        # with each edge that all bins of the box have: at least as much as any of the kinds, even with none
        kinds, distance = self._kinds(target), _distance(output, target)
        edges = _Edges(self.likelihood, ~kinds.open_below, ~kinds.open_above)
        nearest = torch.zeros_like(output.lower).clamp(*distance)
        best = torch.where(edges.upper, torch.where(edges.lower, nearest, distance.lower), distance.upper)
        line = tangent(edges.log_density, edges.slope, best)
        return JointLinearFunction(line.slope, -line.slope, line.offset)

    def decrease_bound(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        # the slopes of B and T are at most 1 / scale, and have opposite signs
        return (1 / self.likelihood.scale).expand_as(output.lower), torch.zeros_like(output.lower)

    def _kinds(self, target: Interval) -> "_Kinds":
        """Which kinds of bins there are among those of the targets in the box."""
        (all_below, _), (_, all_above) = (
            self.likelihood.open_ends(target.upper),
            self.likelihood.open_ends(target.lower),
        )
        some_below, some_above = self.likelihood.open_ends(target.lower)[0], self.likelihood.open_ends(target.upper)[1]
        return _Kinds(some_below, ~(all_below | all_above), some_above)

    def _terms(self, output: Interval, target: Interval) -> Interval:
        """The range of the term of each element, [batch, *data_shape]."""
        likelihood, kinds, width = self.likelihood, self._kinds(target), self.likelihood.half_bin
        closed = _distance(output, target.map(lambda end: end.clamp(width, 1 - width)))
        farthest = torch.where(closed.lower.abs() > closed.upper.abs(), closed.lower, closed.upper)
        nearest = torch.zeros_like(farthest).clamp(*closed)
        both = _Edges(likelihood, torch.ones_like(kinds.closed), torch.ones_like(kinds.closed))
        below = _distance(output, target.map(lambda end: end.clamp(max=width)))
        above = _distance(output, target.map(lambda end: end.clamp(min=1 - width)))
        ranges = (
            (kinds.closed, both.log_density(farthest), both.log_density(nearest)),
            (kinds.open_below, *map(likelihood.log_below_upper_edge, (below.upper, below.lower))),
            (kinds.open_above, *map(likelihood.log_above_lower_edge, above)),
        )
        least = [torch.where(there, low, torch.inf) for there, low, _ in ranges]
        largest = [torch.where(there, high, -torch.inf) for there, _, high in ranges]
        return Interval(torch.stack(least).amin(0), torch.stack(largest).amax(0))


likelihood_bounds.register(DiscretizedLogistic, DiscretizedLogisticBounds)


class _Kinds(NamedTuple):
    """Masks, [batch, *data_shape]."""

    open_below: Tensor
    closed: Tensor
    open_above: Tensor


class _Edges(NamedTuple):
    """The sum of B where there is a lower edge, T where there is an upper one, and c where there are both."""

    likelihood: DiscretizedLogistic
    lower: Tensor
    upper: Tensor

    def log_density(self, distance: Tensor) -> Tensor:
        below = torch.where(self.lower, self.likelihood.log_above_lower_edge(distance), 0.0)
        above = torch.where(self.upper, self.likelihood.log_below_upper_edge(distance), 0.0)
        return below + above + torch.where(self.lower & self.upper, self.likelihood.log_width(), 0.0)

    def slope(self, distance: Tensor) -> Tensor:
        scale, half_bin = self.likelihood.scale, self.likelihood.half_bin
        below = torch.sigmoid((-half_bin - distance) / scale)
        above = torch.sigmoid((distance - half_bin) / scale)
        return (torch.where(self.lower, below, 0.0) - torch.where(self.upper, above, 0.0)) / scale


def _distance(output: Interval, target: Interval) -> Interval:
    return Interval(output.lower - target.upper, output.upper - target.lower)
