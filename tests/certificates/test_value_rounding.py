"""Rounding of the steps around the layers, in every order of summation: reparametrisation, KL and likelihoods."""

import pytest
import torch
from oracles import assert_nearly_attained, orders, point_box, stagnating
from torch import nn
from torch.nn import functional as F

from paperlib import Bernoulli, ContinuousBernoulli, DiscretizedLogistic, Gaussian, Poisson
from paperlib.bounds.rounding import gamma
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.posterior_bounds import kl_rounding, reparametrize_rounding
from paperlib.models.gaussian import kl, kl_log_var_term, kl_mean_term, reparametrize
from paperlib.models.likelihood import normal_log_density

UNIT = 2.0**-24


def test_a_stagnating_sum_nearly_attains_the_rounding_of_divergence_and_likelihood() -> None:
    terms = stagnating()
    mean, log_var = terms.sqrt(), torch.zeros(1, 400)
    bound = kl_rounding(point_box(mean), point_box(log_var)).bound(torch.float32)
    truth = kl(mean.double(), log_var.double())
    assert_nearly_attained(kl_mean_term(mean).T / 2, truth, bound)

    # large, so that the roundings of 1 within each softplus count for little
    sizes = 256 * terms.double()
    logit, black = (sizes + torch.log(-torch.expm1(-sizes))).float(), torch.zeros(1, 400)
    bound = bounds_of(Bernoulli()).rounding(point_box(logit), point_box(black)).bound(torch.float32)
    truth = Bernoulli().log_prob(logit.double(), black.double())
    assert_nearly_attained(-F.softplus(logit).T, truth, bound)


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_reparametrisation_and_divergence_hold_in_every_order(spread: float) -> None:
    mean, log_var, noise = torch.randn(50, 20) * spread, torch.randn(50, 20) * spread, torch.randn(50, 20)
    exact = reparametrize(mean.double(), log_var.double(), noise.double())
    error = (reparametrize(mean, log_var, noise).double() - exact).abs()
    bound = reparametrize_rounding(point_box(mean), point_box(log_var), noise.double()).bound(torch.float32)
    assert (error <= bound).all() and (error > bound / 50).any()

    truth = kl(mean.double(), log_var.double())
    bound = kl_rounding(point_box(mean), point_box(log_var)).bound(torch.float32)
    terms = kl_mean_term(mean) + kl_log_var_term(log_var)
    for name, total in {"torch": kl(mean, log_var) * 2, **orders(terms.T)}.items():
        assert ((total.double() / 2 - truth).abs() <= bound).all(), name
    assert (bound < 1e-4 * (1 + truth)).all()


@pytest.mark.parametrize("range_", [(0.0, 1.0), (-1.5, 2.5)])
@pytest.mark.parametrize("logits", [0.1, 4.0, 60.0])
@pytest.mark.parametrize(
    "likelihood",
    [
        *(Bernoulli(), Gaussian(0.1), Gaussian(30.0), ContinuousBernoulli(), Poisson()),
        *(DiscretizedLogistic(0.05), DiscretizedLogistic(30.0)),
    ],
)
def test_likelihoods_hold_in_every_order(likelihood: nn.Module, logits: float, range_: tuple[float, float]) -> None:
    output, target = torch.randn(8, 300) * logits, torch.empty(8, 300).uniform_(*range_)
    if isinstance(likelihood, Bernoulli):
        target[:, ::2] = (output[:, ::2] > 0).float()  # a good fit: summands far smaller than their parts
        terms = target * output - F.softplus(output, threshold=50)
    elif isinstance(likelihood, Gaussian):
        terms = normal_log_density((target - output).abs(), likelihood.log_scale)
    else:
        target = target.clamp(*likelihood.support) * (50 if isinstance(likelihood, Poisson) else 1)
        output = output.clamp(max=20) if isinstance(likelihood, Poisson) else output
        terms = likelihood.terms(output, target)
    bound = bounds_of(likelihood).rounding(point_box(output), point_box(target)).bound(torch.float32)
    computed = {"torch": likelihood.log_prob(output, target), **orders(terms.T)}
    truth = likelihood.double().log_prob(output.double(), target.double())
    likelihood.float()
    worst = max(((total.double() - truth).abs() / bound).max().item() for total in computed.values())
    assert 1e-4 < worst <= 1


def test_a_good_fit_rounds_like_the_large_parts_that_cancel_in_it() -> None:
    logit, white = torch.linspace(10, 25, 50)[:, None], torch.ones(50, 1)
    bound = bounds_of(Bernoulli()).rounding(point_box(logit), point_box(white)).bound(torch.float32)
    truth = Bernoulli().log_prob(logit.double(), white.double())
    error = (Bernoulli().log_prob(logit, white).double() - truth).abs()
    assert (error <= bound).all()
    assert (error > gamma(100, UNIT) * truth.abs()).any(), "nothing cancels"


def test_a_possible_overflow_between_the_layers_is_never_bounded() -> None:
    high, zero = point_box(torch.full((1, 2), 200.0)), point_box(torch.zeros(1, 2))
    assert reparametrize_rounding(zero, high, zero.lower).bound(torch.float32).isinf().all()
    assert kl_rounding(zero, high).bound(torch.float32).isinf().all()
    assert kl_rounding(zero, high).bound(torch.float64).isfinite().all()
    assert bounds_of(Gaussian(1e-38).double()).rounding(zero, zero).bound(torch.float32).isinf().all()
