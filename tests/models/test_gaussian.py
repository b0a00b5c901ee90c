"""Reparametrisation and KL against torch.distributions, in float64."""

import torch
from oracles import ROUNDING
from torch.distributions import Normal, kl_divergence

from paperlib.models.gaussian import (
    kl,
    kl_between,
    kl_log_var_term,
    kl_mean_term,
    reparametrize,
    squared_mean_distance,
    squared_wasserstein,
    symmetric_kl,
)


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


def test_the_divergence_of_two_posteriors_is_the_one_of_torch_distributions_in_each_direction() -> None:
    p, q = ((mean * 3, log_var * 3) for mean, log_var in torch.randn(2, 2, 50, 3, dtype=torch.float64))
    first, second = (Normal(mean, log_var.exp().sqrt()) for mean, log_var in (p, q))
    there, back = kl_divergence(first, second).sum(1), kl_divergence(second, first).sum(1)
    assert not torch.allclose(there, back)
    torch.testing.assert_close(kl_between(p, q), there, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(kl_between(q, p), back, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(symmetric_kl(p, q), (there + back) / 2, rtol=ROUNDING, atol=ROUNDING)


def test_the_divergence_from_the_prior_is_the_one_between_a_posterior_and_the_prior() -> None:
    p = (torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64))
    zero = torch.zeros(50, 3, dtype=torch.float64)
    assert torch.equal(kl_between(p, (zero, zero)), kl(*p))


def test_the_wasserstein_distance_is_that_of_sorted_draws() -> None:
    # In one dimension the best transport pairs quantile with quantile.
    levels = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    p, q = ((torch.randn(4, 1).double(), torch.randn(4, 1).double()) for _ in range(2))
    first, second = (Normal(mean, (log_var / 2).exp()).icdf(levels) for mean, log_var in (p, q))
    torch.testing.assert_close(squared_wasserstein(p, q), (first - second).square().mean(1), rtol=1e-3, atol=0)
    assert torch.equal(squared_mean_distance(p, q), (p[0] - q[0]).square()[:, 0])


def test_posteriors_are_at_distance_zero_from_themselves_alone() -> None:
    p = (torch.randn(50, 3), torch.randn(50, 3))
    other = (p[0], p[1] + 1)
    for divergence in (kl_between, symmetric_kl, squared_wasserstein, squared_mean_distance):
        assert (divergence(p, p) == 0).all()
        assert (divergence(p, other) > 0).all() == (divergence is not squared_mean_distance)
