"""The importance-weighted bound against torch.distributions, and against a model whose likelihood has a closed form."""

import pytest
import torch
from linear_gaussian import exact_log_likelihood, linear_gaussian
from oracles import LIKELIHOODS, ROUNDING, audit_case
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliDensity
from torch.distributions import Normal

from paperlib import VAE, Gaussian, elbo, iwae, log_weights
from paperlib.models.iwae import log_mean_exp


def reference_log_weights(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
    raw = vae.encoder(x)
    posterior = Normal(raw[:, : vae.latent_dim], raw[:, vae.latent_dim :].exp().sqrt())
    weights = []
    for draw in noise:
        z = posterior.mean + posterior.stddev * draw
        output = vae.decoder(z)
        if isinstance(vae.likelihood, Gaussian):
            pixels = Normal(output, vae.likelihood.log_scale.exp())
        else:
            pixels = BernoulliDensity(logits=output, validate_args=False)  # grey values are outside its support
        prior = Normal(torch.zeros_like(z), torch.ones_like(z))
        ratio = prior.log_prob(z) - posterior.log_prob(z)
        weights.append(pixels.log_prob(target).flatten(1).sum(1) + ratio.sum(1))
    return torch.stack(weights)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("case", ["mlp", "conv", "spread"])
@torch.no_grad()
def test_the_weights_are_those_of_torch_distributions(case: str, likelihood: str) -> None:
    vae, x, _ = audit_case(case, likelihood)
    noise, target = torch.randn(5, len(x), vae.latent_dim).double(), torch.rand_like(x)
    wanted = reference_log_weights(vae, x, noise, target)
    torch.testing.assert_close(log_weights(vae, x, noise, target), wanted, rtol=ROUNDING, atol=1e-11)
    bound = iwae(vae, x, noise, target)
    largest = wanted.amax(0)
    torch.testing.assert_close(bound, (wanted - largest).exp().mean(0).log() + largest, rtol=ROUNDING, atol=1e-11)
    assert (bound >= wanted.mean(0)).all(), "log-mean-exp is at least the mean"


@torch.no_grad()
def test_one_draw_is_its_weight_and_in_expectation_the_elbo() -> None:
    vae, x, _ = audit_case("mlp")
    noise = torch.randn(3000, len(x), vae.latent_dim).double()
    weights = log_weights(vae, x, noise)
    assert torch.equal(iwae(vae, x, noise[:1]), weights[0])
    elbos = torch.stack([elbo(vae, x, draw) for draw in noise[:500]])
    spread = (weights.std(0).square() / len(weights) + elbos.std(0).square() / len(elbos)).sqrt()
    assert ((weights.mean(0) - elbos.mean(0)).abs() < 4 * spread + 1e-12).all()


@torch.no_grad()
def test_the_bound_rises_with_the_draws_to_the_exact_likelihood() -> None:
    vae, x = linear_gaussian()
    exact = exact_log_likelihood(vae, x)
    log_w = log_weights(vae, x, torch.randn(32 * 500, len(x), vae.latent_dim).double())
    one, some, many = (log_mean_exp(log_w.view(draws, -1, len(x))).mean(0) for draws in (1, 4, 32))
    assert (one < some - 0.05).all() and (some < many - 0.005).all() and (many < exact).all()
    assert ((exact - log_mean_exp(log_w)).abs() < 0.05).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 2), r"noise must be \[K, batch, latent_dim\]"), ((0, 3, 2), "K >= 1"), ((4, 3, 5), "noise must be")],
)
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...], message: str) -> None:
    vae, x, _ = audit_case("mlp")
    with pytest.raises(ValueError, match=message):
        iwae(vae, x, torch.zeros(shape).double())


def test_noise_that_is_not_finite_is_refused() -> None:
    vae, x, _ = audit_case("mlp")
    noise = torch.zeros(2, 3, 2).double()
    noise[1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"noise is not finite at index \[1, 0, 1\]"):
        iwae(vae, x, noise)


def test_targets_that_the_likelihood_does_not_explain_are_refused() -> None:
    vae, x, _ = audit_case("mlp")
    with pytest.raises(ValueError, match=r"explains targets in \[0, 1\]"):
        log_weights(vae, x, torch.zeros(1, 3, 2).double(), x + 1)
