"""What a certificate asks of a decoder likelihood: bounds of `log_prob` over a box of outputs and a box of targets.

The bounds of a user's own likelihood subclass `LikelihoodBounds` with two methods and are registered:

    likelihood_bounds.register(MyLikelihood, MyBounds)

Shapes: output and target are [batch, *data_shape]; sums over an example are [batch], in nats.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import Curve
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction
from paperlib.bounds.rounding import Rounding
from paperlib.bounds.rules import UnsupportedLayerError, overridden, registered_type
from paperlib.models.likelihood import Likelihood

# what `log_prob` and `mean` of an exponential family are made of
EXPONENTIAL_FAMILY = ("log_density", "log_normalizer", "mean_parameter", "natural_parameter", "log_base_measure")


@dataclass(frozen=True)
class NaturalForm:
    """log p(t | l)  =  precision * t * l - A(l) + h(t),  elementwise, with A convex."""

    precision: float | Tensor
    normalizer: Curve  # A
    mean: Curve  # A'
    base_of: Likelihood | None = None  # whose h it is; None for an h of 0


class LikelihoodBounds(ABC):
    """Bounds of one likelihood's `log_prob` over a box of outputs and a box of targets."""

    def __init__(self, likelihood: Likelihood):
        self.likelihood = likelihood

    @abstractmethod
    def lower(self, output: Interval, target: Interval) -> Tensor:
        """A lower bound of `log_prob` over both boxes, [batch]. Apart from `upper`, as training needs only this end."""

    @abstractmethod
    def upper(self, output: Interval, target: Interval) -> Tensor:
        """An upper bound of `log_prob` over both boxes, [batch]."""

    def bounds(self, output: Interval, target: Interval) -> Interval:
        """An interval that contains `log_prob` over both boxes, [batch]."""
        return Interval(self.lower(output, target), self.upper(output, target))

    def target_slope(self, output: Interval) -> Interval:
        """The range of the slope of `log_prob` in each element of the target, for a `log_prob` that is linear in them.

        With it bounds are tight over perturbation sets that are much smaller than their boxes, such as an l2 ball;
        raises NotImplementedError where a likelihood has none, and then boxes are used.
        """
        raise NotImplementedError(f"{type(self).__name__} has no target_slope")

    def linear_below(
        self, output: Interval, target: Interval
    ) -> JointLinearFunction | AlphaRelaxation[JointLinearFunction]:
        """Linear functions of output and target, one for each element, whose sum is below `log_prob` over both boxes.

        Only the linear bounds need this and `linear_above`; raises NotImplementedError where a likelihood has none.
        """
        raise NotImplementedError(
            f'{type(self).__name__} has no linear_below, which linear bounds need: use method="ibp"'
        )

    def linear_above(
        self, output: Interval, target: Interval
    ) -> JointLinearFunction | AlphaRelaxation[JointLinearFunction]:
        """Linear functions of output and target, one for each element, whose sum is above `log_prob` on both boxes."""
        raise NotImplementedError(
            f'{type(self).__name__} has no linear_above, which linear bounds need: use method="ibp"'
        )

    def natural_form(self) -> NaturalForm | None:
        """The form of log p of an exponential family; None for other likelihoods, or where it does not help.

        Bounds of the difference of two ELBOs use it: an h that is common to both models cancels.
        """
        return None

    def decrease_bound(self, output: Interval, target: Interval) -> tuple[Tensor, Tensor]:
        """Slope and curvature, each [batch, *data_shape] and not negative, that bound how far `log_prob` can fall:

            log_prob(output + d, target)  >=  log_prob(output, target) - sum( slope * |d| + curvature * d^2 / 2 )

        for output and target of the boxes and d of any size. Only `certify_expected` needs this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decrease_bound, which certify_expected needs")

    def mean(self, output: Interval) -> Interval:
        """A box that contains the expected data `mean` for every output of the box, [batch, *data_shape].

        Only bounds of the reconstruction error need this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no mean, which bounds of the reconstruction error need")

    def rounding(self, output: Interval, target: Interval) -> Rounding:
        """How `log_prob` rounds, at worst over both boxes and in any order of summation, [batch].

        Only sound bounds need this; raises NotImplementedError where a likelihood has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rounding, which sound bounds need: use sound=False")


@singledispatch
def likelihood_bounds(likelihood: Likelihood) -> LikelihoodBounds:
    """(likelihood) -> LikelihoodBounds

    The registered bounds of one type of likelihood.
    """
    raise UnsupportedLayerError(f"no bounds for {type(likelihood).__name__}")


def bounds_of(likelihood: Likelihood, method: Literal["log_prob", "mean"] = "log_prob") -> LikelihoodBounds:
    """The bounds of this likelihood.

    Args:
        method: of the likelihood, which is to be bounded.

    Raises UnsupportedLayerError where none are registered for its type, or where a subclass or the object itself
    replaces the method that the registered ones bound.
    """
    bounded = frozenset({method, *EXPONENTIAL_FAMILY})
    kind = registered_type(likelihood_bounds, type(likelihood))
    if kind is None or overridden(type(likelihood), kind, bounded) or bounded.intersection(vars(likelihood)):
        name = type(likelihood).__name__
        raise UnsupportedLayerError(
            f"no bounds for the likelihood {name}; register a subclass of LikelihoodBounds with "
            f"paperlib.certificates.likelihood_bounds.likelihood_bounds.register({name}, ...)"
        )
    return likelihood_bounds.dispatch(kind)(likelihood)
