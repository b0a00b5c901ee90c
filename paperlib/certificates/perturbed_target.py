"""What the perturbed target adds to the ELBO over a set that is much smaller than its box.

    log p(x' | output)  =  log p(x | output) + slope(output) . (x' - x)      where log p is linear in the target

The first term has a single target. The second is linear in x' but for what the slope varies: with the slope in a box of
middle c and half width r it lies within  c . (x' - x) +- r . |x' - x|.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.models.likelihood import Likelihood, sum_per_example
from paperlib.threats.perturbation import ChangeRegion


@dataclass(frozen=True)
class TargetTerm:
    """|slope(output) . (x' - x) - coefficients . (x' - x)| <= error  for all outputs in their box and all x'."""

    region: ChangeRegion
    x: Tensor  # [batch, *data_shape]
    coefficients: Tensor  # [batch, *data_shape]
    error: Tensor  # [batch]

    @classmethod
    def of(cls, likelihood: Likelihood, bounds: IntervalBounds) -> Self | None:
        """None where the boxes of input and target say as much: for a box of inputs, for a target that is one point,
        and for likelihoods that are not linear in the target.
        """
        region = bounds.region
        if not isinstance(region, ChangeRegion) or bounds.target is not bounds.input:
            return None
        try:
            slope = bounds_of(likelihood).target_slope(bounds.output)
        except NotImplementedError:
            return None
        return cls(region, region.x, slope.center, region.spread(slope.radius))

    @property
    def point(self) -> Interval:
        """The target of the first term."""
        return Interval(self.x, self.x)

    @property
    def offset(self) -> Tensor:
        """- coefficients . x,  [batch]"""
        return -sum_per_example(self.coefficients * self.x)

    @property
    def bounds(self) -> Interval:
        """The range of the second term, [batch]."""
        lower, negated = (self.region.concretize(sign * self.coefficients) for sign in (1, -1))
        return Interval(lower + self.offset - self.error, self.offset - negated + self.error)
