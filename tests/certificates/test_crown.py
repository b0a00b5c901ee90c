"""Linear bounds of the ELBO: the audit, closed forms, hand-worked numbers, and a hunt for a point that breaks them."""

import math
from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import CASES, LIKELIHOODS, ROUNDING, TARGETS, audit, audit_case, hard_points, values_at
from torch import Tensor, nn

from paperlib import (
    VAE,
    Crown,
    CrownIBP,
    Gaussian,
    Interval,
    L2Ball,
    LinfBall,
    PatchSet,
    TrainConfig,
    conv_vae,
    elbo,
    elbo_bounds,
    lighting,
    mlp_vae,
    pgd,
    train,
)
from paperlib.bounds.linear import AlphaRelaxation, AlphaSelector, LinearFunction
from paperlib.bounds.scaling import Scaling
from paperlib.certificates import refinement, unit_bounds
from paperlib.certificates.alpha import optimize_alpha
from paperlib.certificates.backward import RelaxedVAE, linear_lower, linear_upper
from paperlib.certificates.evaluation import ALLOWANCE
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.latent_zonotope import reduce_order
from paperlib.certificates.method import Problem
from paperlib.certificates.refinement import refine
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.data.datasets import Dataset
from paperlib.threats.perturbation import PerturbationSet

METHODS = [CrownIBP, Crown]
NO_SHRINKING = [Phase.generate]  # the seed says it all, and an audit takes a while
EACH_METHOD = pytest.mark.parametrize("method", METHODS)
EACH_TARGET = pytest.mark.parametrize("target", TARGETS)
EACH_LIKELIHOOD = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@EACH_METHOD
@EACH_TARGET
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("case", CASES)
def test_linear_bounds_pass_the_audit(case: str, likelihood: str, target: str, method: type[CrownIBP]) -> None:
    vae, x, noise = audit_case(case, likelihood)
    for eps in (0.02, 0.3):
        audit(vae, x, eps, noise, target, [method(), method(alpha_steps=3)])


@EACH_METHOD
@EACH_TARGET
def test_bounds_allow_for_inputs_far_from_0(target: str, method: type[CrownIBP]) -> None:
    """Their terms are 10,000 times as large as the sum. Without an allowance the bound at radius 0 misses the ELBO."""
    vae, x, noise = audit_case("smooth", "gaussian", batch=64)
    far, ones = torch.full((3,), 1e4).double(), torch.ones(3).double()
    vae.encoder.insert(0, Scaling(ones, -far))
    vae.decoder.append(Scaling(ones, far))
    x = x + far
    for eps in (0.0, 1e-12, 0.1):
        ball = LinfBall(eps, 0.0, 1e5)
        bounds, clean = elbo_bounds(vae, x, ball, noise, method(), target), elbo(vae, x, noise)
        assert (bounds.lower <= clean + 1e-10).all() and (clean - 1e-10 <= bounds.upper).all()
        relaxed = method().relax(Problem.checked(vae, x, ball, noise, target, sound=False))
        assert (linear_lower(relaxed) <= clean).all() and (clean <= linear_upper(relaxed)).all()


@EACH_METHOD
@EACH_TARGET
@settings(max_examples=12, phases=NO_SHRINKING)
@given(
    seed=st.integers(0, 2**16),
    hidden=st.lists(st.integers(1, 6), max_size=4),
    size=st.integers(1, 4),
    latent=st.integers(1, 3),
    eps=st.floats(0, 1),
    likelihood=st.sampled_from(sorted(LIKELIHOODS)),
)
def test_random_networks_of_any_depth_pass_the_audit(
    target: str,
    method: type[CrownIBP],
    seed: int,
    hidden: list[int],
    size: int,
    latent: int,
    eps: float,
    likelihood: str,
) -> None:
    torch.manual_seed(seed)
    vae = mlp_vae((size,), tuple(hidden), latent, LIKELIHOODS[likelihood]()).double()
    x, noise = torch.rand(2, size).double(), torch.randn(2, latent).double()
    audit(vae, x, eps, noise, target, [method(), method(alpha_steps=2)])


@EACH_METHOD
@EACH_TARGET
@settings(max_examples=5, phases=NO_SHRINKING)
@given(seed=st.integers(0, 2**16), channels=st.sampled_from([(2,), (2, 3)]), eps=st.floats(0, 0.5))
def test_random_convolutions_pass_the_audit(
    target: str, method: type[CrownIBP], seed: int, channels: tuple[int, ...], eps: float
) -> None:
    torch.manual_seed(seed)
    vae = conv_vae((2, 4, 4), channels, 2).double()
    x, noise = torch.rand(2, 2, 4, 4).double(), torch.randn(2, 2).double()
    audit(vae, x, eps, noise, target, [method(), method(alpha_steps=2)])


# Closed forms


def affine_vae(scale: float, latent: int = 2, size: int = 4) -> VAE:
    """mean = A x + a, log_var fixed, output = D z + d."""
    encoder, decoder = nn.Linear(size, 2 * latent), nn.Linear(latent, size)
    encoder.weight.data[latent:] = 0
    return VAE(encoder, decoder, Gaussian(scale), latent).double()


@EACH_METHOD
@EACH_TARGET
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_an_affine_vae_has_the_bounds_of_its_closed_form(
    scale: float, eps: float, target: str, method: type[CrownIBP]
) -> None:
    # The ELBO is  sum of -distance^2 / (2 scale^2)  and of  -mean^2 / 2, both affine in x, and a constant.
    # Each -v^2 / 2 is above its chord  -(low + high) v / 2 + low high / 2  and below its tangent  -at v + at^2 / 2.
    vae = affine_vae(scale)
    log_scale = vae.likelihood.log_scale
    scale = log_scale.exp().item()  # rounded to float32 when it was made
    x, noise = torch.full((1, 4), 0.5).double(), torch.randn(1, 2).double()
    A, a = vae.encoder.weight[:2], vae.encoder.bias[:2]
    D, log_var = vae.decoder.weight, vae.encoder.bias[2:]
    b = D @ (a + (log_var / 2).exp() * noise[0]) + vae.decoder.bias
    mean, mean_radius = A @ x[0] + a, eps * A.abs().sum(1)
    # CROWN's boxes of the outputs are the true ones, interval propagation bounds each latent on its own
    spread = eps * (D @ A).abs().sum(1) if method is Crown else D.abs() @ mean_radius
    follows = torch.eye(4).double() * (target == "perturbed")  # of the target
    wide = spread + eps * follows.sum(1)
    distance = D @ A @ x[0] + b - x[0]
    ends = {"mean": (mean - mean_radius, mean + mean_radius), "distance": (distance - wide, distance + wide)}

    def chord(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return -(low + high) / 2, low * high / 2

    def tangent(at: Tensor) -> tuple[Tensor, Tensor]:
        return -at, at.square() / 2

    constant = -4 * (log_scale + math.log(2 * math.pi) / 2) - (log_var.exp() - 1 - log_var).sum() / 2
    expected = []
    for sign, fit, kl in (
        (-1, chord(*ends["distance"]), chord(*ends["mean"])),
        (1, tangent(torch.zeros(4).double().clamp(*ends["distance"])), tangent(mean)),
    ):
        slope = fit[0] / scale**2 @ (D @ A - follows) + kl[0] @ A
        at_center = (fit[0] * distance + fit[1]).sum() / scale**2 + (kl[0] * mean + kl[1]).sum()
        expected.append(at_center + constant + sign * eps * slope.abs().sum())
    # never looser than the largest and the smallest |distance| and |mean| of those boxes, each by itself
    parts = [(ends["distance"], scale), (ends["mean"], 1.0)]
    farthest = [torch.maximum(*(end.abs() for end in box)) / unit for box, unit in parts]
    nearest = [torch.zeros_like(box[0]).clamp(*box) / unit for box, unit in parts]
    worst, best = (constant - sum(part.square().sum() for part in group) / 2 for group in (farthest, nearest))
    lower, upper = (value.view(1) for value in (torch.maximum(worst, expected[0]), torch.minimum(best, expected[1])))
    linear = elbo_bounds(vae, x, LinfBall(eps), noise, method(), target)
    torch.testing.assert_close(linear.lower, lower, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(linear.upper, upper, rtol=ROUNDING, atol=ROUNDING)


@EACH_METHOD
def test_a_hand_worked_vae_has_the_hand_worked_linear_bounds(method: type[CrownIBP]) -> None:
    # mean = x', log_var = 0, noise = 0, output = z + 1: the output is always 1 above x', with x' in [1/4, 3/4].
    # Intervals do not see this: distance in [1/2, 3/2], mean in [1/4, 3/4], so
    #   lower = -(3/2)^2 / 2 - (3/4)^2 / 2 = -45/32,   upper = -(1/2)^2 / 2 - (1/4)^2 / 2 = -5/32.
    # Chords: -d^2 / 2 >= -d + 3/8, where d = 1 in truth, and -mean^2 / 2 >= -mean / 2 + 3/32, so
    #   lower = -1 + 3/8 - 3/8 + 3/32 = -29/32 at x' = 3/4.
    # Tangents: -d^2 / 2 <= -d / 2 + 1/8 (at d = 1/2) and -mean^2 / 2 <= -mean / 2 + 1/8 (at mean = 1/2), so
    #   upper = -3/8 + 0 = -3/8 at x' = 1/4.  Truly the ELBO is -1/2 - x'^2 / 2, in [-25/32, -17/32].
    # All less log(2 pi) / 2. The boxes of CROWN are the same: each is reached.
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    encoder.weight.data, encoder.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    decoder.weight.data, decoder.bias.data = torch.ones(1, 1), torch.ones(1)
    vae = VAE(encoder, decoder, Gaussian(), latent_dim=1).double()
    x, noise, constant = torch.tensor([[0.5]]).double(), torch.zeros(1, 1).double(), math.log(2 * math.pi) / 2
    interval = elbo_bounds(vae, x, LinfBall(0.25), noise)
    assert [end.item() for end in interval] == pytest.approx([-45 / 32 - constant, -5 / 32 - constant], rel=1e-13)
    linear = elbo_bounds(vae, x, LinfBall(0.25), noise, method())
    assert [end.item() for end in linear] == pytest.approx([-29 / 32 - constant, -3 / 8 - constant], rel=1e-13)
    # With the clean target d = z + 1/2 in [3/4, 5/4] and both terms are worst at x' = 3/4: the lower end is exact,
    # -(5/4)^2 / 2 - (3/4)^2 / 2 = -17/16.
    clean = elbo_bounds(vae, x, LinfBall(0.25), noise, method(), target="clean")
    assert clean.lower.item() == pytest.approx(-17 / 16 - constant, rel=1e-13)


def test_the_optimisation_of_alpha_ends_at_the_hand_worked_one() -> None:
    # mean = relu(u) - u with u = x' - 1/2 in [-1/4, 1/4], log_var = 0, and the decoder says 1 whatever z is: with the
    # clean target 1/2 only the mean moves. Its interval is [-1/4, 1/2] (in truth [0, 1/4]), and there
    #   -mean^2 / 2 <= 1/128 - mean / 8,  the tangent at 1/8.
    # The lower bound of relu is alpha * u, alpha in [0, 1]: so the ELBO's is 1/128 + (1 - alpha) u / 8, largest at
    # u = 1/4. It is 5/128 at alpha 0, where the optimisation begins, and 1/128 at alpha 1.
    first, second, decoder = nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(1, 1)
    first.weight.data, first.bias.data = torch.ones(2, 1), torch.tensor([-0.5, 10.0])  # the second unit is positive
    second.weight.data, second.bias.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([10.5, 0.0])
    decoder.weight.data, decoder.bias.data = torch.zeros(1, 1), torch.ones(1)
    vae = VAE(nn.Sequential(first, nn.ReLU(), second), decoder, Gaussian(), 1).double()
    x, noise = torch.tensor([[0.5]]).double(), torch.zeros(1, 1).double()
    relaxed = RelaxedVAE.of(vae, IntervalBounds.of(vae, LinfBall(0.25).box(x), noise, Interval(x, x)), noise)
    constant = 1 / 8 + math.log(2 * math.pi) / 2  # the density of 1/2 around 1
    assert linear_upper(relaxed).item() == pytest.approx(5 / 128 - constant, rel=1e-13)
    assert linear_upper(relaxed, alpha_steps=20).item() == pytest.approx(1 / 128 - constant, rel=1e-13)


def test_steps_for_alpha_that_end_in_no_number_lose_nothing() -> None:
    # The bound is alpha itself, and above 0.9 not a number. From 0.75 the first step leads there.
    start, zero = torch.tensor([0.75]), torch.zeros(1)
    family = AlphaRelaxation(LinearFunction(start, zero), start, lambda share: LinearFunction(share, zero))
    met: list[Tensor] = []

    def bound(select_alpha: AlphaSelector) -> Tensor:
        slope = select_alpha(family).slope
        met.append(slope + 0 * (0.9 - slope).sqrt())
        return met[-1]

    assert optimize_alpha(bound, steps=3).item() == 0.75
    assert met[-1].isnan()


# Networks of several hidden layers


def test_the_passes_of_units_see_what_cancels_behind_two_activations() -> None:
    # mean = x', log_var = 0, noise = 0, and with u = x' - 1/2 in [-1/4, 1/4] the decoder says
    #   p = relu(u),  (relu(p), relu(p)),  2 relu(p) - relu(p) = p,  which is in [0, 1/4].
    # Intervals: 2 [0, 1/4] - [0, 1/4] = [-1/4, 1/2]. The chord u / 2 + 1/8 and the line u / 2 have p between them: with
    # what is between in a box, the output is  u / 2 + 2 [0, 1/8] - [0, 1/8],  so in [-1/4, 3/8]. A pass of the output's
    # own has the coefficient 2 - 1 = 1 on p: above is the chord, at most 1/4, and below alpha u with alpha = 0.
    def affine(weight: list[list[float]], bias: list[float]) -> nn.Linear:
        layer = nn.Linear(len(weight[0]), len(weight))
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        return layer

    first, second, third = affine([[1.0]], [-0.5]), affine([[1.0], [1.0]], [0.0, 0.0]), affine([[2.0, -1.0]], [0.0])
    decoder = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    vae = VAE(affine([[1.0], [0.0]], [0.0, 0.0]), decoder, Gaussian(), 1).double()
    x, noise = torch.tensor([[0.5]]).double(), torch.zeros(1, 1).double()
    interval = IntervalBounds.of(vae, LinfBall(0.25).box(x), noise, Interval(x, x))
    assert [end.item() for end in interval.output] == pytest.approx([-1 / 4, 1 / 2], rel=1e-12)
    output = refine(RelaxedVAE.of(vae, interval, noise)).bounds.output
    assert [end.item() for end in output] == pytest.approx([0, 1 / 4], rel=1e-12, abs=1e-12)


def deep(activation: type[nn.Module], depth: int = 3) -> tuple[VAE, Tensor, Tensor]:
    """Random networks with weights of training's size, which are steeper than those of the start."""
    torch.manual_seed(0)
    vae = mlp_vae((9,), (8,) * depth, 3)
    for half in (vae.encoder, vae.decoder):
        for place, layer in enumerate(half):
            if isinstance(layer, nn.Linear):
                layer.weight.data.mul_(2)
            else:
                half[place] = activation()
    return vae.double(), torch.rand(4, 9).double(), torch.randn(4, 3).double()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SELU])
def test_units_of_deep_networks_gain_from_passes_of_their_own_and_from_their_alphas(
    activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x, noise = deep(activation)
    ball = LinfBall(0.05)
    monkeypatch.setattr(refinement, "LOST", -1.0)  # in every example
    by_unit, optimized = (elbo_bounds(vae, x, ball, noise, Crown(steps)) for steps in (0, 10))
    assert (optimized.lower >= by_unit.lower).all() and (optimized.upper <= by_unit.upper).all()
    assert (optimized.lower > by_unit.lower).any()
    points = hard_points(vae, x, 0.05, noise, "perturbed")
    values = values_at(vae, points, x, noise, "perturbed")
    assert (optimized.lower <= values + ROUNDING).all() and (values <= optimized.upper + ROUNDING).all()
    monkeypatch.setattr(refinement, "LOST", 1.0)  # in none
    shared = elbo_bounds(vae, x, ball, noise, Crown())
    assert (by_unit.lower > shared.lower).all() and (by_unit.upper < shared.upper).all()


@pytest.mark.parametrize("alpha_steps", [0, 3])
def test_units_have_passes_of_their_own_in_the_examples_for_which_the_zonotope_says_little(
    alpha_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x, noise = deep(nn.ReLU)
    little = torch.tensor([False, False, True, False])  # the zonotope loses 1, 0, 36 and 18 per cent
    bounds = partial(elbo_bounds, vae, ball=LinfBall(0.05), method=Crown(alpha_steps))
    with monkeypatch.context() as patch:
        sizes: list[int] = []
        real = unit_bounds.bound_units
        patch.setattr(unit_bounds, "bound_units", lambda box, *args: sizes.append(len(box.lower)) or real(box, *args))
        chosen = bounds(x, noise=noise)
    assert set(sizes) == {1}, "the others of the batch do not pay for these passes"
    for i in range(len(x)):  # whatever stands beside it in the batch
        alone = bounds(x[i : i + 1], noise=noise[i : i + 1])
        torch.testing.assert_close(alone.lower, chosen.lower[i : i + 1], rtol=1e-12, atol=0)
    for lost, examples in ((-1.0, little), (1.0, ~little)):
        monkeypatch.setattr(refinement, "LOST", lost)
        expected = bounds(x, noise=noise)
        for end, same in zip(expected, chosen, strict=True):
            torch.testing.assert_close(end[examples], same[examples], rtol=1e-12, atol=0)
            assert (end != same)[~examples].all()


def test_boxes_do_not_depend_on_what_stands_beside_an_example_in_the_batch() -> None:
    vae, x, noise = deep(nn.ReLU)

    def relaxed(rows: slice) -> RelaxedVAE:
        problem = Problem.checked(vae, x[rows], LinfBall(0.05), noise[rows], "perturbed", sound=False)
        return RelaxedVAE.of(vae, problem.bounds, noise[rows])

    _, loose = refinement.refine_by_zonotope(relaxed(slice(4)))
    assert loose.tolist() == [False, False, True, False]
    together = refine(relaxed(slice(4)))
    for i in range(4):
        alone = refine(relaxed(slice(i, i + 1)))
        for half in ("encoder", "decoder"):
            for one, all_of_them in zip(getattr(alone, half), getattr(together, half), strict=True):
                for end, ends in zip(one.box, all_of_them.box, strict=True):
                    torch.testing.assert_close(end[0], ends[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "ball", [PatchSet(2, 2), L2Ball(0.3), lighting(0.1, 0.1)], ids=lambda ball: type(ball).__name__
)
def test_passes_of_units_reach_sets_that_are_no_box(ball: PerturbationSet) -> None:
    vae, x, noise = deep(nn.Tanh, depth=2)
    linear, box = (elbo_bounds(vae, x, each, noise, "crown") for each in (ball, LinfBall(1.0)))
    points = [x, pgd(vae, x, ball, noise), pgd(vae, x, ball, noise, maximize=True)]
    points += [ball.sample(x, torch.Generator().manual_seed(seed)) for seed in range(50)]
    with torch.no_grad():
        values = torch.stack([elbo(vae, point, noise) for point in points])
    assert (linear.lower <= values + ROUNDING).all() and (values <= linear.upper + ROUNDING).all()
    assert (linear.upper - linear.lower < 0.9 * (box.upper - box.lower)).all()
    inside = elbo_bounds(vae, x, ball, noise, Crown(3))
    assert (inside.lower >= linear.lower).all() and (inside.lower <= values + ROUNDING).all()


def test_a_zonotope_of_many_small_errors_is_contained_in_one_of_fewer() -> None:
    torch.manual_seed(0)
    large, small = torch.randn(3, 10).double(), 1e-5 * torch.randn(3, 200).double()
    generators = torch.cat([small, large], 1)[:, torch.randperm(210)]
    fewer = reduce_order(generators)
    assert fewer.shape == (3, 10 + 3)  # a box stands for the small ones
    directions = torch.randn(1000, 3).double()
    reach, wider = ((directions @ each).abs().sum(1) for each in (generators, fewer))
    assert (reach <= wider).all() and (wider < 1.001 * reach).all()
    alike = torch.randn(3, 20).double()
    assert torch.equal(reduce_order(alike), alike)


def test_one_hidden_layer_is_bounded_as_before_without_passes_of_units(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, noise = deep(nn.ReLU, depth=1)
    expected = elbo_bounds(vae, x, LinfBall(0.05), noise, Crown(2))
    monkeypatch.setattr(unit_bounds, "bound_units", None)  # not called
    for end, same in zip(elbo_bounds(vae, x, LinfBall(0.05), noise, Crown(2)), expected, strict=True):
        assert torch.equal(end, same)


# A model that was trained


def blobs(count: int, side: int = 8) -> Tensor:
    """Images of one bright blob each, with black edges: [count, side * side]."""
    place = torch.rand(count, 2, 1) * (side - 3) + 1
    along = torch.exp(-(torch.arange(side) - place).square() / 2)
    image = along[:, 0, :, None] * along[:, 1, None, :]
    return torch.where(image > 0.1, image, 0.0).flatten(1)


@pytest.fixture(scope="module")
def trained() -> tuple[VAE, Tensor, Tensor]:
    """A plain VAE after 300 steps, with test images and noise, in float64."""
    torch.manual_seed(0)
    data = Dataset("blobs", blobs(1000), torch.zeros(1000, dtype=torch.int64))
    config = TrainConfig("blobs", (64,), (32, 16), 4, kappa=1.0, eps=0.0, steps=300, batch_size=64, lr=5e-3)
    vae = train(config, data=data, device="cpu").vae.in_float64()
    return vae, blobs(6).double(), torch.randn(6, 4).double()


Trained = tuple[VAE, Tensor, Tensor]


def test_a_trained_model_is_bounded_better_by_linear_bounds_and_best_over_refined_boxes(trained: Trained) -> None:
    vae, x, noise = trained
    ball = LinfBall(0.02)
    ibp, crown_ibp, refined = (elbo_bounds(vae, x, ball, noise, method) for method in ("ibp", "crown-ibp", "crown"))
    optimized = elbo_bounds(vae, x, ball, noise, Crown(alpha_steps=20))
    assert (ibp.lower < crown_ibp.lower).all() and (ibp.upper > crown_ibp.upper).all()
    assert (crown_ibp.lower < refined.lower).all() and (crown_ibp.upper > refined.upper).all()
    assert (refined.lower <= optimized.lower).all() and (refined.lower < optimized.lower).any()
    assert (refined.upper >= optimized.upper).all() and (refined.upper > optimized.upper).any()


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
@EACH_TARGET
@torch.no_grad()
def test_a_hunt_of_100_000_points_finds_no_violation(trained: Trained, target: str, eps: float) -> None:
    vae, x, noise = trained
    ball = LinfBall(eps)
    worst, best = (torch.full((6,), sign * torch.inf).double() for sign in (1, -1))

    def meet(points: Tensor) -> None:
        low, high = values_at(vae, points, x, noise, target).aminmax(dim=0)
        torch.minimum(worst, low, out=worst)
        torch.maximum(best, high, out=best)

    box = ball.box(x)
    for _ in range(3):  # 3 * 1000 * 6 points, for each of three radii and two targets
        uniform = torch.rand(500, *x.shape).double()
        for place in (uniform, uniform.round()):
            meet((box.lower + (box.upper - box.lower) * place).clamp(*box))
    meet(hard_points(vae, x, eps, noise, target, turns=8))
    with torch.enable_grad():
        attacked = pgd(vae, x, ball, noise, steps=20, restarts=2, target=target)
    meet(attacked[None])
    for method in METHODS:
        for alpha_steps in (0, 5):
            bounds = elbo_bounds(vae, x, ball, noise, method(alpha_steps), target)
            assert (bounds.lower <= worst + ALLOWANCE * (1 + worst.abs())).all()
            assert (bounds.upper >= best - ALLOWANCE * (1 + best.abs())).all()


@EACH_METHOD
@EACH_TARGET
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_eps_of_zero_gives_the_elbo_of_a_trained_model_bit_for_bit(
    trained: Trained, dtype: torch.dtype, target: str, method: type[CrownIBP]
) -> None:
    vae, x, noise = trained
    vae, x, noise = vae.in_float64().to(dtype), x.to(dtype), noise.to(dtype)
    for alpha_steps in (0, 3):
        bounds = elbo_bounds(vae, x, LinfBall(0.0), noise, method(alpha_steps), target)
        assert torch.equal(bounds.lower, bounds.upper)
        assert torch.equal(bounds.lower, elbo(vae, x, noise))


@EACH_METHOD
def test_float32_bounds_are_those_of_float64_to_within_2e_5(trained: Trained, method: type[CrownIBP]) -> None:
    vae, x, noise = trained
    single = vae.in_float64().float()
    points = hard_points(single.in_float64(), x.float().double(), 0.05, noise.float().double(), "perturbed")
    values = values_at(single.in_float64(), points, x.float().double(), noise.float().double(), "perturbed")
    for alpha_steps in (0, 5):
        rough = elbo_bounds(single, x.float(), LinfBall(0.05), noise.float(), method(alpha_steps))
        fine = elbo_bounds(vae, x, LinfBall(0.05), noise, method(alpha_steps))
        for end, true in zip(rough, fine, strict=True):
            torch.testing.assert_close(end.double(), true, rtol=2e-5, atol=2e-5)
        assert (rough.lower.double() <= values + 1e-6 * (1 + values.abs())).all()
        assert (rough.upper.double() >= values - 1e-6 * (1 + values.abs())).all()


# Examples, gradients, refusals


@pytest.mark.parametrize("alpha_steps", [0, 5])
@EACH_METHOD
@pytest.mark.parametrize("case", ["deep", "conv"])
def test_examples_do_not_mix(case: str, method: type[CrownIBP], alpha_steps: int) -> None:
    vae, x, noise = audit_case(case, batch=5)
    whole = elbo_bounds(vae, x, LinfBall(0.1), noise, method(alpha_steps))
    alone = [elbo_bounds(vae, x[i : i + 1], LinfBall(0.1), noise[i : i + 1], method(alpha_steps)) for i in range(5)]
    for k, end in enumerate(whole):
        torch.testing.assert_close(end, torch.cat([[*a][k] for a in alone]), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("ball", [LinfBall(0.1), L2Ball(0.1), PatchSet(2, 2)], ids=repr)
def test_a_batch_of_no_examples_has_no_bounds_by_passes_of_units(ball: PerturbationSet) -> None:
    vae, x, noise = deep(nn.ReLU, depth=2)
    for steps in (0, 2):
        assert elbo_bounds(vae, x[:0], ball, noise[:0], Crown(steps)).lower.shape == (0,)


class Ends(nn.Module):
    """Both ends as the output of a module, for `functional_call`."""

    def __init__(self, vae: VAE, target: str):
        super().__init__()
        self.vae, self.target = vae, target

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.cat([*elbo_bounds(self.vae, x, LinfBall(0.05), noise, "crown-ibp", self.target)])


@EACH_TARGET
@pytest.mark.parametrize("likelihood", ["bernoulli", "learned"])
@pytest.mark.parametrize(
    ("case", "parameter"),
    [
        *[("mlp", name) for name in ("encoder.0.weight", "encoder.2.bias", "decoder.0.weight", "decoder.2.bias")],
        *[("conv", name) for name in ("encoder.0.weight", "decoder.3.weight")],
        *[("smooth", name) for name in ("encoder.0.weight", "encoder.2.weight", "decoder.0.weight", "decoder.2.bias")],
    ],
)
def test_both_ends_have_the_gradient_of_finite_differences(
    case: str, parameter: str, likelihood: str, target: str
) -> None:
    vae, x, noise = audit_case(case, likelihood, batch=2)
    x = 0.3 + 0.4 * torch.rand_like(x)
    start = vae.get_parameter(parameter).detach().clone().requires_grad_()
    ends = Ends(vae, target)

    def bounds(value: Tensor) -> Tensor:
        return torch.func.functional_call(ends, {f"vae.{parameter}": value}, (x, noise))

    assert (elbo_bounds(vae, x, LinfBall(0.05), noise, target=target).lower < bounds(start)[:2]).any(), "all intervals"
    assert torch.autograd.gradcheck(bounds, (start,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@EACH_TARGET
@EACH_LIKELIHOOD
def test_gradients_are_finite_for_black_and_white_pixels(
    likelihood: str, target: str, eps: float, dtype: torch.dtype
) -> None:
    vae = mlp_vae((6,), (5, 5), 2, LIKELIHOODS[likelihood]()).to(dtype)
    x, noise = torch.tensor([[0, 1, 0, 1, 0.5, 0]], dtype=dtype), torch.ones(1, 2, dtype=dtype)
    for end in elbo_bounds(vae, x, LinfBall(eps), noise, "crown-ibp", target):
        for gradient in torch.autograd.grad(end.sum(), [*vae.parameters()], retain_graph=True):
            assert torch.isfinite(gradient).all()


@EACH_METHOD
@pytest.mark.parametrize("case", ["mlp", "conv", "smooth"])
def test_a_frozen_model_gives_bounds_without_a_graph_and_keeps_no_gradients(case: str, method: type[CrownIBP]) -> None:
    vae, x, noise = audit_case(case)
    methods = method(), method(alpha_steps=3)
    expected = [elbo_bounds(vae, x, LinfBall(0.1), noise, each) for each in methods]
    assert all(parameter.grad is None for parameter in vae.parameters()), "the optimisation of alpha is not training"
    vae.requires_grad_(False)
    for each, bounds in zip(methods, expected, strict=True):
        frozen = elbo_bounds(vae, x, LinfBall(0.1), noise, each)
        assert not frozen.lower.requires_grad and not frozen.upper.requires_grad
        with torch.no_grad():
            blind = elbo_bounds(vae, x, LinfBall(0.1), noise, each)
        for one, two, three in zip(bounds, frozen, blind, strict=True):
            assert torch.equal(one, two) and torch.equal(two, three)


@pytest.mark.parametrize("alpha_steps", [0, 3])
@EACH_METHOD
@pytest.mark.parametrize("value", [1e3, 1e160, 1e300])
@pytest.mark.parametrize("place", ["encoder.0.weight", "encoder.2.bias", "decoder.2.weight", "decoder.2.bias"])
def test_an_overflow_never_yields_a_finite_certificate_above_the_elbo(
    place: str, value: float, method: type[CrownIBP], alpha_steps: int
) -> None:
    vae, x, noise = audit_case("mlp")
    with torch.no_grad():
        vae.get_parameter(place).mul_(value)
    points = hard_points(vae, x, 0.1, noise, "perturbed")
    with torch.no_grad():
        values = elbo(vae, points.flatten(0, 1), noise.repeat(len(points), 1)).view(points.shape[:2])
        bounds = elbo_bounds(vae, x, LinfBall(0.1), noise, method(alpha_steps))
    broken = (bounds.lower > values + ROUNDING * (1 + values.abs())) | (
        (~torch.isfinite(values)).any(0) & torch.isfinite(bounds.lower)
    )
    assert not broken.any()


@torch.no_grad()
def test_boxes_over_which_a_layer_is_straight_are_not_refined_and_next_to_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    vae = conv_vae((1, 8, 8), (2, 3), 2).double()
    for layer in (vae.encoder[0], vae.encoder[2], vae.decoder[0], vae.decoder[3]):
        layer.weight *= 3.0
        layer.bias -= 0.2  # some units are off, as most are in robust networks
    x, noise, ball = torch.rand(2, 1, 8, 8).double(), torch.randn(2, 2).double(), LinfBall(0.1)
    units: list[int] = []
    real = unit_bounds._rows_of

    def counted(affine: tuple[RelaxedLayer, ...], numbers: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        units.append(numbers.shape[1])
        return real(affine, numbers, like)

    monkeypatch.setattr(unit_bounds, "_rows_of", counted)
    monkeypatch.setattr(refinement, "LOST", -1.0)
    some, few = elbo_bounds(vae, x, ball, noise, "crown"), sum(units)
    units.clear()
    monkeypatch.setattr(unit_bounds, "bends", lambda _, box: torch.ones_like(box.lower, dtype=torch.bool).flatten(1))
    monkeypatch.setattr(refinement, "_varies", lambda layer: torch.ones_like(layer.box.lower, dtype=torch.bool))
    every = elbo_bounds(vae, x, ball, noise, "crown")
    # behind the second convolution, mean and log-variance, the decoder's hidden layers, its output
    assert 4 + 64 < few < sum(units) == 12 + 4 + 12 + 32 + 64
    # not nothing: a tighter box of such a unit makes the interval image of the next layer a little tighter
    gained = every.lower - elbo_bounds(vae, x, ball, noise, "crown-ibp").lower
    assert (gained > 1e-3).all() and (every.lower - some.lower < 1e-3 * gained).all()
    monkeypatch.setattr(refinement, "LOST", 1.0)
    every = elbo_bounds(vae, x, ball, noise, "crown")
    monkeypatch.setattr(refinement, "_varies", lambda layer: torch.zeros_like(layer.box.lower, dtype=torch.bool))
    assert (elbo_bounds(vae, x, ball, noise, "crown").lower < every.lower).all()
