"""Rounding of single layers: against exact arithmetic, in shuffled orders, at hunted corners; and what is refused."""

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
import torch
from oracles import assert_nearly_attained, orders, point_box, set_to, stagnating
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from paperlib import Interval, conv_vae, interval_rule, mlp_vae, rounding_rule
from paperlib.bounds import rounding
from paperlib.bounds.rounding import FUNCTION_ERRORS, Rounding, check_deployed, gamma, unit_roundoff
from paperlib.bounds.rules import UnsupportedLayerError, apply_rule

getcontext().prec = 60
UNIT = 2.0**-24


# The table


def floats(count: int = 200_000) -> Tensor:
    """float32 numbers of every exponent and both signs, subnormals too, and dense ones where functions turn."""
    patterns = torch.linspace(0, 0x7F7FFFFF, count, dtype=torch.float64).long().int().view(torch.float32)
    switches = torch.cat([torch.linspace(at - 0.01, at + 0.01, 2001) for at in (-104, -88.7, 0, 20, 50, 88.7)])
    dense = torch.cat([torch.linspace(-110, 110, count // 2), torch.linspace(-2, 2, count // 2), switches])
    return torch.cat([patterns, -patterns, dense])


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda v: torch.log(v.abs()),
    "log1p": lambda v: torch.log1p(v.abs()),
    "lgamma": lambda v: torch.lgamma(v.abs().clamp(min=1)),
    "tanh": torch.tanh,
    "rsqrt": lambda v: torch.rsqrt(v.abs()),
    "sigmoid": torch.sigmoid,
    "softplus": lambda v: F.softplus(v, threshold=50),
}


LEAST_SIZES = {"lgamma": 1.0}  # of a value, where its error is not relative to less: it has zeros at 1 and 2


@pytest.mark.parametrize("name", FUNCTION_ERRORS)
def test_the_table_of_elementary_functions_holds_on_this_machine(name: str) -> None:
    function, points = FUNCTIONS[name], floats()
    exact = function(points.double())
    fits = exact.abs() < torch.finfo(torch.float32).max / 8
    strided = torch.stack([points, points], 1)[:, 0]  # another code path than the contiguous one
    for computed in (function(points), function(strided), torch.stack([function(p) for p in points[::997]])):
        step = len(points) // len(computed)
        error = (computed.double() - exact[:: 997 if step > 1 else 1]).abs()[fits[:: 997 if step > 1 else 1]]
        size = (
            exact[:: 997 if step > 1 else 1][fits[:: 997 if step > 1 else 1]].abs().clamp(min=LEAST_SIZES.get(name, 0))
        )
        assert (error <= FUNCTION_ERRORS[name] * UNIT * (size + rounding.FLOOR)).all()
        assert (error > UNIT / 4 * size).any(), "not measured at all"


# Against exact arithmetic


def batch_norm(kind: type[nn.Module]) -> nn.Module:
    layer = kind(3)
    for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
        tensor.normal_(std=3.0)
    layer.running_var.uniform_(0.01, 4.0)
    return layer.eval()


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(40, 8), (40,)),
    "linear without bias": (lambda: nn.Linear(1, 3, bias=False), (1,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
    "grouped, dilated": (lambda: nn.Conv2d(4, 4, 2, groups=2, dilation=2), (4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1), (2, 3, 3)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 2, 3, groups=2, bias=False), (4, 3, 3)),
    "batch norm 1d": (lambda: batch_norm(nn.BatchNorm1d), (3,)),
    "batch norm 2d": (lambda: batch_norm(nn.BatchNorm2d), (3, 2, 2)),
    "average": (lambda: nn.AvgPool2d(3, stride=1, padding=1), (2, 4, 4)),
    "relu": (nn.ReLU, (50,)),
    "relu in place": (lambda: nn.ReLU(inplace=True), (50,)),
    "leaky": (lambda: nn.LeakyReLU(0.3), (50,)),
    "leaky, flat": (lambda: nn.LeakyReLU(1e-40), (50,)),
    "elu": (lambda: nn.ELU(0.7), (50,)),
    "softplus": (nn.Softplus, (50,)),
    "softplus, steep": (lambda: nn.Softplus(beta=3.3, threshold=1.1), (50,)),
    "sigmoid": (nn.Sigmoid, (50,)),
    "tanh": (nn.Tanh, (50,)),
    "flatten": (nn.Flatten, (2, 3)),
    "unflatten": (lambda: nn.Unflatten(1, (2, 3)), (6,)),
    "identity": (nn.Identity, (4,)),
    "dropout": (lambda: nn.Dropout().eval(), (4,)),
}


def exact(layer: nn.Module, point: Tensor) -> list[Fraction]:
    """The layer at one point [*shape] in real arithmetic: rationals, and Decimals of 60 digits for functions."""
    values = [Fraction(v) for v in point.flatten().tolist()]
    match layer:
        case nn.Linear() | nn.Conv2d() | nn.ConvTranspose2d() | nn.AvgPool2d():
            one_hot = torch.eye(len(values), dtype=torch.float64).view(-1, *point.shape)
            bias = layer(torch.zeros_like(one_hot[:1]))[0].flatten()
            weights = layer(one_hot).flatten(1) if bias.eq(0).all() else without_bias(layer)(one_hot).flatten(1)
            columns = [[Fraction(w) for w in column] for column in weights.T.tolist()]
            if isinstance(layer, nn.AvgPool2d):
                columns = [[w.limit_denominator(9) for w in column] for column in columns]
            return [
                sum(map(Fraction.__mul__, c, values), Fraction(b)) for c, b in zip(columns, bias.tolist(), strict=True)
            ]
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            repeat = len(values) // layer.num_features
            parts = [t.repeat_interleave(repeat).tolist() for t in (*layer.parameters(), *layer.buffers()) if t.ndim]
            return [
                Fraction((d(v) - d(mean)) / (d(var) + d(layer.eps)).sqrt() * d(weight) + d(bias))
                for v, weight, bias, mean, var in zip(point.flatten().tolist(), *parts, strict=True)
            ]
        case _:
            return [Fraction(scalar(layer, d(v))) for v in point.flatten().tolist()]


def without_bias(layer: nn.Module) -> nn.Module:
    return lambda v: layer._conv_forward(v, layer.weight, None) if isinstance(layer, nn.Conv2d) else _plain(layer, v)


def _plain(layer: nn.Module, v: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(v, layer.weight)
    return F.conv_transpose2d(v, layer.weight, None, layer.stride, layer.padding, groups=layer.groups)


def d(value: float) -> Decimal:
    return Decimal(value)


def scalar(layer: nn.Module, v: Decimal) -> Decimal:
    one = Decimal(1)
    match layer:
        case nn.ReLU():
            return max(v, d(0))
        case nn.LeakyReLU():
            return v if v > 0 else d(layer.negative_slope) * v
        case nn.ELU():
            return v if v > 0 else d(layer.alpha) * (v.exp() - 1)
        case nn.Softplus():
            t = d(layer.beta) * v
            return v if t > d(layer.threshold) else (one + t.exp()).ln() / d(layer.beta)
        case nn.Sigmoid():
            return one / (one + (-v).exp())
        case nn.Tanh():
            return one - 2 / ((2 * v).exp() + 1)
        case _:
            return v


def box_and_points(shape: tuple[int, ...], dtype: torch.dtype, spread: float) -> tuple[Interval, Tensor]:
    """A box around 0 with ends of precision dtype, in float64, and points of dtype in it: corners and others."""
    lower = (torch.randn(1, *shape) * spread).to(dtype)
    upper = lower + torch.rand(1, *shape, dtype=dtype) * spread
    place = torch.cat([torch.randint(0, 2, (4, *shape)).to(dtype), torch.rand(4, *shape, dtype=dtype)])
    points = torch.where(place == 1, upper, lower + (upper - lower) * place).clamp(lower, upper)
    return Interval(lower.double(), upper.double()), points


@pytest.mark.parametrize("spread", [1.0, 1e-3, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_each_rule_holds_against_exact_arithmetic(name: str, dtype: torch.dtype, spread: float) -> None:
    make, shape = LAYERS[name]
    layer = make().to(dtype)
    box, points = box_and_points(shape, dtype, spread)
    computed = layer(points.clone()).flatten(1)
    layer = layer.double()
    bound = apply_rule(rounding_rule, name, layer, box).bound(dtype)
    image = apply_rule(interval_rule, name, layer, box)
    sound = image.widen(bound)
    assert bound.shape == image.lower.shape == (1, *layer(box.lower.clone()).shape[1:])
    for point, output in zip(points, computed, strict=True):
        truth = exact(layer, point.double())
        assert sound.contains(output.double().view_as(image.lower)).all()
        for value, true, error, low, high in zip(
            output.tolist(), truth, *(t.flatten().tolist() for t in (bound, *image)), strict=True
        ):
            assert abs(Fraction(value) - true) <= Fraction(error), "the rule is exceeded"
            assert Fraction(low) - Fraction(error) <= true <= Fraction(high) + Fraction(error), "the interval rule is"


@pytest.mark.parametrize("name", ["relu", "flatten", "unflatten", "identity", "dropout"])
def test_layers_that_compute_nothing_round_nothing(name: str) -> None:
    make, shape = LAYERS[name]
    assert not rounding_rule(make(), box_and_points(shape, torch.float32, 1.0)[0]).bound(torch.float32).any()


@pytest.mark.parametrize("kind", ["random", "one sign", "cancelling"])
def test_every_order_of_summation_stays_within_the_rule(kind: str) -> None:
    layer, point = nn.Linear(784, 16), torch.rand(1, 784)
    if kind == "one sign":
        layer.weight.data.abs_()
    if kind == "cancelling":
        layer.weight.data[:, 392:] = -layer.weight.data[:, :392]
        point[:, 392:] = point[:, :392]
    terms = torch.cat([(layer.weight * point).T, layer.bias[None]]).detach()
    truth = torch.stack([torch.tensor(float(v)) for v in exact(layer.double(), point[0].double())])
    bound = rounding_rule(layer, Interval(point.double(), point.double())).bound(torch.float32)[0]
    worst = 0.0
    for name, total in orders(terms).items():
        error = (total.double() - truth.double()).abs()
        assert (error <= bound + UNIT * truth.abs()).all(), name  # truth is shown in float32 here
        worst = max(worst, (error / bound).max().item())
    assert worst > 1e-3, "a rule this loose would hold by accident"


def test_a_stagnating_sum_nearly_attains_each_rule_of_a_sum() -> None:
    terms = stagnating()
    truth = terms.double().sum()
    for layer, point in (
        (nn.Linear(400, 1, bias=False), torch.ones(1, 400)),
        (nn.Conv2d(1, 1, 20, bias=False), torch.ones(1, 1, 20, 20)),
        (nn.ConvTranspose2d(400, 1, 1, bias=False), torch.ones(1, 400, 1, 1)),
    ):
        layer.weight.data.copy_(terms.view_as(layer.weight))
        bound = rounding_rule(layer.double(), point_box(point)).bound(torch.float32)
        assert_nearly_attained(terms.T, truth, bound.flatten())
    bound = rounding_rule(nn.AvgPool2d(20), point_box(terms.view(1, 1, 20, 20))).bound(torch.float32)
    assert_nearly_attained(terms.T, truth, bound.flatten() * 400)


# The hunt


def corner_attack(layer: nn.Linear, box: Interval) -> tuple[Tensor, Tensor]:
    """For each output its least and its largest float32 value at the corners sign(W_j), over ways to evaluate it."""
    rows = torch.arange(layer.out_features)
    values = []
    for positive, negative in ((box.lower, box.upper), (box.upper, box.lower)):
        corners = torch.where(layer.weight > 0, positive, negative)
        terms = torch.cat([(layer.weight * corners).T, layer.bias[None]])
        ways = [
            layer(corners)[rows, rows],
            torch.stack([layer(corner[None])[0, j] for j, corner in enumerate(corners)]),
            *orders(terms).values(),
        ]
        values.append(torch.stack(ways))
    return values[0].amin(0), values[1].amax(0)


@torch.no_grad()
def breaks(bounds: Interval, layer: nn.Linear, box: Interval) -> int:
    """How many of the layer's 2 * outputs ends are passed by the attack."""
    least, most = corner_attack(layer, box)
    return int((least < bounds.lower[0]).sum() + (most > bounds.upper[0]).sum())


def wide() -> tuple[nn.Linear, Interval]:
    # so thin a box that its own rounding is small beside that of the layer
    x = torch.rand(1, 784)
    return nn.Linear(784, 64), Interval((x - 1e-4).clamp(min=0), (x + 1e-4).clamp(max=1))


def sound_bounds(layer: nn.Linear, box: Interval) -> Interval:
    double = nn.Linear(layer.in_features, layer.out_features).double()
    double.load_state_dict(layer.state_dict())
    box = box.map(Tensor.double)
    return interval_rule(double, box).widen(rounding_rule(double, box).bound(torch.float32))


def test_hunted_corners_break_plain_bounds_and_never_the_sound_ones() -> None:
    layer, box = wide()
    assert breaks(interval_rule(layer, box), layer, box) > 64, "of 128 ends"
    assert breaks(interval_rule(layer.double(), box.map(Tensor.double)), layer.float(), box) > 64, (
        "exact, but not wider"
    )
    assert breaks(sound_bounds(layer, box), layer, box) == 0


def test_without_gamma_the_hunt_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "gamma", lambda count, unit: 0.0)
    layer, box = wide()
    assert breaks(sound_bounds(layer, box), layer, box) > 64


def test_softplus_holds_on_either_side_of_torchs_switch() -> None:
    # With a low threshold the switch is a step far larger than rounding; float32 takes it a little earlier or later.
    moved = 0
    for beta in torch.linspace(0.5, 4, 100).tolist():
        layer = nn.Softplus(beta=beta + 1e-9, threshold=0.9)
        near = torch.tensor([[0.9 / beta]])
        for _ in range(3):
            near = torch.cat([near.nextafter(near - 1), near, near.nextafter(near + 1)])
        box = point_box(near)
        image = interval_rule(layer, box)
        bounds = image.widen(rounding_rule(layer, box).bound(torch.float32))
        value = layer(near).double()
        assert bounds.contains(value).all()
        moved += int(((value - image.center).abs() > 0.01).sum())
    assert moved > 0, "float32 and float64 always switched at the same point"


@pytest.mark.parametrize("value", [1e-45, 1e-40, -1e-45, 0.0])
def test_softplus_holds_where_its_product_with_beta_underflows(value: float) -> None:
    # 0.1 * 1e-45 is 0 in float32, which is not above the threshold of 0: log(2) / 0.1 instead of the input itself
    layer, point = nn.Softplus(0.1, threshold=0.0), torch.full((1, 1), value)
    box = point_box(point)
    assert interval_rule(layer, box).widen(rounding_rule(layer, box).bound(torch.float32)).contains(layer(point)).all()


def test_a_slope_below_the_smallest_normal_number_is_rounded_coarsely() -> None:
    layer, point = nn.LeakyReLU(1e-40), torch.full((1, 1), -1e30)
    error = (layer(point).double() - 1e-40 * point.double()).abs()
    assert error > gamma(3, UNIT) * 1e-10, "as fine as elsewhere"
    assert error <= rounding_rule(layer, point_box(point)).bound(torch.float32)


def test_the_rounding_of_the_bounds_own_arithmetic_is_part_of_it() -> None:
    for dtype in (torch.float32, torch.float64):
        bound = Rounding(10, torch.ones(1).double()).bound(dtype)
        assert bound - gamma(10, unit_roundoff(dtype)) > 15.9 * 2.0**-53  # of 10 + 6 operations


# Nothing finite where something may overflow


OVERFLOWS = {
    "a weight": (nn.Linear(2, 1), 1e38),
    "a sum": (nn.AvgPool2d(2), 3e38),
    "an input": (nn.ReLU(), 3.5e38),
    "an input that is not a number": (nn.Sigmoid(), math.nan),
    "exp inside softplus": (nn.Softplus(threshold=200.0), 100.0),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_possible_overflow_is_never_bounded(name: str) -> None:
    layer, value = OVERFLOWS[name]
    if isinstance(layer, nn.Linear):
        layer.weight.data.fill_(3.0)
    end = torch.full((1, 2, 2) if isinstance(layer, nn.AvgPool2d) else (1, 2), value, dtype=torch.float64)
    bound = rounding_rule(layer.double(), Interval(end, end)).bound(torch.float32)
    assert bound.isinf().all()


def test_gamma_ends_where_its_proof_ends() -> None:
    assert gamma(1, UNIT) > UNIT and gamma(0, UNIT) == 0
    assert gamma(2**23, UNIT) == math.inf
    assert Rounding(2**23, torch.zeros(1)).bound(torch.float32).isinf().all()


# Refusals


def refused(message: str, network: nn.Module | None = None, x: Tensor | None = None) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_deployed(network or mlp_vae((3,), (4,), 2), torch.rand(2, 3) if x is None else x)
    assert "\n" not in str(error.value)


def test_the_plain_settings_are_accepted() -> None:
    for dtype in (torch.float32, torch.float64):
        check_deployed(mlp_vae((3,), (4,), 2).to(dtype), torch.rand(2, 3, dtype=dtype))
        check_deployed(conv_vae((1, 4, 4), (2,), 2).to(dtype), torch.rand(2, 1, 4, 4, dtype=dtype))
    assert unit_roundoff(torch.float32) == UNIT and unit_roundoff(torch.float64) == 2.0**-53


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_refused(dtype: torch.dtype) -> None:
    refused(f"float32 and float64, not {dtype}", mlp_vae((3,), (4,), 2).to(dtype), torch.rand(2, 3).to(dtype))
    partly = mlp_vae((3,), (4,), 2)
    partly.decoder.to(dtype)
    refused(f"float32 and float64, not {dtype}", partly)


def test_mixed_precisions_are_refused() -> None:
    refused("one precision throughout: x is torch.float64, .* holds torch.float32", x=torch.rand(2, 3).double())


def test_autocast_is_refused() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        refused("autocast")


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fast_products_are_refused(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        refused(r"float32 products .*tf32|bf16.*mkldnn\.matmul\.fp32_precision = .ieee")
        check_deployed(mlp_vae((3,), (4,), 2).double(), torch.rand(2, 3).double())  # float64 has no such setting
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("part", ["matmul", "conv"])
def test_fast_products_of_one_backend_are_refused(part: str, precision: str) -> None:
    with set_to(getattr(torch.backends.mkldnn, part), precision):
        refused(rf"in {precision}, .*mkldnn\.{part}", conv_vae((1, 4, 4), (2,), 2), torch.rand(2, 1, 4, 4))
        if part == "conv":
            check_deployed(mlp_vae((3,), (4,), 2), torch.rand(2, 3))  # has none


def test_environment_variables_that_lower_precision_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    refused("ONEDNN_DEFAULT_FPMATH_MODE")


def test_winograd_convolutions_are_refused() -> None:
    if not torch.backends.nnpack.is_available():
        pytest.skip("torch is built without NNPACK")
    torch._C._set_mkldnn_enabled(False)
    try:
        refused("NNPACK", conv_vae((1, 4, 4), (2,), 2), torch.rand(2, 1, 4, 4))
        check_deployed(mlp_vae((3,), (4,), 2), torch.rand(2, 3))
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_flushed_subnormals_are_refused() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        refused("set_flush_denormal")
    finally:
        torch.set_flush_denormal(False)


def test_computed_weights_are_refused() -> None:
    network = mlp_vae((3,), (4,), 2)
    weight_norm(network.encoder[0])
    refused("remove_parametrizations", network)


def test_other_devices_are_refused() -> None:
    refused("not for meta", mlp_vae((3,), (4,), 2).to("meta"), torch.rand(2, 3, device="meta"))


def test_cudas_shortcuts_are_refused() -> None:
    with FakeTensorMode():
        network, x = conv_vae((1, 4, 4), (2,), 2), torch.rand(2, 1, 4, 4, device="cuda")
        refused(r"cuDNN .* TF32, by Winograd or by FFT", network, x)
        with set_to(torch.backends.cuda.matmul, "tf32"):
            refused(r"in tf32, .*cuda\.matmul", mlp_vae((3,), (4,), 2), torch.rand(2, 3, device="cuda"))


def test_a_layer_without_a_rounding_rule_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"no rounding rule for Softmax at 'a'.*\(layer, box\) -> Rounding"):
        apply_rule(rounding_rule, "Softmax at 'a'", nn.Softmax(1), point_box(torch.zeros(1, 2)))
