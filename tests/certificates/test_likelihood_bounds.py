"""Densities against torch.distributions, and their ranges over outputs and targets against dense grids, in float64."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import LIKELIHOODS, ROUNDING, assert_encloses, grid, points_of
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliDensity
from torch.distributions import Normal

from paperlib import Bernoulli, Gaussian, Interval, LinfBall, elbo, elbo_bounds, mlp_vae
from paperlib.bounds.linear import AlphaRelaxation
from paperlib.models import likelihood as likelihood_module
from paperlib.models.likelihood import Likelihood

UNIT = st.floats(0, 1)
TARGET = st.tuples(UNIT, UNIT).map(sorted) | UNIT.map(lambda t: [t, t]) | st.sampled_from([[0.0, 1.0], [0.0, 0.0]])
OUTPUT = st.tuples(st.floats(-15, 15), st.floats(-15, 15)).map(sorted)
EACH = pytest.mark.parametrize("likelihood", [make().double() for make in LIKELIHOODS.values()], ids=LIKELIHOODS)


def box_of(ends: list[float]) -> Interval:
    return Interval(*(torch.tensor([[end]], dtype=torch.float64) for end in ends))


def boxes(batch: int, *shape: int) -> tuple[Interval, Interval]:
    """Outputs of both signs and targets in [0, 1], some of them at its edges or of width 0."""
    center, radius = torch.randn(batch, *shape).double() * 3, torch.rand(batch, *shape).double()
    ends = torch.rand(2, batch, *shape).double().sort(0).values
    ends[:, torch.rand(batch, *shape) < 0.2] = 0.0
    ends[1, torch.rand(batch, *shape) < 0.2] = 1.0
    return Interval(center - radius, center + radius), Interval(*ends)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 3)])
@EACH
def test_a_density_is_the_one_of_torch_distributions(likelihood: Likelihood, shape: tuple[int, ...]) -> None:
    output, target = torch.randn(20, *shape).double() * 5, torch.rand(20, *shape).double()
    target[:4] = target[:4].round()
    if isinstance(likelihood, Bernoulli):
        pixels = BernoulliDensity(logits=output, validate_args=False)  # grey values are outside its support
    else:
        pixels = Normal(output, likelihood.log_scale.exp())
    torch.testing.assert_close(
        likelihood.log_prob(output, target), pixels.log_prob(target).flatten(1).sum(1), rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("learned", [False, True])
def test_a_gaussian_has_the_scale_it_was_given(scale: float, learned: bool) -> None:
    likelihood, zero = Gaussian(scale, learned), torch.zeros(1, 1)
    torch.testing.assert_close(likelihood.log_prob(zero, zero), Normal(0.0, scale).log_prob(zero)[0])
    assert [name for name, _ in likelihood.named_parameters()] == ["log_scale"] * learned
    assert "log_scale" in likelihood.state_dict()


@EACH
@given(output=OUTPUT, target=TARGET)
def test_a_range_is_that_of_a_dense_grid(likelihood: Likelihood, output: list[float], target: list[float]) -> None:
    bounds = likelihood.bounds(box_of(output), box_of(target))
    outputs, targets = grid(*output, 81), grid(*target, 41)
    # The maximisers for an end of the target: its logit for Bernoulli, itself for Gaussian.
    peaks = torch.logit(targets[[0, -1]]) if isinstance(likelihood, Bernoulli) else targets
    values = likelihood.log_prob(
        *torch.cartesian_prod(torch.cat([outputs, peaks.clamp(*output)]), targets).T[..., None]
    )
    assert_encloses(bounds, values[:, None])
    torch.testing.assert_close(bounds.lower[0], values.min(), rtol=ROUNDING, atol=ROUNDING)
    # A Gaussian's largest value may lie strictly between two targets of the grid: curvature times step^2.
    step = (target[1] - target[0]) / 40
    miss = 0 if isinstance(likelihood, Bernoulli) else step**2 / likelihood.log_scale.exp().item() ** 2
    assert bounds.upper[0] - values.max() <= miss + ROUNDING * (1 + values.max().abs())


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "ends", [(19.0, 20.0 + 1e-10), (-20.0 - 1e-10, -19.0), (19.9, 20.0), (36.0, 38.0), (-800.0, 800.0)]
)
def test_bernoulli_ranges_hold_where_softplus_becomes_linear(ends: tuple[float, float], target: float) -> None:
    likelihood, goal = Bernoulli(), box_of([target, target])
    switches = torch.tensor([-20.0, 20.0]).double().clamp(*ends)
    points = torch.cat([grid(*ends, 1001), switches])
    values = likelihood.log_prob(points[:, None], goal.lower.expand(len(points), 1))
    assert_encloses(likelihood.bounds(box_of(list(ends)), goal), values[:, None])


@EACH
@given(seed=st.integers(0, 2**16))
def test_a_range_encloses_images_at_corners_and_random_points(likelihood: Likelihood, seed: int) -> None:
    torch.manual_seed(seed)
    output, target = boxes(2, 2, 3)
    both = Interval(*(torch.stack(ends, dim=1) for ends in zip(output, target, strict=True)))
    values = torch.stack([likelihood.log_prob(*point.unbind(1)) for point in points_of(*both)])
    assert_encloses(likelihood.bounds(output, target), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_point_boxes_give_the_value_bit_for_bit(likelihood: Likelihood, dtype: torch.dtype) -> None:
    output, target = torch.randn(20, 5, dtype=dtype) * 5, torch.rand(20, 5, dtype=dtype).round(decimals=1)
    likelihood = copy.deepcopy(likelihood).to(dtype)
    for end in likelihood.bounds(Interval(output, output), Interval(target, target)):
        assert torch.equal(end, likelihood.log_prob(output, target))


@EACH
def test_smaller_boxes_give_smaller_ranges(likelihood: Likelihood) -> None:
    output, target = boxes(50, 4)
    inner = [Interval(box.center - box.radius / 2, box.center + box.radius / 2) for box in (output, target)]
    outer_bounds, inner_bounds = likelihood.bounds(output, target), likelihood.bounds(*inner)
    assert_encloses(outer_bounds, torch.stack([*inner_bounds]))
    assert (outer_bounds.lower < inner_bounds.lower).all()


@EACH
def test_the_two_ends_alone_are_the_ends_of_the_range(likelihood: Likelihood) -> None:
    bounds = likelihood.bounds(*(pair := boxes(5, 4)))
    assert torch.equal(bounds.lower, likelihood.lower(*pair))
    assert torch.equal(bounds.upper, likelihood.upper(*pair))


@EACH
@settings(max_examples=25)
@given(
    output=OUTPUT
    | st.floats(-30, 30).map(lambda end: [end, end])
    | st.just([-800.0, 900.0])
    | st.just([1.0, 1 + 1e-12]),
    target=TARGET | st.just([-0.5, 1.5]) | st.just([0.3, 0.3 + 1e-12]),
)
def test_planes_are_below_and_above_the_density_on_a_dense_grid(
    likelihood: Likelihood, output: list[float], target: list[float]
) -> None:
    points = torch.cartesian_prod(grid(*output, 61), grid(*target, 31))
    values = likelihood.log_prob(*points.T[..., None])
    boxes = box_of(output), box_of(target)
    for sign, found in ((1, likelihood.linear_below(*boxes)), (-1, likelihood.linear_above(*boxes))):
        mixtures = [found]
        if isinstance(found, AlphaRelaxation):
            assert 0 <= found.weight.item() <= 1
            shares = (0.0, 0.25, 0.5, 0.9, 1.0, found.weight.item())
            mixtures = [found.at(torch.full_like(found.weight, share)) for share in shares]
            for part, same in zip(vars(found.start).values(), vars(mixtures[-1]).values(), strict=True):
                torch.testing.assert_close(part, same, rtol=1e-12, atol=1e-12)
            mixtures.append(found.start)
            assert mixtures[0] == found.first or torch.equal(mixtures[0].offset, found.first.offset)
        for plane in mixtures:
            slopes = torch.cat([plane.output_slope[0], plane.target_slope[0]])
            fit = points @ slopes + plane.offset[0]
            size = (points * slopes).abs().sum(1) + plane.offset[0].abs() + values.abs()
            assert (sign * (values - fit) >= -ROUNDING * size).all()


@EACH
def test_planes_touch_the_density(likelihood: Likelihood) -> None:
    output, target = (box_of(ends) for ends in ([-1.0, 2.0], [0.2, 0.6]))
    points = torch.cartesian_prod(grid(-1, 2, 601), grid(0.2, 0.6, 41))
    values = likelihood.log_prob(*points.T[..., None])
    for found in (likelihood.linear_below(output, target), likelihood.linear_above(output, target)):
        for plane in [found.first, found.second] if isinstance(found, AlphaRelaxation) else [found]:
            fit = points @ torch.cat([plane.output_slope[0], plane.target_slope[0]]) + plane.offset[0]
            # the points of contact are within half a step of the grid, and the curvature is at most 4
            assert (values - fit).abs().min() < 1e-3


class Laplace(Likelihood):
    """exp(-|target - output|) / 2, by a user who has given intervals their bounds and no planes."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return -((target - output).abs() + math.log(2)).flatten(1).sum(1)

    def lower(self, output: Interval, target: Interval) -> Tensor:
        return self.log_prob(torch.maximum(target.upper - output.lower, output.upper - target.lower), 0 * output.lower)

    def upper(self, output: Interval, target: Interval) -> Tensor:
        nearest = torch.maximum(target.lower - output.upper, output.lower - target.upper).clamp(min=0)
        return self.log_prob(nearest, 0 * nearest)

    def mean(self, output: Tensor) -> Tensor:
        return output


def test_a_users_likelihood_needs_planes_for_linear_bounds_only() -> None:
    vae, x, noise = mlp_vae((3,), (4,), 2, Laplace()).double(), torch.rand(2, 3).double(), torch.randn(2, 2).double()
    bounds = elbo_bounds(vae, x, LinfBall(0.1), noise)
    values = torch.stack([elbo(vae, point, noise) for point in points_of(*LinfBall(0.1).box(x))])
    assert_encloses(bounds, values)
    for method in ("crown-ibp", "crown"):
        message = 'Laplace has no linear_below, which linear bounds need: use method="ibp"'
        with pytest.raises(NotImplementedError, match=f"^{message}$"):
            elbo_bounds(vae, x, LinfBall(0.1), noise, method)
    with pytest.raises(NotImplementedError, match="Laplace has no linear_above"):
        vae.likelihood.linear_above(*boxes(2, 3))


def test_a_target_range_beyond_0_and_1_gives_a_range_that_still_holds() -> None:
    # A ball whose data range is not [0, 1] reaches such targets; t * l - softplus(l) is then monotone in l.
    output, target = box_of([-3.0, 4.0]), box_of([-0.5, 1.5])
    values = Bernoulli().log_prob(*torch.cartesian_prod(grid(-3, 4), grid(-0.5, 1.5)).T[..., None])
    assert_encloses(Bernoulli().bounds(output, target), values[:, None])


@pytest.mark.parametrize("target", [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.1], [0.9, 1.0]])
@pytest.mark.parametrize("output", [[-3.0, 2.0], [0.0, 0.0], [-200.0, 200.0]])
def test_bernoulli_gradients_are_finite_at_the_edges_of_the_data_range(output: list, target: list) -> None:
    ends = [end.requires_grad_() for ends in (output, target) for end in box_of(ends)]
    bounds = Bernoulli().bounds(Interval(*ends[:2]), Interval(*ends[2:]))
    for end in bounds:
        gradients = torch.autograd.grad(end.sum(), ends, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert torch.isfinite(torch.stack(gradients)).all()


def test_softplus_in_float32_is_within_8_roundings_of_1_and_its_value() -> None:
    logit = torch.cat([torch.linspace(-110, 110, 200_001), torch.randn(100_000) * 1e-3])
    exact = torch.nn.functional.softplus(logit.double(), threshold=800)
    error = (likelihood_module._softplus(logit).double() - exact).abs()
    assert (error <= 8 * 2.0**-24 * (1 + exact)).all()


def test_softplus_in_float32_has_the_sigmoid_as_its_derivative() -> None:
    logit = torch.linspace(-50, 50, 1_001).requires_grad_()
    (slope,) = torch.autograd.grad(likelihood_module._softplus(logit).sum(), logit)
    assert torch.equal(slope, torch.sigmoid(logit))


@pytest.mark.parametrize("targets_learn", [True, False])
def test_the_backward_pass_of_the_bernoulli_bound_is_that_of_its_corner(targets_learn: bool) -> None:
    output, target = boxes(40, 7)
    ends = [end.clone().requires_grad_() for end in output]
    targets = [end.clone().requires_grad_(targets_learn) for end in target]
    learned = ends + targets if targets_learn else ends
    corners = torch.stack([t * end - torch.nn.functional.softplus(end) for end in ends for t in targets])
    expected = torch.autograd.grad(corners.amin(0).sum(), learned, allow_unused=True)
    found = torch.autograd.grad(Bernoulli().lower(Interval(*ends), Interval(*targets)).sum(), learned)
    narrow = target.lower == target.upper  # there two corners tie, and either half of the derivative is right
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one[~narrow], other[~narrow], rtol=1e-10, atol=1e-10)
    if targets_learn:
        totals = [sum(each[2:]) for each in (found, expected)]
        torch.testing.assert_close(*totals, rtol=1e-10, atol=1e-10)


@EACH
def test_ranges_are_differentiable_in_both_boxes(likelihood: Likelihood) -> None:
    leaves = [end.requires_grad_() for box in boxes(2, 3) for end in box]

    def ends(*tensors: Tensor) -> Tensor:
        return torch.cat([*likelihood.bounds(Interval(*tensors[:2]), Interval(*tensors[2:]))])

    with torch.no_grad():  # away from 0 and 1, where a difference would step over the logit's pole, and from each other
        leaves[2].clamp_(0.1, 0.4), leaves[3].clamp_(0.5, 0.9)
    assert torch.autograd.gradcheck(ends, leaves)


def test_a_learned_scale_moves_the_certificate() -> None:
    likelihood = Gaussian(0.5, learned=True)
    (gradient,) = torch.autograd.grad(likelihood.lower(*boxes(2, 3)).sum(), likelihood.log_scale)
    assert torch.isfinite(gradient)
    assert gradient != 0


def test_the_mean_is_the_expected_data() -> None:
    output = torch.randn(4, 3)
    torch.testing.assert_close(Bernoulli().mean(output), BernoulliDensity(logits=output).mean)
    assert torch.equal(Gaussian().mean(output), output)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_no_deviation_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
        Gaussian(scale)
