"""Reparametrisation and KL against torch.distributions, in float64."""

import torch
from oracles import ROUNDING
from torch.distributions import Normal, kl_divergence

from paperlib.models.gaussian import kl, kl_log_var_term, kl_mean_term, reparametrize


def test_the_divergence_is_the_one_of_torch_distributions() -> None:
    mean, log_var = torch.randn(2, 50, 3, dtype=torch.float64) * 3
    expected = kl_divergence(Normal(mean, log_var.exp().sqrt()), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(kl(mean, log_var), expected.sum(1), rtol=ROUNDING, atol=ROUNDING)


def test_the_terms_of_the_divergence_are_twice_what_mean_and_variance_add_to_it() -> None:
    mean, log_var = torch.randn(2, 50, 1, dtype=torch.float64) * 3
    zero = torch.zeros_like(mean)
    torch.testing.assert_close(kl_mean_term(mean)[:, 0], 2 * kl(mean, zero), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(kl_log_var_term(log_var)[:, 0], 2 * kl(zero, log_var), rtol=ROUNDING, atol=ROUNDING)


def test_the_divergence_of_the_prior_is_zero_and_of_a_near_prior_is_not_rounded_away() -> None:
    zero = torch.zeros(1, 1)
    assert kl(zero, zero).item() == 0
    # exp(h) - 1 - h = h^2 / 2 + O(h^3): half of it at h = 1e-3 is 2.5e-7, though exp(h) - 1 is 1e-3 in float32.
    torch.testing.assert_close(kl(zero, zero + 1e-3), torch.tensor([2.5e-7]), rtol=1e-3, atol=0)


def test_a_draw_has_the_posteriors_mean_and_spread() -> None:
    mean, log_var = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[2.0, -1.0]]).double()
    z = reparametrize(mean, log_var, torch.randn(100_000, 2, dtype=torch.float64))
    torch.testing.assert_close(z.mean(0), mean[0], rtol=0, atol=0.05)
    torch.testing.assert_close(z.var(0).log(), log_var[0], rtol=0, atol=0.05)
