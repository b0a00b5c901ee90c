"""Linear sets: bounds that are exact where no pixel saturates and close with the deltas."""

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from paperlib import Interval, LinearSet, lighting

INF = math.inf


def images(seed: int, batch: int = 3, features: int = 16) -> Tensor:
    """Like digits: half of the pixels at an end of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    kind, grey = torch.rand(2, batch, features, generator=generator, dtype=torch.float64)
    return torch.where(kind < 0.35, 0.0, torch.where(kind > 0.85, 1.0, grey))


def patterns(seed: int, count: int = 2, features: int = 16) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid_of(deltas: Interval, side: int = 9) -> Tensor:
    """[points, batch, K], the corners among them."""
    count = deltas.lower.shape[1]
    share = torch.cartesian_prod(*[torch.linspace(0, 1, side, dtype=torch.float64)] * count).view(-1, 1, count)
    return deltas.lower * (1 - share) + deltas.upper * share


@given(st.integers(0, 2**16), st.floats(0, 2))
def test_bounds_hold_for_all_deltas_of_a_grid(seed: int, radius: float) -> None:
    x, chosen = images(seed), LinearSet(patterns(seed), (radius, radius / 2))
    region = chosen.unchecked_region(x)
    layer = nn.Linear(16, 5).double()
    c = torch.randn(4, 3, 16, dtype=torch.float64)
    least, spread = region.concretize(c), region.spread(c.abs())
    first, box = chosen.first_layer(layer, x).widen(torch.tensor(1e-12)), region.box
    rows = torch.arange(3)
    for deltas in grid_of(region.coordinates):
        point = region.points(deltas, rows)
        assert box.contains(point).all()
        assert (least <= (c * point).sum(-1) + 1e-12).all()
        assert (spread >= (c.abs() * (point - x).abs()).sum(-1) - 1e-12).all()
        assert first.contains(layer(point)).all()
    looser = torch.where(c > 0, c * box.lower, c * box.upper).sum(-1)
    assert (least >= looser - 1e-12).all()


@given(st.integers(0, 2**16), st.floats(0, 1), st.integers(1, 4))
def test_bounds_are_those_of_a_linear_program_where_nothing_saturates(seed: int, radius: float, count: int) -> None:
    x, directions = images(seed), patterns(seed, count)
    chosen = LinearSet(directions, radius, -INF, INF)
    c = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    least = chosen.concretize(c, x)
    layer = nn.Linear(16, 3).double()
    layer.weight.data, layer.bias.data = c, torch.zeros(3).double()
    box = chosen.first_layer(layer, x)
    for example in range(3):
        weights = (directions @ c[example]).numpy()
        program = linprog(weights, bounds=[(-radius, radius)] * count)
        assert least[example].item() == pytest.approx(program.fun + (c[example] @ x[example]).item(), abs=1e-9)
        assert box.lower[example, example].item() == pytest.approx(least[example].item(), abs=1e-9)
        highest = -linprog(-weights, bounds=[(-radius, radius)] * count).fun + (c[example] @ x[example]).item()
        assert box.upper[example, example].item() == pytest.approx(highest, abs=1e-9)


def test_the_gradient_of_the_minimum_is_a_point_that_attains_it_where_nothing_saturates() -> None:
    x, chosen = images(0), LinearSet(patterns(0), 0.3, -5.0, 5.0)
    c = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    least = chosen.concretize(c, x)
    (point,) = torch.autograd.grad(least.sum(), c)
    torch.testing.assert_close((c * point).sum(-1), least, rtol=1e-9, atol=1e-12)
    for row in point:
        torch.testing.assert_close(chosen.project(row, x), row.detach(), rtol=0, atol=1e-12)


def test_coefficients_of_zero_have_a_finite_gradient() -> None:
    c = torch.zeros(3, 16, dtype=torch.float64, requires_grad=True)
    least = lighting().concretize(c, images(0))
    (point,) = torch.autograd.grad(least.sum(), c)
    assert torch.equal(least, torch.zeros(3).double()) and point.isfinite().all()


def test_bounds_close_as_the_deltas_shrink() -> None:
    x, c = images(1), torch.randn(3, 16, dtype=torch.float64)
    region = LinearSet(patterns(1), 2.0).unchecked_region(x)
    rows, gaps = torch.arange(3), []
    for width in (1.0, 0.1, 0.01, 0.001):
        part = region.part(region.coordinates.map(lambda end, width=width: 0.3 + width * end), rows)
        best = torch.stack([(c * part.points(deltas, rows)).sum(-1) for deltas in grid_of(part.coordinates)]).amin(0)
        gaps.append((best - part.concretize(c)).max().item())
    assert gaps[0] > 0.1
    assert all(later < 0.2 * earlier for earlier, later in pairwise(gaps))


def test_the_spread_of_a_part_away_from_x_is_exact() -> None:
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    directions = torch.tensor([[1.0, -1, 0, 2], [0, 1, 1, 0]]).double()
    region = LinearSet(directions, 0.2).unchecked_region(x)
    part = region.part(
        Interval(torch.tensor([[0.1, -0.1]]).double(), torch.tensor([[0.2, 0.1]]).double()), torch.tensor([0])
    )
    weights = torch.tensor([[1.0, 2.0, 3.0, 0.5]]).double()
    corners = [abs(a) + 2 * abs(b - a) + 3 * abs(b) + abs(a) for a, b in product((0.1, 0.2), (-0.1, 0.1))]
    assert part.spread(weights).item() == pytest.approx(max(corners))


def test_a_part_holds_exactly_the_points_of_its_deltas() -> None:
    x = images(2)
    region = lighting().unchecked_region(x)
    rows = torch.tensor([2, 0, 0])
    box = Interval(
        torch.tensor([[-0.2, 0.0], [0.0, 0.1], [0.1, 0.1]]).double(),
        torch.tensor([[0.0, 0.2], [0.1, 0.2], [0.1, 0.1]]).double(),
    )
    part = region.part(box, rows)
    assert torch.equal(part.x, x[rows]) and part.coordinates is box
    for deltas in grid_of(box):
        assert torch.equal(part.points(deltas, torch.arange(3)), region.points(deltas, rows))
        assert part.box.contains(region.points(deltas, rows)).all()
    torch.testing.assert_close(part[1:].concretize(x[rows[1:]]), part.concretize(x[rows])[1:])


def test_the_box_is_attained() -> None:
    region = lighting(0.2, 0.1).unchecked_region(images(3))
    points = torch.stack([region.points(deltas, torch.arange(3)) for deltas in grid_of(region.coordinates)])
    torch.testing.assert_close(points.amin(0), region.box.lower, rtol=0, atol=1e-15)
    torch.testing.assert_close(points.amax(0), region.box.upper, rtol=0, atol=1e-15)


@given(st.integers(0, 2**16), st.sampled_from([torch.float32, torch.float64]), st.floats(0, 1))
def test_points_of_the_set_are_their_own_projection(seed: int, dtype: torch.dtype, radius: float) -> None:
    x = images(seed, features=64).to(dtype)
    chosen = LinearSet(patterns(seed, features=64).to(dtype) / 4, radius)
    point = chosen.sample(x, torch.Generator().manual_seed(seed))
    room = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(chosen.project(point, x), point, rtol=0, atol=room)
    far = chosen.project(x + 3 * torch.randn_like(x), x)
    assert chosen.box(x).contains(far).all()
    assert chosen.sound_region(x).box.contains(far.double()).all()


def test_sound_bounds_hold_for_corners_as_they_are_rounded() -> None:
    x = (0.3 + 0.4 * torch.rand(3, 16)).float()
    chosen = LinearSet(patterns(0)[:1].float(), 0.1)
    rows, sound = torch.arange(3), chosen.sound_region(x)
    layer = nn.Linear(16, 500, bias=False).double()
    image = sound.first_layer(layer).widen(torch.tensor(1e-14))
    for delta in (-0.1, 0.1):
        point = chosen.unchecked_region(x).points(torch.full((3, 1), delta), rows).double()
        assert image.contains(layer(point)).all()
        assert (layer(point) + 1e-14 >= sound.concretize(layer.weight.unsqueeze(1).expand(-1, 3, -1)).T).all()
        weights = torch.rand(500, 3, 16, dtype=torch.float64)
        assert (sound.spread(weights) >= (weights * (point - x).abs()).sum(2) - 1e-14).all()


def test_without_saturation_the_projection_is_the_nearest_point() -> None:
    x, directions = images(4), torch.tensor([[1.0] * 16, [1.0] * 8 + [-1.0] * 8]).double()
    aim = x + torch.randn(3, 16, dtype=torch.float64) / 4
    near = LinearSet(directions, 0.1, -9, 9).project(aim, x)
    deltas = ((aim - x) @ directions.T / 16).clamp(-0.1, 0.1)  # orthogonal directions of length 4
    torch.testing.assert_close(near, x + deltas @ directions, rtol=0, atol=1e-12)


def test_projections_of_points_that_say_nothing_are_x_itself() -> None:
    x = images(5)
    for aim in (torch.full_like(x, INF), torch.ones_like(x), torch.full_like(x, math.nan)):
        assert torch.equal(lighting().project(aim, x), x)


def test_a_radius_of_zero_is_the_point_itself() -> None:
    x, c = images(6), torch.randn(3, 16, dtype=torch.float64)
    alone = LinearSet(patterns(6), 0.0)
    for end in alone.box(x):
        assert torch.equal(end, x)
    assert torch.equal(alone.project(x + 0.1, x), x)
    torch.testing.assert_close(alone.concretize(c, x), (c * x).sum(-1), rtol=0, atol=1e-14)


def test_a_direction_of_radius_zero_is_not_taken() -> None:
    x, both = images(7), patterns(7)
    c = torch.randn(3, 16, dtype=torch.float64)
    alone, frozen = LinearSet(both[:1], 0.3), LinearSet(both, (0.3, 0.0))
    torch.testing.assert_close(alone.concretize(c, x), frozen.concretize(c, x))


def test_the_steepest_change_is_the_corner_that_raises_a_linear_function_most() -> None:
    x, directions, gradient = images(8), patterns(8), torch.randn(3, 16, dtype=torch.float64)
    change = LinearSet(directions, (0.2, 0.1), -INF, INF).steepest(gradient, x)
    corners = [a * directions[0] + b * directions[1] for a, b in product((-0.2, 0.2), (-0.1, 0.1))]
    torch.testing.assert_close((gradient * change).sum(1), torch.stack([gradient @ d for d in corners]).amax(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSet(torch.ones(1, 3), -0.1), "radius must be finite and not negative"),
        (lambda: LinearSet(torch.ones(1, 3), math.nan), "radius must be finite and not negative"),
        (lambda: LinearSet(torch.ones(2, 3), (0.1, INF)), "radius must be finite and not negative"),
        (lambda: LinearSet(torch.ones(2, 3), (0.1, 0.1, 0.1)), "2 directions, but 3 radii"),
        (lambda: LinearSet(torch.ones(3), 0.1), r"must be finite and \[K, \*data_shape\]"),
        (lambda: LinearSet(torch.full((1, 3), math.nan), 0.1), "must be finite"),
        (lambda: LinearSet(torch.ones(1, 3), 0.1, 1.0, 0.0), "low < high"),
        (lambda: LinearSet(torch.ones(1, 4), 0.1).box(torch.zeros(2, 3)), r"shape \[1, 4\] do not fit x of \[2, 3\]"),
        (lambda: LinearSet(lambda x: x, 0.1).box(torch.zeros(2, 3)), r"shape \[2, 3\] do not fit x of \[2, 3\]"),
    ],
)
def test_what_is_no_set_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
