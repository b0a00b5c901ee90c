"""The l1 ball: minima and projections against scipy, attaining points, its first layer, and rounding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from paperlib import L1Ball

DTYPES = st.sampled_from([torch.float32, torch.float64])


def inputs(seed: int, batch: int, features: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Like digits: half of the features at an end of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    kind, grey = torch.rand(2, batch, features, generator=generator, dtype=torch.float64)
    return torch.where(kind < 0.35, 0.0, torch.where(kind > 0.85, 1.0, grey)).to(dtype)


def tied(seed: int, *shape: int) -> Tensor:
    """Small whole numbers of both signs: many are 0, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).double()


def lowest(c: np.ndarray, x: np.ndarray, eps: float) -> float:
    """The minimum of c . x' over ball and range as a linear program in d = rise - fall."""
    bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
    program = linprog(np.concatenate([c, -c]), A_ub=np.ones((1, 2 * len(x))), b_ub=[eps], bounds=bounds)
    assert program.success, program.message
    return program.fun + c @ x


@given(st.integers(0, 2**16), st.floats(0, 5), st.booleans())
def test_the_minimum_is_that_of_a_linear_program(seed: int, eps: float, ties: bool) -> None:
    x = inputs(seed, 2, 6)
    c = tied(seed, 3, 2, 6) if ties else torch.randn(3, 2, 6, dtype=torch.float64)
    least = L1Ball(eps).concretize(c, x)
    for row in range(3):
        for example in range(2):
            truth = lowest(c[row, example].numpy(), x[example].numpy(), eps)
            assert least[row, example].item() == pytest.approx(truth, rel=1e-9, abs=1e-9)


@given(st.integers(0, 2**16), st.sampled_from([0.0, 1e-9, 0.03, 0.5, 2.0, 100.0]), st.booleans())
def test_the_gradient_of_the_minimum_is_a_point_that_attains_it(seed: int, eps: float, ties: bool) -> None:
    x = inputs(seed, 3, 40)
    c = (tied(seed, 2, 3, 40) if ties else torch.randn(2, 3, 40, dtype=torch.float64)).requires_grad_()
    least = L1Ball(eps).concretize(c, x)
    (point,) = torch.autograd.grad(least.sum(), c)
    assert (point >= 0).all() and (point <= 1).all()
    assert ((point - x).abs().sum(-1) <= eps * (1 + 1e-9) + 1e-15).all()
    torch.testing.assert_close((c * point).sum(-1), least, rtol=1e-9, atol=1e-12)


def test_a_few_of_the_largest_weights_are_enough_or_all_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c = inputs(0, 3, 40), torch.randn(2, 3, 40, dtype=torch.float64)
    for eps in (0.3, 3.0, 30.0):
        expected = L1Ball(eps).concretize(c, x)
        for few in (1, 4, 39):
            monkeypatch.setattr("paperlib.threats.l1_ball.FEW", few)
            torch.testing.assert_close(L1Ball(eps).concretize(c, x), expected, rtol=1e-14, atol=1e-14)


@given(st.integers(0, 2**16), st.floats(0, 5))
def test_no_point_has_a_lower_value_than_the_minimum_or_a_larger_spread(seed: int, eps: float) -> None:
    x, c, ball = inputs(seed, 2, 30), torch.randn(3, 2, 30, dtype=torch.float64), L1Ball(eps)
    least, spread = ball.concretize(c, x), ball.unchecked_region(x).spread(c.abs())
    for _ in range(20):
        point = ball.sample(x)
        assert (least <= (c * point).sum(-1) + 1e-12 * c.abs().sum(-1)).all()
        assert (spread >= (c.abs() * (point - x).abs()).sum(-1) - 1e-12 * c.abs().sum(-1)).all()


def test_the_spread_is_that_of_a_linear_program() -> None:
    x, weights = inputs(0, 3, 8), torch.rand(3, 8, dtype=torch.float64)
    spread = L1Ball(1.3).unchecked_region(x).spread(weights)
    for example in range(3):
        longest = torch.maximum(x, 1 - x)[example].tolist()
        bounds = [(0, cap) for cap in longest]
        program = linprog(-weights[example].numpy(), A_ub=np.ones((1, 8)), b_ub=[1.3], bounds=bounds)
        assert spread[example].item() == pytest.approx(-program.fun, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_of_zero_have_the_minimum_zero_and_a_gradient(dtype: torch.dtype) -> None:
    x, c = inputs(0, 2, 5, dtype), torch.zeros(2, 5, dtype=dtype, requires_grad=True)
    least = L1Ball(0.3).concretize(c, x)
    (point,) = torch.autograd.grad(least.sum(), c)
    assert torch.equal(least, torch.zeros(2, dtype=dtype)) and point.isfinite().all()


@given(st.integers(0, 2**16), st.floats(0.05, 3))
def test_the_projection_is_the_nearest_point(seed: int, eps: float) -> None:
    x = inputs(seed, 1, 5)[0].numpy()
    aim = 2 * torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    near = L1Ball(eps).project(torch.tensor(aim)[None], torch.tensor(x)[None])[0].numpy()
    # in d = rise - fall the ball is a half-space
    result = minimize(
        lambda d: ((x + d[:5] - d[5:] - aim) ** 2).sum(),
        np.zeros(10),
        jac=lambda d: 2 * np.concatenate([x + d[:5] - d[5:] - aim, aim - x - d[:5] + d[5:]]),
        bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
        constraints=[{"type": "ineq", "fun": lambda d: eps - d.sum(), "jac": lambda d: -np.ones(10)}],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.status in (0, 8), result.message  # 8: rounding lets no step improve, as at the minimum
    assert ((near - aim) ** 2).sum() == pytest.approx(result.fun, rel=1e-6, abs=1e-6)


@given(st.integers(0, 2**16), st.sampled_from([0.0, 1e-8, 1e-4, 0.1, 1.0, 5.0]), DTYPES)
def test_no_rounding_takes_a_projection_out_of_the_ball(seed: int, eps: float, dtype: torch.dtype) -> None:
    x, ball = inputs(seed, 4, 50, dtype), L1Ball(eps)
    for aim in (torch.randn(4, 50).to(dtype), x + eps / 20 * torch.randn(4, 50).to(dtype), ball.sample(x)):
        near = ball.project(aim, x)
        assert near.dtype == dtype and (near >= 0).all() and (near <= 1).all()
        assert ((near.double() - x.double()).abs().sum(1) <= eps).all()
        assert ((near - x).abs().sum(1) <= eps).all()  # in its own precision, too
        assert torch.equal(ball.project(near, x), near)
        assert ball.box(x).contains(near).all()


def test_far_points_come_to_the_edge_and_infinite_ones_into_the_ball() -> None:
    x = torch.full((1, 3), 0.5)
    torch.testing.assert_close(L1Ball(0.2).project(torch.tensor([[9.0, 0.5, 0.4]]), x), torch.tensor([[0.7, 0.5, 0.5]]))
    far = L1Ball(0.2).project(torch.tensor([[math.inf, -math.inf, 0.5]]), x)
    assert far.isfinite().all() and (far - x).abs().sum() <= 0.2


@pytest.mark.parametrize("eps", [0.0, 0.4, 2.5, 50.0])
def test_the_box_of_a_first_layer_holds_its_values_and_is_reached_inside_the_range(eps: float) -> None:
    layer, x, ball = nn.Linear(12, 7).double(), inputs(3, 4, 12), L1Ball(eps)
    box = ball.first_layer(layer, x)
    least = ball.concretize(layer.weight.unsqueeze(1), x).T + layer.bias
    assert (box.lower <= least + 1e-12).all()
    for _ in range(100):
        assert box.widen(torch.tensor(1e-12)).contains(layer(ball.sample(x))).all()
    free = L1Ball(eps, -100.0, 100.0).first_layer(layer, x)
    reach = eps * layer.weight.abs().amax(1)
    torch.testing.assert_close(free.upper - layer(x), reach.expand(4, -1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x) - free.lower, reach.expand(4, -1), rtol=1e-12, atol=1e-12)
    full = torch.zeros(1, 12).double()  # each feature can go the whole way
    rises = L1Ball(eps).concretize(-layer.weight.abs().unsqueeze(1), full).T
    torch.testing.assert_close(L1Ball(eps).first_layer(layer, full).upper, layer(full) - rises)


def test_the_steepest_change_spreads_its_sum_over_the_largest_gradients() -> None:
    gradient = torch.zeros(1, 1000)
    gradient[0, :20] = torch.tensor([3.0, -2.0] * 10)
    change = L1Ball(4.0).steepest(gradient, torch.zeros(1, 1000), 0.5)
    assert change.abs().sum() == pytest.approx(2.0)
    assert torch.equal(change[0, :20:2], torch.full((10,), 0.2)) and (change[0, 1::2] == 0).all()
    # ten features are one in a hundred; a longer change takes twice as many as it needs
    assert (L1Ball(20.0).steepest(torch.rand(1, 1000) + 1, torch.zeros(1, 1000)) > 0).sum() == 40
    assert torch.equal(L1Ball(4.0).steepest(torch.zeros(2, 5), torch.zeros(2, 5)), torch.zeros(2, 5))


def test_samples_are_uniform_where_the_range_is_far() -> None:
    draw = L1Ball(0.4).sample(torch.full((20_000, 3), 0.5), torch.Generator().manual_seed(0)) - 0.5
    share = (draw.abs().sum(1) / 0.4) ** 3  # uniform on [0, 1]
    torch.testing.assert_close(share.mean(), torch.tensor(0.5), rtol=0, atol=0.01)
    torch.testing.assert_close(draw.mean(0), torch.zeros(3), rtol=0, atol=0.01)


def test_without_a_range_the_minimum_is_that_of_the_dual_norm() -> None:
    ball, x, c = L1Ball(0.7, -math.inf, math.inf), inputs(0, 3, 20), torch.randn(4, 3, 20, dtype=torch.float64)
    dual = 0.7 * c.abs().amax(-1)
    torch.testing.assert_close(ball.concretize(c, x), (c * x).sum(-1) - dual)
    torch.testing.assert_close(ball.unchecked_region(x).spread(c.abs()), dual)
    layer = nn.Linear(20, 4, bias=False).double()
    reach = 0.7 * layer.weight.abs().amax(-1)
    torch.testing.assert_close(ball.first_layer(layer, x).upper, layer(x) + reach)
    for point in (ball.project(9 * x - 4, x), ball.sample(x), ball.project(x + ball.steepest(c[0], x), x)):
        assert (torch.linalg.vector_norm((point - x).double(), 1, dim=1) <= 0.7 + 1e-15).all()
    assert ball.sound_region(x.float()).box.contains(ball.sample(x.float()).double()).all()


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_an_eps_that_is_no_radius_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match=f"eps must be finite and not negative, got {eps}"):
        L1Ball(eps)
