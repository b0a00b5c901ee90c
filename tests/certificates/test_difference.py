"""Certified differences of two ELBOs: enclosure, a hand-worked number, and joint bounds beside separate ones."""

import copy
from collections.abc import Callable

import pytest
import torch
from oracles import MORE_LIKELIHOODS, ROUNDING
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, CrownIBP, Gaussian, L2Ball, Likelihood, LinfBall, elbo, elbo_bounds, mlp_vae
from paperlib.certificates.difference import elbo_difference
from paperlib.threats.attacks import descend
from paperlib.threats.perturbation import PerturbationSet

LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {"bernoulli": Bernoulli, "gaussian": lambda: Gaussian(0.5)}
OTHERS = LIKELIHOODS | MORE_LIKELIHOODS


def pair(likelihood: str, dtype: torch.dtype = torch.float64) -> tuple[VAE, VAE]:
    """Two models that know nothing of each other."""
    torch.manual_seed(0)
    a, b = (mlp_vae((6,), (8,), 2, OTHERS[likelihood]()).to(dtype).eval() for _ in range(2))
    return a, b


def shared_pair() -> tuple[VAE, VAE]:
    """Two models whose encoders begin with the same two layers."""
    torch.manual_seed(0)
    trunk = [nn.Linear(6, 16), nn.ReLU()]

    def member() -> VAE:
        decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))
        return VAE(nn.Sequential(*trunk, nn.Linear(16, 4)), decoder, Bernoulli(), 2)

    a, b = member(), member()
    for model in (a, b):
        model.double().eval()
    return a, b


def examples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, and noise for each model."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(7, 6, generator=generator, dtype=dtype)
    first, second = torch.randn(2, 7, 2, generator=generator, dtype=dtype)
    return x, first, second


def value(a: VAE, b: VAE, x: Tensor, noise_a: Tensor, noise_b: Tensor) -> Tensor:
    return elbo(a, x, noise_a) - elbo(b, x, noise_b)


def attacked(a: VAE, b: VAE, x: Tensor, ball: PerturbationSet, noise_a: Tensor, noise_b: Tensor) -> Tensor:
    """The least difference that random points and gradient descent meet, [batch]."""

    def objective(point: Tensor) -> Tensor:
        return value(a, b, point, noise_a, noise_b)

    generator = torch.Generator().manual_seed(2)
    points = [ball.sample(x, generator) for _ in range(8)]
    corners = [ball.project(x + (2 * point - 1).sign(), x) for point in points]
    with torch.no_grad():
        random = torch.stack([objective(point) for point in (x, *points, *corners)]).amin(0)
    return torch.minimum(random, descend(objective, x, ball, x, 5)[1])


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
@pytest.mark.parametrize("ball", [LinfBall(0.1), L2Ball(0.3), LinfBall(torch.tensor([0.2, 0, 0.1, 0.3, 0, 0.1]))])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_no_point_is_below_and_separate_bounds_are_not_above(
    likelihood: str, ball: PerturbationSet, method: str, sound: bool
) -> None:
    a, b = pair(likelihood)
    x, *noise = examples()
    bound = elbo_difference(a, b, x, ball, *noise, method=method, sound=sound)
    assert (bound <= attacked(a, b, x, ball, *noise) + ROUNDING).all()
    first, second = (
        elbo_bounds(vae, x, ball, draw, method, sound=sound) for vae, draw in zip((a, b), noise, strict=True)
    )
    assert (bound >= first.lower - second.upper).all()


@pytest.mark.parametrize("likelihood", MORE_LIKELIHOODS)
def test_other_families_have_joint_bounds_too(likelihood: str) -> None:
    a, b = pair(likelihood)
    (x, *noise), ball = examples(), LinfBall(0.1)
    bound = elbo_difference(a, b, x, ball, *noise)
    assert (bound <= attacked(a, b, x, ball, *noise) + ROUNDING).all()
    first, second = (elbo_bounds(*one, "crown-ibp") for one in ((a, x, ball, noise[0]), (b, x, ball, noise[1])))
    assert (bound >= first.lower - second.upper).all() and (bound > first.lower - second.upper + 0.01).any()


@pytest.mark.parametrize(
    ("one", "other"),
    [("bernoulli", "continuous-bernoulli"), ("poisson", "gaussian"), ("bernoulli", "discretized-logistic")],
)
def test_models_of_two_likelihoods_are_compared_by_bounds_that_hold(one: str, other: str) -> None:
    (x, *noise), ball = examples(), LinfBall(0.1)
    for kinds in ((one, other), (other, one)):
        a, b = pair(kinds[0])[0], pair(kinds[1])[1]
        bound = elbo_difference(a, b, x, ball, *noise)
        assert (bound <= attacked(a, b, x, ball, *noise) + ROUNDING).all(), kinds


@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
def test_common_first_layers_are_relaxed_once_for_both(method: str) -> None:
    a, b = shared_pair()
    x, *noise = examples()
    ball = LinfBall(0.1)
    joint = elbo_difference(a, b, x, ball, *noise, method=method)
    assert (joint <= attacked(a, b, x, ball, *noise) + ROUNDING).all()
    apart = elbo_difference(a, copy.deepcopy(b), x, ball, *noise, method=method)
    assert (joint >= apart - ROUNDING).all() and (joint > apart + 1e-3).any()


def test_a_model_against_itself_loses_less_than_separate_bounds() -> None:
    a, _ = pair("bernoulli")
    x, noise, _ = examples()
    bounds = elbo_bounds(a, x, LinfBall(0.1), noise, "crown-ibp")
    width = bounds.upper - bounds.lower
    assert (elbo_difference(a, a, x, LinfBall(0.1), noise, noise) > -0.8 * width).all()


def test_the_hand_worked_example() -> None:
    # Decoders of constant logits l_a = 2 and l_b = -1, and a posterior that is the prior: KL is 0. Then
    # ELBO_a - ELBO_b = x' (2 + 1) - softplus(2) + softplus(-1), least at the lower end of x'.
    def constant(logit: float) -> VAE:
        encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
        for layer in (encoder, decoder):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(decoder.bias, logit)
        return VAE(encoder, decoder, Bernoulli(), 1).double().eval()

    x = torch.tensor([[0.5]], dtype=torch.float64)
    noise = torch.zeros(1, 1, dtype=torch.float64)
    bound = elbo_difference(constant(2.0), constant(-1.0), x, LinfBall(0.2), noise, noise)
    softplus = torch.nn.functional.softplus(torch.tensor([2.0, -1.0], dtype=torch.float64))
    assert bound.item() == pytest.approx(0.3 * 3 - (softplus[0] - softplus[1]).item(), abs=1e-10)
    # the other way round it is least at the upper end
    swapped = elbo_difference(constant(-1.0), constant(2.0), x, LinfBall(0.2), noise, noise)
    assert swapped.item() == pytest.approx(-0.7 * 3 + (softplus[0] - softplus[1]).item(), abs=1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_at_radius_0_it_is_the_difference_itself(likelihood: str) -> None:
    a, b = pair(likelihood)
    x, *noise = examples()
    bound = elbo_difference(a, b, x, LinfBall(0.0), *noise)
    torch.testing.assert_close(bound, value(a, b, x, *noise), rtol=0, atol=1e-9)


def test_sound_bounds_hold_for_what_float32_returns() -> None:
    a, b = pair("bernoulli", torch.float32)
    x, *noise = examples(torch.float32)
    for eps in (0.0, 0.05):
        ball = LinfBall(eps)
        bound = elbo_difference(a, b, x, ball, *noise, sound=True)
        worst = ball.project(x - 1, x), ball.project(x + 1, x), x
        for point in worst:
            with torch.no_grad():
                first, second = elbo(a, point, noise[0]), elbo(b, point, noise[1])
            assert (bound <= first.double() - second.double()).all()


def test_both_models_get_a_gradient() -> None:
    a, b = pair("bernoulli")
    x, *noise = examples()
    elbo_difference(a, b, x, LinfBall(0.1), *noise).sum().backward()
    for vae in (a, b):
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in vae.decoder.parameters())


@pytest.mark.parametrize(("method", "message"), [("ibp", "no linear bounds"), (CrownIBP(alpha_steps=2), "alpha_steps")])
def test_methods_that_cannot_say_so(method: str | CrownIBP, message: str) -> None:
    a, b = pair("bernoulli")
    x, *noise = examples()
    with pytest.raises(ValueError, match=message):
        elbo_difference(a, b, x, LinfBall(0.1), *noise, method=method)
