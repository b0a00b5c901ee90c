"""The check of rules: passes right ones, and each usual mistake is shown a counterexample."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random_box
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib import (
    Interval,
    LinearFunction,
    LinearRelaxation,
    Rounding,
    SmoothCurve,
    check_rules,
    convex,
    interval_rule,
    relaxation_rule,
    rounding_rule,
    smooth,
)
from paperlib.bounds.interval import affine
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import UnsupportedLayerError

ALL = ("interval_rule", "relaxation_rule", "rounding_rule")
RIGHT = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 4, 4)),
    "batch norm": (lambda: nn.BatchNorm1d(5).eval(), (5,)),
    "flatten": (nn.Flatten, (2, 3)),
    "relu": (lambda: nn.ReLU(inplace=True), (5,)),
    "softplus": (nn.Softplus, (5,)),
    "sigmoid": (nn.Sigmoid, (5,)),
    "gelu": (nn.GELU, (5,)),
    "selu": (nn.SELU, (5,)),
    "hardtanh": (nn.Hardtanh, (5,)),
    "prelu": (lambda: nn.PReLU(5), (5,)),
    "max": (lambda: nn.MaxPool2d(2), (2, 4, 4)),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d(3), (2, 4, 4)),
    "upsample": (lambda: nn.Upsample(scale_factor=2), (2, 2, 2)),
}


@pytest.mark.parametrize("name", RIGHT)
@settings(max_examples=2)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 10.0]))
def test_right_rules_pass(name: str, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    make, shape = RIGHT[name]
    layer, box = make(), random_box(2, *shape).map(lambda end: scale * end)
    kept = [tensor.clone() for tensor in (*box, *layer.parameters())]
    assert check_rules(layer, box) == ALL
    for tensor, before in zip((*box, *layer.parameters()), kept, strict=True):
        assert torch.equal(tensor, before) and tensor.dtype == before.dtype, "changed by the check"


# Wrong rules


def own(
    function: Callable[[Tensor], Tensor],
    interval: Callable | None = None,
    relaxation: Callable | None = None,
    rounding: Callable | None = None,
) -> nn.Module:
    """A layer of a new type that computes the function, with these rules; by default the one for increasing ones."""

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    interval_rule.register(Own, interval or (lambda layer, box: box.map(layer)))
    for rules, rule in ((relaxation_rule, relaxation), (rounding_rule, rounding)):
        if rule is not None:
            rules.register(Own, rule)
    return Own()


def dense(inputs: int, outputs: int, interval: Callable | None = None, relaxation: Callable | None = None) -> nn.Module:
    """A linear layer of a new type with these rules."""

    class Dense(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias)

    interval_rule.register(Dense, interval or interval_rule.dispatch(nn.Linear))
    if relaxation is not None:
        relaxation_rule.register(Dense, relaxation)
    return Dense(inputs, outputs)


def box_across_zero(*shape: int) -> Interval:
    return Interval(torch.full(shape, -2.0), torch.full(shape, 3.0))


FALLING = {
    "gelu": F.gelu,
    "silu": F.silu,
    "sine": torch.sin,
    "square": torch.square,
    "negative": torch.neg,
    "late": lambda v: (v - 2.9).abs(),
}


@pytest.mark.parametrize("name", FALLING)
def test_a_monotone_rule_for_a_function_that_falls_is_refuted(name: str) -> None:
    with pytest.raises(ValueError, match="the interval rule is wrong") as error:
        check_rules(own(FALLING[name]), box_across_zero(2, 3))
    message = r"wrong at output \[\d, \d\]: the (\w+) end is (\S+) where the layer gives (\S+), for the input (\S+)"
    end, claimed, value, at = re.search(message, str(error.value)).groups()
    assert FALLING[name](torch.tensor(float(at), dtype=torch.float64)).item() == pytest.approx(float(value), rel=1e-6)
    assert float(value) < float(claimed) if end == "lower" else float(value) > float(claimed)


WRONG_BOXES: dict[str, Callable] = {
    "no absolute value": lambda layer, box: affine(box, layer, lambda r: r @ layer.weight.T, summands=40),
    "a percent short": lambda layer, box: affine(box, layer, lambda r: 0.99 * r @ layer.weight.abs().T, summands=40),
    "the ends alone": lambda layer, box: box.map(layer),
    "not a number": lambda layer, box: box.map(lambda end: layer(end) * math.nan),
}


@pytest.mark.parametrize("name", WRONG_BOXES)
def test_a_wrong_box_of_a_dense_layer_is_refuted(name: str) -> None:
    with pytest.raises(ValueError, match="the interval rule is wrong at output"):
        check_rules(dense(40, 6, WRONG_BOXES[name]), box_across_zero(2, 40))


def right_lines(layer: nn.Module, box: Interval) -> LinearRelaxation:
    return convex(torch.exp, torch.exp, box)


def raised_lines(layer: nn.Module, box: Interval) -> LinearRelaxation:
    right = right_lines(layer, box)
    return LinearRelaxation(LinearFunction(right.lower.slope, right.lower.offset + 1e-6), right.upper)


def swapped_lines(layer: nn.Module, box: Interval) -> LinearRelaxation:
    right = right_lines(layer, box)
    return LinearRelaxation(right.upper, right.lower)


@pytest.mark.parametrize("wrong", [swapped_lines, raised_lines])
def test_wrong_lines_are_refuted(wrong: Callable) -> None:
    message = r"the relaxation rule is wrong at output \[\d, \d\]: the (lower|upper) line is"
    with pytest.raises(ValueError, match=message):
        check_rules(own(torch.exp, relaxation=wrong), box_across_zero(2, 3))


def test_right_lines_pass_and_only_what_is_registered_is_checked() -> None:
    assert check_rules(own(torch.exp), box_across_zero(2, 3)) == ALL[:1]
    assert check_rules(own(torch.exp, relaxation=right_lines), box_across_zero(2, 3)) == ALL[:2]


WRONG_TRANSPOSES: dict[str, Callable] = {
    "no bias": lambda layer, box: Affine(lambda c: c @ layer.weight, torch.zeros_like(layer.bias)),
    "absolute weights": lambda layer, box: Affine(lambda c: c @ layer.weight.abs(), layer.bias),
}


@pytest.mark.parametrize("name", WRONG_TRANSPOSES)
def test_a_wrong_transpose_is_refuted(name: str) -> None:
    with pytest.raises(ValueError, match="the relaxation rule is wrong at output"):
        check_rules(dense(4, 3, relaxation=WRONG_TRANSPOSES[name]), box_across_zero(2, 4))


def test_an_optimistic_rounding_rule_is_refuted() -> None:
    layer = own(torch.exp, rounding=lambda layer, box: Rounding(0, box.upper.abs()))
    with pytest.raises(ValueError, match=r"the rounding rule is wrong at output .*: what float32 computes is"):
        check_rules(layer, box_across_zero(2, 3))


def test_a_layer_without_an_interval_rule_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"no interval rule for Softmax; register one with"):
        check_rules(nn.Softmax(1), box_across_zero(2, 3))


# A smooth curve of the user's own:  v^3 / 3 - v  is concave below 0, convex above, and turns at -1 and 1


def cubic(v: Tensor) -> Tensor:
    return v**3 / 3 - v


def cubic_box(layer: nn.Module, box: Interval) -> Interval:
    turns = [torch.full_like(box.lower, at).clamp(*box) for at in (-1.0, 1.0)]
    values = torch.stack([layer(v) for v in (*box, *turns)])
    return Interval(values.amin(0), values.amax(0))


def cubic_lines(convex_first: bool) -> Callable[[nn.Module, Interval], LinearRelaxation]:
    return lambda layer, box: smooth(SmoothCurve(layer, lambda v: v**2 - 1, (0.0,), convex_first), box)


def test_a_smooth_curve_of_the_users_own_has_lines_by_its_inflections() -> None:
    assert check_rules(own(cubic, cubic_box, cubic_lines(convex_first=False)), box_across_zero(2, 3)) == ALL[:2]
    with pytest.raises(ValueError, match="the relaxation rule is wrong"):
        check_rules(own(cubic, cubic_box, cubic_lines(convex_first=True)), box_across_zero(2, 3))
