"""One shift of the latents against the best corner of a linear decoder."""

from typing import Any

import pytest
import torch
from linear_networks import LATENT, PIXELS, Round, corners, decoder_weight, linear_vae
from torch import Tensor

from paperlib import LinfBall, elbo, mlp_vae
from paperlib.models.gaussian import kl
from paperlib.threats.latent_poison import latent_poison, shifted_log_likelihood


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(count: int = 5) -> Tensor:
    return torch.rand(count, PIXELS, generator=seeded(), dtype=torch.float64)


def draw(count: int = 5) -> Tensor:
    return torch.randn(count, LATENT, generator=seeded(9), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_the_shift_of_a_linear_decoder_is_the_best_corner_of_the_box(seed: int) -> None:
    vae, x, noise = linear_vae(seed), inputs(), draw()
    shift = latent_poison(vae, x, LinfBall(0.8), noise, restarts=20, generator=seeded())  # a data range of [0, 1]
    every = corners(torch.zeros(LATENT, dtype=torch.float64), 0.8)
    means = torch.stack([shifted_log_likelihood(vae, x, noise, corner).mean() for corner in every])
    assert torch.equal(shift, every[means.argmin()])


def test_the_shift_of_a_centred_linear_decoder_is_along_the_largest_singular_vector_of_an_l2_ball() -> None:
    vae, noise = linear_vae(log_var=0.0), draw()
    with torch.no_grad():  # every code is the bias plus the noise, and x is reconstructed without error
        vae.encoder.weight.zero_()
        x = vae.decoder(vae.encoder.bias[:LATENT] + noise)
    shift = latent_poison(vae, x, Round(0.8), noise, steps=400, restarts=3, generator=seeded())
    fall = shifted_log_likelihood(vae, x, noise, torch.zeros(LATENT).double())
    fall = fall - shifted_log_likelihood(vae, x, noise, shift)
    largest = torch.linalg.svdvals(decoder_weight(vae))[0]
    torch.testing.assert_close(fall, ((0.8 * largest) ** 2 / (2 * 0.5**2)).expand(5), rtol=1e-6, atol=0)


def test_without_a_shift_it_is_the_likelihood_in_the_elbo_and_the_attack_is_never_above() -> None:
    torch.manual_seed(0)
    vae, x, noise = mlp_vae((PIXELS,), (16,), LATENT).double(), inputs(), draw()
    none = shifted_log_likelihood(vae, x, noise, torch.zeros(LATENT).double())
    with torch.no_grad():
        torch.testing.assert_close(none, elbo(vae, x, noise) + kl(*vae.encode(x)))
    shift = latent_poison(vae, x, LinfBall(0.5), noise, steps=3)
    assert shift.shape == (LATENT,) and shift.abs().max() <= 0.5
    assert shifted_log_likelihood(vae, x, noise, shift).mean() < none.mean()
    assert torch.equal(latent_poison(vae, x, LinfBall(0.0), noise), torch.zeros(LATENT).double())
    assert not shift.requires_grad and all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"restarts": 0}, "at least one step and one restart"),
        ({"x": inputs(0), "noise": draw(0)}, "at least one example"),
        ({"x": inputs() * 3}, "Bernoulli explains targets"),
        ({"noise": draw(3)}, "noise must be"),
        ({"x": inputs()[:, :5]}, "does not fit the model"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    vae = mlp_vae((PIXELS,), (16,), LATENT).double()
    arguments: dict[str, Any] = {"vae": vae, "x": inputs(), "ball": LinfBall(0.1), "noise": draw(), **change}
    with pytest.raises(ValueError, match=message):
        latent_poison(**arguments)


def test_a_shift_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[latent_dim\] = \[3\], got \[1, 3\]"):
        shifted_log_likelihood(linear_vae(), inputs(), draw(), torch.zeros(1, LATENT).double())
