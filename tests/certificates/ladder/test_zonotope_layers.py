"""Affine forms through layers: what the ReLU rules promise, and orderings between the transformers."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, assert_encloses, grid, layer_values, points_of, random_box
from torch import Tensor, nn

from paperlib import Interval, Residual
from paperlib.bounds.interval import propagate_all
from paperlib.certificates.ladder.affine_form import AffineForm, total
from paperlib.certificates.ladder.symbols import _AbsoluteRowSums
from paperlib.certificates.ladder.zonotope_layers import ReluRule, Transformers, relu_lines
from paperlib.threats.perturbation import BoxRegion

RULES: tuple[ReluRule, ...] = ("parallel", "box", "switch", "smooth")
ALL = (Transformers(shared=True), *(Transformers(shared=False, relu=rule) for rule in RULES))


def form_of(box: Interval) -> AffineForm:
    return AffineForm.of_region(BoxRegion(box))


def contains(outer: Interval, inner: Interval) -> bool:
    """But for the rounding of both."""
    slack = ROUNDING * (1 + torch.maximum(outer.lower.abs(), outer.upper.abs()))
    return bool(((outer.lower - slack <= inner.lower) & (inner.upper <= outer.upper + slack)).all())


# One unit


# Over [-1, 3] DeepZ has slope 3/4, and relu(v) - 3/4 v in [0, 3/4]. "box": [0, 3]. "switch" keeps v, as 3 >= 1, and
# relu(v) - v in [0, 1]; over [-3, 1] it is the box [0, 1]. "smooth" is  1/4 box + 3/4 of v + [0, 1]:  slope 3/4, and
# errors of 1/4 * 3/2 + 3/4 * 1/2 = 3/4 around that.
@pytest.mark.parametrize(
    ("rule", "low", "high", "slope", "error"),
    [
        ("parallel", -1.0, 3.0, 0.75, 0.375),
        ("box", -1.0, 3.0, 0.0, 1.5),
        ("switch", -1.0, 3.0, 1.0, 0.5),
        ("switch", -3.0, 1.0, 0.0, 0.5),
        ("smooth", -1.0, 3.0, 0.75, 0.75),
        *((rule, -3.0, -1.0, 0.0, 0.0) for rule in RULES),
        *((rule, 1.0, 3.0, 1.0, 0.0) for rule in RULES),
    ],
)
def test_the_lines_of_a_rule_by_hand(rule: ReluRule, low: float, high: float, slope: float, error: float) -> None:
    lines = relu_lines(rule, Interval(*(torch.tensor([[end]]).double() for end in (low, high))))
    for value, expected in [(lines.slope, slope), (lines.middle, error), (lines.radius, error)]:
        torch.testing.assert_close(value, torch.tensor([[expected]]).double(), rtol=1e-15, atol=0)


@settings(max_examples=30)
@given(st.floats(-5, 5), st.floats(0, 5), st.sampled_from(RULES))
def test_relu_lies_between_the_lines(low: float, width: float, rule: ReluRule) -> None:
    lines = relu_lines(rule, Interval(*torch.tensor([[low], [low + width]], dtype=torch.float64)))
    points = grid(low, low + width)
    assert ((points.relu() - lines.slope * points - lines.middle).abs() <= lines.radius + ROUNDING).all()


# Whole networks


def network(seed: int, sizes: list[int]) -> tuple[nn.Sequential, Interval]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width, following in pairwise(sizes):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double(), random_box(2, sizes[0])


def own_boxes(transformers: Transformers, module: nn.Module, form: AffineForm) -> list[Interval]:
    return transformers.propagate(module, form)[1]


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), sizes=st.lists(st.integers(2, 6), min_size=3, max_size=5))
@torch.no_grad()
def test_boxes_of_the_forms_alone_hold_every_layer(seed: int, sizes: list[int]) -> None:
    module, box = network(seed, sizes)
    values = layer_values(module, points_of(*box))
    for transformers in ALL:
        for own, inside in zip(own_boxes(transformers, module, form_of(box)), values, strict=True):
            assert_encloses(own, inside)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), sizes=st.lists(st.integers(2, 6), min_size=3, max_size=5))
@torch.no_grad()
def test_intervals_are_never_tighter_than_the_hybrid_with_its_box_rule(seed: int, sizes: list[int]) -> None:
    """By induction: the box of a form is that of intervals at the input, affine layers add up no more, and the rule
    gives a unit the box that intervals give it. This is before the two are intersected.
    """
    module, box = network(seed, sizes)
    form = form_of(box)
    for start in (form, form.as_symbols()):
        boxes = own_boxes(Transformers(shared=False, relu="box"), module, start)
        assert all(map(contains, propagate_all(module, box), boxes))


def test_the_hybrid_with_its_box_rule_is_tighter_than_intervals_where_units_are_stable() -> None:
    # relu(x + 3) - relu(x + 2) is 1 over [-1, 1], and in [2, 4] - [1, 3] for intervals
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        module[0].weight[:], module[0].bias[:] = torch.ones(2, 1), torch.tensor([3.0, 2.0])
        module[2].weight[:], module[2].bias[:] = torch.tensor([[1.0, -1.0]]), torch.zeros(1)
    box = Interval(-torch.ones(1, 1).double(), torch.ones(1, 1).double())
    own = own_boxes(Transformers(shared=False, relu="box"), module, form_of(box))[-1]
    assert contains(Interval(torch.ones(1, 1).double(), torch.ones(1, 1).double()), own)
    assert [end.item() for end in propagate_all(module, box)[-1]] == pytest.approx([-1, 3])


# The box of the lines over [-1, 1]: slope * [-1, 1] + middle +- error
@pytest.mark.parametrize(
    ("rule", "low", "high"), [("parallel", -0.5, 1.0), ("switch", -1.0, 2.0), ("smooth", -0.5, 1.5)]
)
def test_the_other_rules_leave_the_interval_of_a_single_unit(rule: ReluRule, low: float, high: float) -> None:
    box = Interval(-torch.ones(1, 1).double(), torch.ones(1, 1).double())
    own = own_boxes(Transformers(shared=False, relu=rule), nn.Sequential(nn.ReLU()), form_of(box))[-1]
    assert [end.item() for end in own] == pytest.approx([low, high])


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), width=st.integers(1, 6))
@torch.no_grad()
def test_sharing_errors_is_never_looser(seed: int, width: int) -> None:
    """After one ReLU, so that both relax the same boxes; and DeepZ's lines are as near as those of "smooth"."""
    module, box = network(seed, [3, width, 4])
    parallel, smooth = (Transformers(shared=False, relu=rule) for rule in ("parallel", "smooth"))
    shared, hybrid, looser = (own_boxes(each, module, form_of(box))[-1] for each in (ALL[0], parallel, smooth))
    assert contains(hybrid, shared) and contains(looser, hybrid)


@pytest.mark.parametrize("transformers", ALL, ids=str)
@torch.no_grad()
def test_convolutions_pooling_and_residual_sums_hold(transformers: Transformers) -> None:
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2, 1),
        Residual(body, (2, 3, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 3),
    ).double()
    box = random_box(2, 1, 4, 4)
    form, boxes = transformers.propagate(module, form_of(box))
    assert_encloses(boxes[-1], module(points_of(*box).flatten(0, 1)).view(-1, 2, 3))
    assert form.center.shape == (2, 3)
    tighter = transformers.propagate(module, form_of(box), "", propagate_all(module, box))[1]
    assert contains(propagate_all(module, box)[-1], tighter[-1])


@torch.no_grad()
def test_an_affine_network_is_exact() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(2, 3)).double()
    box = random_box(2, 1, 4, 4)
    unrolled = torch.stack([module(unit) - module(0 * unit) for unit in torch.eye(16).double().view(16, 1, 1, 4, 4)])
    radius = torch.einsum("so,bs->bo", unrolled[:, 0].abs(), box.radius.flatten(1))
    center = module(box.center)
    for transformers in ALL:
        own = own_boxes(transformers, module, form_of(box))[-1]
        torch.testing.assert_close(own.lower, center - radius, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own.upper, center + radius, rtol=1e-12, atol=1e-12)


# Arithmetic of forms


def test_coefficients_of_the_same_symbols_add_up() -> None:
    box = random_box(2, 3)
    form = form_of(box)
    weights = torch.randn(2, 3).double()
    nothing = total([form.dot(weights), form.dot(-weights)])
    assert len(nothing.terms) == 1 and torch.equal(nothing.minimum, nothing.center)
    doubled = total([form.dot(weights), form.as_symbols().dot(weights)])
    least = torch.where(weights > 0, box.lower, box.upper)
    torch.testing.assert_close(doubled.minimum, 2 * (weights * least).sum(1), rtol=1e-12, atol=1e-12)


def test_the_sums_of_absolute_values_have_the_gradient_of_differences() -> None:
    torch.manual_seed(0)
    parts = torch.randn(2, 3, 4).double().requires_grad_(), torch.randn(2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(_AbsoluteRowSums.apply, parts)
    torch.testing.assert_close(_AbsoluteRowSums.apply(*parts), (parts[0] @ parts[1]).abs().sum(2), rtol=1e-14, atol=0)


def test_layers_of_one_batch_alone_give_what_the_whole_batch_gives() -> None:
    module, box = network(5, [3, 5, 4, 2])

    def last(part: Interval) -> Tensor:
        return torch.stack([*own_boxes(Transformers(shared=True), module, form_of(part))[-1]])

    each = torch.cat([last(box.map(lambda end, place=place: end[place : place + 1])) for place in range(2)], 1)
    torch.testing.assert_close(last(box), each, rtol=1e-13, atol=1e-13)
