"""Bounds of the reparametrisation and of the KL against dense grids, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import ROUNDING, assert_encloses, grid, points_of, random_box
from torch import Tensor

from paperlib import Interval
from paperlib.bounds.linear import LinearRelaxation
from paperlib.certificates.posterior_bounds import (
    kl_bounds,
    kl_upper,
    negative_kl_above,
    negative_kl_below,
    reparametrize_bounds,
    scale_relaxation,
)
from paperlib.models.gaussian import kl, reparametrize

ENDS = st.tuples(st.floats(-6, 6), st.floats(-6, 6)).map(sorted)
NOISE = st.floats(-4, 4)


def box_of(ends: list[float]) -> Interval:
    return Interval(*(torch.tensor([[end]], dtype=torch.float64) for end in ends))


def pairs(first: list[float], second: list[float]) -> tuple[Tensor, Tensor]:
    """All pairs of two grids that hold both ends, and 0 where it lies inside, as two columns [pairs, 1]."""
    grids = [torch.cat([grid(*ends, 41), torch.zeros(1).double().clamp(*ends)]) for ends in (first, second)]
    return tuple(torch.cartesian_prod(*grids).T[:, :, None])


@given(ENDS, ENDS)
def test_the_range_of_the_divergence_is_that_of_a_dense_grid(mean: list[float], log_var: list[float]) -> None:
    bounds, values = kl_bounds(box_of(mean), box_of(log_var)), kl(*pairs(mean, log_var))
    assert_encloses(bounds, values[:, None])
    # Both ends are exact: the grid holds the end points and the minimiser.
    torch.testing.assert_close(bounds.upper[0], values.max(), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(bounds.lower[0], values.min(), rtol=ROUNDING, atol=ROUNDING)


@given(ENDS, ENDS, NOISE)
def test_the_latent_box_is_that_of_a_dense_grid(mean: list[float], log_var: list[float], noise: float) -> None:
    xi = torch.tensor([[noise]], dtype=torch.float64)
    bounds, values = reparametrize_bounds(box_of(mean), box_of(log_var), xi), reparametrize(*pairs(mean, log_var), xi)
    assert_encloses(bounds, values[:, None])
    torch.testing.assert_close(bounds.upper[0, 0], values.max(), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(bounds.lower[0, 0], values.min(), rtol=ROUNDING, atol=ROUNDING)


BOX = (
    ENDS
    | st.tuples(st.floats(-40, 40), st.floats(-40, 40)).map(sorted)
    | st.floats(-20, 20).map(lambda end: [end, end])
    | st.sampled_from([[0.0, 0.0], [-1e-12, 1e-12], [3.0, 3.0 + 1e-12], [-2000.0, -1900.0], [-2000.0, 5.0]])
)


@given(BOX)
def test_relaxations_of_the_scale_and_of_both_terms_of_the_divergence_hold_on_a_dense_grid(ends: list[float]) -> None:
    box, points = box_of(ends), torch.cat([grid(*ends, 801), torch.zeros(1).double().clamp(*ends)])
    mean_term, log_var_term = map(LinearRelaxation, negative_kl_below(box, box), negative_kl_above(box, box))
    curves = {
        "scale": (scale_relaxation(box), torch.exp(points / 2)),
        "mean": (mean_term, -points.square() / 2),
        "log_var": (log_var_term, (points + 1 - torch.exp(points)) / 2),
    }
    for name, (relaxation, values) in curves.items():
        for sign, function in ((1, relaxation.lower), (-1, relaxation.upper)):
            above = sign * (values - (function.slope * points + function.offset).flatten())
            # the terms of log_var are summed from numbers as large as points and exp
            size = 1 + values.abs() + (function.slope * points).abs() + function.offset.abs() + points.abs()
            assert (above >= -ROUNDING * size).all(), name
            if ends[1] - ends[0] < 6 and ends[0] > -40:  # tangents touch between two points of the grid
                assert above.min() < 1e-3 * (1 + values.abs().max()), f"{name}: a bound that touches nowhere"


@given(st.integers(0, 2**16), st.integers(1, 3))
def test_several_coordinates_are_summed_within_each_example(seed: int, size: int) -> None:
    torch.manual_seed(seed)
    mean, log_var, noise = random_box(2, size), random_box(2, size), torch.randn(2, size, dtype=torch.float64)
    both = Interval(*(torch.cat(ends, dim=1) for ends in zip(mean, log_var, strict=True)))
    points = [point.chunk(2, dim=1) for point in points_of(*both)]
    assert_encloses(kl_bounds(mean, log_var), torch.stack([kl(*point) for point in points]))
    latent = torch.stack([reparametrize(*point, noise) for point in points])
    assert_encloses(reparametrize_bounds(mean, log_var, noise), latent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_point_boxes_give_the_values_bit_for_bit(dtype: torch.dtype) -> None:
    mean, log_var, noise = torch.randn(3, 20, 5, dtype=dtype)
    boxes = Interval(mean, mean), Interval(log_var, log_var)
    for end in kl_bounds(*boxes):
        assert torch.equal(end, kl(mean, log_var))
    for end in reparametrize_bounds(*boxes, noise):
        assert torch.equal(end, reparametrize(mean, log_var, noise))


def test_the_upper_end_alone_is_the_same_upper_end() -> None:
    boxes = random_box(5, 3), random_box(5, 3)
    assert torch.equal(kl_upper(*boxes), kl_bounds(*boxes).upper)


def test_bounds_are_differentiable_in_the_boxes() -> None:
    noise = torch.randn(2, 3, dtype=torch.float64)

    def ends(*tensors: Tensor) -> Tensor:
        mean, log_var = Interval(*tensors[:2]), Interval(*tensors[2:])
        return torch.cat([*kl_bounds(mean, log_var), *reparametrize_bounds(mean, log_var, noise).map(torch.flatten)])

    leaves = [end.requires_grad_() for _ in range(2) for end in random_box(2, 3)]
    assert torch.autograd.gradcheck(ends, leaves)
