"""The attack L_VAE against the least squares solution of a linear network, and what it is the minimum of."""

from typing import Any

import pytest
import torch
from linear_networks import LATENT, PIXELS, Round, decoder_weight, linear_vae, mean_weight
from torch import Tensor

from paperlib import VAE, LinfBall, elbo, mlp_vae
from paperlib.threats.target_elbo import target_elbo_attack


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, PIXELS, generator=seeded(seed), dtype=torch.float64)


def draw(count: int = 4) -> Tensor:
    return torch.randn(count, LATENT, generator=seeded(9), dtype=torch.float64)


@torch.no_grad()
def explained(vae: VAE, x: Tensor, noise: Tensor, toward: Tensor) -> Tensor:
    return elbo(vae, x, noise, toward)


def test_a_linear_network_explains_the_target_as_well_as_least_squares_in_a_large_set() -> None:
    vae, x, noise, toward = linear_vae(), inputs(), draw(), inputs(seed=1)
    # -ELBO = ||toward - V (m + s noise) - a||^2 / (2 * 0.5^2) + ||m||^2 / 2 + constant, least at this mean m:
    matrix, scale = decoder_weight(vae), 0.5
    residual = toward - torch.exp(torch.tensor(-0.5)) * noise @ matrix.T - vae.decoder.bias.detach()
    best = torch.linalg.solve(
        matrix.T @ matrix / scale**2 + torch.eye(LATENT).double(), matrix.T @ residual.T / scale**2
    )
    change = torch.linalg.pinv(mean_weight(vae)) @ (best - vae.encode(x)[0].detach().T)
    ball = Round(change.norm(dim=0).max().item() * 1.1)

    highest = explained(vae, x + change.T, noise, toward)
    reached = explained(vae, target_elbo_attack(vae, x, ball, noise, toward, steps=400), noise, toward)
    before = explained(vae, x, noise, toward)
    assert (reached <= highest + 1e-9).all()
    assert (highest - reached < 1e-2 * (highest - before)).all()


def test_the_target_is_explained_no_worse_than_by_x_or_by_the_nearest_point_of_the_set() -> None:
    vae = mlp_vae((PIXELS,), (16,), LATENT).double()
    x, toward = torch.rand(2, 20, PIXELS, generator=seeded()).double()
    noise, ball = draw(20), LinfBall(0.2)
    reached = target_elbo_attack(vae, x, ball, noise, toward, steps=3, restarts=2, generator=seeded())
    assert ball.box(x).contains(reached).all()
    for start in (x, ball.project(toward, x)):
        assert (explained(vae, reached, noise, toward) >= explained(vae, start, noise, toward)).all()
    assert (explained(vae, reached, noise, toward) > explained(vae, x, noise, toward)).any()
    assert not reached.requires_grad and all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"toward": torch.rand(3, PIXELS).double()}, r"toward must have the shape of x, \[4, 6\], got \[3, 6\]"),
        ({"toward": torch.full((4, PIXELS), 1.5).double()}, r"Bernoulli explains targets in \[0, 1\]"),
        ({"noise": draw(3)}, "noise must be"),
        ({"x": torch.full((4, PIXELS), 1.5).double()}, r"x must be finite and in \[0"),
        ({"x": torch.rand(4, 5).double(), "toward": torch.rand(4, 5).double()}, "does not fit the model"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    x, toward = torch.rand(2, 4, PIXELS).double()
    vae = mlp_vae((PIXELS,), (16,), LATENT).double()
    arguments: dict[str, Any] = {"vae": vae, "x": x, "ball": LinfBall(0.1), "noise": draw(), "toward": toward}
    with pytest.raises(ValueError, match=message):
        target_elbo_attack(**{**arguments, **change})
