"""Densities against torch.distributions, in float64."""

import math

import pytest
import torch
from oracles import LIKELIHOODS, ROUNDING
from torch.distributions import Bernoulli as BernoulliDensity
from torch.distributions import Normal
from torch.nn import functional as F

from paperlib import Bernoulli, Gaussian
from paperlib.models.likelihood import Likelihood, softplus, sum_per_example

EACH = pytest.mark.parametrize("likelihood", [make().double() for make in LIKELIHOODS.values()], ids=LIKELIHOODS)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 3)])
@EACH
def test_a_density_is_the_one_of_torch_distributions(likelihood: Likelihood, shape: tuple[int, ...]) -> None:
    output, target = torch.randn(20, *shape).double() * 5, torch.rand(20, *shape).double()
    target[:4] = target[:4].round()
    if isinstance(likelihood, Bernoulli):
        pixels = BernoulliDensity(logits=output, validate_args=False)  # grey values are outside its support
    else:
        pixels = Normal(output, likelihood.log_scale.exp())
    torch.testing.assert_close(
        likelihood.log_prob(output, target), pixels.log_prob(target).flatten(1).sum(1), rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("learned", [False, True])
def test_a_gaussian_has_the_scale_it_was_given(scale: float, learned: bool) -> None:
    likelihood, zero = Gaussian(scale, learned), torch.zeros(1, 1)
    torch.testing.assert_close(likelihood.log_prob(zero, zero), Normal(0.0, scale).log_prob(zero)[0])
    assert [name for name, _ in likelihood.named_parameters()] == ["log_scale"] * learned
    assert "log_scale" in likelihood.state_dict()


@pytest.mark.parametrize("learned", [False, True])
def test_a_gaussian_may_have_one_scale_a_pixel(learned: bool) -> None:
    scale = torch.tensor([[0.1, 3.0], [1.0, 20.0]]).double()
    likelihood = Gaussian(scale, learned)
    output, target = torch.randn(2, 5, 2, 2).double()
    expected = Normal(output, scale).log_prob(target)
    torch.testing.assert_close(likelihood.terms(output, target), expected)
    torch.testing.assert_close(likelihood.log_prob(output, target), expected.sum((1, 2)))
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="each scale must be positive and finite"):
            Gaussian(torch.tensor([1.0, bad]))


@EACH
def test_the_terms_of_a_density_add_up_to_it(likelihood: Likelihood) -> None:
    output, target = torch.randn(4, 2, 3).double(), torch.rand(4, 2, 3).double()
    terms = likelihood.terms(output, target)
    assert terms.shape == output.shape
    torch.testing.assert_close(sum_per_example(terms), likelihood.log_prob(output, target))


def test_softplus_in_float32_is_within_8_roundings_of_1_and_its_value() -> None:
    logit = torch.cat([torch.linspace(-110, 110, 200_001), torch.randn(100_000) * 1e-3])
    exact = F.softplus(logit.double(), threshold=800)
    error = (softplus(logit).double() - exact).abs()
    assert (error <= 8 * 2.0**-24 * (1 + exact)).all()


def test_softplus_in_float32_has_the_sigmoid_as_its_derivative() -> None:
    logit = torch.linspace(-50, 50, 1_001).requires_grad_()
    (slope,) = torch.autograd.grad(softplus(logit).sum(), logit)
    assert torch.equal(slope, torch.sigmoid(logit))


def test_the_mean_is_the_expected_data() -> None:
    output = torch.randn(4, 3)
    torch.testing.assert_close(Bernoulli().mean(output), BernoulliDensity(logits=output).mean)
    assert torch.equal(Gaussian().mean(output), output)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_no_deviation_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
        Gaussian(scale)


def test_a_sum_per_example_leaves_the_batch_alone() -> None:
    terms = torch.arange(24.0).view(2, 3, 2, 2)
    assert sum_per_example(terms).tolist() == [66.0, 210.0]
