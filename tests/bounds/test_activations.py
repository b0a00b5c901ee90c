"""GELU, SiLU, SELU, PReLU, ReLU6 and Hardtanh by all three rules: dense grids in float64, exact arithmetic, networks.

The allowance has the largest |v| of the box, too: torch evaluates GELU as v (1 + erf) / 2, off by some units of
rounding of v, and a line's offset is the difference of the curve and slope times v somewhere in the box.
"""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, assert_encloses, audit, random_box
from test_relaxation import ENDS, FINITE, ULPS, UNDERFLOW, box_of, gap, members, relaxation_of
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Crown,
    CrownIBP,
    Interval,
    LinearRelaxation,
    LinfBall,
    certificate,
    elbo,
    elbo_bounds,
    interval_rule,
    propagate,
    rounding_rule,
)
from paperlib.bounds.activations import GELU, SILU
from paperlib.bounds.linear import backward_substitute, initial_alpha, parallel
from paperlib.bounds.rounding import magnitude
from paperlib.bounds.rules import apply_rule


def prelu(*slopes: float) -> nn.PReLU:
    layer = nn.PReLU(len(slopes)).double()
    layer.weight.data = torch.tensor(slopes, dtype=torch.float64)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "selu": nn.SELU,
    "relu6": nn.ReLU6,
    "relu6 in place": lambda: nn.ReLU6(inplace=True),
    "hardtanh": nn.Hardtanh,
    "hardtanh, uneven": lambda: nn.Hardtanh(-2.0, 0.5),
    "hardtanh, positive": lambda: nn.Hardtanh(0.7, 3.0),
    "prelu": lambda: prelu(0.25),
    "prelu, falling": lambda: prelu(-0.5),
    "prelu, concave": lambda: prelu(1.5),
    "prelu, line": lambda: prelu(1.0),
    "prelu, relu": lambda: prelu(0.0),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)
DIPS = {"gelu": GELU["none"], "gelu by tanh": GELU["tanh"], "silu": SILU}
SWITCHES = [-2.4, -2.0, -math.sqrt(2), -1.2784645, -1.0, -0.7517916, 0.0, 0.5, 0.7, 1.0, math.sqrt(2), 2.4, 3.0, 6.0]
AROUND = [switch + step for switch in SWITCHES for step in (-1e-9, 0.0, 1e-9)]
BOX = st.tuples(FINITE | st.sampled_from(AROUND), FINITE | st.sampled_from(AROUND)).map(sorted)
ACROSS = [(low, high) for low in [-8.0, *SWITCHES] for high in [*SWITCHES, 8.0] if low <= high]


def dense(box: Interval, count: int = 401) -> Tensor:
    """Points of each box, both ends and where curves bend: [points, *shape]."""
    bends = torch.tensor([*AROUND, 1e-300, -1e-300, 5e-324, -5e-324], dtype=torch.float64)
    share = torch.linspace(0, 1, count, dtype=torch.float64)
    bends, share = (t.view(-1, *[1] * box.lower.ndim) for t in (bends, share))
    points = [torch.stack([*box]), box.lower + (box.upper - box.lower) * share, bends.expand(-1, *box.lower.shape)]
    return torch.cat(points).clamp(*box)


def assert_between(relaxation: LinearRelaxation, box: Interval, points: Tensor, values: Tensor) -> None:
    for bound, sign in ((relaxation.lower, 1), (relaxation.upper, -1)):
        for function in members(bound):
            above, allowance = gap(function, points, values)
            allowance = allowance + ULPS * magnitude(box)
            assert (sign * above >= -allowance).all(), f"broken by {(-sign * above - allowance).max():.3g}"


@EACH_LAYER
def test_both_rules_enclose_the_layer_on_boxes_of_every_kind(name: str) -> None:
    layer, box = LAYERS[name](), box_of([*ENDS, *ACROSS])
    points = dense(box, 1001)
    values = layer(points.clone())
    assert_encloses(propagate(layer, box), values)
    assert_between(relaxation_of(layer, box), box, points, values)


@EACH_LAYER
@settings(max_examples=15)
@given(st.lists(BOX, min_size=1, max_size=20))
def test_both_rules_enclose_the_layer_on_random_boxes(name: str, ends: list) -> None:
    layer, box = LAYERS[name](), box_of(ends)
    points = dense(box)
    values = layer(points.clone())
    assert_encloses(propagate(layer, box), values)
    assert_between(relaxation_of(layer, box), box, points, values)


@EACH_LAYER
def test_the_box_is_the_exact_image(name: str) -> None:
    layer, box = LAYERS[name](), box_of(ACROSS)
    values = layer(dense(box, 20_001))
    image = propagate(layer, box)
    assert ((values.amin(0) - image.lower).abs() <= 1e-6).all() and ((values.amax(0) - image.upper).abs() <= 1e-6).all()


@pytest.mark.parametrize("name", DIPS)
def test_the_minimum_and_the_inflections_are_those_of_the_function(name: str) -> None:
    with mpmath.workdps(40):
        rate = mpmath.sqrt(2 / mpmath.pi)
        function = {
            "gelu": lambda v: v * mpmath.ncdf(v),
            "gelu by tanh": lambda v: v / 2 * (1 + mpmath.tanh(rate * (v + mpmath.mpf("0.044715") * v**3))),
            "silu": lambda v: v / (1 + mpmath.exp(-v)),
        }[name]
        dip = DIPS[name]
        at = mpmath.findroot(lambda v: mpmath.diff(function, v), dip.at)
        bend = mpmath.findroot(lambda v: mpmath.diff(function, v, 2), dip.inflection)
        assert (dip.at, dip.value, dip.inflection) == (float(at), float(function(at)), float(bend))
        # nothing else bends: the second derivative changes its sign at +-bend alone, where it is more than noise
        for number in range(-400, 400):
            v = mpmath.mpf(number) / 50 + mpmath.mpf("0.003")
            curvature = mpmath.diff(function, v, 2)
            assert abs(curvature) < 1e-12 or (curvature > 0) == (abs(v) < bend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DIPS)
def test_a_box_around_the_minimum_reaches_below_every_value_there(name: str, dtype: torch.dtype) -> None:
    layer, dip = LAYERS[name](), DIPS[name]
    at = torch.tensor([[dip.at]], dtype=dtype)
    near = at + torch.linspace(-1e-3, 1e-3, 20_001, dtype=dtype).view(-1, 1)
    below = interval_rule(layer, Interval(at.nextafter(at - 1), at.nextafter(at + 1))).lower
    assert below.double() < dip.value and below.double() > dip.value * (1 + 4 * torch.finfo(dtype).eps)
    assert torch.equal(interval_rule(layer, Interval(at - 1e-3, at + 1e-3)).lower, below)
    if dtype == torch.float64:
        assert (layer(near) >= below).all()


@EACH_LAYER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_point_box_gives_the_forward_pass_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    layer, x = LAYERS[name]().to(dtype), torch.tensor([AROUND], dtype=dtype).T
    for at in DIPS.values():
        x = torch.cat([x, torch.tensor([[at.at]], dtype=dtype)])
    for end in propagate(layer, Interval(x, x.clone())):
        assert torch.equal(end, layer(x.clone()))


@EACH_LAYER
@settings(max_examples=15)
@given(st.integers(0, 2**16))
def test_a_smaller_box_gives_a_smaller_box(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer, box = LAYERS[name](), random_box(2, 9)
    inner = Interval(box.center - box.radius * torch.rand(9), box.center + box.radius * torch.rand(9))
    assert_encloses(propagate(layer, box), torch.stack([*propagate(layer, inner)]))


@pytest.mark.parametrize(
    "name", sorted(LAYERS.keys() - {"prelu, relu"})
)  # 0 times infinity: the layer has no number there
def test_infinite_ends_have_a_box(name: str) -> None:
    image = propagate(LAYERS[name](), box_of([(-math.inf, 2.0), (-1.0, math.inf), (-math.inf, math.inf)]))
    assert not (image.lower.isnan().any() or image.upper.isnan().any())
    assert (image.lower <= image.upper).all()


@EACH_LAYER
def test_each_bound_touches_the_layer(name: str) -> None:
    layer, box = LAYERS[name](), box_of([(-3.0, -0.5), (0.25, 2.0), (-1.0, 2.0), (-2.0, 0.5), (-1.0, 0.0), (0.7, 0.7)])
    points = dense(box, 40_001)
    values = layer(points.clone())
    relaxation = relaxation_of(layer, box)
    for bound in (relaxation.lower, relaxation.upper):
        assert (gap(initial_alpha(bound), points, values)[0].abs().amin(0) <= 1e-8).all()


@EACH_LAYER
def test_where_it_is_straight_both_bounds_are_the_layer(name: str) -> None:
    layer, box = LAYERS[name](), box_of([(0.7, 0.7), (-0.3, -0.3)])
    relaxation = relaxation_of(layer, box)
    for bound in (relaxation.lower, relaxation.upper):
        for function in members(bound):
            line = function.slope * box.lower + function.offset
            torch.testing.assert_close(line, layer(box.lower.clone()), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_wide_boxes_have_the_bounds_of_relu_but_for_the_dip(name: str) -> None:
    # As for relu the lower line follows the larger side: 0 on [-40, 10], v on [-10, 40]; the upper is the chord.
    relaxation = relaxation_of(LAYERS[name](), box_of([(-40.0, 10.0), (-10.0, 40.0)]))
    lower, upper = initial_alpha(relaxation.lower), relaxation.upper
    torch.testing.assert_close(lower.slope.flatten(), torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-3)
    assert (lower.offset > -0.3).all()
    torch.testing.assert_close(upper.slope.flatten(), torch.tensor([0.2, 0.8]).double(), rtol=0, atol=1e-3)


@EACH_LAYER
def test_a_parallel_relaxation_encloses_the_layer(name: str) -> None:
    layer, box = LAYERS[name](), box_of([*ENDS, *ACROSS])
    points = dense(box, 1001)
    values = layer(points.clone())
    both = parallel(relaxation_of(layer, box), box)
    size = (both.slope * points).abs() + values.abs() + both.middle.abs() + both.radius.abs() + points.abs()
    assert ((values - both.slope * points - both.middle).abs() <= both.radius + ULPS * size + UNDERFLOW).all()


@EACH_LAYER
@settings(max_examples=10)
@given(st.integers(0, 2**16))
def test_substituted_coefficients_give_a_function_below(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer, box, coefficients = LAYERS[name](), random_box(2, 6), torch.randn(3, 2, 6).double()
    points = dense(box, 41)
    values = (coefficients * layer(points.clone())[:, None]).sum(-1)
    substituted, offset = backward_substitute(coefficients, relaxation_of(layer, box))
    below = (substituted * points[:, None]).sum(-1) + offset.sum(-1)
    assert (below <= values + ROUNDING * (1 + values.abs())).all()


# Gradients


@EACH_LAYER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_relaxation_is_finite_near_and_far(name: str, dtype: torch.dtype) -> None:
    layer = LAYERS[name]().to(dtype)
    ends = [end.to(dtype).requires_grad_() for end in box_of([*ENDS[:16], (-5.0, 500.0), (-2000.0, 1500.0)])]
    relaxation = relaxation_of(layer, Interval(*ends))
    for function in (initial_alpha(relaxation.lower), initial_alpha(relaxation.upper)):
        total = (function.slope + function.offset).sum()
        for gradient in torch.autograd.grad(total, [*ends, *layer.parameters()], retain_graph=True):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "name", sorted(LAYERS.keys() - {"prelu, line", "prelu, relu"})
)  # these bend in the slope itself
def test_the_gradient_of_both_rules_is_that_of_differences(name: str) -> None:
    layer = LAYERS[name]()
    pairs = [(-3.1, -0.4), (0.3, 2.2), (-1.1, 2.3), (-2.7, 0.6), (-7.0, 1.9), (1.6, 5.0), (-4.0, -2.6), (-0.9, 7.3)]
    ends = [end.requires_grad_() for end in box_of(pairs)]
    weight = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]

    class Bounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, low: Tensor, high: Tensor) -> Tensor:
            relaxation = relaxation_of(self.layer, Interval(low, high))
            lower, upper = initial_alpha(relaxation.lower), initial_alpha(relaxation.upper)
            lines = [lower.slope, lower.offset, upper.slope, upper.offset]
            return torch.cat([*propagate(self.layer, Interval(low, high)), *(t.expand_as(low) for t in lines)])

    bounds, names = Bounds(), [f"layer.{key}" for key, _ in layer.named_parameters()]

    def value(low: Tensor, high: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(bounds, dict(zip(names, parameters, strict=True)), (low, high))

    assert torch.autograd.gradcheck(value, (*ends, *weight), rtol=1e-4, atol=1e-6)


# Rounding


def exact(name: str, layer: nn.Module, v: float) -> mpmath.mpf:
    v = mpmath.mpf(v)
    match name:
        case "gelu":
            return v * mpmath.ncdf(v)
        case "gelu by tanh":
            return v * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (v + mpmath.mpf("0.044715") * v**3))) / 2
        case "silu" | "silu in place":
            return v / (1 + mpmath.exp(-v))
        case "selu":
            scale, alpha = (
                mpmath.mpf("1.0507009873554804934193349852946"),
                mpmath.mpf("1.6732632423543772848170429916717"),
            )
            return scale * (v if v > 0 else alpha * mpmath.expm1(v))
        case _ if isinstance(layer, nn.PReLU):
            return v if v > 0 else v * mpmath.mpf(layer.weight.item())
        case _:
            return max(mpmath.mpf(layer.min_val), min(mpmath.mpf(layer.max_val), v))


@EACH_LAYER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e-45, 1e-3, 1.0, 30.0, 1e4])
def test_the_rounding_rule_holds_against_exact_arithmetic(name: str, dtype: torch.dtype, spread: float) -> None:
    layer = LAYERS[name]().to(dtype)
    points = torch.cat([torch.randn(300, 1), torch.linspace(-9, 9, 101)[:, None]]).mul(spread).to(dtype)
    computed = layer(points.clone())
    layer, box = layer.double(), Interval(points.double(), points.double())
    wide = Interval(points.double().amin(0, keepdim=True), points.double().amax(0, keepdim=True))
    bound, overall = (apply_rule(rounding_rule, name, layer, each).bound(dtype) for each in (box, wide))
    with mpmath.workdps(40):
        for v, value, error in zip(points, computed, bound, strict=True):
            off = abs(mpmath.mpf(value.item()) - exact(name, layer, v.item()))
            assert off <= error.item() and off <= overall.item()


# Networks


def network(name: str, seed: int = 0) -> tuple[VAE, Tensor, Tensor]:
    torch.manual_seed(seed)
    parts = [LAYERS[name]() for _ in range(4)]
    encoder = nn.Sequential(nn.Linear(3, 6), parts[0], nn.Linear(6, 6), parts[1], nn.Linear(6, 4))
    decoder = nn.Sequential(nn.Linear(2, 6), parts[2], nn.Linear(6, 6), parts[3], nn.Linear(6, 3))
    return VAE(encoder, decoder, Bernoulli(), 2).double(), torch.rand(3, 3).double(), torch.randn(3, 2).double()


@pytest.mark.parametrize("name", [name for name in LAYERS if "in place" not in name])
@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_every_bound_of_a_network_of_it_holds(name: str, target: str) -> None:
    vae, x, noise = network(name)
    audit(vae, x, 0.3, noise, target, [CrownIBP(), CrownIBP(alpha_steps=3)])
    audit(vae, x, 0.3, noise, target, [Crown()])


@EACH_LAYER
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_a_sound_bound_holds_for_what_float32_computes(name: str, method: str) -> None:
    vae, x, noise = (part.float() for part in network(name))
    ball = LinfBall(0.1)
    bounds = elbo_bounds(vae, x, ball, noise, method, sound=True)
    assert bounds.lower.isfinite().all() and bounds.upper.isfinite().all()
    box = ball.box(x)
    for _ in range(50):
        point = torch.where(torch.rand_like(x) > 0.5, *box)
        value = elbo(vae, point, noise).double()
        assert (bounds.lower <= value).all() and (value <= bounds.upper).all()


@EACH_LAYER
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_training_on_a_certificate_raises_it(name: str, method: str) -> None:
    vae, x, noise = network(name)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    first = certificate(vae, x, LinfBall(0.1), noise, method).mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = -certificate(vae, x, LinfBall(0.1), noise, method).mean()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert -loss.item() > first
