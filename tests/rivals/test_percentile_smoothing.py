"""Percentile smoothing: ranks by exact binomials, coverage where quantiles are given, attacks within the radius."""

import math
from itertools import pairwise
from statistics import NormalDist

import pandas as pd
import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, mlp_vae
from paperlib.models.elbo import unchecked_elbo
from paperlib.models.likelihood import Likelihood
from paperlib.rivals.percentile_smoothing import lower_rank, percentile_smoothing

PHI = NormalDist()


class Linear(Likelihood):
    """A score that is linear in the input."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return target @ self.weight

    def mean(self, output: Tensor) -> Tensor:
        return output


def linear_vae(weight: Tensor) -> VAE:
    """Its ELBO is weight . x: the posterior is the prior whatever x is."""
    encoder, decoder = nn.Linear(len(weight), 2), nn.Linear(1, len(weight))
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    return VAE(encoder, decoder, Linear(weight), latent_dim=1).to(weight.dtype)


WEIGHT = torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64)  # of norm 13
X = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
WIDE = {"low": -1e3, "high": 1e3}  # a range that no draw leaves


def smooth_linear(count: int = 1, **options: float | torch.Generator) -> pd.DataFrame:
    settings = {"sigma": 0.5, "eps": 0.2, "samples": 200, "confidence": 0.9} | WIDE | options
    return percentile_smoothing(linear_vae(WEIGHT), X.expand(count, -1), **settings)


def linear_quantile(probability: float, sigma: float = 0.5) -> float:
    """Of the smoothed linear score at X."""
    return (X[0] @ WEIGHT).item() + sigma * 13 * PHI.inv_cdf(probability)


def test_ranks_by_hand() -> None:
    # Binomial(10, 1/2) is at most 0, 1, 2, 3 with 1, 11, 56, 176 of 1024 chances, so that the k-th smallest of ten
    # draws is above the median with as many chances for k = 1, 2, 3, 4.
    for risk, rank in {0.0005: 0, 1.01 / 1024: 1, 0.0107: 1, 0.0108: 2, 0.05: 2, 0.0547: 3, 0.171: 3, 0.172: 4}.items():
        assert lower_rank(10, 0.5, 0.5, risk) == rank
    # all ten are above the quantile of 0.2 with 0.8^10 = 0.107
    assert lower_rank(10, 0.2, 0.8, 0.1) == 0 and lower_rank(10, 0.2, 0.8, 0.11) == 1
    # the largest of ten is below that of 0.8 with 0.107, too, and the ninth with 0.376
    assert lower_rank(10, 0.8, 0.2, 1 - 0.8**10 - 1e-6) == 9 and lower_rank(10, 0.8, 0.2, 1 - 0.8**10 + 1e-6) == 10


@pytest.mark.parametrize("samples", [1, 2, 37, 1000, 20_000])
@pytest.mark.parametrize("probability", [1e-12, 0.01, 0.3, 0.5, 0.977, 1 - 1e-9])
def test_ranks_are_those_of_scipys_binomial(samples: int, probability: float) -> None:
    tails = binom.cdf(range(-1, samples), samples, probability)  # for k = 0 ... samples: P(at most k - 1)
    for risk in (1e-9, 0.001, 0.0503, 0.31):
        rank = lower_rank(samples, probability, 1 - probability, risk)
        assert tails[rank] <= risk and (rank == samples or tails[rank + 1] > risk)


def test_ranks_at_quantiles_that_are_0_or_1_in_floating_point() -> None:
    assert lower_rank(50, 0.0, 1.0, 0.1) == 0 and lower_rank(50, 1.0, 0.0, 0.1) == 50
    assert lower_rank(50, 1.0, 1e-30, 1e-20) == 50  # the complement still tells: 50 draws are below with 1 - 5e-29
    rows = smooth_linear(eps=100.0)
    assert rows.lower.item() == -math.inf and rows.upper.item() == math.inf


def test_ends_are_the_order_statistics_of_those_ranks() -> None:
    rows = smooth_linear(generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    draws = X + 0.5 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    ordered, _ = (draws @ WEIGHT).sort()
    below, above = norm.cdf(-0.4), norm.cdf(0.4)
    low_rank = max(k for k in range(201) if binom.sf(k - 1, 200, below) >= 0.9)
    high_rank = min(k for k in range(1, 202) if binom.sf(k - 1, 200, above) <= 0.1)
    expected = [ordered[rank - 1].item() for rank in (low_rank, 100, high_rank)]
    assert rows[["lower", "estimate", "upper"]].iloc[0].tolist() == expected


@pytest.mark.parametrize(("quantile", "eps"), [(0.5, 0.0), (0.5, 0.4), (0.2, 0.3)])
def test_coverage_is_that_of_the_binomial_where_the_bound_is_attained(quantile: float, eps: float) -> None:
    """The score is linear: moved by eps against its gradient, the quantile is the outer quantile, and no bound is
    better than it."""
    runs, confidence = 3000, 0.9
    rows = smooth_linear(runs, quantile=quantile, eps=eps)
    worst, best = (linear_quantile(quantile) + sign * 13 * eps for sign in (-1, 1))
    below, above = (PHI.cdf(PHI.inv_cdf(quantile) + sign * eps / 0.5) for sign in (-1, 1))
    assert worst == pytest.approx(linear_quantile(below)) and best == pytest.approx(linear_quantile(above))
    ranks = lower_rank(200, below, 1 - below, 1 - confidence), lower_rank(200, 1 - above, above, 1 - confidence)
    for held, rank, probability in (
        (rows.lower <= worst, ranks[0], below),
        (rows.upper >= best, ranks[1], 1 - above),
    ):
        coverage = binom.sf(rank - 1, 200, probability)
        assert confidence <= coverage < 0.96
        assert abs(held.mean() - coverage) < 4 * math.sqrt(coverage * (1 - coverage) / runs)


def test_the_bounds_fall_apart_as_eps_grows_and_hold_the_estimate() -> None:
    frames = [smooth_linear(eps=eps, generator=torch.Generator().manual_seed(0)) for eps in (0.0, 0.1, 0.3, 0.9)]
    for inner, outer in pairwise(frames):
        assert (outer.lower < inner.lower).all() and (outer.upper > inner.upper).all()
        assert (outer.estimate == inner.estimate).all()
    assert (frames[0].lower <= frames[0].estimate).all() and (frames[0].estimate <= frames[0].upper).all()


def test_too_few_draws_promise_nothing() -> None:
    rows = smooth_linear(samples=2, confidence=0.999)
    assert rows.lower.item() == -math.inf and rows.upper.item() == math.inf and math.isfinite(rows.estimate.item())


def test_the_largest_radius_of_a_thousand_draws_is_the_documented_one() -> None:
    settings = {"sigma": 1.0, "samples": 1000, "confidence": 0.999}
    assert math.isfinite(smooth_linear(eps=2.46, **settings).lower.item())
    assert smooth_linear(eps=2.47, **settings).lower.item() == -math.inf


def test_draws_are_clamped_to_the_range_before_they_are_scored() -> None:
    rows = smooth_linear(sigma=1e6, low=0.0, high=1.0, samples=500)
    corners = {3 * i - 4 * j + 12 * k for i in (0, 1) for j in (0, 1) for k in (0, 1)}
    assert all(min(abs(value - corner) for corner in corners) < 1e-2 for value in rows[["lower", "upper"]].iloc[0])


def test_both_the_input_and_the_latent_noise_are_fresh_in_each_draw() -> None:
    class Spy(Linear):
        seen: list[tuple[Tensor, Tensor]] = []  # noqa: RUF012

        def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
            self.seen.append((output, target))
            return super().log_prob(output, target)

    vae = linear_vae(WEIGHT)
    vae.likelihood = Spy(WEIGHT)
    percentile_smoothing(vae, X.expand(2, -1), 0.5, 0.1, samples=30, batch_size=7, **WIDE)
    for tensors in zip(*Spy.seen, strict=True):
        values = torch.cat(tensors)
        assert len(values) == 60 and len(values.unique(dim=0)) == 60


def test_rows_do_not_depend_on_how_many_are_evaluated_at_a_time() -> None:
    vae = mlp_vae((6,), (8,), 2).double()
    vae.train()
    x = torch.rand(3, 6, dtype=torch.float64)
    rows = percentile_smoothing(vae, x, 0.3, 0.1, samples=100, generator=torch.Generator().manual_seed(0))
    assert list(rows) == ["index", "eps", "sigma", "quantile", "samples", "confidence", "lower", "estimate", "upper"]
    assert rows["index"].tolist() == [0, 1, 2] and set(rows.eps) == {0.1} and vae.training
    assert (rows.lower < rows.estimate).all() and (rows.estimate < rows.upper).all()
    empty = percentile_smoothing(vae, x[:0], 0.3, 0.1)
    assert len(empty) == 0 and list(empty) == list(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": math.inf}, "sigma must be positive"),
        ({"eps": -0.1}, "eps must be finite and not negative"),
        ({"eps": math.nan}, "eps must be finite and not negative"),
        ({"quantile": 0.0}, "quantile must be between 0 and 1"),
        ({"quantile": 1.0}, "quantile must be between 0 and 1"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"confidence": 0.0}, "confidence must be between 0 and 1"),
        ({"samples": 0}, "samples and batch_size must be at least 1"),
        ({"low": 0.4, "high": 1.0}, r"x must be in \[0.4, 1.0\]"),
        ({"low": 1.0, "high": 1.0}, "low < high"),
    ],
)
def test_an_argument_out_of_range_is_an_error(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smooth_linear(**options)


def test_a_range_that_the_likelihood_does_not_explain_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Bernoulli explains targets in \[0, 1\]"):
        percentile_smoothing(mlp_vae((3,), (4,), 2, Bernoulli()).double(), X, 0.5, 0.1, **WIDE)


def test_a_score_that_is_not_a_number_counts_as_the_lowest() -> None:
    vae = linear_vae(torch.tensor([math.nan, 1.0, 1.0], dtype=torch.float64))
    rows = percentile_smoothing(vae, X, 0.5, 0.1, samples=100)
    assert rows[["lower", "estimate", "upper"]].iloc[0].tolist() == [-math.inf] * 3


def test_no_attack_within_the_radius_passes_the_bound() -> None:
    """Gradient descent of the smoothed score in the l2 ball, whose quantile is then measured with many more draws."""
    torch.manual_seed(1)
    sigma, eps, count = 0.25, 0.3, 10
    vae = mlp_vae((12,), (16,), 3).double().requires_grad_(False)
    for parameter in vae.parameters():
        parameter.mul_(3)
    x = torch.rand(count, 12, dtype=torch.float64)

    def scores(point: Tensor, draws: int) -> Tensor:
        noisy = (point + sigma * torch.randn(draws, *point.shape, dtype=point.dtype)).clamp(0, 1).flatten(0, 1)
        noise = torch.randn(len(noisy), 3, dtype=point.dtype)
        return unchecked_elbo(vae, noisy, noise, noisy).view(draws, -1)

    x_adv = x.clone()
    for _ in range(60):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(scores(x_adv, 200).sum(), x_adv)
        step = x_adv.detach() - 0.1 * gradient / gradient.norm(dim=1, keepdim=True) - x
        x_adv = x + step * (eps / step.norm(dim=1, keepdim=True)).clamp(max=1)
    assert (x_adv - x).norm(dim=1).max() <= eps * (1 + 1e-12)

    attacked = scores(x_adv, 20_000).sort(0)[0][9_999 + 400]  # 5.6 standard deviations of a rank above the median
    rows = percentile_smoothing(vae, x, sigma, eps, samples=4000, confidence=1 - 1e-6)
    lower = torch.tensor(rows.lower.to_numpy())
    assert (lower <= attacked).all()
    fall = torch.tensor(rows.estimate.to_numpy()) - attacked
    assert (fall > 0.5 * (torch.tensor(rows.estimate.to_numpy()) - lower)).any()  # the attack is no empty one
