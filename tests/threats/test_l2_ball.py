"""The l2 ball: minima and projections against scipy, attaining points, its first layer, and rounding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn

from paperlib import L2Ball
from paperlib.threats.l2_ball import multiplier

DTYPES = st.sampled_from([torch.float32, torch.float64])


def inputs(seed: int, batch: int, features: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Like digits: half of the features at an end of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    kind, grey = torch.rand(2, batch, features, generator=generator, dtype=torch.float64)
    return torch.where(kind < 0.35, 0.0, torch.where(kind > 0.85, 1.0, grey)).to(dtype)


def scales(seed: int, *shape: int) -> Tensor:
    """Numbers of both signs over six orders of magnitude, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3)
    return size * torch.randint(-1, 2, shape, generator=generator)


def solved(c: np.ndarray, x: np.ndarray, eps: float, aim: np.ndarray | None = None) -> float:
    """The minimum of c . x' over ball and range, or of ||x' - aim||^2, by sequential quadratic programming."""
    result = minimize(
        (lambda d: c @ (x + d)) if aim is None else (lambda d: ((x + d - aim) ** 2).sum()),
        np.zeros_like(x),
        jac=(lambda d: c) if aim is None else (lambda d: 2 * (x + d - aim)),
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints=[{"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d}],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.status in (0, 8), result.message  # 8: rounding lets no step improve, as at the minimum
    return result.fun


@given(st.integers(0, 2**16), st.floats(0.05, 3))
def test_the_minimum_of_a_linear_function_is_that_of_scipy(seed: int, eps: float) -> None:
    x = inputs(seed, 2, 6)
    c = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    least = L2Ball(eps).concretize(c, x)
    for row in range(3):
        for example in range(2):
            truth = solved(c[row, example].numpy(), x[example].numpy(), eps)
            assert least[row, example].item() == pytest.approx(truth, rel=1e-7, abs=1e-7)


@given(st.integers(0, 2**16), st.sampled_from([0.0, 1e-9, 0.03, 0.5, 2.0, 30.0]))
def test_the_gradient_of_the_minimum_is_a_point_that_attains_it(seed: int, eps: float) -> None:
    x, c = inputs(seed, 3, 40), scales(seed, 2, 3, 40).requires_grad_()
    least = L2Ball(eps).concretize(c, x)
    (point,) = torch.autograd.grad(least.sum(), c)
    assert (point >= 0).all() and (point <= 1).all()
    assert ((point - x).norm(dim=-1) <= eps * (1 + 1e-9) + 1e-15).all()
    torch.testing.assert_close((c * point).sum(-1), least, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 2**16), st.floats(0, 3))
def test_no_point_has_a_lower_value_than_the_minimum_or_a_larger_spread(seed: int, eps: float) -> None:
    x, c, ball = inputs(seed, 2, 30), scales(seed, 3, 2, 30), L2Ball(eps)
    least, spread = ball.concretize(c, x), ball.unchecked_region(x).spread(c.abs())
    for _ in range(20):
        point = ball.sample(x)
        assert (least <= (c * point).sum(-1) + 1e-12 * c.abs().sum(-1)).all()
        assert (spread >= (c.abs() * (point - x).abs()).sum(-1) - 1e-12 * c.abs().sum(-1)).all()


def test_the_spread_is_attained_where_every_feature_takes_its_longer_way() -> None:
    x, weights = inputs(0, 4, 20), torch.rand(3, 4, 20, dtype=torch.float64).requires_grad_()
    spread = L2Ball(0.7).unchecked_region(x).spread(weights)
    (sizes,) = torch.autograd.grad(spread.sum(), weights)
    assert (sizes <= torch.maximum(x, 1 - x)).all() and (sizes.norm(dim=-1) <= 0.7 + 1e-12).all()
    torch.testing.assert_close((weights * sizes).sum(-1), spread, rtol=1e-12, atol=1e-12)


def test_any_multiplier_gives_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c, ball = inputs(0, 3, 40), scales(1, 2, 3, 40), L2Ball(0.5)
    exact = ball.concretize(c, x)
    monkeypatch.setattr("paperlib.threats.l2_ball.STEPS", 1)
    early = ball.concretize(c, x)
    assert (early <= exact + 1e-12 * exact.abs()).all() and (early < exact - 1e-6).any()


@given(st.integers(0, 2**16), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]), DTYPES)
def test_coefficients_of_any_size_have_finite_minima_and_gradients(seed: int, size: float, dtype: torch.dtype) -> None:
    x, c = inputs(seed, 2, 10, dtype), (size * scales(seed, 2, 10)).to(dtype).requires_grad_()
    least = L2Ball(0.3).concretize(c, x)
    (point,) = torch.autograd.grad(least.sum(), c)
    assert least.isfinite().all() and point.isfinite().all()
    assert ((point - x).norm(dim=-1) <= 0.3 * (1 + 1e-5)).all()


def test_coefficients_of_zero_have_the_minimum_zero_and_a_gradient() -> None:
    x, c = inputs(0, 2, 5), torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    least = L2Ball(0.3).concretize(c, x)
    (point,) = torch.autograd.grad(least.sum(), c)
    assert torch.equal(least, torch.zeros(2).double()) and point.isfinite().all()


@given(st.integers(0, 2**16), st.floats(0.05, 2))
def test_the_projection_is_the_nearest_point(seed: int, eps: float) -> None:
    x = inputs(seed, 3, 6)
    aim = 2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    near = L2Ball(eps).project(aim, x)
    for example in range(3):
        truth = solved(np.zeros(6), x[example].numpy(), eps, aim[example].numpy())
        assert ((near - aim)[example] ** 2).sum().item() == pytest.approx(truth, rel=1e-6, abs=1e-6)


@given(st.integers(0, 2**16), st.sampled_from([0.0, 1e-8, 1e-4, 0.1, 1.0, 5.0]), DTYPES)
def test_no_rounding_takes_a_projection_out_of_the_ball(seed: int, eps: float, dtype: torch.dtype) -> None:
    x, ball = inputs(seed, 4, 50, dtype), L2Ball(eps)
    for aim in (torch.randn(4, 50).to(dtype), x + eps * torch.randn(4, 50).to(dtype), ball.sample(x)):
        near = ball.project(aim, x)
        assert near.dtype == dtype and (near >= 0).all() and (near <= 1).all()
        assert ((near.double() - x.double()).norm(dim=1) <= eps).all()
        assert ((near - x).norm(dim=1) <= eps).all()  # in its own precision, too
        assert torch.equal(ball.project(near, x), near)
        assert ball.box(x).contains(near).all()


def test_points_of_the_ball_are_their_own_projection_and_infinite_ones_come_to_its_edge() -> None:
    x = torch.full((1, 3), 0.5)
    inside = torch.tensor([[0.6, 0.4, 0.5]])
    assert torch.equal(L2Ball(0.2).project(inside, x), inside)
    far = L2Ball(0.2).project(torch.tensor([[math.inf, -math.inf, 0.5]]), x)
    torch.testing.assert_close(far, torch.tensor([[0.5 + 0.2 / 2**0.5, 0.5 - 0.2 / 2**0.5, 0.5]]))


@pytest.mark.parametrize("layers", ["linear", "flat", "scaled", "conv"])
@pytest.mark.parametrize("eps", [0.0, 0.4, 3.0])
def test_the_box_of_a_first_layer_holds_its_values_and_is_reached_inside_the_range(layers: str, eps: float) -> None:
    torch.manual_seed(1)
    shape = (12,) if layers == "linear" else (3, 2, 2)
    layer = {
        "linear": nn.Linear(12, 7),
        "flat": nn.Sequential(nn.Flatten(), nn.Linear(12, 7)),
        "scaled": nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten(), nn.Linear(12, 7)),
        "conv": nn.Conv2d(3, 4, 2, padding=1),
    }[layers].double()
    x = inputs(3, 4, 12).view(4, *shape)
    box = L2Ball(eps).first_layer(layer, x)
    for _ in range(200):
        assert box.widen(torch.tensor(1e-12)).contains(layer(L2Ball(eps).sample(x))).all()
    if eps == 0:
        for end in box:
            torch.testing.assert_close(end, layer(x), rtol=0, atol=1e-14)
        return
    # far from the ends of the range the Cauchy-Schwarz inequality is an equality
    inner = torch.full_like(x, 0.5)
    rows = torch.autograd.functional.jacobian(lambda v: layer(v).sum(0).flatten(), inner[:1])[:, 0].flatten(1)
    ends = L2Ball(0.2).first_layer(layer, inner)
    reach = 0.2 * rows.norm(dim=1).view_as(ends.lower[0])
    torch.testing.assert_close(ends.upper - layer(inner), reach.expand_as(ends.upper), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(inner) - ends.lower, reach.expand_as(ends.upper), rtol=1e-12, atol=1e-12)


def test_a_first_layer_takes_only_features_that_can_move() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, -4.0]])
    x = torch.tensor([[0.0, 1.0, 0.5]])  # the first cannot fall, the second cannot rise
    box = L2Ball(0.1).first_layer(layer, x)
    torch.testing.assert_close(layer(x) - box.lower, torch.tensor([[0.1 * 20**0.5]]))
    torch.testing.assert_close(box.upper - layer(x), torch.tensor([[0.1 * 17**0.5]]))


def test_a_first_layer_has_finite_gradients_where_rows_are_zero() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data[1] = 0
    box = L2Ball(0.1).first_layer(layer, torch.zeros(2, 4))
    (box.upper - box.lower).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()


def test_the_steepest_change_has_the_radius_as_its_length() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-30, 0.0], [0.0, -1e30]])
    change = L2Ball(0.5).steepest(gradient, torch.zeros(4, 2), 2.0)
    torch.testing.assert_close(change, torch.tensor([[0.6, -0.8], [0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]))


def test_samples_are_uniform_where_the_range_is_far() -> None:
    draw = L2Ball(0.4).sample(torch.full((20_000, 3), 0.5), torch.Generator().manual_seed(0)) - 0.5
    share = (draw.norm(dim=1) / 0.4) ** 3  # uniform on [0, 1]
    torch.testing.assert_close(share.mean(), torch.tensor(0.5), rtol=0, atol=0.01)
    torch.testing.assert_close(draw.mean(0), torch.zeros(3), rtol=0, atol=0.01)


@given(st.integers(0, 2**16), st.floats(0.01, 5))
def test_newton_stays_below_the_multiplier_and_arrives(seed: int, eps: float) -> None:
    weights = scales(seed, 4, 60).abs()
    weights = weights / weights.amax(1, keepdim=True).clamp(min=1e-300)
    caps = scales(seed + 1, 4, 60).abs()
    t, inverse = multiplier(weights, caps, eps)
    length = torch.minimum(t * weights, caps).norm(dim=1, keepdim=True)
    assert (length <= eps * (1 + 1e-12)).all()
    assert ((length >= eps * (1 - 1e-10)) | (inverse == 0)).all()


def test_without_a_range_the_minimum_is_that_of_the_dual_norm() -> None:
    ball, x, c = L2Ball(0.7, -math.inf, math.inf), inputs(0, 3, 20), torch.randn(4, 3, 20, dtype=torch.float64)
    dual = 0.7 * c.abs().norm(dim=-1)
    torch.testing.assert_close(ball.concretize(c, x), (c * x).sum(-1) - dual)
    torch.testing.assert_close(ball.unchecked_region(x).spread(c.abs()), dual)
    layer = nn.Linear(20, 4, bias=False).double()
    reach = 0.7 * layer.weight.abs().norm(dim=-1)
    torch.testing.assert_close(ball.first_layer(layer, x).upper, layer(x) + reach)
    for point in (ball.project(9 * x - 4, x), ball.sample(x), ball.project(x + ball.steepest(c[0], x), x)):
        assert (torch.linalg.vector_norm((point - x).double(), 2, dim=1) <= 0.7 + 1e-15).all()
    assert ball.sound_region(x.float()).box.contains(ball.sample(x.float()).double()).all()


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_an_eps_that_is_no_radius_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match=f"eps must be finite and not negative, got {eps}"):
        L2Ball(eps)


def test_an_empty_data_range_is_refused() -> None:
    with pytest.raises(ValueError, match="needs low < high"):
        L2Ball(0.1, 1.0, 0.0)
