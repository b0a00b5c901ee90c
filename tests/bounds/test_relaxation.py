"""Linear relaxations: bounds of each layer on dense grids, transposes against unrolled matrices, in float64.

The allowance is eight units of rounding of the largest number that enters: slope times v, the offset, the value.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, audit, random_box
from test_interval import AFFINE, COPIED, EXACT, drawn, unrolled
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, Crown, CrownIBP, Interval, LinfBall, elbo_bounds, interval_rule, relaxation_rule
from paperlib.bounds.curves import sigmoidal
from paperlib.bounds.interval import affine
from paperlib.bounds.linear import (
    AlphaRelaxation,
    LinearFunction,
    LinearRelaxation,
    backward_substitute,
    initial_alpha,
    parallel,
)
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import UnsupportedLayerError, apply_rule

ULPS = 8 * torch.finfo(torch.float64).eps
UNDERFLOW = 8 * torch.finfo(torch.float64).smallest_normal * torch.finfo(torch.float64).eps  # of subnormal results
LAYERS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    *(nn.LeakyReLU(slope) for slope in (0.0, 0.01, 0.5, 1.0, 3.0)),
    nn.LeakyReLU(0.1, inplace=True),
    *(nn.ELU(alpha) for alpha in (0.0, 0.5, 1.0, 3.0)),
    nn.ELU(2.0, inplace=True),
    nn.Softplus(),
    nn.Softplus(beta=0.1),
    nn.Softplus(beta=5.0),
    nn.Softplus(threshold=1.0),
    nn.Sigmoid(),
    nn.Tanh(),
]
EACH_LAYER = pytest.mark.parametrize("layer", LAYERS, ids=repr)
ENDS = [
    *[(-3.0, -0.5), (-60.0, -1.0), (0.25, 2.0), (1.0, 60.0)],  # the sign is fixed
    *[(-1.0, 2.0), (-2.0, 0.5), (-1e-3, 50.0), (-50.0, 1e-3), (-1.0, 0.0), (0.0, 1.0)],
    *[(at, at + 1e-12) for at in (-30.0, -1.0, -5e-13, 0.0, 0.3, 19.0)],
    *[(at, at) for at in (-40.0, -1.0, 0.0, 1e-300, 0.7, 20.0, 40.0)],
    *[(-1e6, 1e6), (-1e8, 3.0), (-3.0, 1e8), (-800.0, 800.0)],
    *[(0.9, 1.0 + 1e-9), (0.5, 30.0), (3.9, 4.0 + 1e-10), (19.9, 20.0 + 1e-10), (199.0, 200.0 + 1e-9)],  # softplus
]
FINITE = st.floats(-40, 40)
BOX = st.tuples(FINITE, FINITE).map(sorted) | FINITE.map(lambda end: [end, end])


def box_of(ends: list) -> Interval:
    """Boxes as one example each, [boxes, 1]."""
    return Interval(*torch.tensor(ends, dtype=torch.float64)[:, :, None].unbind(1))


def dense(box: Interval, count: int = 401) -> Tensor:
    """Points of each box, both ends, the centre and where curves bend or torch switches: [points, *shape]."""
    place = torch.linspace(0, 1, count, dtype=torch.float64).view(-1, *[1] * box.lower.ndim)
    bends = torch.tensor([0.0, 1.0, 4.0, 20.0, 200.0, -1.0, 1e-3, -1e-3], dtype=torch.float64)
    bends = bends.view(-1, *[1] * box.lower.ndim).expand(-1, *box.lower.shape)
    points = torch.cat([torch.stack([*box, box.center]), box.lower + (box.upper - box.lower) * place, bends])
    return points.clamp(*box)


def members(bound: LinearFunction | AlphaRelaxation[LinearFunction]) -> Iterator[LinearFunction]:
    """The bound itself; of a family of bounds the first and the second, the initial one, and others between them."""
    if isinstance(bound, AlphaRelaxation):
        assert ((bound.alpha >= 0) & (bound.alpha <= 1)).all()
        alphas = (torch.full_like(bound.alpha, share) for share in (0.25, 0.5, 0.9))
        initial, same = initial_alpha(bound), bound.at(bound.alpha)
        for part in ("slope", "offset"):
            torch.testing.assert_close(getattr(initial, part), getattr(same, part), rtol=1e-12, atol=1e-12)
        yield from (bound.first, bound.second, initial, *map(bound.at, alphas))
        yield bound.at(torch.rand_like(bound.alpha))
    else:
        yield bound


def gap(function: LinearFunction, points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """value - function, and the allowance for its rounding, [points, *shape]."""
    product = function.slope * points
    size = product.abs() + function.offset.abs() + values.abs()
    return values - (product + function.offset), ULPS * size + UNDERFLOW


def assert_between(relaxation: LinearRelaxation, points: Tensor, values: Tensor) -> None:
    for function in members(relaxation.lower):
        above, allowance = gap(function, points, values)
        assert (above >= -allowance).all(), f"a lower bound is too high by {-above.min():.3g}"
    for function in members(relaxation.upper):
        above, allowance = gap(function, points, values)
        assert (above <= allowance).all(), f"an upper bound is too low by {above.max():.3g}"


def relaxation_of(layer: nn.Module, box: Interval) -> LinearRelaxation | Affine:
    return apply_rule(relaxation_rule, type(layer).__name__, layer, box)


# Elementwise layers


@EACH_LAYER
def test_a_relaxation_encloses_the_layer_on_boxes_of_every_kind(layer: nn.Module) -> None:
    box = box_of(ENDS)
    points = dense(box, 1001)
    assert_between(relaxation_of(layer, box), points, layer(points.clone()))


@EACH_LAYER
@settings(max_examples=10)
@given(st.lists(BOX, min_size=1, max_size=20))
def test_a_relaxation_encloses_the_layer_on_random_boxes(layer: nn.Module, ends: list) -> None:
    box = box_of(ends)
    points = dense(box)
    assert_between(relaxation_of(layer, box), points, layer(points.clone()))


@EACH_LAYER
def test_each_bound_touches_the_layer(layer: nn.Module) -> None:
    """A bound that holds but touches nowhere is loose for nothing."""
    box = box_of([(-3.0, -0.5), (0.25, 2.0), (-1.0, 2.0), (-2.0, 0.5), (-1.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
    points = dense(box)
    values = layer(points.clone())
    step = math.log1p(math.exp(-layer.threshold)) / layer.beta if isinstance(layer, nn.Softplus) else 0.0
    relaxation = relaxation_of(layer, box)
    for bound in (relaxation.lower, relaxation.upper):
        for function in [bound.first, bound.second] if isinstance(bound, AlphaRelaxation) else [bound]:
            assert (gap(function, points, values)[0].abs().amin(0) <= step + 1e-12).all()


@EACH_LAYER
def test_a_parallel_relaxation_encloses_the_layer(layer: nn.Module) -> None:
    box = box_of(ENDS)
    points = dense(box, 1001)
    values = layer(points.clone())
    both = parallel(relaxation_of(layer, box), box)
    size = (both.slope * points).abs() + values.abs() + both.middle.abs() + both.radius.abs()
    allowance = ULPS * size + UNDERFLOW
    assert ((values - both.slope * points - both.middle).abs() <= both.radius + allowance).all()


CURVED = (nn.LeakyReLU(0.1), nn.ELU(), nn.ELU(2.0), nn.Softplus(), nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.PReLU())


@pytest.mark.parametrize("layer", [*CURVED, nn.Sigmoid(), nn.Tanh()], ids=repr)
def test_the_gradient_of_a_parallel_relaxation_is_that_of_differences(layer: nn.Module) -> None:
    layer, weights = layer.double(), torch.randn(3, 50).double()
    # at 0 and around it a tangent above a sigmoid or tanh may touch at a point that counts as a constant
    away = 1.0 if isinstance(layer, nn.Sigmoid | nn.Tanh) else 0.0
    ends = torch.stack([torch.rand(50).double() + away, torch.rand(50).double() + 2 + away]) - (0 if away else 1)
    ends = (torch.randn(50).sign() * ends).sort(0).values.requires_grad_()

    def value(ends: Tensor) -> Tensor:
        box = Interval(ends[:1], ends[1:])
        both = parallel(relaxation_of(layer, box), box)
        return (weights * torch.cat([both.slope, both.middle, both.radius])).sum()

    (gradient,) = torch.autograd.grad(value(ends), ends)
    steps = 1e-6 * torch.eye(100).double().view(100, 2, 50)
    with torch.no_grad():
        differences = torch.stack([(value(ends + step) - value(ends - step)) / 2e-6 for step in steps]).view(2, 50)
    torch.testing.assert_close(gradient, differences, rtol=1e-5, atol=1e-6)


def test_the_parallel_relaxation_of_relu_is_the_hand_worked_one() -> None:
    # On [-1, 3] the chord is 3/4 (v + 1); the bound of its slope below is 3/4 v: middle and radius are both 3/8.
    box = box_of([(-1.0, 3.0)])
    both = parallel(relaxation_of(nn.ReLU(), box), box)
    assert [part.item() for part in (both.slope, both.middle, both.radius)] == [0.75, 0.375, 0.375]


def test_the_relaxation_of_relu_is_the_hand_worked_one() -> None:
    relaxation = relaxation_of(nn.ReLU(), box_of([(-1.0, 3.0), (-3.0, 1.0), (1.0, 2.0), (-2.0, -1.0)]))
    assert relaxation.upper.slope.flatten().tolist() == [0.75, 0.25, 1.0, 0.0]
    assert relaxation.upper.offset.flatten().tolist() == [0.75, 0.75, 0.0, 0.0]
    # initially the slope that leaves the smaller area; where the sign is fixed there is one slope only
    assert initial_alpha(relaxation.lower).slope.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]
    assert relaxation.lower.first.slope.flatten().tolist() == [0.0, 0.0, 1.0, 0.0]
    assert relaxation.lower.second.slope.flatten().tolist() == [1.0, 1.0, 1.0, 0.0]


@EACH_LAYER
@settings(max_examples=10)
@given(st.integers(0, 2**16))
def test_substituted_coefficients_give_a_function_below(layer: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    box, coefficients = random_box(2, 6), torch.randn(3, 2, 6).double()  # rows, batch, units
    relaxation, points = relaxation_of(layer, box), dense(box, 41)
    values = (coefficients * layer(points.clone())[:, None]).sum(-1)  # [points, rows, batch]
    for select_alpha in (initial_alpha, lambda bound: [*members(bound)][-1]):
        substituted, offset = backward_substitute(coefficients, relaxation, select_alpha)
        assert substituted.shape == coefficients.shape
        below = (substituted * points[:, None]).sum(-1) + offset.sum(-1)
        assert (below <= values + ROUNDING * (1 + values.abs())).all()
    # rows are optional
    alone, rows = backward_substitute(coefficients[0], relaxation), backward_substitute(coefficients, relaxation)
    assert torch.equal(alone[0], rows[0][0]) and torch.equal(alone[1], rows[1][0])


@EACH_LAYER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_relaxation_is_finite_near_and_far(layer: nn.Module, dtype: torch.dtype) -> None:
    ends = [end.to(dtype).requires_grad_() for end in box_of([*ENDS[:16], (-5.0, 500.0), (-2000.0, 1500.0)])]
    relaxation = relaxation_of(layer, Interval(*ends))
    for function in (initial_alpha(relaxation.lower), initial_alpha(relaxation.upper)):
        if (function.slope + function.offset).requires_grad:
            for gradient in torch.autograd.grad((function.slope + function.offset).sum(), ends, retain_graph=True):
                assert torch.isfinite(gradient).all()


@EACH_LAYER
def test_the_given_box_stays_as_it_is(layer: nn.Module) -> None:
    box = box_of([(-1.0, 2.0), (-2.0, -1.0)])
    relaxation_of(layer, box)
    assert box.lower.flatten().tolist() == [-1.0, -2.0] and box.upper.flatten().tolist() == [2.0, -1.0]


# Affine layers

TRANSPOSED = AFFINE | COPIED | {name: EXACT[name] for name in ("flatten", "unflatten", "identity", "dropout")}


@pytest.mark.parametrize("name", TRANSPOSED)
@settings(max_examples=12)
@given(data=st.data())
def test_a_transpose_is_that_of_the_unrolled_matrix(name: str, data: st.DataObject) -> None:
    layer, box = drawn(data, TRANSPOSED[name])
    affine_layer = relaxation_of(layer, box)
    assert isinstance(affine_layer, Affine)
    matrix, offset = unrolled(layer, box.lower.shape[1:])
    output = layer(box.lower)
    coefficients = torch.randn(3, *output.shape).double()
    close = {"rtol": ROUNDING, "atol": ROUNDING}
    for some in (coefficients, coefficients[0], coefficients[:0]):  # several rows, none named, no row
        transposed = affine_layer.transpose(some)
        assert transposed.shape == (*some.shape[: some.ndim - output.ndim + 1], *box.lower.shape[1:])
        if len(some):
            expected = some.flatten(1 - output.ndim) @ matrix
            torch.testing.assert_close(transposed.flatten(1 - box.lower.ndim), expected, **close)
        constant = (some * affine_layer.offset).flatten(1 - output.ndim).sum(-1)
        torch.testing.assert_close(constant, some.flatten(1 - output.ndim) @ offset, **close)
    value = (coefficients * layer(box.upper)).flatten(2).sum(2)
    transposed = affine_layer.transpose(coefficients)
    by_rule = (transposed * box.upper).flatten(2).sum(2) + (coefficients * affine_layer.offset).flatten(2).sum(2)
    torch.testing.assert_close(by_rule, value, **close)
    with torch.no_grad():
        assert torch.equal(relaxation_of(layer, box).transpose(coefficients), transposed.detach())


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(1, 2, 2, padding=1), nn.ConvTranspose2d(1, 2, 2, 2)])
def test_a_transpose_is_differentiable_in_the_weight(layer: nn.Module) -> None:
    layer, shape = layer.double(), (4,) if isinstance(layer, nn.Linear) else (1, 2, 2)
    coefficients = torch.randn_like(layer(torch.zeros(2, *shape).double()))
    weight = layer.weight.detach().clone().requires_grad_()

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, coefficients: Tensor) -> Tensor:
            return relaxation_of(self.layer, random_box(2, *shape)).transpose(coefficients)

    transposed = Transposed()
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(transposed, {"layer.weight": w}, (coefficients,)), (weight,)
    )


# A user's own layers


class Softsign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs())


@interval_rule.register
def _(layer: Softsign, box: Interval) -> Interval:
    return box.map(layer)


class Scale(nn.Module):
    """One factor and one shift for each feature."""

    def __init__(self, factor: list[float], shift: list[float]):
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.tensor(factor)), nn.Parameter(torch.tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.shift


@interval_rule.register
def _(layer: Scale, box: Interval) -> Interval:
    return affine(box, layer, lambda radius: layer.factor.abs() * radius, summands=1)


@pytest.fixture
def own_rules() -> Iterator[None]:
    @relaxation_rule.register
    def elementwise(layer: Softsign, box: Interval) -> LinearRelaxation:
        return sigmoidal(layer, lambda v: (1 + v.abs()) ** -2, box)

    @relaxation_rule.register
    def linear(layer: Scale, box: Interval) -> Affine:
        return Affine(lambda coefficients: coefficients * layer.factor, layer.shift)

    yield
    for kind in (Softsign, Scale):
        relaxation_rule.register(kind, relaxation_rule.dispatch(nn.Module))


def own_vae() -> VAE:
    encoder = nn.Sequential(nn.Linear(3, 4), Softsign(), nn.Linear(4, 4), Scale([1.0, -2.0, 0.5, 1.0], [0.1] * 4))
    decoder = nn.Sequential(nn.Linear(2, 4), Softsign(), Scale([1.0, -1.0, 2.0, 0.0], [0.0] * 4), nn.Linear(4, 3))
    return VAE(encoder, decoder, Bernoulli(), 2).double()


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize("method", [CrownIBP, Crown])
def test_one_more_rule_for_each_layer_of_the_users_own_is_enough(method: type[CrownIBP]) -> None:
    box = box_of(ENDS)
    points = dense(box)
    assert_between(relaxation_of(Softsign(), box), points, Softsign()(points))
    vae, x, noise = own_vae(), torch.rand(3, 3).double(), torch.randn(3, 2).double()
    audit(vae, x, 0.2, noise, "perturbed", [method(), method(alpha_steps=3)])
    linear, interval = (elbo_bounds(vae, x, LinfBall(0.2), noise, each) for each in (method(), "ibp"))
    assert (linear.lower > interval.lower).all()


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@interval_rule.register
def _(layer: Cube | Doubled, box: Interval) -> Interval:
    return (
        box.map(layer)
        if isinstance(layer, Cube)
        else affine(box, layer, lambda r: 2 * r @ layer.weight.abs().T, layer.in_features)
    )


@pytest.mark.parametrize("layer", [Cube(), Doubled(4, 4)])
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_layer_without_a_relaxation_is_refused_with_name_place_and_remedy(half: str, layer: nn.Module) -> None:
    parts = {"encoder": nn.Linear(3, 4), "decoder": nn.Linear(2, 3)}
    parts[half] = nn.Sequential(parts[half], layer) if half == "encoder" else nn.Sequential(nn.Linear(2, 4), layer)
    if half == "decoder":
        parts[half].append(nn.Linear(4, 3))
    vae = VAE(**parts, likelihood=Bernoulli(), latent_dim=2).double()
    x, noise, name = torch.rand(1, 3).double(), torch.randn(1, 2).double(), type(layer).__name__
    elbo_bounds(vae, x, LinfBall(0.1), noise)  # intervals have their rule
    for method in ("crown-ibp", "crown"):
        message = (
            rf"no relaxation rule for {name} at '{half}\.1'.*; register one with @relaxation_rule\.register\({name}\)"
        )
        with pytest.raises(UnsupportedLayerError, match=message + r".*\(layer, box\) -> LinearRelaxation \| Affine"):
            elbo_bounds(vae, x, LinfBall(0.1), noise, method)


def test_a_layer_without_any_rule_is_refused_by_the_rule_itself() -> None:
    with pytest.raises(UnsupportedLayerError, match="no relaxation rule for Softmax"):
        relaxation_rule(nn.Softmax(1), random_box(1, 2))


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.BatchNorm1d(3), (2, 3), "batch statistics"),
        (nn.BatchNorm2d(3, track_running_stats=False).eval(), (2, 3, 2, 2), "running statistics"),
        (nn.Dropout(0.5), (2, 3), "training mode is random"),
    ],
    ids=repr,
)
def test_a_layer_that_is_no_function_of_one_example_is_refused(
    layer: nn.Module, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        relaxation_rule(layer.double(), random_box(*shape))
