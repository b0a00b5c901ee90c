"""Residual sums: the plain sum, bounds that enclose it by every method, and both branches bounded together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, assert_encloses, audit, hard_points, points_of, random_box
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Crown,
    CrownIBP,
    Interval,
    LinfBall,
    Residual,
    elbo,
    elbo_bounds,
    propagate,
)
from paperlib.bounds.rules import UnsupportedLayerError, named_layers
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.refinement import refine


def dense_body() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))


def conv_body() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.normal_()
    return nn.Sequential(norm, nn.GELU(), nn.Conv2d(2, 3, 3, padding=1), nn.PReLU(3), nn.Conv2d(3, 2, 1)).eval()


def pooling_body() -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), nn.Hardtanh(), nn.Upsample(scale_factor=2))


BODIES = {
    "dense": (dense_body, (6,)),
    "one layer": (lambda: nn.Tanh(), (6,)),
    "in place": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), (6,)),
    "convolution": (conv_body, (2, 4, 4)),
    "pooling": (pooling_body, (2, 4, 4)),
    "nested": (lambda: nn.Sequential(nn.Linear(6, 6), Residual(dense_body(), (6,)), nn.SiLU()), (6,)),
}
EACH_BODY = pytest.mark.parametrize("name", BODIES)


def residual(name: str) -> tuple[Residual, tuple[int, ...]]:
    make, shape = BODIES[name]
    return Residual(make(), shape).double(), shape


def vae_of(name: str, seed: int = 0) -> tuple[VAE, Tensor, Tensor]:
    torch.manual_seed(seed)
    (first, shape), (second, _) = residual(name), residual(name)
    size = torch.Size(shape).numel()
    encoder = nn.Sequential(nn.Linear(3, size), nn.Unflatten(1, shape), first, nn.Flatten(), nn.Linear(size, 4))
    decoder = nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape), second, nn.Flatten(), nn.Linear(size, 3))
    return VAE(encoder, decoder, Bernoulli(), 2).double(), torch.rand(3, 3).double(), torch.randn(3, 2).double()


@EACH_BODY
def test_it_is_the_plain_sum_and_leaves_its_input_alone(name: str) -> None:
    layer, shape = residual(name)
    x = torch.randn(3, *shape).double()
    kept = x.clone()
    assert torch.equal(layer(x), kept + layer.body(kept.clone())) and torch.equal(x, kept)
    value = x
    for _, step in named_layers(layer):
        value = step(value)
    torch.testing.assert_close(value, layer(x), rtol=ROUNDING, atol=ROUNDING)


@EACH_BODY
@settings(max_examples=15)
@given(seed=st.integers(0, 2**16))
def test_its_box_encloses_it_closes_at_a_point_and_is_nested(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer, shape = residual(name)
    box = random_box(2, *shape)
    image = propagate(layer, box)
    assert_encloses(image, torch.stack([layer(point) for point in points_of(*box)]).detach())
    inner = Interval(box.center - box.radius / 2, box.center + box.radius / 3)
    assert_encloses(image, torch.stack([*propagate(layer, inner)]).detach())
    for end in propagate(layer, Interval(box.lower, box.lower)):
        torch.testing.assert_close(end, layer(box.lower), rtol=ROUNDING, atol=ROUNDING)


@EACH_BODY
@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_every_linear_bound_of_a_network_of_it_holds(name: str, target: str) -> None:
    vae, x, noise = vae_of(name)
    audit(vae, x, 0.2, noise, target, [CrownIBP(), CrownIBP(alpha_steps=3)])
    points = hard_points(vae, x, 0.2, noise, target)
    for method in (Crown(), Crown(alpha_steps=2)):
        bounds = elbo_bounds(vae, x, LinfBall(0.2), noise, method, target)
        given_targets = (point if target == "perturbed" else x for point in points)
        values = torch.stack([elbo(vae, p, noise, t) for p, t in zip(points, given_targets, strict=True)])
        assert_encloses(bounds, values.detach())
        interval = elbo_bounds(vae, x, LinfBall(0.2), noise, "ibp", target)
        assert (bounds.lower >= interval.lower).all() and (bounds.upper <= interval.upper).all()


@EACH_BODY
@torch.no_grad()
def test_every_refined_box_holds_what_the_layer_is_given(name: str) -> None:
    vae, x, noise = vae_of(name)
    box = LinfBall(0.2).box(x)
    refined = refine(RelaxedVAE.of(vae, IntervalBounds.of(vae, box, noise, box), noise))
    for point in points_of(*box):
        mean, log_var = vae.encoder(point).chunk(2, 1)
        for layers, value in ((refined.encoder, point), (refined.decoder, mean + (log_var / 2).exp() * noise)):
            for layer in layers:
                slack = ROUNDING * (1 + layer.box.lower.abs())
                assert (layer.box.lower - slack <= value).all() and (value <= layer.box.upper + slack).all()
                value = layer.layer(value)


def test_branches_that_cancel_are_bounded_together() -> None:
    # x + (-x) is 0. Intervals bound both branches apart, so that the box has radius 2; coefficients cancel exactly.
    negative = nn.Linear(2, 2, bias=False)
    negative.weight.data = -torch.eye(2)
    encoder = nn.Sequential(Residual(negative, (2,)), nn.Linear(2, 4))
    vae = VAE(encoder, nn.Linear(2, 2), Bernoulli(), 2).double()
    x, noise = torch.full((1, 2), 0.5).double(), torch.zeros(1, 2).double()
    bounds = {m: elbo_bounds(vae, x, LinfBall(0.5), noise, m, "clean") for m in ("ibp", "crown-ibp", "crown")}
    gaps = {method: (bound.upper - bound.lower).item() for method, bound in bounds.items()}
    assert gaps["ibp"] > 0.1
    assert gaps["crown"] < 1e-9


@EACH_BODY
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_a_sound_bound_holds_for_what_float32_computes(name: str, method: str) -> None:
    vae, x, noise = (part.float() for part in vae_of(name))
    box, bounds = LinfBall(0.1).box(x), elbo_bounds(vae, x, LinfBall(0.1), noise, method, sound=True)
    assert bounds.lower.isfinite().all() and bounds.upper.isfinite().all()
    plain = elbo_bounds(vae.double(), x.double(), LinfBall(0.1), noise.double(), method)
    assert (bounds.lower <= plain.lower + 1e-9).all() and (bounds.lower >= plain.lower - 0.01 * plain.lower.abs()).all()
    vae.float()
    for _ in range(50):
        value = elbo(vae, torch.where(torch.rand_like(x) > 0.5, *box), noise).double()
        assert (bounds.lower <= value).all() and (value <= bounds.upper).all()


@EACH_BODY
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_the_gradient_of_a_certificate_is_that_of_differences(name: str, method: str) -> None:
    vae, x, noise = vae_of(name)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    lower = elbo_bounds(vae, x, LinfBall(0.05), noise, method).lower.sum()
    gradients = torch.autograd.grad(lower, parameters)
    steps = [torch.randn_like(p) for p in parameters]
    slope = sum((g * s).sum() for g, s in zip(gradients, steps, strict=True)).item()
    values = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            for p, s in zip(parameters, steps, strict=True):
                p += h * s
            values.append(elbo_bounds(vae, x, LinfBall(0.05), noise, method).lower.sum().item())
            for p, s in zip(parameters, steps, strict=True):
                p -= h * s
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-3, abs=1e-4)


def test_a_body_that_changes_the_shape_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"must keep the shape: it maps \(6,\) to \(5,\)"):
        Residual(nn.Linear(6, 5), (6,))


def test_a_layer_in_the_body_that_has_no_rule_is_named_with_its_place() -> None:
    layer = Residual(nn.Sequential(nn.Linear(6, 6), nn.Softmax(1)), (6,))
    with pytest.raises(UnsupportedLayerError, match=r"no interval rule for Softmax at '1\.body\.1'"):
        propagate(nn.Sequential(nn.Identity(), layer.double()), random_box(1, 6))
    training = Residual(nn.Sequential(nn.Linear(6, 6), nn.Dropout()), (6,)).double()
    with pytest.raises(ValueError, match=r"Dropout at '0\.body\.1': dropout in training mode"):
        propagate(nn.Sequential(training), random_box(1, 6))


def test_a_subclass_that_computes_something_else_is_refused() -> None:
    class Difference(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return x - self.body(x)

    with pytest.raises(UnsupportedLayerError, match="no interval rule for Difference"):
        propagate(Difference(nn.Linear(2, 2), (2,)).double(), random_box(1, 2))


def test_the_state_dict_has_the_keys_of_the_body() -> None:
    assert list(Residual(dense_body(), (6,)).state_dict()) == [
        "body.0.weight",
        "body.0.bias",
        "body.2.weight",
        "body.2.bias",
    ]
