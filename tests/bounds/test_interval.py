"""Boxes, and every interval rule: enclosure at random points and attainment at the corners, in float64."""

import contextlib
import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, assert_encloses, grid, points_of, random_box
from torch import Tensor, nn

from paperlib import Interval, LinfBall, interval_rule, propagate
from paperlib.bounds.interval import affine
from paperlib.bounds.relaxation import relaxation_rule
from paperlib.bounds.rules import UnsupportedLayerError

Pick = Callable[..., object]


def batch_norm(kind: type[nn.Module], features: int, affine: bool) -> nn.Module:
    norm = kind(features, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    if affine:
        nn.init.normal_(norm.weight)  # half of the scales are negative
        nn.init.normal_(norm.bias)
    return norm


def conv(pick: Pick, *modes: str) -> tuple[nn.Module, tuple[int, ...]]:
    groups, stride, kernel, mode = pick(1, 2), pick(1, 2, (2, 1)), pick(1, 2, 3, (3, 2)), pick(*modes or ("zeros",))
    # torch takes "same" with stride 1 only, and warns when the kernel's side is even
    padding = pick(0, 1, 2, (1, 0), "same") if stride == 1 and kernel in (1, 3) else pick(0, 1, 2, (1, 0))
    shape = groups * pick(1, 2), groups * pick(1, 2), kernel
    layer = nn.Conv2d(
        *shape, stride, padding, dilation=pick(1, 2), groups=groups, bias=pick(True, False), padding_mode=mode
    )
    return layer, (layer.in_channels, pick(5, 6), pick(5, 7))


def conv_transpose(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    groups, stride, dilation = pick(1, 2), pick(1, 2, 3), pick(1, 2)
    extra = pick(*range(max(stride, dilation)))
    shape = groups * pick(1, 2), groups * pick(1, 2), pick(2, 3, (3, 2))
    layer = nn.ConvTranspose2d(*shape, stride, pick(0, 1), extra, groups, pick(True, False), dilation)
    return layer, (layer.in_channels, pick(2, 3), pick(2, 4))


def stack(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    activation = pick(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.Tanh)
    depth = pick(1, 2)
    down = nn.Sequential(nn.Conv2d(1, depth, 3, padding=1), batch_norm(nn.BatchNorm2d, depth, True), activation())
    up = nn.Sequential(nn.Linear(4 * depth, 3), nn.Sequential(activation(), nn.Dropout().eval(), nn.Linear(3, 2)))
    return nn.Sequential(nn.Identity(), down.eval(), nn.AvgPool2d(2), nn.Flatten(), up), (1, 4, 4)


AFFINE = {
    "linear": lambda pick: (nn.Linear(width := pick(1, 2, 5), pick(1, 2, 4), bias=pick(True, False)), (width,)),
    "conv": conv,
    "conv transpose": conv_transpose,
    "batch norm 1d": lambda pick: (batch_norm(nn.BatchNorm1d, 3, pick(True, False)), pick((3,), (3, 4))),
    "batch norm 2d": lambda pick: (batch_norm(nn.BatchNorm2d, 2, pick(True, False)), (2, 3, 3)),
    "average pool": lambda pick: (
        nn.AvgPool2d(pick(2, 3), pick(1, 2), pick(0, 1), pick(True, False), pick(True, False)),
        (2, 5, pick(4, 5)),
    ),
}
EXACT = {  # nothing is computed, so nothing is rounded
    "relu": lambda pick: (nn.ReLU(), (5,)),
    "flatten": lambda pick: (nn.Flatten(), (2, 2, 3)),
    "unflatten": lambda pick: (nn.Unflatten(1, (2, 3)), (6,)),
    "identity": lambda pick: (nn.Identity(), (4,)),
    "dropout": lambda pick: (nn.Dropout(0.5), (4,)),
}
CURVES = {
    "leaky relu": lambda pick: (nn.LeakyReLU(pick(0.0, 0.01, 0.5, 2.0)), (5,)),
    "elu": lambda pick: (nn.ELU(pick(0.5, 1.0, 3.0)), (5,)),
    "softplus": lambda pick: (nn.Softplus(pick(0.5, 1.0, 3.0)), (5,)),
    "sigmoid": lambda pick: (nn.Sigmoid(), (5,)),
    "tanh": lambda pick: (nn.Tanh(), (5,)),
}
# Padding that copies pixels lets two weights meet one pixel: the bound then adds their sizes, which holds but is loose.
COPIED = {"conv with copied padding": lambda pick: conv(pick, "reflect", "replicate", "circular")}
RULES = AFFINE | COPIED | EXACT | CURVES | {"nested stack": stack}


def drawn(data: st.DataObject, make: Callable[[Pick], tuple[nn.Module, tuple[int, ...]]]) -> tuple[nn.Module, Interval]:
    torch.manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    layer, shape = make(lambda *options: data.draw(st.sampled_from(options)))
    return layer.double().eval().requires_grad_(False), random_box(data.draw(st.integers(1, 2), label="batch"), *shape)


@pytest.mark.parametrize("name", RULES)
@given(data=st.data())
def test_a_rule_encloses_the_layer_on_the_whole_box(name: str, data: st.DataObject) -> None:
    layer, box = drawn(data, RULES[name])
    values = torch.stack([layer(point) for point in points_of(*box, count=8)])
    # The curves' vectorised and scalar kernels differ by an ulp, affine layers round their sums: `EXACT` ones may not.
    assert_encloses(propagate(layer, box), values, rounding=0.0 if name in EXACT else ROUNDING)


def unrolled(layer: nn.Module, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Matrix [out, in] and offset [out] of an affine layer for one example, from its values at 0 and unit vectors."""
    units = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    offset = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    return (layer(units).flatten(1) - offset).T, offset


@pytest.mark.parametrize("name", AFFINE)
@given(data=st.data())
def test_an_affine_rule_is_the_unrolled_matrix_and_is_reached_at_the_sign_corner(
    name: str, data: st.DataObject
) -> None:
    layer, box = drawn(data, AFFINE[name])
    bound = propagate(layer, box)
    matrix, offset = unrolled(layer, box.lower.shape[1:])
    center, radius = box.center.flatten(1), box.radius.flatten(1)
    close = {"rtol": ROUNDING, "atol": ROUNDING}
    torch.testing.assert_close(bound.upper.flatten(1), center @ matrix.T + offset + radius @ matrix.abs().T, **close)
    torch.testing.assert_close(bound.lower.flatten(1), center @ matrix.T + offset - radius @ matrix.abs().T, **close)
    # Row k of these corners is where output k of the first example is largest, or smallest.
    low, up = box.lower[0].flatten(), box.upper[0].flatten()
    for end, signs in ((bound.upper, matrix), (bound.lower, -matrix)):
        corners = torch.where(signs > 0, up, low).view(-1, *box.lower.shape[1:])
        torch.testing.assert_close(layer(corners).flatten(1).diagonal(), end[0].flatten(), **close)


@pytest.mark.parametrize("name", EXACT | CURVES)
@settings(max_examples=15)
@given(data=st.data())
def test_a_monotone_rule_is_reached_at_the_ends(name: str, data: st.DataObject) -> None:
    layer, box = drawn(data, RULES[name])
    bound = propagate(layer, box)
    assert torch.equal(bound.lower, layer(box.lower))
    assert torch.equal(bound.upper, layer(box.upper))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.LeakyReLU(0.3),
        nn.ELU(2.0),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.Softplus(),
        nn.Softplus(beta=0.1),
        nn.Softplus(threshold=1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("ends", [(-60.0, 60.0), (-1.0, 0.5), (0.5, 1.2), (19.9, 20.0 + 1e-10), (199.0, 200.0 + 1e-9)])
def test_a_curve_stays_between_its_ends_on_a_dense_grid(layer: nn.Module, ends: tuple[float, float]) -> None:
    box = Interval(*(torch.tensor([[end]], dtype=torch.float64) for end in ends))
    # Softplus switches to the identity at beta * x > threshold, where it jumps down: the grid holds those points too.
    switches = torch.tensor([point for point in (1.0, 20.0, 200.0) if ends[0] <= point <= ends[1]])
    points = torch.cat([grid(*ends, count=2001), switches.double()])
    assert_encloses(propagate(layer, box), layer(points).view(-1, 1, 1))


def test_a_hand_worked_network_has_the_hand_worked_box() -> None:
    # x in [0.25, 0.75] x [0, 0.5]
    # h1 = x1 - x2      : centre 0.25, radius 0.5  -> [-0.25, 0.75] -> relu [0, 0.75]
    # h2 = 2 x1 + x2 - 1: centre 0.25, radius 0.75 -> [-0.5, 1]     -> relu [0, 1]
    # y  = h1 - 2 h2 + 1/2: lowest 0 - 2 + 0.5, highest 0.75 - 0 + 0.5
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    first.weight.data, first.bias.data = torch.tensor([[1.0, -1.0], [2.0, 1.0]]), torch.tensor([0.0, -1.0])
    second.weight.data, second.bias.data = torch.tensor([[1.0, -2.0]]), torch.tensor([0.5])
    net = nn.Sequential(first, nn.ReLU(), second)
    box = LinfBall(0.25).box(torch.tensor([[0.5, 0.25]]))
    for module, worked in ((first, ([-0.25, -0.5], [0.75, 1.0])), (net, ([-1.5], [1.25]))):
        lower, upper = propagate(module, box)
        exact = Interval(*(torch.tensor([end]) for end in worked))
        assert (lower <= exact.lower).all() and (exact.upper <= upper).all(), "the ends are outward of rounding"
        torch.testing.assert_close(torch.cat([lower, upper]), torch.cat([*exact]), rtol=1e-5, atol=1e-5)
    # The true range is [-1.25 at (0.75, 0.5), 1 at (0.5, 0)]: the box holds it and is not it.
    assert [net(torch.tensor([point])).item() for point in ([0.75, 0.5], [0.5, 0.0])] == [-1.25, 1.0]


@given(st.integers(0, 2**16), st.floats(0, 2))
def test_one_affine_layer_moves_by_eps_times_its_dual_norm(seed: int, eps: float) -> None:
    torch.manual_seed(seed)
    layer, x = nn.Linear(6, 3).double(), torch.randn(2, 6, dtype=torch.float64)
    bound = propagate(layer, LinfBall(eps, -math.inf, math.inf).box(x))
    reach = eps * torch.linalg.vector_norm(layer.weight, ord=1, dim=1)
    for end, expected in zip(bound, (layer(x) - reach, layer(x) + reach), strict=True):
        torch.testing.assert_close(end, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=8)
@given(data=st.data())
def test_a_point_box_gives_the_forward_pass_bit_for_bit(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    layer, box = drawn(data, RULES[name])
    layer, x = layer.to(dtype), box.lower.to(dtype)
    for end in propagate(layer, Interval(x, x.clone())):
        assert torch.equal(end, layer(x))


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15)
@given(data=st.data())
def test_a_smaller_box_gives_a_smaller_box(name: str, data: st.DataObject) -> None:
    layer, box = drawn(data, RULES[name])
    shift = (torch.rand_like(box.lower) - 0.5) * box.radius
    inner = Interval(box.center + shift - box.radius / 2, box.center + shift + box.radius / 2)
    assert_encloses(propagate(layer, box), torch.stack([*propagate(layer, inner)]))


@pytest.mark.parametrize("radius", [1e-7, 1e-3, 0.1])
def test_float32_is_exceeded_at_attaining_corners_by_less_than_1e_5_of_the_bound(radius: float) -> None:
    # The allowance that every float32 certificate carries: what the layer rounds at any input, beside which the box is
    # widened by what its radius rounds.
    layer, ball, x = nn.Linear(784, 64), LinfBall(radius), torch.rand(1, 784)
    bound, box = propagate(layer, ball.box(x)), ball.box(x)
    highest = layer(torch.where(layer.weight > 0, box.upper, box.lower)).diagonal()
    lowest = layer(torch.where(layer.weight > 0, box.lower, box.upper)).diagonal()
    size = (nn.functional.linear(box.upper, layer.weight.abs()) + layer.bias.abs())[0]
    excess = torch.cat([(highest - bound.upper[0]) / size, (bound.lower[0] - lowest) / size])
    assert excess.max() < 1e-5
    assert excess.min() > -1e-5 - 2e-3 * radius, "these corners attain the bound"


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(inplace=True), nn.LeakyReLU(0.5, inplace=True), nn.ELU(inplace=True), nn.Dropout(inplace=True).eval()],
    ids=repr,
)
@pytest.mark.parametrize("before", [[], [nn.Identity()], [nn.Flatten()]], ids=["alone", "identity", "flatten"])
def test_an_in_place_layer_leaves_the_given_box_alone(layer: nn.Module, before: list[nn.Module]) -> None:
    net, x = nn.Sequential(*before, layer), torch.tensor([[-2.0, 1.0]])
    expected = net(x.clone())
    bound = propagate(net, Interval.from_bounds(x, x))
    assert x.tolist() == [[-2.0, 1.0]]
    assert torch.equal(bound.lower, expected)
    assert torch.equal(bound.upper, expected)


class Softsign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs())


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Reversed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self):
            x = layer(x)
        return x


class Renamed(nn.Linear):
    """Keeps its parent's forward, so its parent's rule holds."""


@pytest.mark.parametrize("layer", [Softsign(), Doubled(2, 2), Reversed(nn.Linear(2, 2), nn.ReLU()), nn.Softmax(1)])
def test_an_unknown_layer_is_refused_with_its_name_its_place_and_the_remedy(layer: nn.Module) -> None:
    name = type(layer).__name__
    nested = nn.Sequential(nn.Tanh(), nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(UnsupportedLayerError, match=rf"{name} at '1\.1'.*@interval_rule\.register\({name}\)"):
        propagate(nested, random_box(1, 2))
    with pytest.raises(UnsupportedLayerError, match=rf"no interval rule for {name}[;,] "):
        propagate(layer, random_box(1, 2))


def test_a_named_layer_is_named_in_the_refusal() -> None:
    net = nn.Sequential()
    net.add_module("squash", Softsign())
    with pytest.raises(UnsupportedLayerError, match="Softsign at 'squash'"):
        propagate(net, random_box(1, 2))


def test_a_layer_that_is_used_twice_is_applied_twice() -> None:
    relu, first, second = nn.ReLU(), nn.Linear(1, 1), nn.Linear(1, 1)
    for linear in (first, second):
        linear.weight.data, linear.bias.data = torch.ones(1, 1), torch.full((1,), -2.0)
    net = nn.Sequential(first, relu, second, relu).double()
    box = Interval(torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    assert_encloses(propagate(net, box), torch.stack([net(point) for point in points_of(*box)]).detach())


def hooked(layer: nn.Module, how: str) -> nn.Module:
    if how == "forward hook":
        layer.register_forward_hook(lambda _, given, made: 3 * made)
    elif how == "pre-hook":
        layer.register_forward_pre_hook(lambda _, given: (3 * given[0],))
    else:
        layer.forward = lambda x: 3 * type(layer).forward(layer, x)
    return layer


@pytest.mark.parametrize("how", ["forward hook", "pre-hook", "forward of the instance"])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(3, 2), lambda: nn.Sequential(nn.Linear(3, 2))], ids=["layer", "stack"]
)
def test_a_network_altered_from_outside_is_refused_or_enclosed(make: Callable[[], nn.Module], how: str) -> None:
    net, box = hooked(make().double(), how), random_box(2, 3)
    with contextlib.suppress(ValueError, UnsupportedLayerError):
        assert_encloses(propagate(net, box), torch.stack([net(point) for point in points_of(*box)]))


@pytest.mark.parametrize("threshold", [1.0, 20.0])
def test_a_point_box_at_the_switch_of_softplus_is_the_forward_pass(threshold: float) -> None:
    layer, x = nn.Softplus(threshold=threshold), torch.tensor([[threshold]], dtype=torch.float64)
    for end in propagate(layer, Interval(x, x)):
        assert torch.equal(end, layer(x))


def test_a_subclass_that_keeps_forward_inherits_the_rule() -> None:
    layer, box = Renamed(3, 2).double(), random_box(2, 3)
    assert_encloses(propagate(layer, box), torch.stack([layer(point) for point in points_of(*box)]))


def test_a_users_rule_of_three_lines_is_enough() -> None:
    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**3

    @interval_rule.register(Cube)
    def cube(layer: Cube, box: Interval) -> Interval:
        return box.map(layer)

    net, box = nn.Sequential(nn.Linear(3, 3), Cube(), nn.Linear(3, 2)).double(), random_box(2, 3)
    assert_encloses(propagate(net, box), torch.stack([net(point) for point in points_of(*box)]))


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.BatchNorm1d(3), (2, 3), "batch statistics"),
        (nn.BatchNorm2d(3), (2, 3, 2, 2), "batch statistics"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), (2, 3), "running statistics"),
        (nn.Dropout(0.5), (2, 3), "training mode is random"),
        (nn.LeakyReLU(-0.1), (2, 3), "not monotone"),
        (nn.ELU(-1.0), (2, 3), "not monotone"),
        (nn.AvgPool2d(2, divisor_override=-4), (1, 1, 2, 2), "not monotone"),
    ],
    ids=repr,
)
def test_a_layer_without_a_bound_in_this_mode_is_refused_with_its_place(
    layer: nn.Module, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"{type(layer).__name__} at '1': .*{reason}"):
        propagate(nn.Sequential(nn.Identity(), layer), random_box(*shape))


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_backward_pass_of_a_linear_box_is_that_of_its_formula(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(4, 3, bias=bias).double()
    low = torch.randn(shape).double()
    high = low + torch.rand(shape).double()
    along = [torch.randn(*shape[:-1], 3).double() for _ in range(2)]

    def gradients(rule: Callable[[Interval], Interval]) -> list[torch.Tensor]:
        ends = [low.clone().requires_grad_(), high.clone().requires_grad_()]
        image = rule(Interval(*ends))
        value = (image.lower * along[0]).sum() + (image.upper * along[1]).sum()
        return list(torch.autograd.grad(value, [*ends, *layer.parameters()]))

    formula = gradients(lambda box: affine(box, layer, lambda r: nn.functional.linear(r, layer.weight.abs()), 4))
    for gradient, expected in zip(gradients(lambda box: propagate(layer, box)), formula, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_bounds_are_differentiable_in_parameters_and_box() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)).double()
    lower, upper = (end.requires_grad_() for end in random_box(1, 3))
    weight = net[0].weight.detach().clone().requires_grad_()

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, lower: Tensor, upper: Tensor) -> Tensor:
            return torch.cat([*propagate(self.net, Interval(lower, upper))])

    ends = Ends()
    assert torch.autograd.gradcheck(
        lambda w, low, up: torch.func.functional_call(ends, {"net.0.weight": w}, (low, up)), (weight, lower, upper)
    )


# Interval


def test_an_interval_gives_center_radius_and_exact_membership() -> None:
    box = Interval.from_bounds(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 3.0]))
    assert box.center.tolist() == [0.5, 1.0]
    assert box.radius.tolist() == [0.5, 2.0]
    assert box.contains(torch.tensor([1.0, 3.0])).tolist() == [True, True]
    above = torch.nextafter(torch.tensor([1.0, 3.0]), torch.tensor(math.inf))
    assert box.contains(above).tolist() == [False, False]
    assert box.contains(torch.tensor([math.nan, -1.0])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("lower", "upper", "index"),
    [([0.0, 2.0], [1.0, 1.0], 1), ([math.nan, 0.0], [1.0, 1.0], 0), ([0.0, 0.0], [1.0, math.nan], 1)],
)
def test_disordered_or_nan_ends_are_refused_with_their_index(lower: list, upper: list, index: int) -> None:
    with pytest.raises(ValueError, match=rf"index \[{index}\]"):
        Interval.from_bounds(torch.tensor(lower), torch.tensor(upper))


def test_ends_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        Interval(torch.zeros(2), torch.zeros(1))


@given(st.integers(0, 2**16))
def test_a_widened_box_reaches_farther_by_the_radius_on_both_sides(seed: int) -> None:
    torch.manual_seed(seed)
    box, radius = random_box(2, 3), torch.rand(2, 3).double()
    wide = box.widen(radius)
    assert torch.equal(wide.lower, box.lower - radius) and torch.equal(wide.upper, box.upper + radius)
    assert wide.contains(torch.stack([box.lower - radius, *points_of(*box), box.upper + radius])).all()
    assert not wide.contains(torch.stack([wide.lower - 1e-9, wide.upper + 1e-9])).any()
    for same, end in zip(box.widen(torch.zeros(())), box, strict=True):
        assert torch.equal(same, end)


@given(st.integers(0, 2**16))
def test_an_intersection_holds_exactly_the_points_of_both_boxes(seed: int) -> None:
    torch.manual_seed(seed)
    first, other = random_box(2, 3), random_box(2, 3)
    shared = first.lower + (first.upper - first.lower) * torch.rand(2, 3).double()
    second = Interval(torch.minimum(other.lower, shared), torch.maximum(other.upper, shared))  # one quantity is in both
    both = first.intersect(second)
    points = torch.cat([points_of(*box) for box in (first, second)])
    assert torch.equal(both.contains(points), first.contains(points) & second.contains(points))
    for same, other in ((both, second.intersect(first)), (first, first.intersect(first))):
        assert torch.equal(same.lower, other.lower) and torch.equal(same.upper, other.upper)


def test_the_intersection_of_two_bounds_is_hand_worked() -> None:
    first = Interval(torch.tensor([0.0, -2.0, 0.0]), torch.tensor([2.0, 5.0, math.nan]))
    second = Interval(torch.tensor([1.0, -1.0, math.nan]), torch.tensor([3.0, 4.0, 3.0]))
    assert [end.tolist() for end in first.intersect(second)] == [[1.0, -1.0, 0.0], [2.0, 4.0, 3.0]]


@pytest.mark.parametrize("size", [0.0, 1.0, 2.0**27])
def test_boxes_that_rounding_moved_apart_are_joined_and_others_are_an_error(size: float) -> None:
    ulp = 2.0**-23 * max(size, 1.0)
    first = Interval(torch.tensor([size, 0.0]), torch.tensor([size, 1.0]))
    second = Interval(torch.tensor([size + 4 * ulp, 0.0]), torch.tensor([size + 8 * ulp, 2.0]))
    for joined in (first.intersect(second), second.intersect(first)):
        assert [end.tolist() for end in joined] == [[size, 0.0], [size + 8 * ulp, 1.0]]
    far = Interval(*(end + 2**14 * ulp for end in second))
    with pytest.raises(ArithmeticError, match=r"two bounds of one quantity are .* apart.*float64"):
        first.intersect(far)


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(torch.float32, 1e7), (torch.float32, 1e9), (torch.float64, 1e16), (torch.float64, 1e30)]
)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(1, 1), (1, 1)), (nn.Conv2d(1, 1, 1), (1, 1, 1, 1)), (nn.ConvTranspose2d(1, 1, 1), (1, 1, 1, 1))],
    ids=["linear", "convolution", "transposed"],
)
def test_the_small_end_of_a_box_is_not_lost_beside_the_large_one(
    layer: nn.Module, shape: tuple[int, ...], ratio: float, dtype: torch.dtype
) -> None:
    # middle and half width of [1 / ratio, ratio] are equal when rounded, and their difference is noise
    layer = copy.deepcopy(layer).to(dtype)
    layer.weight.data.fill_(0.37)
    layer.bias.data.fill_(-0.9)
    box = Interval(torch.full(shape, 1 / ratio, dtype=dtype), torch.full(shape, ratio, dtype=dtype))
    for mirrored in (box, Interval(-box.upper, -box.lower)):
        assert_encloses(propagate(layer, mirrored), torch.stack([layer(end) for end in mirrored]).detach(), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("beta", "threshold"), [(0.3, 0.7), (0.1, 0.0), (3.0, 0.9), (0.7, -2.0), (1e-3, 1e-3), (7.0, 20.0)]
)
def test_softplus_is_enclosed_where_rounding_decides_on_which_side_of_torchs_switch_it_is(
    beta: float, threshold: float, dtype: torch.dtype
) -> None:
    layer, switch = nn.Softplus(beta, threshold), torch.tensor([[threshold / beta]], dtype=dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    near = [switch, switch + tiny, switch - tiny]
    for _ in range(4):
        near = [*near, near[-2].nextafter(switch + 9), near[-1].nextafter(switch - 9)]
    for end in near:
        for box in (Interval(end, end), Interval(end - 1, end), Interval(end, end + 1)):
            values = torch.stack([layer(point) for point in (*box, *near) if box.contains(point)])
            assert_encloses(propagate(layer, box), values, rounding=4 * torch.finfo(dtype).eps)
            line = relaxation_rule(layer, box)
            for point, value in zip((p for p in (*box, *near) if box.contains(p)), values, strict=True):
                slack = 1e-5 if dtype == torch.float32 else 1e-12
                assert line.lower.slope * point + line.lower.offset <= value + slack * (1 + value.abs())
                assert line.upper.slope * point + line.upper.offset >= value - slack * (1 + value.abs())
