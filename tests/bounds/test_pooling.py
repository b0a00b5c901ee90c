"""Max-pooling, adaptive averages and upsampling by copies: enclosure, transposes, rounding, networks, in float64."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, assert_encloses, audit, points_of, random_box
from test_interval import Pick, drawn, unrolled
from test_relaxation import assert_between, relaxation_of
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Crown,
    CrownIBP,
    Interval,
    LinfBall,
    certificate,
    elbo,
    elbo_bounds,
    propagate,
    rounding_rule,
)
from paperlib.bounds.linear import backward_substitute, parallel
from paperlib.bounds.relaxation import Affine


def max_pool(pick: Pick) -> tuple[nn.Module, tuple[int, ...]]:
    kernel, stride, dilation = pick(1, 2, 3, (2, 3)), pick(1, 2, (2, 1)), pick(1, 2)
    padding = pick(0, 1) if kernel != 1 else 0
    layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=pick(False, True))
    return layer, (pick(1, 2), pick(5, 6), pick(6, 7))


AFFINE = {
    "adaptive average": lambda pick: (
        nn.AdaptiveAvgPool2d(pick(1, 2, 3, (2, 5), (None, 1))),
        (2, pick(3, 5), pick(5, 6)),
    ),
    "upsample": lambda pick: (nn.Upsample(scale_factor=pick(2, 3)), (2, 2, pick(2, 3))),
    "upsample to a size": lambda pick: (
        nn.Upsample(size=pick((5, 4), 7), mode=pick("nearest", "nearest-exact")),
        (1, 3, 2),
    ),
    "upsample, old name": lambda pick: (nn.UpsamplingNearest2d(scale_factor=2), (1, 3, 2)),
}
RULES = AFFINE | {"max": max_pool}


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30)
@given(data=st.data())
def test_the_box_is_exact_nested_and_closes_at_a_point(name: str, data: st.DataObject) -> None:
    layer, box = drawn(data, RULES[name])
    image = propagate(layer, box)
    assert_encloses(image, torch.stack([layer(point) for point in points_of(*box, count=8)]))
    assert torch.equal(image.lower, layer(box.lower)) and torch.equal(image.upper, layer(box.upper))
    inner = Interval(box.center - box.radius / 2, box.center + box.radius / 3)
    assert_encloses(image, torch.stack([*propagate(layer, inner)]))
    for end in propagate(layer, Interval(box.lower, box.lower)):
        assert torch.equal(end, layer(box.lower))


@pytest.mark.parametrize("name", AFFINE)
@settings(max_examples=15)
@given(data=st.data())
def test_a_transpose_is_that_of_the_unrolled_matrix(name: str, data: st.DataObject) -> None:
    layer, box = drawn(data, AFFINE[name])
    relaxation = relaxation_of(layer, box)
    assert isinstance(relaxation, Affine)
    matrix, offset = unrolled(layer, box.lower.shape[1:])
    coefficients = torch.randn(3, *layer(box.lower).shape).double()
    transposed = relaxation.transpose(coefficients).flatten(2)
    torch.testing.assert_close(transposed, coefficients.flatten(2) @ matrix, rtol=ROUNDING, atol=ROUNDING)
    assert not offset.any() and not relaxation.offset.any()


# Max-pooling


@settings(max_examples=40)
@given(data=st.data())
def test_lines_enclose_the_maximum_of_every_window(data: st.DataObject) -> None:
    layer, box = drawn(data, max_pool)
    relaxation, points = relaxation_of(layer, box), points_of(*box)
    values = torch.stack([layer(point) for point in points])
    assert_between(relaxation, relaxation.select(points), values)
    both = parallel(relaxation, box)
    away = (values - both.slope_times(points) - both.middle).abs()
    assert (away <= both.radius + ROUNDING * (1 + away)).all()
    assert (both.spread(box.radius) <= both.slope.abs() * box.radius.amax()).all()

    coefficients = torch.randn(3, *values.shape[1:]).double()
    substituted, offset = backward_substitute(coefficients, relaxation)
    assert substituted.shape == (3, *box.lower.shape)
    below = (substituted * points[:, None]).flatten(3).sum(3) + offset.flatten(2).sum(2)
    value = (coefficients * values[:, None]).flatten(3).sum(3)
    assert (below <= value + ROUNDING * (1 + value.abs())).all()


@settings(max_examples=20)
@given(data=st.data())
def test_a_selection_and_its_transpose_agree(data: st.DataObject) -> None:
    layer, box = drawn(data, max_pool)
    selection = relaxation_of(layer, box).selection
    values, coefficients = torch.randn(2, *box.lower.shape).double(), torch.randn(2, *layer(box.lower).shape).double()
    one, other = (coefficients * selection.of(values)).sum(), (selection.transpose(coefficients) * values).sum()
    torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


def test_the_lines_of_a_maximum_are_the_hand_worked_ones() -> None:
    # Two windows of four. In the first, [1, 2] is above all others, so the maximum is it. In the second, [0, 3] has the
    # largest lower end and the others reach 1: the maximum lies between w and the chord of max(w, 1), 1/3 (2 w + 3).
    low = torch.tensor([[[[1.0, -1.0, 0.0, -2.0], [0.5, 0.0, -1.0, -5.0]]]], dtype=torch.float64)
    high = torch.tensor([[[[2.0, 0.0, 3.0, 1.0], [1.0, 0.0, 0.5, -4.0]]]], dtype=torch.float64)
    relaxation = relaxation_of(nn.MaxPool2d(2), Interval(low, high))
    assert relaxation.selection.index.tolist() == [[0, 2]]
    assert relaxation.lower.slope.flatten().tolist() == [1, 1] and relaxation.lower.offset.flatten().tolist() == [0, 0]
    torch.testing.assert_close(relaxation.upper.slope.flatten(), torch.tensor([1, 2 / 3]).double())
    torch.testing.assert_close(relaxation.upper.offset.flatten(), torch.tensor([0, 1]).double())


def test_the_gradient_of_the_lines_is_that_of_differences() -> None:
    torch.manual_seed(0)
    layer, box = nn.MaxPool2d(2, 1), random_box(2, 1, 4, 4)
    ends = [box.lower.requires_grad_(), (box.upper + 0.1).detach().requires_grad_()]

    def lines(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        upper = relaxation_of(layer, Interval(low, high)).upper
        return upper.slope, upper.offset

    assert torch.autograd.gradcheck(lines, ends, rtol=1e-4, atol=1e-6)


def test_returned_indices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MaxPool2d: with return_indices=True it returns a pair"):
        propagate(nn.MaxPool2d(2, return_indices=True), random_box(1, 1, 2, 2))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_upsampling_that_computes_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"Upsample at '1': mode='{mode}' has no rule; only copies do"):
        propagate(nn.Sequential(nn.Identity(), nn.Upsample(scale_factor=2, mode=mode)), random_box(1, 1, 2, 2))


# Rounding


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.Upsample(scale_factor=2)], ids=repr)
def test_layers_that_compute_nothing_round_nothing(layer: nn.Module) -> None:
    assert not rounding_rule(layer, random_box(1, 2, 4, 4)).bound(torch.float32).any()


@pytest.mark.parametrize("size", [1, 2, 3, (4, 5)])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e6])
def test_adaptive_averages_round_within_the_rule(size: int | tuple[int, int], spread: float) -> None:
    layer, image = nn.AdaptiveAvgPool2d(size), torch.randn(1, 1, 7, 8) * spread
    computed = layer(image)[0, 0]
    bound = rounding_rule(layer, Interval(image.double(), image.double())).bound(torch.float32)[0, 0]
    rows, columns = computed.shape
    for row in range(rows):
        for column in range(columns):
            tops, lefts = (
                (row * 7 // rows, -((row + 1) * -7 // rows)),
                (column * 8 // columns, -((column + 1) * -8 // columns)),
            )
            window = image[0, 0, slice(*tops), slice(*lefts)].flatten().tolist()
            truth = sum(map(Fraction, window)) / len(window)
            assert abs(Fraction(computed[row, column].item()) - truth) <= Fraction(bound[row, column].item())


# Networks


def network(seed: int = 0) -> tuple[VAE, Tensor, Tensor]:
    torch.manual_seed(seed)
    tail = [nn.Conv2d(3, 2, 2), nn.MaxPool2d(2, 1, 1), nn.Flatten(), nn.Linear(8, 4)]
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), *tail)
    head = [nn.Linear(2, 8), nn.ReLU(), nn.Unflatten(1, (2, 2, 2)), nn.Upsample(scale_factor=2), nn.MaxPool2d(3, 1, 1)]
    decoder = nn.Sequential(*head, nn.Conv2d(2, 1, 1), nn.AdaptiveAvgPool2d(6), nn.AdaptiveAvgPool2d((4, 4)))
    x = torch.rand(2, 1, 4, 4).double()
    return VAE(encoder, decoder, Bernoulli(), 2).double(), x, torch.randn(2, 2).double()


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_every_bound_of_a_network_of_them_holds(target: str) -> None:
    vae, x, noise = network()
    audit(vae, x, 0.1, noise, target, [CrownIBP(), CrownIBP(alpha_steps=3)])
    audit(vae, x, 0.1, noise, target, [Crown()])


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_a_sound_bound_holds_for_what_float32_computes(method: str) -> None:
    vae, x, noise = (part.float() for part in network())
    box, bounds = LinfBall(0.1).box(x), elbo_bounds(vae, x, LinfBall(0.1), noise, method, sound=True)
    assert bounds.lower.isfinite().all() and bounds.upper.isfinite().all()
    for _ in range(50):
        value = elbo(vae, torch.where(torch.rand_like(x) > 0.5, *box), noise).double()
        assert (bounds.lower <= value).all() and (value <= bounds.upper).all()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_training_on_a_certificate_raises_it(method: str) -> None:
    vae, x, noise = network()
    optimizer, values = torch.optim.Adam(vae.parameters(), lr=0.02), []
    for _ in range(20):
        optimizer.zero_grad()
        value = certificate(vae, x, LinfBall(0.1), noise, method).mean()
        (-value).backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] > values[0]
