"""Bounds of densities over outputs and targets against dense grids, in float64, and who may have none."""

import copy
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import LIKELIHOODS, MORE_LIKELIHOODS, ROUNDING, assert_encloses, grid, points_of
from torch import Tensor
from torch.nn import functional as F

from paperlib import (
    VAE,
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Interval,
    LinfBall,
    Poisson,
    certificate,
    certify_expected,
    elbo,
    elbo_bounds,
    mlp_vae,
)
from paperlib.bounds.linear import AlphaRelaxation
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.exponential_bounds import ExponentialFamilyBounds
from paperlib.certificates.likelihood_bounds import LikelihoodBounds, bounds_of, likelihood_bounds
from paperlib.models.likelihood import ExponentialFamily, Likelihood

UNIT = st.floats(0, 1)
TARGET = st.tuples(UNIT, UNIT).map(sorted) | UNIT.map(lambda t: [t, t]) | st.sampled_from([[0.0, 1.0], [0.0, 0.0]])
OUTPUT = st.tuples(st.floats(-15, 15), st.floats(-15, 15)).map(sorted)
ALL = {name: make().double() for name, make in (LIKELIHOODS | MORE_LIKELIHOODS).items()}
EACH = pytest.mark.parametrize("likelihood", ALL.values(), ids=ALL)


def box_of(ends: list[float]) -> Interval:
    return Interval(*(torch.tensor([[end]], dtype=torch.float64) for end in ends))


def boxes(batch: int, *shape: int) -> tuple[Interval, Interval]:
    """Outputs of both signs and targets in [0, 1], some of them at its edges or of width 0."""
    center, radius = torch.randn(batch, *shape).double() * 3, torch.rand(batch, *shape).double()
    ends = torch.rand(2, batch, *shape).double().sort(0).values
    ends[:, torch.rand(batch, *shape) < 0.2] = 0.0
    ends[1, torch.rand(batch, *shape) < 0.2] = 1.0
    return Interval(center - radius, center + radius), Interval(*ends)


@EACH
@given(output=OUTPUT, target=TARGET)
def test_bounds_are_the_range_on_a_dense_grid(likelihood: Likelihood, output: list[float], target: list[float]) -> None:
    bounds = bounds_of(likelihood).bounds(box_of(output), box_of(target))
    outputs, targets = grid(*output, 81), torch.cat([grid(*target, 41), jumps(likelihood).clamp(*target)])
    # the maximisers for each target
    family = isinstance(likelihood, ExponentialFamily)
    peaks = likelihood.natural_parameter(targets) if family else targets
    values = likelihood.log_prob(
        *torch.cartesian_prod(torch.cat([outputs, peaks.clamp(*output)]), targets).T[..., None]
    )
    assert_encloses(bounds, values[:, None])
    torch.testing.assert_close(bounds.lower[0], values.min(), rtol=1e-11, atol=1e-11)
    # Unless log p is linear in it, the best target may lie strictly between two of the grid: curvature times step^2.
    step = (target[1] - target[0]) / 40
    miss = 0 if family and likelihood.log_base_measure(targets) is None else step**2 * curvature(likelihood)
    assert bounds.upper[0] - values.max() <= miss + ROUNDING * (1 + values.max().abs())


def jumps(likelihood: Likelihood) -> Tensor:
    """Targets next to each other between which log p jumps, on both sides."""
    if not isinstance(likelihood, DiscretizedLogistic):
        return torch.empty(0).double()
    end = likelihood.half_bin
    ends = [end, torch.nextafter(end, end - 1), 1 - end, torch.nextafter(1 - end, end + 1)]
    return torch.stack(ends)


def curvature(likelihood: Likelihood) -> float:
    """At least that of log p in the target."""
    if isinstance(likelihood, Gaussian):
        return likelihood.log_scale.exp().item() ** -2
    return likelihood.scale.item() ** -2 if isinstance(likelihood, DiscretizedLogistic) else 2.0


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "ends", [(19.0, 20.0 + 1e-10), (-20.0 - 1e-10, -19.0), (19.9, 20.0), (36.0, 38.0), (-800.0, 800.0)]
)
def test_bernoulli_bounds_hold_where_softplus_becomes_linear(ends: tuple[float, float], target: float) -> None:
    likelihood, goal = Bernoulli(), box_of([target, target])
    switches = torch.tensor([-20.0, 20.0]).double().clamp(*ends)
    points = torch.cat([grid(*ends, 1001), switches])
    values = likelihood.log_prob(points[:, None], goal.lower.expand(len(points), 1))
    assert_encloses(bounds_of(likelihood).bounds(box_of(list(ends)), goal), values[:, None])


@EACH
@given(seed=st.integers(0, 2**16))
def test_bounds_enclose_images_at_corners_and_random_points(likelihood: Likelihood, seed: int) -> None:
    torch.manual_seed(seed)
    output, target = boxes(2, 2, 3)
    both = Interval(*(torch.stack(ends, dim=1) for ends in zip(output, target, strict=True)))
    values = torch.stack([likelihood.log_prob(*point.unbind(1)) for point in points_of(*both)])
    assert_encloses(bounds_of(likelihood).bounds(output, target), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_point_boxes_give_the_value_bit_for_bit(likelihood: Likelihood, dtype: torch.dtype) -> None:
    output, target = torch.randn(20, 5, dtype=dtype) * 5, torch.rand(20, 5, dtype=dtype).round(decimals=1)
    likelihood = copy.deepcopy(likelihood).to(dtype)
    for end in bounds_of(likelihood).bounds(Interval(output, output), Interval(target, target)):
        assert torch.equal(end, likelihood.log_prob(output, target))


@EACH
@given(seed=st.integers(0, 2**16))
def test_a_box_of_expected_data_is_that_of_the_outputs_and_attained(likelihood: Likelihood, seed: int) -> None:
    torch.manual_seed(seed)
    output, _ = boxes(2, 3)
    box, values = bounds_of(likelihood, "mean").mean(output), likelihood.mean(points_of(*output))
    assert_encloses(box, values)
    for end, attained in ((box.lower, values.amin(0)), (box.upper, values.amax(0))):
        torch.testing.assert_close(end, attained, rtol=ROUNDING, atol=ROUNDING)


def test_expected_data_are_bounded_where_the_likelihood_has_their_registered_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Inverted(Bernoulli):
        def mean(self, output: Tensor) -> Tensor:
            return torch.sigmoid(-output)

    assert bounds_of(Inverted()).lower(*boxes(2, 3)).shape == (2,), "the density is still that of Bernoulli"
    with pytest.raises(UnsupportedLayerError, match="no bounds for the likelihood Inverted"):
        bounds_of(Inverted(), "mean")
    monkeypatch.delattr(ExponentialFamilyBounds, "mean")
    with pytest.raises(NotImplementedError, match="has no mean, which bounds of the reconstruction error need"):
        bounds_of(Bernoulli(), "mean").mean(boxes(2, 3)[0])


@EACH
def test_smaller_boxes_give_tighter_bounds(likelihood: Likelihood) -> None:
    output, target = boxes(50, 4)
    inner = [Interval(box.center - box.radius / 2, box.center + box.radius / 2) for box in (output, target)]
    outer_bounds, inner_bounds = (bounds_of(likelihood).bounds(*pair) for pair in ((output, target), inner))
    assert_encloses(outer_bounds, torch.stack([*inner_bounds]))
    assert (outer_bounds.lower < inner_bounds.lower).all()


@EACH
def test_each_end_alone_is_that_end_of_the_bounds(likelihood: Likelihood) -> None:
    bounds = bounds_of(likelihood).bounds(*(pair := boxes(5, 4)))
    assert torch.equal(bounds.lower, bounds_of(likelihood).lower(*pair))
    assert torch.equal(bounds.upper, bounds_of(likelihood).upper(*pair))


@EACH
@settings(max_examples=25)
@given(
    output=OUTPUT
    | st.floats(-30, 30).map(lambda end: [end, end])
    | st.just([-800.0, 900.0])
    | st.just([1.0, 1 + 1e-12]),
    target=TARGET | st.just([-0.5, 1.5]) | st.just([0.3, 0.3 + 1e-12]),
)
def test_linear_bounds_are_below_and_above_the_density_on_a_dense_grid(
    likelihood: Likelihood, output: list[float], target: list[float]
) -> None:
    if isinstance(likelihood, Poisson):
        output = [min(end, 50) for end in output]  # else exp overflows
    points = torch.cartesian_prod(grid(*output, 61), torch.cat([grid(*target, 31), jumps(likelihood).clamp(*target)]))
    values = likelihood.log_prob(*points.T[..., None])
    boxes, bounds = (box_of(output), box_of(target)), bounds_of(likelihood)
    for sign, bound in ((1, bounds.linear_below(*boxes)), (-1, bounds.linear_above(*boxes))):
        members = [bound]
        if isinstance(bound, AlphaRelaxation):
            assert 0 <= bound.alpha.item() <= 1
            alphas = (0.0, 0.25, 0.5, 0.9, 1.0, bound.alpha.item())
            members = [bound.at(torch.full_like(bound.alpha, alpha)) for alpha in alphas]
            for part, same in zip(vars(bound.initial).values(), vars(members[-1]).values(), strict=True):
                torch.testing.assert_close(part, same, rtol=1e-12, atol=1e-12)
            members.append(bound.initial)
            assert torch.equal(members[0].offset, bound.first.offset)
            assert torch.equal(members[4].offset, bound.second.offset)
        for function in members:
            slopes = torch.cat([function.output_slope[0], function.target_slope[0]])
            fit = points @ slopes + function.offset[0]
            size = (points * slopes).abs().sum(1) + function.offset[0].abs() + values.abs()
            if isinstance(likelihood, ContinuousBernoulli):
                size = size + 1  # A(l) near 0 is the log of a number near 1
            assert (sign * (values - fit) >= -ROUNDING * size).all()


@EACH
def test_linear_bounds_touch_the_density(likelihood: Likelihood) -> None:
    output, target = (box_of(ends) for ends in ([-1.0, 2.0], [0.2, 0.6]))
    points = torch.cartesian_prod(grid(-1, 2, 601), grid(0.2, 0.6, 41))
    values = likelihood.log_prob(*points.T[..., None])
    bounds = bounds_of(likelihood)
    both = bounds.linear_below(output, target), bounds.linear_above(output, target)
    # above, the tangents of a Poisson's A and h touch at one point, where neither plane of the product does
    for bound in both[:1] if isinstance(likelihood, Poisson) else both:
        for function in [bound.first, bound.second] if isinstance(bound, AlphaRelaxation) else [bound]:
            fit = points @ torch.cat([function.output_slope[0], function.target_slope[0]]) + function.offset[0]
            # the points of contact are within half a step of the grid, and the curvature is at most 100
            assert (values - fit).abs().min() < 1e-3


def test_bounds_of_a_scale_a_pixel_are_those_of_each_pixel_with_its_own() -> None:
    scale, (output, target) = torch.tensor([0.1, 1.0, 20.0]).double(), boxes(5, 3)
    together = bounds_of(Gaussian(scale))
    pixels = [box.map(lambda end, k=k: end[:, k : k + 1]) for k in range(3) for box in (output, target)]
    alone = [bounds_of(Gaussian(each.view(1))) for each in scale]
    pairs = [*zip(alone, pixels[::2], pixels[1::2], strict=True)]
    for name in ("lower", "upper"):
        expected = sum(getattr(bounds, name)(*boxes_of_one) for bounds, *boxes_of_one in pairs)
        torch.testing.assert_close(getattr(together, name)(output, target), expected)
    for pick in (
        lambda bounds, *both: bounds.linear_below(*both).initial,
        lambda bounds, *both: bounds.linear_below(*both).second,
        lambda bounds, *both: bounds.linear_above(*both),
    ):
        function = pick(together, output, target)
        for part in ("output_slope", "target_slope", "offset"):
            columns = [getattr(pick(*one), part) for one in pairs]
            torch.testing.assert_close(getattr(function, part), torch.cat(columns, 1))
    fall = torch.cat([bounds.decrease_bound(*boxes_of_one)[0] for bounds, *boxes_of_one in pairs], 1)
    torch.testing.assert_close(together.decrease_bound(output, target)[0], fall)
    rounding = sum(bounds.rounding(*boxes_of_one).bound(torch.float32) for bounds, *boxes_of_one in pairs)
    assert together.rounding(output, target).bound(torch.float32).shape == (5,)
    assert (together.rounding(output, target).bound(torch.float32) >= rounding).all()


def test_bounds_hold_for_targets_beyond_0_and_1() -> None:
    # A ball whose data range is not [0, 1] reaches such targets; t * l - softplus(l) is then monotone in l.
    output, target = box_of([-3.0, 4.0]), box_of([-0.5, 1.5])
    values = Bernoulli().log_prob(*torch.cartesian_prod(grid(-3, 4), grid(-0.5, 1.5)).T[..., None])
    assert_encloses(bounds_of(Bernoulli()).bounds(output, target), values[:, None])


@pytest.mark.parametrize("target", [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.1], [0.9, 1.0]])
@pytest.mark.parametrize("output", [[-3.0, 2.0], [0.0, 0.0], [-200.0, 200.0]])
def test_bernoulli_gradients_are_finite_at_the_edges_of_the_data_range(output: list, target: list) -> None:
    ends = [end.requires_grad_() for ends in (output, target) for end in box_of(ends)]
    bounds = bounds_of(Bernoulli()).bounds(Interval(*ends[:2]), Interval(*ends[2:]))
    for end in bounds:
        gradients = torch.autograd.grad(end.sum(), ends, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert torch.isfinite(torch.stack(gradients)).all()


@pytest.mark.parametrize("targets_learn", [True, False])
def test_the_backward_pass_of_the_bernoulli_bound_is_that_of_its_corner(targets_learn: bool) -> None:
    output, target = boxes(40, 7)
    ends = [end.clone().requires_grad_() for end in output]
    targets = [end.clone().requires_grad_(targets_learn) for end in target]
    learned = ends + targets if targets_learn else ends
    corners = torch.stack([t * end - F.softplus(end) for end in ends for t in targets])
    expected = torch.autograd.grad(corners.amin(0).sum(), learned, allow_unused=True)
    lower = bounds_of(Bernoulli()).lower(Interval(*ends), Interval(*targets))
    gradients = torch.autograd.grad(lower.sum(), learned)
    narrow = target.lower == target.upper  # there two corners tie, and either half of the derivative is right
    for one, other in zip(gradients[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for one, other in zip(gradients[2:], expected[2:], strict=True):
        torch.testing.assert_close(one[~narrow], other[~narrow], rtol=1e-10, atol=1e-10)
    if targets_learn:
        totals = [sum(each[2:]) for each in (gradients, expected)]
        torch.testing.assert_close(*totals, rtol=1e-10, atol=1e-10)


@EACH
def test_bounds_are_differentiable_in_both_boxes(likelihood: Likelihood) -> None:
    leaves = [end.requires_grad_() for box in boxes(2, 3) for end in box]

    def ends(*tensors: Tensor) -> Tensor:
        return torch.cat([*bounds_of(likelihood).bounds(Interval(*tensors[:2]), Interval(*tensors[2:]))])

    with torch.no_grad():  # away from 0 and 1, where a difference would step over the logit's pole, and from each other
        leaves[2].clamp_(0.1, 0.4), leaves[3].clamp_(0.5, 0.9)
    assert torch.autograd.gradcheck(ends, leaves)


def test_a_learned_scale_moves_the_certificate() -> None:
    likelihood = Gaussian(0.5, learned=True)
    (gradient,) = torch.autograd.grad(bounds_of(likelihood).lower(*boxes(2, 3)).sum(), likelihood.log_scale)
    assert torch.isfinite(gradient)
    assert gradient != 0


# A user's own likelihood


class Laplace(Likelihood):
    """exp(-|target - output|) / 2."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return -((target - output).abs() + math.log(2)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return output


class LaplaceBounds(LikelihoodBounds):
    """Intervals and nothing else."""

    def lower(self, output: Interval, target: Interval) -> Tensor:
        farthest = torch.maximum(target.upper - output.lower, output.upper - target.lower)
        return self.likelihood.log_prob(farthest, 0 * farthest)

    def upper(self, output: Interval, target: Interval) -> Tensor:
        nearest = torch.maximum(target.lower - output.upper, output.lower - target.upper).clamp(min=0)
        return self.likelihood.log_prob(nearest, 0 * nearest)


likelihood_bounds.register(Laplace, LaplaceBounds)


def problem(likelihood: Likelihood) -> tuple[VAE, Tensor, LinfBall, Tensor]:
    """A model with this likelihood in float64, inputs, a ball and noise."""
    vae = mlp_vae((3,), (4,), 2, likelihood).double()
    return vae, torch.rand(2, 3).double(), LinfBall(0.1), torch.randn(2, 2).double()


def test_two_registered_methods_are_enough_for_interval_bounds() -> None:
    vae, x, ball, noise = problem(Laplace())
    values = torch.stack([elbo(vae, point, noise) for point in points_of(*ball.box(x))])
    assert_encloses(elbo_bounds(vae, x, ball, noise), values)


def test_what_registered_bounds_lack_is_named_where_it_is_needed() -> None:
    vae, x, ball, noise = problem(Laplace())
    for method in ("crown-ibp", "crown", "best"):
        message = 'LaplaceBounds has no linear_below, which linear bounds need: use method="ibp"'
        with pytest.raises(NotImplementedError, match=f"^{message}$"):
            elbo_bounds(vae, x, ball, noise, method)
    bounds, pair = bounds_of(vae.likelihood), boxes(2, 3)
    with pytest.raises(NotImplementedError, match=r'^LaplaceBounds has no linear_above, .*: use method="ibp"$'):
        bounds.linear_above(*pair)
    with pytest.raises(NotImplementedError, match=r"^LaplaceBounds has no rounding, .*: use sound=False$"):
        bounds.rounding(*pair)
    with pytest.raises(NotImplementedError, match=r"^LaplaceBounds has no decrease_bound, which certify_expected"):
        certify_expected(vae, x, ball, samples=10, method="ibp")


@pytest.mark.parametrize(
    ("method", "sound", "part"),
    [("exact", False, "linear_below"), ("ibp", True, "rounding"), ("crown", True, "rounding")],
)
def test_what_registered_bounds_lack_is_named_by_every_method(method: str, sound: bool, part: str) -> None:
    vae, x, ball, noise = problem(Laplace())
    with pytest.raises(NotImplementedError, match=f"^LaplaceBounds has no {part}, which"):
        elbo_bounds(vae, x, ball, noise, method, sound=sound)


class Cauchy(Laplace):
    """Overrides what its parent's bounds bound."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return -(math.pi * (1 + (target - output).square())).log().flatten(1).sum(1)


class Contrast(Bernoulli):
    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return super().log_prob(3 * output, target)


class Unregistered(Likelihood):
    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target - output).abs().flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return output


@pytest.mark.parametrize(
    ("method", "sound"), [*product(["ibp", "crown-ibp", "crown", "best"], [False, True]), ("exact", False)]
)
@pytest.mark.parametrize("likelihood", [Cauchy(), Contrast(), Unregistered()], ids=lambda it: type(it).__name__)
def test_a_likelihood_whose_density_has_no_bounds_is_refused_with_the_remedy(
    likelihood: Likelihood, method: str, sound: bool
) -> None:
    vae, x, ball, noise = problem(likelihood)
    assert elbo(vae, x, noise).isfinite().all(), "its values are fine"
    name = type(likelihood).__name__
    remedy = rf"paperlib\.certificates\.likelihood_bounds\.likelihood_bounds\.register\({name}, \.\.\.\)"
    message = rf"^no bounds for the likelihood {name}; register a subclass of LikelihoodBounds with {remedy}$"
    for bound in (elbo_bounds, certificate):
        with pytest.raises(UnsupportedLayerError, match=message):
            bound(vae, x, ball, noise, method, sound=sound)


def test_expectations_of_a_likelihood_without_bounds_are_refused_too() -> None:
    vae, x, ball, _ = problem(Contrast())
    with pytest.raises(UnsupportedLayerError, match="no bounds for the likelihood Contrast; register"):
        certify_expected(vae, x, ball, samples=10)


def test_the_remedy_is_enough() -> None:
    class ContrastBounds(LikelihoodBounds):
        def lower(self, output: Interval, target: Interval) -> Tensor:
            return bounds_of(Bernoulli()).lower(output.map(lambda end: 3 * end), target)

        def upper(self, output: Interval, target: Interval) -> Tensor:
            return bounds_of(Bernoulli()).upper(output.map(lambda end: 3 * end), target)

    class Steep(Contrast):
        """A type of its own, so that other tests see no registration."""

    likelihood_bounds.register(Steep, ContrastBounds)
    vae, x, ball, noise = problem(Steep())
    values = torch.stack([elbo(vae, point, noise) for point in points_of(*ball.box(x))])
    assert_encloses(elbo_bounds(vae, x, ball, noise), values)


def test_a_subclass_that_keeps_the_density_keeps_its_bounds() -> None:
    class Rounded(Bernoulli):
        def mean(self, output: Tensor) -> Tensor:
            return super().mean(output).round()

    kept, plain = Rounded(), Bernoulli()
    pair = boxes(3, 4)
    assert type(bounds_of(kept)) is type(bounds_of(plain)) and bounds_of(kept).likelihood is kept
    for end, expected in zip(bounds_of(kept).bounds(*pair), bounds_of(plain).bounds(*pair), strict=True):
        assert torch.equal(end, expected)


def test_a_log_prob_that_was_replaced_on_the_object_is_refused() -> None:
    likelihood = Bernoulli()
    likelihood.log_prob = lambda output, target: -100 * (target - output).square().flatten(1).sum(1)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedLayerError, match="no bounds for the likelihood Bernoulli"):
        bounds_of(likelihood)
