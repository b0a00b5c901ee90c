"""Random search: it stays in the set, only ever gains, and finds the optimum where that is easy."""

import pytest
import torch
from attacked import BALL, COUNT, Disc, constant_vae, curved, digits, draw, linear_vae, seeded, value
from hypothesis import given
from hypothesis import strategies as st

from paperlib import LinfBall, pgd
from paperlib.threats.random_search import random_search


@given(eps=st.floats(0, 2), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_no_point_ever_leaves_the_ball_or_the_pixel_range(eps: float, dtype: torch.dtype) -> None:
    vae, x, noise, ball = curved().to(dtype), digits(4).to(dtype), draw(4).to(dtype), LinfBall(eps)
    point = random_search(vae, x, ball, noise, 10)
    assert ball.box(x).contains(point).all() and point.dtype == dtype


def test_more_evaluations_only_help_and_gradients_help_more() -> None:
    vae, x, noise = curved(), digits(), draw()
    clean = value(vae, x, noise)
    searched = value(vae, random_search(vae, x, BALL, noise, 300, seeded(0)), noise)
    assert (searched <= clean).all() and searched.mean() < clean.mean() - 1
    assert value(vae, pgd(vae, x, BALL, noise), noise).mean() < searched.mean()
    raised = value(vae, random_search(vae, x, BALL, noise, 300, seeded(0), maximize=True), noise)
    assert (raised >= clean).all() and raised.mean() > clean.mean() + 1


def test_the_worst_corner_of_few_features_is_reached() -> None:
    output = torch.tensor([0.3, -0.2, 0.55]).double()
    vae, ball = constant_vae(output), LinfBall(0.2)
    x, noise = torch.rand(COUNT, 3, generator=seeded(3)).double(), draw()
    low, high = ball.box(x)
    farthest = torch.where((low - output).abs() > (high - output).abs(), low, high)
    torch.testing.assert_close(random_search(vae, x, ball, noise, 500, seeded(0)), farthest)


def test_a_search_of_a_disc_stays_inside_and_images_keep_their_shape() -> None:
    vae, x, noise = linear_vae(), torch.randn(COUNT, 8).double(), draw()
    point = random_search(vae, x, Disc(0.7), noise, 50)
    assert ((point - x).norm(dim=1) <= 0.7 * (1 + 1e-12)).all() and not torch.equal(point, x)


def test_the_generator_decides_and_bad_steps_are_refused() -> None:
    vae, x, noise = curved(), digits(), draw()
    first, again, other = (random_search(vae, x, BALL, noise, 20, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="steps=0"):
        random_search(vae, x, BALL, noise, 0)
