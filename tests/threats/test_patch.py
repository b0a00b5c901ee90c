"""Patches: every position and corner by brute force, nearest points, streaming, and shapes of images."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from paperlib import PatchSet

SHAPES = [(5, 4), (1, 5, 4), (3, 5, 4)]


def images(seed: int, batch: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kind, grey = torch.rand(2, batch, *shape, generator=generator, dtype=torch.float64)
    return torch.where(kind < 0.35, 0.0, torch.where(kind > 0.85, 1.0, grey))


def windows(shape: tuple[int, ...], height: int, width: int, stride: int) -> Iterator[Tensor]:
    """True inside each position of the patch, in the order of reading."""
    for top in range(0, shape[-2] - height + 1, stride):
        for left in range(0, shape[-1] - width + 1, stride):
            inside = torch.zeros(shape, dtype=torch.bool)
            inside[..., top : top + height, left : left + width] = True
            yield inside


@given(st.integers(0, 2**16), st.sampled_from(SHAPES), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_minimum_spread_and_first_layer_are_those_of_all_positions(
    seed: int, shape: tuple[int, ...], height: int, width: int, stride: int
) -> None:
    x, patch = images(seed, 2, shape), PatchSet(height, width, stride)
    c = torch.randn(3, 2, *shape, dtype=torch.float64)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4)).double()
    region = patch.unchecked_region(x)
    first, covered = patch.first_layer(layer, x), torch.zeros(shape, dtype=torch.bool)
    least, spread, low, high = [], [], [], []
    for inside in windows(shape, height, width, stride):
        covered |= inside
        worst = torch.where(inside, (c < 0).double(), x)
        least.append((c * worst).flatten(2).sum(-1))
        spread.append((c.abs() * torch.where(inside, torch.maximum(x, 1 - x), 0)).flatten(2).sum(-1))
        weight = layer[1].weight.view(4, 1, *shape)
        for ends, corner in ((low, weight < 0), (high, weight > 0)):
            points = torch.where(inside, corner.double(), x)
            ends.append((weight * points).flatten(2).sum(-1).T + layer[1].bias)
    torch.testing.assert_close(region.concretize(c), torch.stack(least).amin(0))
    torch.testing.assert_close(region.spread(c.abs()), torch.stack(spread).amax(0))
    torch.testing.assert_close(first.lower, torch.stack(low).amin(0))
    torch.testing.assert_close(first.upper, torch.stack(high).amax(0))
    torch.testing.assert_close(region.box.lower, torch.where(covered, 0.0, x))
    torch.testing.assert_close(region.box.upper, torch.where(covered, 1.0, x))


def test_the_minimum_is_the_least_of_the_linear_programs_of_the_positions() -> None:
    x, c = images(0, 1, (4, 4)), torch.randn(1, 4, 4, dtype=torch.float64)
    values = []
    for inside in windows((4, 4), 2, 3, 1):
        bounds = [(0, 1) if free else (v, v) for free, v in zip(inside.flatten(), x.flatten().tolist(), strict=True)]
        values.append(linprog(c.flatten().numpy(), bounds=bounds).fun)
    assert PatchSet(2, 3).concretize(c, x).item() == pytest.approx(min(values), rel=1e-9)


@given(st.integers(0, 2**16), st.sampled_from(SHAPES))
def test_the_gradient_of_the_minimum_is_a_point_that_attains_it(seed: int, shape: tuple[int, ...]) -> None:
    x, patch = images(seed, 2, shape), PatchSet(2, 2)
    c = torch.randn(3, 2, *shape, dtype=torch.float64, requires_grad=True)
    least = patch.concretize(c, x)
    (points,) = torch.autograd.grad(least.sum(), c)
    torch.testing.assert_close((c * points).flatten(2).sum(-1), least, rtol=1e-9, atol=1e-12)
    for point in points:
        assert torch.equal(patch.project(point, x), point)


@given(st.integers(0, 2**16), st.sampled_from(SHAPES), st.integers(1, 3))
def test_the_projection_is_the_nearest_point(seed: int, shape: tuple[int, ...], stride: int) -> None:
    x, aim, patch = images(seed, 2, shape), images(seed + 1, 2, shape), PatchSet(2, 3, stride)
    near = patch.project(aim, x)
    distances = [
        (torch.where(inside, aim, x) - aim).flatten(1).square().sum(1) for inside in windows(shape, 2, 3, stride)
    ]
    torch.testing.assert_close((near - aim).flatten(1).square().sum(1), torch.stack(distances).amin(0))
    assert torch.equal(patch.project(near, x), near)


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_lie_in_one_window_each_and_reach_all(shape: tuple[int, ...]) -> None:
    x, patch = images(0, 1, shape).expand(500, *shape), PatchSet(2, 3)
    draw = patch.sample(x, torch.Generator().manual_seed(0))
    assert torch.equal(draw, patch.sample(x, torch.Generator().manual_seed(0)))
    assert torch.equal(patch.project(draw, x), draw)
    changed = draw != x
    masks = torch.stack([*windows(shape, 2, 3, 1)])
    holds = (changed.unsqueeze(1) <= masks).flatten(2).all(2)  # [samples, positions]
    assert holds.any(1).all() and holds.any(0).all()


def test_flat_data_are_images_of_their_shape() -> None:
    x, c = images(0, 2, (3, 4, 4)), torch.randn(5, 2, 3, 4, 4, dtype=torch.float64)
    expected = PatchSet(2, 2).concretize(c, x)
    flat = PatchSet(2, 2, shape=(3, 4, 4))
    assert torch.equal(flat.concretize(c.flatten(2), x.flatten(1)), expected)
    assert torch.equal(flat.project(x.flatten(1) + 1, x.flatten(1)), PatchSet(2, 2).project(x + 1, x).flatten(1))
    square = PatchSet(2, 2).concretize(c[:, :, 0].flatten(2), x[:, 0].flatten(1))
    assert torch.equal(square, PatchSet(2, 2).concretize(c[:, :, 0], x[:, 0]))


def test_some_rows_at_a_time_are_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c, patch = images(0, 2, (5, 4)), torch.randn(2, 3, 2, 5, 4, dtype=torch.float64), PatchSet(2, 2)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(20, 7)).double()
    least, box = patch.concretize(c, x), patch.first_layer(layer, x)
    monkeypatch.setattr("paperlib.threats.patch.STREAMED", 1)
    assert torch.equal(patch.concretize(c, x), least)
    for end, whole in zip(patch.first_layer(layer, x), box, strict=True):
        torch.testing.assert_close(end, whole, rtol=0, atol=1e-14)


def test_a_larger_patch_holds_the_smaller_one_and_a_coarser_stride_fewer_points() -> None:
    x, c = images(0, 2, (6, 6)), torch.randn(20, 2, 6, 6, dtype=torch.float64)
    small, large, coarse = (PatchSet(*sides).concretize(c, x) for sides in ((2, 2), (3, 2), (2, 2, 2)))
    assert (large <= small + 1e-12).all() and (small <= coarse + 1e-12).all()
    assert (large < small).any() and (small < coarse).any()


def test_the_steepest_change_is_largest_in_the_window_of_largest_gradient() -> None:
    gradient = torch.full((1, 4, 4), 0.1)
    gradient[0, 2:, 1:3] = -1.0
    change = PatchSet(2, 2).steepest(gradient, torch.zeros(1, 4, 4), 0.5)
    expected = torch.full((1, 4, 4), 0.25)
    expected[0, 2:, 1:3] = -0.5
    assert torch.equal(change, expected)


def test_an_attack_goes_on_in_its_window_where_the_gradient_is_larger_elsewhere() -> None:
    x, patch = torch.zeros(1, 4, 4, dtype=torch.float64), PatchSet(2, 2)
    point = x.clone()
    point[0, :2, :2] = 0.9
    gradient = torch.full_like(x, -0.1)
    gradient[0, 2:, 2:] = -1
    moved = patch.project(point - patch.steepest(gradient, x, 0.2), x)
    assert (moved[0, :2, :2] > 0.9).all() and (moved[0, 2:, 2:] == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchSet(0, 2), "at least 1, got 0, 2, 1"),
        (lambda: PatchSet(2, -1), "at least 1, got 2, -1, 1"),
        (lambda: PatchSet(2, 2, 0), "at least 1, got 2, 2, 0"),
        (lambda: PatchSet(2, 2, high=math.inf), "finite data range"),
        (lambda: PatchSet(2, 2, low=math.nan), "low < high"),
        (lambda: PatchSet(2, 2).box(torch.zeros(1, 5)), "are no images"),
        (lambda: PatchSet(5, 2).box(torch.zeros(1, 4, 4)), "5 x 2 is larger than images of 4 x 4"),
        (lambda: PatchSet(2, 2, shape=(3, 3)).box(torch.zeros(1, 16)), r"shape \[1, 3, 3\] do not fit x of \[1, 16\]"),
    ],
)
def test_what_is_no_set_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
