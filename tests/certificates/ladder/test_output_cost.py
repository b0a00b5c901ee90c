"""Costs of a decoder's output, and the quadratic functions above them."""

from collections.abc import Callable

import pytest
import torch
from oracles import ROUNDING, grid
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliDensity
from torch.distributions import Normal
from torch.nn import functional as F

from paperlib import Bernoulli, Gaussian, Interval
from paperlib.bounds.linear import JointLinearFunction
from paperlib.certificates.ladder.output_cost import (
    NegativeLogLikelihood,
    OutputCost,
    OutputQuadratic,
    SquaredDistance,
    softplus_curvature,
)
from paperlib.certificates.likelihood_bounds import LikelihoodBounds, likelihood_bounds

SCALES = torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0]).double()


class LinearLikelihood(Bernoulli):
    """log p = -|t - l| for targets above all logits of the box: a density of its own with the name of a Bernoulli."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).sum(1)


class LinearLikelihoodBounds(LikelihoodBounds):
    def lower(self, output: Interval, target: Interval) -> Tensor:
        return (output.lower - target.upper).sum(1)

    def upper(self, output: Interval, target: Interval) -> Tensor:
        return (output.upper - target.lower).sum(1)

    def linear_below(self, output: Interval, target: Interval) -> JointLinearFunction:
        one = torch.ones_like(output.lower)
        return JointLinearFunction(one, -one, torch.zeros_like(one))


likelihood_bounds.register(LinearLikelihood, LinearLikelihoodBounds)

COSTS: dict[str, Callable[[Tensor], OutputCost]] = {
    "squared distance": SquaredDistance,
    "bernoulli": lambda x: NegativeLogLikelihood(x, Bernoulli()),
    "gaussian": lambda x: NegativeLogLikelihood(x, Gaussian(SCALES)),
    "own": lambda x: NegativeLogLikelihood(x, LinearLikelihood()),
}


def case(name: str) -> tuple[OutputCost, Interval]:
    center, radius = 2 * torch.randn(3, 5).double(), torch.rand(3, 5).double() * torch.tensor([0.0, 1.0, 6.0])[:, None]
    return COSTS[name](torch.rand(3, 5).double()), Interval(center - radius, center + radius)


def evaluated(quadratic: OutputQuadratic, output: Tensor) -> Tensor:
    return (quadratic.curvature * output**2 + quadratic.slope * output + quadratic.offset).sum(-1)


def test_costs_are_what_they_say() -> None:
    (own, _), x = case("bernoulli"), torch.tensor([[0.0, 1.0]]).double()
    y = torch.tensor([[3.0, -1.0]]).double()
    assert SquaredDistance(x).value(y).item() == 9 + 4
    density = BernoulliDensity(logits=y).log_prob(x).sum(1)
    torch.testing.assert_close(NegativeLogLikelihood(x, Bernoulli()).value(y), -density)
    density = Normal(y, 0.5).log_prob(x).sum(1)
    torch.testing.assert_close(NegativeLogLikelihood(x, Gaussian(0.5)).value(y), -density)
    assert torch.equal(own.of(torch.tensor([2, 0])).x, own.x[[2, 0]])


@pytest.mark.parametrize("name", COSTS)
def test_the_quadratic_is_above_the_cost_below_its_chord_and_equal_at_all_corners(name: str) -> None:
    cost, output = case(name)
    quadratic = cost.quadratic(output)
    chord = quadratic.chord(output)
    assert (quadratic.curvature >= 0).all()
    for step in range(200):
        share = torch.rand(3, 5).double()
        y = torch.lerp(output.lower, output.upper, share if step % 2 else share.round())
        value, above, line = cost.value(y), evaluated(quadratic, y), (chord.slope * y + chord.offset).sum(1)
        slack = ROUNDING * (1 + (quadratic.curvature * y**2).sum(1) + value.abs())
        assert (value <= above + slack).all() and (above <= line + slack).all()
        assert (value <= cost.upper(output) + slack).all()
        if step % 2 == 0:
            torch.testing.assert_close(line, value, rtol=1e-9, atol=1e-9)


def test_squared_distances_and_gaussians_are_their_quadratic() -> None:
    for name in ("squared distance", "gaussian"):
        cost, output = case(name)
        torch.testing.assert_close(evaluated(cost.quadratic(output), output.center), cost.value(output.center))


def test_a_likelihood_of_ones_own_is_bounded_by_its_own_lines() -> None:
    """Not by the curvature of the Bernoulli whose subclass it is."""
    cost, output = case("own")
    assert torch.equal(cost.quadratic(output).curvature, torch.zeros_like(output.lower))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-6.0, 2.0), (0.5, 9.0), (-20.0, -3.0), (1.0, 1.01)])
def test_the_curvature_of_softplus_is_the_largest(low: float, high: float) -> None:
    box = Interval(*(torch.tensor([end], dtype=torch.float64) for end in (low, high)))
    logit = grid(low, high, 2001)
    chord = torch.lerp(F.softplus(box.lower), F.softplus(box.upper), (logit - low) / (high - low))

    def above(curvature: Tensor) -> Tensor:
        return chord - curvature * (logit - low) * (high - logit) - F.softplus(logit)

    curvature = softplus_curvature(box)
    assert curvature > 0
    assert (above(curvature) >= -ROUNDING).all()
    assert (above(1.01 * curvature) < -ROUNDING).any()


def test_the_curvature_of_softplus_by_hand() -> None:
    """Over [-1, 1] the chord's slope is 1/2, as softplus(l) - softplus(-l) = l, so that c = (sigmoid(1) - 1/2) / 2.

    Over a box that is hardly wider than a point nothing is subtracted.
    """
    box = Interval(torch.tensor([-1.0, 3.0]).double(), torch.tensor([1.0, 3.0]).double())
    curvature = softplus_curvature(box)
    assert curvature[0].item() == pytest.approx((1 / (1 + 2.718281828459045**-1) - 0.5) / 2)
    assert curvature[1].item() == 0
