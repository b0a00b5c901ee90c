"""Attacks on the reconstruction reach the optimum of linear networks, which a formula or all corners give."""

import copy
from typing import Any

import pytest
import torch
from linear_networks import PIXELS, Round, corners, decoder_weight, linear_vae, mean_weight
from torch import Tensor

from paperlib import LinfBall, damage_attack, mlp_vae
from paperlib.threats.output import damage

BOX = LinfBall(0.3, -100.0, 100.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, PIXELS, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_maximum_damage_to_a_linear_network_is_that_of_the_best_corner_of_the_box(seed: int) -> None:
    vae, x = linear_vae(seed), inputs()
    reached = damage_attack(vae, x, BOX, restarts=30, generator=seeded())
    through = corners(torch.zeros(PIXELS, dtype=torch.float64), BOX.eps) @ (decoder_weight(vae) @ mean_weight(vae)).T
    torch.testing.assert_close(damage(vae, reached, x), through.norm(dim=1).max().expand(len(x)))


def test_maximum_damage_to_a_linear_network_in_an_l2_ball_is_its_largest_singular_value() -> None:
    vae, x = linear_vae(), inputs()
    reached = damage_attack(vae, x, Round(0.7), steps=100, generator=seeded())
    largest = torch.linalg.svdvals(decoder_weight(vae) @ mean_weight(vae))[0]
    torch.testing.assert_close(damage(vae, reached, x), (0.7 * largest).expand(len(x)), rtol=1e-6, atol=0)


def test_a_target_output_is_approached_to_the_least_squares_distance_in_a_large_set() -> None:
    vae, x, toward = linear_vae(), inputs(), inputs(seed=1)
    matrix = decoder_weight(vae) @ mean_weight(vae)
    clean = vae.reconstruct(x)
    change = torch.linalg.lstsq(matrix, (toward - clean).T, driver="gelsd").solution  # of least norm
    least = (clean + (matrix @ change).T - toward).norm(dim=1)
    ball = Round(change.norm(dim=0).max().item() * 1.1)
    reached = damage_attack(vae, x, ball, toward, steps=400)
    left = (vae.reconstruct(reached) - toward).norm(dim=1)
    start = (clean - toward).norm(dim=1)
    assert (left >= least - 1e-12).all()
    assert (left - least < 1e-2 * (start - least)).all()


def test_the_distance_to_a_target_is_never_above_that_of_the_clean_reconstruction() -> None:
    vae = mlp_vae((PIXELS,), (16,), 3).double()
    x, toward = torch.rand(2, 20, PIXELS, generator=seeded()).double()
    ball = LinfBall(0.2)
    reached = damage_attack(vae, x, ball, toward, steps=3)
    assert ball.box(x).contains(reached).all()
    before, after = ((vae.reconstruct(point) - toward).norm(dim=1) for point in (x, reached))
    assert (after <= before).all() and (after < before).any()


def test_damage_leaves_the_clean_input_where_its_gradient_is_zero_and_stays_in_the_set() -> None:
    vae = mlp_vae((2, PIXELS), (16,), 3).double()
    x = torch.rand(20, 2, PIXELS, generator=seeded()).double()
    reached = damage_attack(vae, x, LinfBall(0.2), steps=3, generator=seeded())
    assert LinfBall(0.2).box(x).contains(reached).all()
    assert (damage(vae, reached, x) > 0).all()
    assert not reached.requires_grad and all(parameter.grad is None for parameter in vae.parameters())


def test_damage_is_the_distance_of_expected_data_and_not_of_logits() -> None:
    vae = mlp_vae((PIXELS,), (16,), 3).double()
    x, other = torch.rand(2, 5, PIXELS).double()
    with torch.no_grad():
        means = [vae.encode(point)[0] for point in (x, other)]
        first, second = (torch.sigmoid(vae.decoder(mean)) for mean in means)
    torch.testing.assert_close(damage(vae, other, x), (first - second).square().sum(1).sqrt())


def test_radius_zero_returns_the_input_itself() -> None:
    x = inputs()
    assert torch.equal(damage_attack(linear_vae(), x, LinfBall(0.0, -9.0, 9.0)), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least one step and one restart, got steps=0, restarts=1"),
        ({"restarts": -1}, "at least one step and one restart, got steps=40, restarts=-1"),
        ({"toward": inputs(3)}, r"toward must have the shape of x, \[4, 6\], got \[3, 6\]"),
        ({"toward": inputs() / 0}, "toward is not finite"),
        ({"x": inputs() * 1e3}, "x must be finite and in"),
        ({"x": inputs()[:, :5]}, r"x of shape \[4, 5\] does not fit the model"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"vae": linear_vae(), "x": inputs(), "ball": BOX, **change}
    with pytest.raises(ValueError, match=message):
        damage_attack(**arguments)


def test_it_runs_in_inference_mode_and_on_what_was_made_there() -> None:
    vae, x = linear_vae(), inputs()
    expected = damage_attack(vae, x, BOX, generator=seeded())
    with torch.inference_mode():
        made = copy.deepcopy(vae), x.clone()
        assert torch.equal(damage_attack(made[0], made[1], BOX, generator=seeded()), expected)
