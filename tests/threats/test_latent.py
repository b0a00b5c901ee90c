"""Latent attacks reach the optimum of linear encoders, which a formula or all corners give, in either direction."""

import copy
from typing import Any

import pytest
import torch
from linear_networks import PIXELS, Round, corners, linear_vae, mean_weight
from torch import Tensor

from paperlib import LinfBall, latent_attack, mlp_vae
from paperlib.threats.latent import latent_divergence

DIVERGENCES = ["kl", "reverse-kl", "symmetric-kl", "mean", "wasserstein"]
BOX = LinfBall(0.3, -100.0, 100.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, PIXELS, generator=seeded(seed), dtype=torch.float64)


def distance_of(divergence: str, log_var: float) -> float:
    """D over ||m - m'||^2 where both posteriors have this log-variance."""
    return 1.0 if divergence in ("mean", "wasserstein") else torch.tensor(-log_var).exp().item() / 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_away_from_the_clean_code_a_linear_encoder_ends_at_the_best_corner_of_the_box(
    divergence: str, seed: int
) -> None:
    vae, x = linear_vae(seed, log_var=-1.5), inputs()
    reached = latent_attack(vae, x, BOX, divergence, restarts=30, generator=seeded())
    change = corners(torch.zeros(PIXELS, dtype=torch.float64), BOX.eps) @ mean_weight(vae).T
    expected = change.square().sum(1).max() * distance_of(divergence, -1.5)
    torch.testing.assert_close(latent_divergence(vae, reached, x, divergence), expected.expand(len(x)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_away_from_the_clean_code_a_linear_encoder_moves_along_the_largest_singular_vector_of_an_l2_ball(
    divergence: str,
) -> None:
    vae, x, ball = linear_vae(log_var=0.5), inputs(), Round(0.7)
    reached = latent_attack(vae, x, ball, divergence, steps=100, restarts=5, generator=seeded())
    largest = torch.linalg.svdvals(mean_weight(vae))[0]
    expected = (0.7 * largest) ** 2 * distance_of(divergence, 0.5)
    torch.testing.assert_close(
        latent_divergence(vae, reached, x, divergence), expected.expand(len(x)), rtol=1e-6, atol=0
    )
    assert ((reached - x).norm(dim=1) <= 0.7 + 1e-12).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_target_is_reached_where_the_set_holds_it_and_its_code_where_the_set_holds_that(divergence: str) -> None:
    vae, x, toward = linear_vae(), inputs(), inputs(seed=1)
    reached = latent_attack(vae, x, LinfBall(9.0, -100.0, 100.0), divergence, toward, steps=1)
    assert torch.equal(latent_divergence(vae, reached, toward, divergence), torch.zeros(len(x), dtype=torch.float64))

    # the input nearest to x with the target's code: it lies in an l2 ball that does not hold the target
    nearest = torch.linalg.pinv(mean_weight(vae)) @ mean_weight(vae) @ (toward - x).T
    ball = Round(nearest.norm(dim=0).max().item() * 1.1)
    assert ((toward - x).norm(dim=1) > ball.size).any()
    reached = latent_attack(vae, x, ball, divergence, toward, steps=400)
    before, after = (latent_divergence(vae, point, toward, divergence) for point in (x, reached))
    assert (after < 1e-2 * before).all()


@pytest.mark.parametrize("seed", range(3))
def test_towards_a_target_along_one_latent_the_box_goes_as_far_as_its_dual_norm_says(seed: int) -> None:
    vae, x = linear_vae(seed), inputs()
    with torch.no_grad():
        vae.encoder.weight[1:] = 0  # one latent sees the input: a scalar w . x
    w = mean_weight(vae)[0]
    toward = x + 9 * w.sign()  # far beyond the box
    reached = latent_attack(vae, x, BOX, "mean", toward)
    left = 9 * w.abs().sum() - BOX.eps * w.abs().sum()
    torch.testing.assert_close(latent_divergence(vae, reached, toward, "mean"), (left**2).expand(len(x)))


def test_a_target_never_ends_farther_than_it_began_nor_outside_the_set() -> None:
    vae = mlp_vae((PIXELS,), (16,), 3).double()
    x, toward = torch.rand(2, 20, PIXELS, generator=seeded()).double()
    ball = LinfBall(0.2)
    reached = latent_attack(vae, x, ball, "kl", toward, steps=3, restarts=2, generator=seeded())
    away = latent_attack(vae, x, ball, "kl", steps=3, generator=seeded())
    assert ball.box(x).contains(reached).all() and ball.box(x).contains(away).all()
    for start in (x, ball.project(toward, x)):
        assert (latent_divergence(vae, reached, toward) <= latent_divergence(vae, start, toward)).all()
    assert (latent_divergence(vae, away, x) > 0).all()
    assert not reached.requires_grad and all(parameter.grad is None for parameter in vae.parameters())


def test_restarts_only_help_and_the_generator_decides_them() -> None:
    torch.manual_seed(0)
    vae = mlp_vae((PIXELS,), (16,), 3).double()
    x = torch.rand(20, PIXELS, generator=seeded()).double()
    one, many, again = (latent_attack(vae, x, LinfBall(0.2), restarts=n, generator=seeded(5)) for n in (1, 8, 8))
    assert torch.equal(many, again)
    first, last = latent_divergence(vae, one, x), latent_divergence(vae, many, x)
    assert (last >= first).all() and (last > first).any()


def test_the_direction_of_kl_is_that_of_its_word() -> None:
    vae = mlp_vae((PIXELS,), (16,), 3).double()
    x, other = torch.rand(2, 5, PIXELS).double()
    assert torch.equal(latent_divergence(vae, x, other, "kl"), latent_divergence(vae, other, x, "reverse-kl"))
    assert not torch.allclose(latent_divergence(vae, x, other, "kl"), latent_divergence(vae, x, other, "reverse-kl"))


def test_radius_zero_returns_the_input_itself() -> None:
    x = inputs()
    assert torch.equal(latent_attack(linear_vae(), x, LinfBall(0.0, -9.0, 9.0)), x)
    assert torch.equal(latent_attack(linear_vae(), x, LinfBall(0.0, -9.0, 9.0), toward=inputs(seed=1)), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "KL"}, r'divergence must be one of "kl", "reverse-kl".*got \'KL\''),
        ({"steps": 0}, "at least one step and one restart, got steps=0, restarts=1"),
        ({"restarts": 0}, "at least one step and one restart, got steps=40, restarts=0"),
        ({"toward": inputs(3)}, r"toward must have the shape of x, \[4, 6\], got \[3, 6\]"),
        ({"toward": inputs(1)}, r"toward must have the shape of x, \[4, 6\], got \[1, 6\]"),
        ({"toward": inputs().float()}, "toward must have the dtype of x, torch.float64, got torch.float32"),
        ({"toward": inputs() * torch.nan}, r"toward is not finite at index \[0, 0\]"),
        ({"x": inputs().float()}, "x is torch.float32"),
        ({"x": inputs() * 1e3}, "x must be finite and in"),
        ({"x": inputs()[:, :5]}, r"x of shape \[4, 5\] does not fit the model"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"vae": linear_vae(), "x": inputs(), "ball": BOX, **change}
    with pytest.raises(ValueError, match=message):
        latent_attack(**arguments)


def test_it_runs_in_inference_mode_and_on_what_was_made_there() -> None:
    vae, x, toward = linear_vae(), inputs(), inputs(seed=1)
    expected = latent_attack(vae, x, BOX, toward=toward)
    with torch.inference_mode():
        made = copy.deepcopy(vae), x.clone(), toward.clone()
        assert torch.equal(latent_attack(made[0], made[1], BOX, toward=made[2]), expected)
    assert torch.equal(latent_attack(made[0], made[1], BOX, "kl", made[2]), expected)
