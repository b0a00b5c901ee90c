"""The ball: its box, its projection and its samples against their definitions, and clear refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import points_of

from paperlib import LinfBall


@given(st.floats(0, 2), st.floats(-3, 0), st.floats(0.5, 3))
def test_the_box_is_the_ball_cut_to_the_data_range(eps: float, low: float, high: float) -> None:
    x = low + (high - low) * torch.rand(2, 3, dtype=torch.float64)
    x = x.clamp(low, high)
    box = LinfBall(eps, low, high).box(x)
    expected = [[(max(v - eps, low), min(v + eps, high)) for v in row] for row in x.tolist()]
    assert torch.stack([*box], dim=-1).tolist() == [[list(pair) for pair in row] for row in expected]


def test_an_eps_of_zero_is_the_point_itself() -> None:
    x = torch.rand(2, 3)
    for end in LinfBall(0.0).box(x):
        assert torch.equal(end, x)


def test_a_larger_eps_contains_the_smaller_ball() -> None:
    x = torch.rand(50, 3, dtype=torch.float64)
    inner, outer = LinfBall(0.1).box(x), LinfBall(0.2).box(x)
    assert outer.contains(inner.lower).all()
    assert outer.contains(inner.upper).all()
    assert (inner.radius < outer.radius).any()


@given(st.integers(0, 2**16))
def test_projection_lands_in_the_ball_and_moves_as_little_as_possible(seed: int) -> None:
    torch.manual_seed(seed)
    ball, x, far = LinfBall(0.2), torch.rand(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    near = ball.project(far, x)
    assert ball.box(x).contains(near).all()
    assert torch.equal(ball.project(near, x), near)
    other = points_of(*ball.box(x))
    assert ((near - far).abs() <= (other - far).abs()).all()


def test_projection_brings_infinite_points_to_the_edge() -> None:
    x = torch.tensor([[0.5, 0.5]])
    assert torch.equal(LinfBall(0.25).project(torch.tensor([[math.inf, -math.inf]]), x), torch.tensor([[0.75, 0.25]]))


def test_samples_fill_the_ball_and_repeat_with_their_generator() -> None:
    ball, x = LinfBall(0.25), torch.tensor([[0.5, 0.0, 1.0]]).expand(4000, 3)
    draw = ball.sample(x, torch.Generator().manual_seed(3))
    assert ball.box(x).contains(draw).all()
    assert torch.equal(draw, ball.sample(x, torch.Generator().manual_seed(3)))
    assert not torch.equal(draw, ball.sample(x))
    # Uniform on [0.25, 0.75], [0, 0.25] and [0.75, 1]: means 0.5, 0.125, 0.875 with standard errors below 0.0025.
    torch.testing.assert_close(draw.mean(0), torch.tensor([0.5, 0.125, 0.875]), rtol=0, atol=0.01)
    assert (draw.amax(0) - draw.amin(0) > torch.tensor([0.49, 0.24, 0.24])).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.125, 1.125])
@pytest.mark.parametrize("use", ["check", "box", "sample", "project"])
def test_data_outside_the_range_are_refused_with_value_and_index(value: float, use: str) -> None:
    x = torch.full((2, 3), 0.5)
    x[1, 2] = value
    ball = LinfBall(0.1)
    with pytest.raises(ValueError, match=rf"in \[0\.0, 1\.0\], got {value} at index \[1, 2\]"):
        ball.project(x, x) if use == "project" else getattr(ball, use)(x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite_are_refused_in_an_unbounded_range_too(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        LinfBall(0.1, -math.inf, math.inf).box(torch.tensor([[0.0, value]]))


def test_the_ends_of_the_range_and_an_empty_batch_are_in_range() -> None:
    LinfBall(0.1).check(torch.tensor([0.0, 1.0]))
    assert LinfBall(0.1).box(torch.empty(0, 3)).lower.shape == (0, 3)


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_an_eps_that_is_no_radius_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match=f"eps must be finite and not negative, got {eps}"):
        LinfBall(eps)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0), (0.0, math.nan)])
def test_an_empty_data_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"needs low < high, got low={low}, high={high}"):
        LinfBall(0.1, low, high)
