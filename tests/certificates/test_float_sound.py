"""Sound bounds of the whole ELBO: the network as it is evaluated never leaves them, at any corner, in any order."""

import copy
from collections.abc import Iterator

import pytest
import torch
from oracles import CASES, LIKELIHOODS, TARGETS, audit_case, points_of
from torch import Tensor, nn

from paperlib import (
    VAE,
    Gaussian,
    Interval,
    LinfBall,
    conv_vae,
    elbo,
    elbo_bounds,
    interval_rule,
    mlp_vae,
    pgd,
)
from paperlib.bounds import rounding
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.certificates.float_sound import SoundBounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.posterior_bounds import kl_bounds, kl_rounding, reparametrize_bounds
from paperlib.models.elbo import elbo_terms
from paperlib.models.gaussian import reparametrize
from paperlib.threats import balls

DTYPES = [torch.float32, torch.float64]
ELEMENTWISE = nn.ReLU | nn.ELU | nn.Softplus | nn.Sigmoid | nn.Tanh
EACH_TARGET = pytest.mark.parametrize("target", TARGETS)
EACH_LIKELIHOOD = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@torch.no_grad()
def ends(vae: VAE, sound: SoundBounds) -> Interval:
    """The interval bounds of the ELBO over sound boxes."""
    bounds = sound.bounds
    fit = bounds_of(vae.in_float64().likelihood).bounds(bounds.output, bounds.target)
    kl = kl_bounds(bounds.mean, bounds.log_var)
    return Interval(fit.lower - kl.upper - sound.value_rounding, fit.upper - kl.lower + sound.value_rounding)


@torch.no_grad()
def evaluated(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
    """The deployed ELBO in several orders of summation, [ways, batch], in float64."""
    ways = [
        elbo(vae, x, noise, target),
        torch.cat([elbo(vae, *(t[i : i + 1] for t in (x, noise, target))) for i in range(len(x))]),
    ]
    if all(
        isinstance(layer, nn.Linear | ELEMENTWISE)
        for _, layer in (*named_layers(vae.encoder), *named_layers(vae.decoder))
    ):
        for _ in range(2):
            network, order = shuffled(vae)
            ways.append(torch.sub(*elbo_terms(network, x[:, order], noise, target[:, order])))
    return torch.stack(ways).double()


def shuffled(vae: VAE) -> tuple[VAE, Tensor]:
    """The same network with its pixels and its hidden units in another order: real arithmetic sees no difference."""
    vae = copy.deepcopy(vae)
    pixels = None
    for half in (vae.encoder, vae.decoder):
        linear = [layer for _, layer in named_layers(half) if isinstance(layer, nn.Linear)]
        inner = [torch.randperm(layer.out_features) for layer in linear[:-1]]
        if half is vae.encoder:
            pixels = torch.randperm(linear[0].in_features)
            orders = [pixels, *inner, torch.arange(linear[-1].out_features)]
        else:
            orders = [torch.arange(linear[0].in_features), *inner, pixels]
        for layer, columns, rows in zip(linear, orders[:-1], orders[1:], strict=True):
            layer.weight.data, layer.bias.data = layer.weight.data[rows][:, columns], layer.bias.data[rows]
    return vae, pixels


def deployed_points(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: str) -> Iterator[Tensor]:
    """Points of the ball in x's precision: both ends, corners, random ones, and where attacks in it end."""
    yield from points_of(*ball.box(x), count=4).to(x.dtype)
    yield pgd(vae, x, ball, noise, steps=5, target=target)


def assert_sound(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: str) -> Interval:
    bounds = ends(vae, SoundBounds.of(vae, x, ball, noise, target))
    assert bounds.lower.isfinite().all() and bounds.upper.isfinite().all()
    for point in deployed_points(vae, x, ball, noise, target):
        values = evaluated(vae, point, noise, point if target == "perturbed" else x)
        assert bounds.contains(values).all(), "the network as it is evaluated leaves its sound bounds"
    return bounds


def inputs(vae: VAE, *shape: int, dtype: torch.dtype, batch: int = 3) -> tuple[VAE, Tensor, Tensor]:
    x = torch.rand(batch, *shape).round(decimals=1).to(dtype)
    return vae.to(dtype), x, torch.randn(batch, vae.latent_dim).to(dtype)


@pytest.mark.parametrize("eps", [0.0, 0.1])
@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_mlp_stays_within_its_bounds(dtype: torch.dtype, likelihood: str, target: str, eps: float) -> None:
    # At eps 0 rounding alone is left, and nothing hides in the slack of intervals.
    vae, x, noise = inputs(mlp_vae((100,), (64, 32), 10, LIKELIHOODS[likelihood]()), 100, dtype=dtype)
    assert_sound(vae, x, LinfBall(eps), noise, target)


@pytest.mark.parametrize("eps", [0.0, 0.1])
@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_convolutional_network_stays_within_its_bounds(
    dtype: torch.dtype, likelihood: str, target: str, eps: float
) -> None:
    vae, x, noise = inputs(conv_vae((1, 8, 8), (4, 8), 5, LIKELIHOODS[likelihood]()), 1, 8, 8, dtype=dtype)
    assert_sound(vae, x, LinfBall(eps), noise, target)


@EACH_TARGET
@EACH_LIKELIHOOD
@pytest.mark.parametrize("case", CASES)
def test_networks_that_attain_their_bounds_stay_within_the_sound_ones(case: str, likelihood: str, target: str) -> None:
    vae, x, noise = audit_case(case, likelihood)
    assert_sound(vae.float(), x.float(), LinfBall(0.1), noise.float(), target)


@torch.no_grad()
def hunt(likelihood: str) -> tuple[int, int]:
    """How many evaluations at corners leave the plain bounds, and how many the sound ones, of 200 * 2 * 4.

    Each latent is one pixel and each output one latent, all outputs are above their target and all means above 0: a
    brighter pixel fits worse and has a larger KL. So the two ends of the ball attain both ends of the certificate.
    """
    size = 16
    encoder, decoder = nn.Linear(size, 2 * size), nn.Linear(size, size)
    for layer, weight, bias in ((encoder, 1.1, 0.3), (decoder, 1.3, 3.0)):
        layer.weight.zero_()
        layer.weight[:size].fill_diagonal_(weight)
        layer.bias.fill_(bias)
    vae, x, noise = (
        VAE(encoder, decoder, LIKELIHOODS[likelihood](), size),
        torch.rand(200, size) / 2,
        torch.rand(200, size),
    )
    ball = LinfBall(0.1)
    plain = elbo_bounds(vae.in_float64(), x.double(), ball, noise.double(), target="clean")
    sound = ends(vae, SoundBounds.of(vae, x, ball, noise, "clean"))
    values = [evaluated(vae, end, noise, x) for end in ball.box(x)]
    left = [sum(int((~bounds.contains(value)).sum()) for value in values) for bounds in (plain, sound)]
    return left[0], left[1]


@EACH_LIKELIHOOD
def test_hunted_corners_leave_the_plain_bounds_and_never_the_sound_ones(likelihood: str) -> None:
    plain, sound = hunt(likelihood)
    assert plain > 300
    assert sound == 0


@pytest.mark.parametrize("factor", [0.0, 0.02])
def test_with_a_gamma_too_small_the_hunt_succeeds(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    true = rounding.gamma
    for module in (rounding, balls):
        monkeypatch.setattr(module, "gamma", lambda count, unit: factor * true(count, unit))
    assert hunt("bernoulli")[1] > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layer_of_every_kind_stays_within_its_box_and_its_rounding(dtype: torch.dtype) -> None:
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(),
        nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ELU(), nn.Dropout(), nn.Linear(8, 4)), nn.Tanh(),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(2, 8), nn.Softplus(), nn.Unflatten(1, (2, 2, 2)), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Sigmoid(), nn.Identity(),
    )  # fmt: skip
    vae, x, noise = inputs(VAE(encoder, decoder, Gaussian(0.5), 2), 1, 4, 4, dtype=dtype)
    vae.encoder(torch.randn(32, 1, 4, 4).to(dtype))  # sets the running statistics
    ball = LinfBall(0.02)
    with pytest.raises(ValueError, match=r"BatchNorm2d at 'encoder.1': .*\.eval\(\)"):
        SoundBounds.of(vae, x, ball, noise, "clean")
    vae.eval()
    for target in TARGETS:
        assert_sound(vae, x, ball, noise, target)
    sound = SoundBounds.of(vae, x, ball, noise, "perturbed")
    bounds = sound.bounds
    assert bounds.target is bounds.input
    for point in deployed_points(vae, x, ball, noise, "perturbed"):
        posterior = audited_output(vae.encoder, point, bounds.encoder, sound.encoder_rounding)
        mean, log_var = posterior.chunk(2, 1)
        latent = reparametrize(mean, log_var, noise)
        exact = reparametrize(mean.double(), log_var.double(), noise.double())
        assert ((latent.double() - exact).abs() <= sound.latent_rounding).all()
        widened = reparametrize_bounds(bounds.mean, bounds.log_var, noise.double()).widen(sound.latent_rounding)
        assert bounds.latent.contains(torch.stack([*widened])).all()
        assert bounds.latent.contains(latent.double()).all()
        audited_output(vae.decoder, latent, bounds.decoder, sound.decoder_rounding)


@torch.no_grad()
def audited_output(half: nn.Module, value: Tensor, boxes: list[Interval], roundings: list[Tensor]) -> Tensor:
    """The half's output at `value`. Fails unless each layer's value is in its box and close to the exact layer's."""
    for (place, layer), box, after, error in zip(named_layers(half), boxes[:-1], boxes[1:], roundings, strict=True):
        assert box.contains(value.double()).all(), place
        double = copy.deepcopy(layer).double()
        widened = apply_rule(interval_rule, place, double, box).widen(error)
        assert after.contains(torch.stack([*widened])).all(), place
        exact = double(value.double())
        value = layer(value.clone())
        assert ((value.double() - exact).abs() <= error).all(), place
        assert after.contains(value.double()).all(), place
    return value


@EACH_LIKELIHOOD
@torch.no_grad()
def test_the_rounding_of_the_value_is_that_of_both_parts_and_their_difference(likelihood: str) -> None:
    vae, x, noise = inputs(mlp_vae((6,), (5,), 2, LIKELIHOODS[likelihood]()), 6, dtype=torch.float32)
    sound = SoundBounds.of(vae, x, LinfBall(0.0), noise, "clean")
    bounds, double = sound.bounds, vae.in_float64()
    fit = bounds_of(double.likelihood).rounding(bounds.output, bounds.target).bound(torch.float32)
    kl = kl_rounding(bounds.mean, bounds.log_var).bound(torch.float32)
    sizes = sum(part.abs() for part in elbo_terms(double, x.double(), noise.double(), x.double()))
    assert (sound.value_rounding > fit + kl + 2.0**-24 * (1 - 1e-3) * sizes).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@EACH_TARGET
def test_sound_bounds_cost_little(likelihood: str, target: str) -> None:
    vae, x, noise = inputs(mlp_vae(likelihood=LIKELIHOODS[likelihood]()), 784, dtype=torch.float32)
    ball = LinfBall(0.1)
    with torch.no_grad():
        plain = elbo_bounds(vae.in_float64(), x.double(), ball, noise.double(), target=target)
    sound = ends(vae, SoundBounds.of(vae, x, ball, noise, target))
    assert (sound.lower < plain.lower).all() and (plain.upper < sound.upper).all()
    assert (plain.lower - sound.lower < 0.01 * plain.lower.abs()).all()


# The input


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.1, 1.1), (0.1, 0.7)])
@pytest.mark.parametrize("eps", [0.0, 0.1, 1 / 3, 1e-8])
def test_the_input_box_holds_what_the_ball_returns_in_its_precision(
    eps: float, low: float, high: float, dtype: torch.dtype
) -> None:
    ball = LinfBall(eps, low, high)
    x = torch.empty(1000, 1, dtype=dtype).uniform_(low, high).clamp(low, high)
    x[0], x[1] = low, high
    box = ball.sound_region(x).box
    for point in (
        *ball.box(x),
        ball.project(x + 1, x),
        ball.project(x - 1, x),
        ball.sample(x),
        torch.where(x - eps > low, x - eps, x),
    ):
        assert box.contains(point.double()).all()
    double = x.double()
    assert (box.lower <= (double - eps).clamp(min=low)).all() and (box.upper >= (double + eps).clamp(max=high)).all()
    assert (box.radius <= eps + 1e-6).all()
    if (low, high) == (0.0, 1.0):
        assert (box.lower >= 0).all() and (box.upper <= 1).all()


# Never a finite lie, and refusals


@pytest.mark.parametrize("where", ["encoder.0", "encoder.2", "decoder.0", "decoder.2"])
@pytest.mark.parametrize("value", [1e38, 3e38, float("inf"), float("nan")])
def test_what_may_overflow_has_no_finite_bound(where: str, value: float) -> None:
    vae, x, noise = inputs(mlp_vae((3,), (5,), 2), 3, dtype=torch.float32)
    vae.get_submodule(where).weight.data.fill_(value)
    bounds = ends(vae, SoundBounds.of(vae, x, LinfBall(0.1), noise, "perturbed"))
    assert not bounds.lower.isfinite().any() and not bounds.upper.isfinite().any()


def test_an_overflow_behind_a_bounded_activation_has_no_finite_bound() -> None:
    encoder = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 4))
    encoder[0].weight.data.fill_(3e38)  # sigmoid(inf - inf) is not a number, though sigmoid is in [0, 1]
    vae, x, noise = inputs(VAE(encoder, nn.Linear(2, 3), Gaussian(), 2), 3, dtype=torch.float32)
    bounds = ends(vae, SoundBounds.of(vae, x, LinfBall(0.1), noise, "clean"))
    assert not bounds.lower.isfinite().any() and not bounds.upper.isfinite().any()


def test_one_example_that_overflows_leaves_the_others() -> None:
    vae, x, noise = inputs(mlp_vae((3,), (5,), 2), 3, dtype=torch.float32)
    noise[1] = 3e38
    bounds = ends(vae, SoundBounds.of(vae, x, LinfBall(0.1), noise, "clean"))
    assert bounds.lower.isfinite().tolist() == [True, False, True]


def test_inputs_that_do_not_fit_are_refused() -> None:
    vae, x, noise = inputs(mlp_vae((3,), (5,), 2), 3, dtype=torch.float32)
    ball = LinfBall(0.1)
    with pytest.raises(ValueError, match="one precision throughout"):
        SoundBounds.of(vae, x.double(), ball, noise, "clean")
    with pytest.raises(ValueError, match=r"noise is \[3, 1\]"):
        SoundBounds.of(vae, x, ball, noise[:, :1], "clean")
    with pytest.raises(ValueError, match=r"finite and in \[0\.0, 1\.0\]"):
        SoundBounds.of(vae, x + 1, ball, noise, "clean")


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_a_radius_below_the_smallest_normal_number_is_not_lost(method: str, dtype: torch.dtype) -> None:
    # rounded to the deployed precision it may be larger than it is, and the weights make that visible
    smallest, large = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, torch.finfo(dtype).max / 16
    encoder = nn.Linear(1, 2)
    encoder.weight.data, encoder.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    decoder = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    vae = VAE(encoder, decoder, Gaussian(1e-3), 1).to(dtype).eval()
    for layer, gain in zip(decoder, (large, 2.0**100 if dtype == torch.float64 else 2.0**20), strict=True):
        layer.weight.data.fill_(gain)
    ball, x, noise = (
        LinfBall(smallest if dtype == torch.float64 else 0.7 * smallest),
        torch.zeros(1, 1, dtype=dtype),
        torch.zeros(1, 1, dtype=dtype),
    )
    bounds = elbo_bounds(vae, x, ball, noise, method, "clean", sound=True)
    points = torch.stack([*ball.box(x)])
    for point in points:
        assert bounds.contains(elbo(vae, point, noise, x).double()).all()
    assert points.abs().max() >= smallest, "the deployed radius is lost"
