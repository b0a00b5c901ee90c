"""The ELBO against torch.distributions, for every likelihood and target, and clear refusals."""

import inspect

import pytest
import torch
from oracles import CASES, LIKELIHOODS, ROUNDING, audit_case, reference_elbo

from paperlib import LinfBall, elbo, elbo_bounds
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


@pytest.mark.parametrize("bad", [-0.001, 1.001, -4.0, 255.0])
def test_a_target_outside_the_range_of_its_likelihood_is_refused_with_both_ranges(bad: float) -> None:
    vae, x, noise = audit_case("mlp")
    other = torch.full_like(x, 0.5)
    other[1, 2] = bad
    low, high = min(bad, 0.5), max(bad, 0.5)
    message = rf"Bernoulli explains targets in \[0, 1\], but these are in \[{low:g}, {high:g}\]: scale the data"
    for arguments in ((x, noise, other), (other, noise)):
        with pytest.raises(ValueError, match=message):
            elbo(vae, *arguments)
    gaussian = audit_case("mlp", "gaussian")[0]
    assert elbo(gaussian, other, noise, other).isfinite().all()


@pytest.mark.parametrize(
    ("method", "sound"),
    [
        *((method, sound) for method in ("ibp", "crown-ibp", "crown", "best") for sound in (False, True)),
        ("exact", False),
    ],
)
def test_bounds_refuse_a_ball_with_targets_outside_the_range_of_the_likelihood(method: str, sound: bool) -> None:
    vae, x, noise = audit_case("mlp")
    outside = LinfBall(0.1, low=-1.0, high=1.0)
    with pytest.raises(ValueError, match=r"Bernoulli explains targets in \[0, 1\], but these are in \[-0\.1, 1\]"):
        elbo_bounds(vae, x, outside, noise, method, sound=sound)
    clean = elbo_bounds(vae, x, outside, noise, method, target="clean", sound=sound)
    assert (clean.lower <= elbo(vae, x, noise)).all(), "the clean target is explained, whatever the input"


def test_the_public_signature_is_the_one_that_others_rely_on() -> None:
    assert [*inspect.signature(elbo).parameters] == ["vae", "x", "noise", "target"]
