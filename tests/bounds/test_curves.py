"""Chords: their closed-form backward passes against autograd's of the formula, in float64."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from paperlib import Interval
from paperlib.bounds.curves import chord_above, chord_below, is_nonnegative, relu_chord, sigmoidal
from paperlib.bounds.linear import LinearFunction, initial_alpha


@pytest.mark.parametrize(("chord", "sign"), [(chord_above, 1), (chord_below, -1)])
def test_the_backward_pass_of_a_chord_is_that_of_its_formula(chord: Callable, sign: int) -> None:
    low = torch.randn(50).double().requires_grad_()
    high = (low.detach() + 0.1 + torch.rand(50).double()).requires_grad_()
    rate = torch.tensor(0.7).double().requires_grad_()  # a parameter of the layer
    along = torch.randn(2, 50).double()

    def function(v: Tensor) -> Tensor:
        return sign * torch.exp(rate * v)

    bound = chord(function, lambda v: sign * rate.detach() * torch.exp(rate.detach() * v), Interval(low, high))
    slope = (function(high) - function(low)) / (high - low)
    expected = torch.autograd.grad(
        (along[0] * slope + along[1] * (function(low) - slope * low)).sum(), [low, high, rate]
    )
    gradients = torch.autograd.grad((along[0] * bound.slope + along[1] * bound.offset).sum(), [low, high, rate])
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_backward_pass_of_the_chord_of_relu_is_that_of_its_formula() -> None:
    ends = [torch.tensor(end).double().requires_grad_() for end in ([-1.0, 0.5, -3.0, -0.1], [2.0, 0.75, -1.0, 5.0])]
    along = torch.randn(2, 4).double()
    p, q = ends[1].relu(), (-ends[0]).relu()
    expected = torch.autograd.grad((along[0] * p / (p + q) + along[1] * p * q / (p + q)).sum(), ends)
    gradients = torch.autograd.grad((along * torch.stack(relu_chord(Interval(*ends)))).sum(), ends)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_lines_of_a_sigmoidal_curve_are_tangents_through_the_other_end() -> None:
    # tanh over [-2, 1]: the lower line meets the curve at 1 and touches it at some t < 0; the first line of the family
    # has the slope at -2, the least of the box.
    low, high = torch.tensor([-2.0]).double(), torch.tensor([1.0]).double()
    relaxation = sigmoidal(torch.tanh, lambda v: 1 - torch.tanh(v) ** 2, Interval(low, high))
    points = torch.linspace(-2, 1, 3001).double()
    lower, upper = (initial_alpha(bound) for bound in (relaxation.lower, relaxation.upper))
    below, above = (points.tanh() - line.slope * points - line.offset for line in (lower, upper))
    assert below.min() >= -1e-12 and above.max() <= 1e-12
    assert below[-1] <= 1e-4 and below[points < 0].min() <= 1e-4  # at the end, and where it touches
    least = relaxation.lower.first  # of the least slope, through the lower end
    assert least.slope.item() == pytest.approx(1 - math.tanh(2) ** 2)
    assert below.sum() < (points.tanh() - least.slope * points - least.offset).sum()


@pytest.mark.parametrize("chord", [relu_chord, partial(chord_above, torch.exp, torch.exp)])
def test_the_chord_of_a_point_has_a_finite_gradient(chord: Callable) -> None:
    ends = [torch.tensor([-1.0, 0.0, 2.0], requires_grad=True) for _ in range(2)]
    function = chord(Interval(*ends))
    slope, offset = (function.slope, function.offset) if isinstance(function, LinearFunction) else function
    assert all(part.isfinite().all() for part in torch.autograd.grad((slope + offset).sum(), ends))


def test_is_nonnegative_is_the_mask_of_values_from_zero_on() -> None:
    values = torch.tensor([-1e30, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, 1e30])
    assert is_nonnegative(values).tolist() == (values >= 0).float().tolist()
