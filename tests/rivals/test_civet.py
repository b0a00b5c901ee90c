"""CIVET: the coverage of its noise is joint, and its two bounds hold wherever the noise is inside."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import LIKELIHOODS, TARGETS, audit_case, reference_elbo
from scipy import stats
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, Gaussian, LinfBall, TrainConfig, TrainingStep, civet_error, train
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.models.elbo import elbo_terms
from paperlib.rivals.civet import Civet, noise_reach, reconstruction_error
from paperlib.threats.attacks import descend

BALL = LinfBall(0.1)


def inside(count: int, latent_dim: int, delta: float) -> Tensor:
    """Draws of noise in the box, the corners of the box among them."""
    c = noise_reach(delta, latent_dim)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, latent_dim, generator=generator, dtype=torch.float64).clamp(-c, c)
    return torch.cat([noise, c * torch.randn(count, latent_dim, generator=generator, dtype=torch.float64).sign()])


def hard_inputs(vae: VAE, x: Tensor, noise: Tensor, ball: LinfBall = BALL) -> list[Tensor]:
    """x, random points and corners, and where the reconstruction is worst as far as gradients tell."""
    generator = torch.Generator().manual_seed(4)
    corners = [ball.project(x + torch.randn(x.shape, generator=generator).sign(), x) for _ in range(4)]
    worst, _ = descend(lambda point: -reconstruction_error(vae, point, noise, x), x, ball, corners[0], 20)
    return [x, ball.sample(x, generator), *corners, worst.detach()]


# ---- the box of noise


@pytest.mark.parametrize("latent_dim", [1, 2, 20, 500])
@pytest.mark.parametrize("delta", [1e-12, 1e-3, 0.05, 0.5, 0.999])
def test_the_box_holds_the_noise_of_all_coordinates_at_once(delta: float, latent_dim: int) -> None:
    c = noise_reach(delta, latent_dim)
    outside = -math.expm1(latent_dim * math.log1p(-2 * stats.norm.sf(c)))
    assert outside == pytest.approx(delta, rel=1e-9)


def test_a_rarer_miss_or_another_coordinate_needs_a_larger_box() -> None:
    assert noise_reach(0.01, 5) > noise_reach(0.05, 5) > noise_reach(0.05, 4) > noise_reach(0.05, 1)
    assert noise_reach(0.05, 1) == pytest.approx(1.959963985, rel=1e-9)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_a_probability_that_is_none_is_refused(delta: float) -> None:
    vae, x, _ = audit_case("mlp")
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        Civet(delta)
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        civet_error(vae, x, BALL, delta)


# ---- the certified reconstruction error


def test_by_hand() -> None:
    """x in [0.2, 0.4], mean 2x, log-variance x - 1, decoder z: the data reach from the mean's box by c times the
    largest deviation.
    """
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[2.0], [1.0]]))
        encoder.bias.copy_(torch.tensor([0.0, -1.0]))
        decoder.weight.fill_(1.0)
        decoder.bias.zero_()
    vae = VAE(encoder, decoder, Gaussian(), 1).double()
    x = torch.tensor([[0.3]], dtype=torch.float64)
    reach = 1.959963984540054 * math.exp((0.4 - 1) / 2)
    assert civet_error(vae, x, BALL, 0.05).item() == pytest.approx((0.8 + reach - 0.3) ** 2, rel=1e-12)
    lowest = -((0.8 + reach - 0.2) ** 2) / 2 - math.log(2 * math.pi) / 2
    kl = (0.8**2 + math.exp(-0.8) + 0.8 - 1) / 2  # each of its two terms at its worst end
    step = TrainingStep(x, x, BALL, torch.zeros(1, 1).double(), 0.0)
    # the likelihood of x' itself, x' down to 0.2
    assert Civet().robust_term(vae, step).item() == pytest.approx(lowest - kl, rel=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_no_input_and_no_noise_inside_passes_the_error(name: str, likelihood: str) -> None:
    vae, x, _ = audit_case(name, likelihood)
    bound = civet_error(vae, x, BALL, 0.1)
    for noise in inside(20, vae.latent_dim, 0.1):
        draw = noise.expand(len(x), -1)
        for x_adv in hard_inputs(vae, x, draw):
            assert (reconstruction_error(vae, x_adv, draw, x) <= bound * (1 + 1e-12)).all()


OWN = TrainConfig(
    dataset="own",
    data_shape=(6,),
    hidden=(16,),
    latent_dim=8,
    likelihood="gaussian",
    scale=0.3,
    eps=0.02,
    steps=150,
    batch_size=64,
)


@pytest.fixture(scope="module")
def trained() -> tuple[VAE, Tensor]:
    """A model with tight bounds, so that the probability is nearly used up, and three of its inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 6, generator=generator)
    return train(replace(OWN, kappa=0.0, objective="civet"), data=x, device="cpu").vae.double(), x[:3].double()


DRAWS = 100_000


@pytest.mark.parametrize("delta", [0.05, 0.5])
def test_the_coverage_is_joint_in_a_simulation(trained: tuple[VAE, Tensor], delta: float) -> None:
    """10^5 draws at perturbed inputs: the error is within its bound at least as often as promised, and the latents are
    in their box exactly as often where the box has no slack but that of the noise.
    """
    vae, images = trained
    noise = torch.randn(DRAWS, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = 4 * math.sqrt(delta * (1 - delta) / DRAWS)
    for x in images:
        one = x[None]
        bound = civet_error(vae, one, LinfBall(0.02), delta)
        for x_adv in hard_inputs(vae, one, noise[:1], LinfBall(0.02)):
            with torch.no_grad():
                errors = reconstruction_error(vae, x_adv.expand(DRAWS, -1), noise, one)
            assert (errors <= bound).double().mean() >= 1 - delta - spread
    # a level of 1 - delta for each coordinate would hold in (1 - delta)^8 of the draws only
    covered = (noise.abs() <= noise_reach(delta, 8)).all(1).double().mean()
    assert abs(covered - (1 - delta)) <= spread


def test_the_probability_is_used_up_where_the_error_has_no_slack() -> None:
    """With one latent of deviation 1 that the decoder copies, at radius 0, the bound is the quantile itself."""
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0], [0.0]]))
        encoder.bias.zero_()
        decoder.weight.fill_(1.0)
        decoder.bias.zero_()
    vae, x = VAE(encoder, decoder, Gaussian(), 1).double(), torch.full((1, 1), 0.5, dtype=torch.float64)
    noise = torch.randn(DRAWS, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        errors = reconstruction_error(vae, x.expand(DRAWS, -1), noise, x)
        for delta in (0.01, 0.2):
            covered = (errors <= civet_error(vae, x, LinfBall(0.0), delta)).double().mean()
            assert abs(covered - (1 - delta)) <= 4 * math.sqrt(delta * (1 - delta) / DRAWS)


def test_the_error_grows_with_the_confidence_and_with_the_ball() -> None:
    vae, x, _ = audit_case("mlp")
    errors = [civet_error(vae, x, BALL, delta) for delta in (0.9, 0.1, 0.01)]
    assert (errors[0] < errors[1]).all() and (errors[1] < errors[2]).all()
    errors = [civet_error(vae, x, LinfBall(eps), 0.1) for eps in (0.0, 0.05, 0.1)]
    assert (errors[0] < errors[1]).all() and (errors[1] < errors[2]).all()


def test_without_radius_and_noise_it_is_the_error_at_the_mean() -> None:
    vae, x, _ = audit_case("mlp")
    nearly_certain_to_miss = 1 - 1e-12
    at_mean = reconstruction_error(vae, x, torch.zeros(len(x), vae.latent_dim).double(), x)
    bound = civet_error(vae, x, LinfBall(0.0), nearly_certain_to_miss)
    assert noise_reach(nearly_certain_to_miss, vae.latent_dim) < 1e-2
    assert (at_mean <= bound).all() and (bound <= at_mean * 1.05 + 0.05).all()


def test_what_cannot_be_bounded_is_refused() -> None:
    class Own(Bernoulli):
        def mean(self, output: Tensor) -> Tensor:
            return 1 - torch.sigmoid(output)

    vae, x, _ = audit_case("mlp")
    with pytest.raises(ValueError, match="x must be finite and in"):
        civet_error(vae, x + 2, BALL)
    with pytest.raises(ValueError, match=r"the model is torch\.float64"):
        civet_error(vae, x.float(), BALL)
    with pytest.raises(UnsupportedLayerError, match="no bounds for the likelihood Own"):
        civet_error(VAE(vae.encoder, vae.decoder, Own(), vae.latent_dim), x, BALL)


def test_an_error_that_overflows_bounds_nothing() -> None:
    vae, x, _ = audit_case("mlp")
    with torch.no_grad():
        vae.encoder[-1].bias[vae.latent_dim :] = 2000.0  # type: ignore[index, union-attr]
    gaussian = VAE(vae.encoder, vae.decoder, Gaussian().double(), vae.latent_dim)
    assert (civet_error(gaussian, x, BALL) == math.inf).all()


# ---- the bound that is trained on


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_no_input_and_no_noise_inside_is_below_the_bound(likelihood: str, target: Any, beta: float) -> None:
    vae, x, noise = audit_case("mlp", likelihood)
    step = TrainingStep(x, x, BALL, noise, 0.0, target=target, beta=beta)
    bound = Civet(0.1).robust_term(vae, step)
    for each in inside(20, vae.latent_dim, 0.1):
        draw = each.expand(len(x), -1)
        for x_adv in hard_inputs(vae, x, draw):
            log_likelihood, kl = elbo_terms(vae, x_adv, draw, step.target_of(x_adv))
            assert (log_likelihood - beta * kl >= bound - 1e-9).all()
            if beta == 1:
                assert (reference_elbo(vae, x_adv, draw, step.target_of(x_adv)) >= bound - 1e-9).all()


def test_the_bound_needs_no_noise_and_falls_with_the_confidence() -> None:
    vae, x, noise = audit_case("mlp")
    step = TrainingStep(x, x, BALL, noise, 0.0)
    bounds = [Civet(delta).robust_term(vae, step) for delta in (0.9, 0.1, 0.01)]
    assert (bounds[0] > bounds[1]).all() and (bounds[1] > bounds[2]).all()
    assert torch.equal(Civet(0.1).robust_term(vae, replace(step, noise=-noise)), bounds[1])


def test_training_on_the_bound_lowers_the_certified_error(trained: tuple[VAE, Tensor]) -> None:
    vae, x = trained
    data = torch.rand(400, 6, generator=torch.Generator().manual_seed(0))
    plain = train(replace(OWN, kappa=1.0), data=data, device="cpu").vae.double()
    assert (civet_error(vae, x, LinfBall(0.02)) < civet_error(plain, x, LinfBall(0.02))).all()
