"""Continuous Bernoulli and Poisson against torch.distributions and mpmath."""

import mpmath
import pytest
import torch
from oracles import ROUNDING, reference_terms
from torch.distributions import ContinuousBernoulli as ContinuousBernoulliDensity
from torch.distributions import Poisson as PoissonDensity

from paperlib import ContinuousBernoulli, Poisson, elbo, mlp_vae

# around 0, where the formulas divide 0 by 0, on both sides of the switch at 1, and far out
LOGITS = [*(sign * v for sign in (1, -1) for v in (1e-30, 1e-9, 1e-3, 0.3, 0.999, 1.001, 7.0, 90.0, 1e4)), 0.0]


def normalizer(logit: float) -> mpmath.mpf:
    v = mpmath.mpf(logit)
    return mpmath.log(mpmath.expm1(v) / v) if v else mpmath.mpf(0)


def mean(logit: float) -> mpmath.mpf:
    v = mpmath.mpf(logit)
    return 1 / (1 - mpmath.exp(-v)) - 1 / v if v else mpmath.mpf(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_normaliser_and_its_derivative_are_exact_at_and_around_0(dtype: torch.dtype) -> None:
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    value = ContinuousBernoulli().log_normalizer(logits)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    unit = torch.finfo(dtype).eps / 2
    with mpmath.workdps(120):
        for logit, one, derivative in zip(logits.tolist(), value.tolist(), slope.tolist(), strict=True):
            assert abs(one - normalizer(logit)) <= 12 * unit * (1 + abs(logit)), logit
            assert abs(derivative - mean(logit)) <= 4 * unit, logit
            if logit < -1:  # the small means of targets near 0 keep their digits
                assert abs(derivative / mean(logit) - 1) <= 8 * unit, logit


def test_the_density_is_that_of_torch_and_integrates_to_1() -> None:
    # torch's own loses digits where a probability is close to 1
    logit, target = torch.empty(20, 7).double().uniform_(-8, 8), torch.rand(20, 7).double()
    likelihood, density = ContinuousBernoulli(), ContinuousBernoulliDensity(logits=logit, validate_args=False)
    expected = density.log_prob(target)
    torch.testing.assert_close(likelihood.terms(logit, target), expected, rtol=ROUNDING, atol=1e-11)
    torch.testing.assert_close(likelihood.log_prob(logit, target), expected.sum(1), rtol=ROUNDING, atol=1e-11)
    torch.testing.assert_close(likelihood.mean(logit), density.mean, rtol=1e-9, atol=1e-9)
    # torch takes a series for a wide range of probabilities around 1/2, if asked to
    wide = ContinuousBernoulliDensity(logits=logit / 100, lims=(0.4, 0.6), validate_args=False).log_prob(target)
    torch.testing.assert_close(likelihood.terms(logit / 100, target), wide, rtol=0, atol=1e-4)
    grid = torch.linspace(0, 1, 2001).double()
    for logit in (-20.0, 0.0, 1e-5, 3.0):
        values = likelihood.terms(torch.full_like(grid, logit), grid).exp()
        assert torch.trapezoid(values, grid).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_natural_parameter_is_the_inverse_of_the_mean(dtype: torch.dtype) -> None:
    means = torch.cat([torch.logspace(-12, -0.31, 200), torch.tensor([0.5, 0.4999999, 0.5000001, 0.499])]).to(dtype)
    means = torch.cat([means, 1 - means])
    continuous, poisson = ContinuousBernoulli(), Poisson()
    low = means < 0.5
    back = continuous.mean_parameter(continuous.natural_parameter(means))
    unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(back[low], means[low], rtol=16 * unit, atol=0)
    torch.testing.assert_close(back[~low], means[~low], rtol=16 * unit, atol=0)
    ends = continuous.natural_parameter(torch.tensor([0.0, 1.0, -0.5, 1.5, 0.5], dtype=dtype))
    assert ends.sign().tolist() == [-1, 1, -1, 1, 0] and (ends[:4].abs() > 1e30).all()
    counts = torch.tensor([0.5, 1, 7, 200], dtype=dtype)
    torch.testing.assert_close(poisson.mean_parameter(poisson.natural_parameter(counts)), counts)
    assert poisson.natural_parameter(torch.zeros(1)).isinf().all()


def test_poisson_is_that_of_torch_and_its_probabilities_add_up_to_1() -> None:
    logit, counts = torch.randn(20, 7).double() * 2, torch.randint(0, 30, (20, 7)).double()
    likelihood, density = Poisson(), PoissonDensity(logit.exp())
    torch.testing.assert_close(likelihood.terms(logit, counts), density.log_prob(counts), rtol=ROUNDING, atol=1e-11)
    torch.testing.assert_close(
        likelihood.log_prob(logit, counts), density.log_prob(counts).sum(1), rtol=ROUNDING, atol=1e-11
    )
    torch.testing.assert_close(likelihood.mean(logit), density.mean)
    every = torch.arange(200).double()
    probabilities = likelihood.terms(torch.full_like(every, 3.0), every).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    between = reference_terms(likelihood, logit, counts + 0.5)  # a perturbed count
    torch.testing.assert_close(likelihood.terms(logit, counts + 0.5), between, rtol=ROUNDING, atol=1e-11)


@pytest.mark.parametrize(
    ("likelihood", "bad", "message"),
    [
        (Poisson(), -0.5, r"Poisson explains targets in \[0, inf\], but these are in \[-0\.5"),
        (ContinuousBernoulli(), 1.5, r"ContinuousBernoulli explains targets in \[0, 1\], but these are in \[0, 1\.5"),
    ],
)
def test_targets_outside_the_support_are_refused(likelihood: Poisson, bad: float, message: str) -> None:
    x = torch.tensor([[0.0, bad, 0.25]])
    with pytest.raises(ValueError, match=message):
        elbo(mlp_vae((3,), (4,), 2, likelihood), x, torch.zeros(1, 2))
