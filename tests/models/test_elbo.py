"""The ELBO against torch.distributions, for every likelihood and target, and clear refusals."""

import inspect

import pytest
import torch
from oracles import CASES, LIKELIHOODS, ROUNDING, audit_case, reference_elbo

from paperlib import elbo
from paperlib.models.elbo import elbo_terms, unchecked_elbo


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("case", CASES)
def test_the_elbo_is_the_reference(case: str, likelihood: str) -> None:
    vae, x, noise = audit_case(case, likelihood)
    expected = reference_elbo(vae, x, noise, x)
    torch.testing.assert_close(elbo(vae, x, noise), expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_target_tensor_is_what_the_decoder_explains() -> None:
    vae, x, noise = audit_case("mlp")
    other = torch.rand_like(x)
    expected = reference_elbo(vae, x, noise, other)
    torch.testing.assert_close(elbo(vae, x, noise, target=other), expected, rtol=ROUNDING, atol=ROUNDING)
    assert torch.equal(elbo(vae, x, noise, target="clean"), elbo(vae, x, noise, target="perturbed"))


def test_the_parts_and_the_unchecked_value_are_those_of_the_elbo() -> None:
    vae, x, noise = audit_case("mlp")
    other = torch.rand_like(x)
    log_likelihood, kl = elbo_terms(vae, x, noise, other)
    assert torch.equal(log_likelihood - kl, elbo(vae, x, noise, target=other))
    assert torch.equal(unchecked_elbo(vae, x, noise, other), elbo(vae, x, noise, target=other))
    assert (kl > 0).all()


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1), (3, 1, 3), (3, 4)])
def test_a_target_of_another_shape_is_refused_and_never_broadcast(shape: tuple[int, ...]) -> None:
    vae, x, noise = audit_case("mlp")
    with pytest.raises(ValueError, match="target"):
        elbo(vae, x, noise, target=torch.full(shape, 0.5).double())


def test_the_public_signature_is_the_one_that_others_rely_on() -> None:
    assert [*inspect.signature(elbo).parameters] == ["vae", "x", "noise", "target"]
