"""The Lagrangian dual: any multipliers give a bound, never looser than the linear one nor beyond the exact value."""

import math
from functools import partial

import pytest
import torch
from oracles import CASES, ROUNDING, TARGETS, audit, audit_case, grid, hard_points, random_box, values_at
from torch import Tensor, nn

from paperlib import (
    VAE,
    BranchAndBound,
    ContinuousBernoulli,
    Crown,
    Gaussian,
    Interval,
    LinfBall,
    certificate,
    elbo_bounds,
)
from paperlib.bounds.linear import AlphaRelaxation, LinearFunction, LinearRelaxation
from paperlib.certificates.backward import RelaxedVAE, linear_lower, linear_upper
from paperlib.certificates.ladder.dual_network import DualNetwork
from paperlib.certificates.ladder.free_slopes import (
    free_fit,
    free_kl_above,
    free_layer,
    free_scale,
    log_var_minimum,
    negative_kl_of_log_var,
)
from paperlib.certificates.ladder.lagrangian import (
    FreeSlopes,
    Lagrangian,
    lagrangian,
    lagrangian_lower,
    lagrangian_upper,
)
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.method import METHODS, Problem
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.models.likelihood import Bernoulli, Likelihood

EACH_TARGET = pytest.mark.parametrize("target", TARGETS)


def crown(case: str, likelihood: str, target: str, eps: float) -> tuple[RelaxedVAE, Tensor]:
    """A case relaxed over CROWN's boxes, and values of its ELBO at hard points, [points, batch]."""
    vae, x, noise = audit_case(case, likelihood)
    relaxed = Crown().relax(Problem.checked(vae, x, LinfBall(eps), noise, target, sound=False))
    with torch.no_grad():
        return relaxed, values_at(vae, hard_points(vae, x, eps, noise, target), x, noise, target)


@pytest.mark.parametrize("case", CASES)
def test_the_dual_passes_the_audit_and_more_steps_are_never_looser(case: str) -> None:
    likelihood, target = ("gaussian", "perturbed") if case in ("deep", "spread", "chain") else ("bernoulli", "clean")
    vae, x, noise = audit_case(case, likelihood)
    audit(vae, x, 0.3, noise, target, [Lagrangian(steps=0), Lagrangian(steps=2)])


@torch.no_grad()
@EACH_TARGET
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_from_the_first_step_on_it_is_no_looser_than_the_linear_bound_over_the_same_boxes(
    likelihood: str, target: str
) -> None:
    better = 0
    for case in ("deep", "conv", "spread", "smooth"):
        relaxed, _ = crown(case, likelihood, target, 0.3)
        gains = [lagrangian_lower(relaxed) - linear_lower(relaxed), linear_upper(relaxed) - lagrangian_upper(relaxed)]
        assert all((gain >= -ROUNDING * (1 + linear_lower(relaxed).abs())).all() for gain in gains), case
        better += sum((gain > 1e-6).sum().item() for gain in gains)
    assert better > 0


@torch.no_grad()
@EACH_TARGET
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_any_multipliers_give_a_bound(likelihood: str, target: str) -> None:
    def anywhere(bound: object) -> object:
        return bound.at(torch.rand_like(bound.alpha)) if isinstance(bound, AlphaRelaxation) else bound

    for case in ("deep", "spread", "smooth"):
        relaxed, values = crown(case, likelihood, target, 0.2)
        lower, upper = (FreeSlopes.of(relaxed, sign) for sign in (1.0, -1.0))
        for _ in range(5):
            assert (lagrangian(lower, anywhere) <= values + 1e-12).all()
            assert (-lagrangian(upper, anywhere) >= values - 1e-12).all()


@torch.no_grad()
@EACH_TARGET
def test_no_dual_is_beyond_the_exact_value(target: str) -> None:
    for likelihood in ("gaussian", "bernoulli"):
        vae, x, noise = audit_case("bend", likelihood)
        exact = elbo_bounds(vae, x, LinfBall(0.2), noise, BranchAndBound(tol=1e-2), target)
        for method in (DualNetwork(), Lagrangian(steps=10)):
            dual = elbo_bounds(vae, x, LinfBall(0.2), noise, method, target)
            assert (dual.lower <= exact.lower + 1e-2).all() and (dual.upper >= exact.upper - 1e-2).all()


@torch.no_grad()
def test_with_steps_it_is_tighter_than_alpha_crown_over_the_same_boxes_where_log_variances_move() -> None:
    relaxed, _ = crown("spread", "bernoulli", "clean", 0.3)
    assert lagrangian_lower(relaxed, steps=10).mean() > linear_lower(relaxed, alpha_steps=10).mean()
    assert lagrangian_upper(relaxed, steps=10).mean() < linear_upper(relaxed, alpha_steps=10).mean()


# Minima of one unit, against grids


def assert_touches(line: Tensor, curve: Tensor, side: int) -> None:
    """On a grid [points, ...] the line is below the curve (side = -1) or above it, and nearly touches it."""
    room = side * (line - curve)
    assert (room >= -1e-12).all(), f"beyond by {-room.min():.3g}"
    assert (room.amin(0) < 1e-3).all(), f"the offset gives away {room.amin(0).max():.3g}"


def on_grid(box: Interval) -> Tensor:
    """[401, *shape]"""
    return box.lower + (box.upper - box.lower) * grid(0, 1, 401).view(-1, *[1] * box.lower.ndim)


def audit_lines(
    bound: AlphaRelaxation[LinearFunction] | LinearFunction, curve: Tensor, points: Tensor, side: int
) -> None:
    """The initial line, and those of the least, the largest and random slopes."""
    assert isinstance(bound, AlphaRelaxation)
    alphas = torch.zeros_like(bound.alpha), torch.ones_like(bound.alpha), torch.rand_like(bound.alpha)
    for line in (bound.initial, *map(bound.at, alphas)):
        assert_touches(line.slope * points + line.offset, curve, side)


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.ELU(alpha=0.5)], ids=repr)
def test_lines_of_free_slope_touch_an_activation(layer: nn.Module) -> None:
    box = random_box(6, 20)
    box = Interval(2 * box.lower, 2 * box.upper)
    points = on_grid(box)
    before = RelaxedLayer.of("layer", layer, box, None)
    relaxation = free_layer(before).relaxation
    assert isinstance(relaxation, LinearRelaxation)
    audit_lines(relaxation.lower, layer(points), points, -1)
    if isinstance(layer, nn.ELU):  # convex: no line above is better than the chord
        assert relaxation.upper is before.relaxation.upper
    else:
        audit_lines(relaxation.upper, layer(points), points, 1)


def test_layers_whose_lines_are_free_already_are_kept() -> None:
    box = random_box(3, 4)
    for layer in (nn.ReLU(), nn.LeakyReLU(), nn.ELU(alpha=0.0), nn.GELU(), nn.Linear(4, 2).double()):
        before = RelaxedLayer.of("layer", layer, box, None)
        assert free_layer(before) is before


def test_lines_of_free_slope_touch_the_standard_deviation_and_the_divergence() -> None:
    mean, log_var = random_box(5, 8), random_box(5, 8)
    at_mean, at_log_var = on_grid(mean), on_grid(log_var)
    audit_lines(free_scale(log_var).lower, torch.exp(at_log_var / 2), at_log_var, -1)
    of_mean, of_log_var = free_kl_above(mean, log_var)
    audit_lines(of_mean, -at_mean.square() / 2, at_mean, 1)
    audit_lines(of_log_var, (at_log_var + 1 - at_log_var.exp()) / 2, at_log_var, 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_log_variance_is_minimised_in_its_scale_and_divergence_together(sign: float) -> None:
    box = random_box(50, 8)
    scale, slope = 3 * torch.randn(2, 50, 8).double()
    least = log_var_minimum(scale, sign, slope, box)
    v = on_grid(box)
    values = scale * torch.exp(v / 2) + sign * negative_kl_of_log_var(v) - slope * v
    assert_touches(least.expand_as(values), values, -1)
    inside = (values.argmin(0) > 0) & (values.argmin(0) < 400)
    assert inside.any(), "no minimum is at a turning point"


def test_a_log_variance_of_a_large_scale_is_minimised_in_float32() -> None:
    # the turning point exp(v / 2) = 0.22 is the small root of a quadratic equation whose other root is 1e6
    scale, slope = torch.tensor([[1e6]]), torch.tensor([[1e6 * math.exp(-1.5) / 2]])
    box = Interval(torch.tensor([[-5.0]]), torch.tensor([[1.0]]))
    v = on_grid(box.map(Tensor.double))
    values = scale * torch.exp(v / 2) + negative_kl_of_log_var(v) - slope * v
    least = log_var_minimum(scale, 1.0, slope, box).double()
    torch.testing.assert_close(least, values.amin(0), rtol=1e-5, atol=0)
    assert 0 < values.argmin(0) < 400


@pytest.mark.parametrize("point", [False, True], ids=["box", "point"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), ContinuousBernoulli(), Gaussian(0.7)], ids=lambda it: type(it).__name__
)
def test_planes_of_free_slopes_touch_the_likelihood(likelihood: Likelihood, sign: float, point: bool) -> None:
    likelihood = likelihood.double()
    output, center = random_box(30, 4), torch.rand(30, 4).double()
    width = 0 if point else torch.rand(30, 4).double() * torch.minimum(center, 1 - center)
    target = Interval(center - width, center + width)
    bounds = bounds_of(likelihood)
    start = (bounds.linear_below if sign > 0 else bounds.linear_above)(output, target)
    planes = free_fit(likelihood, output, target, sign, start)
    if not isinstance(likelihood, Gaussian) and sign > 0:
        assert planes is start, "every plane below is one of these already"
        return
    assert isinstance(planes, AlphaRelaxation) and planes.alpha.shape == (2, 30, 4)
    place = torch.cartesian_prod(grid(0, 1, 61), grid(0, 1, 61)).view(-1, 2, 1, 1)
    y, t = (low + (high - low) * place[:, axis] for axis, (low, high) in enumerate((output, target)))
    density = likelihood.terms(y, t)
    for plane in (planes.initial, *(planes.at(torch.rand_like(planes.alpha)) for _ in range(3))):
        values = plane.output_slope * y + plane.target_slope * t + plane.offset
        assert_touches(values, density, -1 if sign > 0 else 1)


# Hand-worked numbers


def spread_vae() -> VAE:
    """mean = 0, log_var = 4 x - 2, and the output is the latent."""
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    encoder.weight.data, encoder.bias.data = torch.tensor([[0.0], [4.0]]), torch.tensor([0.0, -2.0])
    decoder.weight.data, decoder.bias.data = torch.ones(1, 1), torch.tensor([-2.5])
    return VAE(encoder, decoder, Gaussian(), latent_dim=1).double()


@torch.no_grad()
def test_a_hand_worked_log_variance_is_exact_where_the_linear_bound_is_not() -> None:
    # x in [1/4, 3/4], so v = log_var in [-1, 1], and with noise 1 the latent is s = exp(v / 2). The target is 1/2:
    # the distance is d = s - 3 in [l, h] with l = exp(-1/2) - 3 and h = exp(1/2) - 3. The chord of -d^2 / 2 is
    # -(l + h) / 2 * d + l h / 2, whose slope a = -(l + h) / 2 = 3 - cosh(1/2) is the coefficient of s; at v = -1 it is
    # exact. All less log(2 pi) / 2.
    # CROWN takes for s the tangent with the slope k = sinh(1/2) of its chord,  k v + 2 k (1 - log(2 k)),  and for -KL
    # its chord, from -1 / (2 e) at v = -1 to (2 - e) / 2 at v = 1, of slope g < 0. As a k + g > 0, v = -1 is worst.
    # In truth, too:  a exp(v / 2) + (v + 1 - exp(v)) / 2  rises from there on. So the dual is exact at multiplier 0.
    vae, x, noise = spread_vae(), torch.tensor([[0.5]]).double(), torch.ones(1, 1).double()
    problem = Problem.checked(vae, x, LinfBall(0.25), noise, "clean", sound=False)
    relaxed = Crown().relax(problem)
    low, high = math.exp(-0.5) - 3, math.exp(0.5) - 3
    a, k = 3 - math.cosh(0.5), math.sinh(0.5)
    fit = -3 * a + low * high / 2 - math.log(2 * math.pi) / 2
    linear = a * (-k + 2 * k * (1 - math.log(2 * k))) - 1 / (2 * math.e) + fit
    exact = a * math.exp(-0.5) - 1 / (2 * math.e) + fit
    assert linear_lower(relaxed).item() == pytest.approx(linear, rel=1e-12)
    assert exact == pytest.approx(-(low**2) / 2 - 1 / (2 * math.e) - math.log(2 * math.pi) / 2, rel=1e-12)
    # Before the first step the multiplier is a k + g, with g the slope of the divergence's chord. The minimum of
    # a s + (2 log(s) + 1 - s^2) / 2 - 2 (a k + g) log(s)  is where  s^2 - a s + 2 (a k + g) - 1 = 0.
    g = ((2 - math.e) / 2 + 1 / (2 * math.e)) / 2
    mu = a * k + g
    s = a / 2 - math.sqrt(a**2 / 4 - 2 * mu + 1)
    first = a * s + (2 * math.log(s) + 1 - s**2) / 2 - 2 * mu * math.log(s) - mu + fit
    assert linear < first < exact
    assert lagrangian_lower(relaxed).item() == pytest.approx(first, rel=1e-12)
    assert exact - 1e-3 < lagrangian_lower(relaxed, steps=60).item() <= exact + 1e-12


@torch.no_grad()
def test_a_hand_worked_upper_bound_finds_the_best_tangent() -> None:
    # The decoder ignores the latent. For x in [1/4, 5/4] is v = log_var = 4 x - 2 in [-1, 3], and -KL, which is
    # (v + 1 - exp(v)) / 2, is at most 0, at v = 0. CROWN's tangent at the middle v = 1 is  (2 - e) / 2 + (1 - e) / 2 *
    # (v - 1),  at v = -1 e / 2. The tangent at 0 is the best.
    vae = spread_vae()
    vae.decoder.weight.data.zero_()
    x, noise = torch.tensor([[0.75]]).double(), torch.ones(1, 1).double()
    problem = Problem.checked(vae, x, LinfBall(0.5, 0.0, 2.0), noise, "clean", sound=False)
    relaxed = Crown().relax(problem)
    constant = (2.5 + 0.75) ** 2 / 2 + math.log(2 * math.pi) / 2
    assert linear_upper(relaxed).item() == pytest.approx(math.e / 2 - constant, rel=1e-12)
    assert lagrangian_upper(relaxed).item() == pytest.approx(math.e / 2 - constant, rel=1e-12)
    assert -1e-12 <= lagrangian_upper(relaxed, steps=200).item() + constant < 1e-3


# Options


def test_it_ends_when_time_is_up_with_the_best_bound_so_far() -> None:
    vae, x, noise = audit_case("smooth", "gaussian")
    bound = partial(elbo_bounds, vae, x, LinfBall(0.2), noise)
    first, stopped, least = bound(Lagrangian(0)), bound(Lagrangian(10**9, time_limit=0.2)), bound(BranchAndBound(0.1))
    assert (stopped.lower >= first.lower).all() and (stopped.upper <= first.upper).all()
    assert (stopped.lower <= least.lower + 0.1).all() and (stopped.upper >= least.upper - 0.1).all()
    alone = certificate(vae, x, LinfBall(0.2), noise, Lagrangian(10**9, time_limit=0.1))
    assert (alone >= first.lower).all()


def test_the_word_stands_for_the_defaults_and_senseless_options_are_refused() -> None:
    assert METHODS["lagrangian"] == Lagrangian(steps=40, time_limit=None) and not Lagrangian().differentiable
    with pytest.raises(ValueError, match="steps must not be negative, got -1"):
        Lagrangian(steps=-1)
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="time_limit must be positive, in seconds"):
            Lagrangian(time_limit=limit)
