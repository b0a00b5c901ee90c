"""Every perturbation set in every method: certificates hold for what attacks and samples reach, and close with it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlib import (
    VAE,
    CrownIBP,
    L1Ball,
    L2Ball,
    LinearSet,
    LinfBall,
    PatchSet,
    certificate,
    certify,
    certify_expected,
    conv_vae,
    elbo,
    elbo_bounds,
    fgsm,
    lighting,
    low_frequencies,
    mlp_vae,
    pgd,
    robust_loss,
)
from paperlib.bounds.affine import affine_rows
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.threats.images import image_shape
from paperlib.threats.perturbation import ChangeRegion, PerturbationSet

METHODS = ["ibp", "crown-ibp", "crown"]
SHAPES = {"mlp": (16,), "conv": (1, 4, 4)}
Make = Callable[[tuple[int, ...], float], PerturbationSet]  # data shape and size
SETS: dict[str, Make] = {
    "l2": lambda shape, size: L2Ball(0.5 * size),
    "l1": lambda shape, size: L1Ball(size),
    "lighting": lambda shape, size: lighting(0.2 * size, 0.3 * size),
    "frequencies": lambda shape, size: low_frequencies(5, shape, 0.1 * size),
    "one radius a feature": lambda shape, size: LinfBall(_half(shape) * 0.1 * size),
    "one radius an example": lambda shape, size: LinfBall(
        torch.tensor([0.1, 0.0, 0.2]).view(3, *[1] * len(shape)) * size
    ),
}
PATCH: Make = lambda shape, size: PatchSet(2, round(2 * size))  # noqa: E731
ALL: dict[str, Make] = {**SETS, "patch": PATCH}


def _half(shape: tuple[int, ...]) -> Tensor:
    """1 for every other feature, 0 for the others."""
    return (torch.arange(torch.Size(shape).numel()) % 2).double().view(shape)


def case(network: str, dtype: torch.dtype = torch.float64) -> tuple[VAE, Tensor, Tensor]:
    """A random network whose ELBO bends, with images half of whose pixels are at an end of the range."""
    torch.manual_seed(1)
    vae = mlp_vae((16,), (8,), 2) if network == "mlp" else conv_vae((1, 4, 4), (2, 3), 2)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= 1.5
    kind, grey = torch.rand(2, 3, *SHAPES[network])
    x = torch.where(kind < 0.35, 0.0, torch.where(kind > 0.85, 1.0, grey))
    return vae.to(dtype).eval(), x.to(dtype), torch.randn(3, 2).to(dtype)


@torch.no_grad()
def values(vae: VAE, points: Tensor, x: Tensor, noise: Tensor, target: str) -> Tensor:
    return elbo(vae, points, noise, points if target == "perturbed" else x)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("network", SHAPES)
@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_bounds_of_all_methods_hold_for_what_attacks_and_samples_reach(name: str, network: str, target: str) -> None:
    vae, x, noise = case(network)
    chosen = ALL[name](SHAPES[network], 1.0)
    reached = [
        values(vae, point, x, noise, target)
        for point in (x, fgsm(vae, x, chosen, noise, target), pgd(vae, x, chosen, noise, 20, 2, target=target))
    ]
    reached += [values(vae, chosen.sample(x), x, noise, target) for _ in range(50)]
    lowest, highest = torch.stack(reached).amin(0), torch.stack(reached).amax(0)
    looser = None
    for method in [*METHODS, CrownIBP(alpha_steps=3)]:
        bounds = elbo_bounds(vae, x, chosen, noise, method, target)
        sound = elbo_bounds(vae, x, chosen, noise, method, target, sound=True)
        assert (bounds.lower <= lowest + 1e-12).all() and (bounds.upper >= highest - 1e-12).all()
        assert (sound.lower <= bounds.lower + 1e-9).all() and (sound.upper >= bounds.upper - 1e-9).all()
        assert (bounds.lower - sound.lower < 1e-3).all()
        assert torch.equal(certificate(vae, x, chosen, noise, method, target), bounds.lower)
        if looser is not None:
            assert (bounds.lower >= looser.lower).all() and (bounds.upper <= looser.upper).all()
        looser = bounds if method == "ibp" else looser


@pytest.mark.parametrize("name", ALL)
def test_no_sample_of_ten_thousand_is_outside_of_the_certificate(name: str) -> None:
    vae, x, noise = case("mlp")
    chosen = ALL[name](SHAPES["mlp"], 1.0)
    bounds = elbo_bounds(vae, x, chosen, noise, "crown")
    for example in range(3):
        rows = torch.full((10_000,), example)
        points = chosen.rows(rows, x).sample(x[rows])
        reached = values(vae, points, points, noise[rows], "perturbed")
        assert reached.min() >= bounds.lower[example] - 1e-12 and reached.max() <= bounds.upper[example] + 1e-12


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("network", SHAPES)
def test_sound_bounds_hold_for_float32_points(name: str, network: str) -> None:
    vae, x, noise = case(network, torch.float32)
    chosen = ALL[name](SHAPES[network], 1.0)
    region = chosen.sound_region(x)
    points = [chosen.sample(x) for _ in range(20)] + [pgd(vae, x, chosen, noise, 10), chosen.project(1 - x, x)]
    bounds = elbo_bounds(vae, x, chosen, noise, "crown", sound=True)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(16, 200, bias=False)).double()
    image = region.first_layer(layer).widen(torch.tensor(1e-14))
    for point in points:
        assert region.box.contains(point.double()).all()
        assert image.contains(layer(point.double())).all()
        reached = values(vae, point, x, noise, "perturbed").double()
        assert (bounds.lower <= reached).all() and (reached <= bounds.upper).all()
        for sign in (1, -1):  # a linear function that this very point lowers or raises
            c = sign * (point.double() - x.double())
            assert (region.concretize(c) <= (c * point.double()).flatten(1).sum(1) + 1e-14).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("network", SHAPES)
def test_at_radius_zero_bounds_close_and_attacks_stay(name: str, network: str) -> None:
    vae, x, noise = case(network)
    alone = SETS[name](SHAPES[network], 0.0)
    value = elbo(vae, x, noise).detach()
    for method in METHODS:
        for end in elbo_bounds(vae, x, alone, noise, method):
            torch.testing.assert_close(end.detach(), value, rtol=1e-11, atol=1e-11)
    assert torch.equal(pgd(vae, x, alone, noise, 3), x) and torch.equal(alone.sample(x), x)
    assert alone.size == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", METHODS)
def test_nested_sets_have_nested_linear_minima_and_bounds(name: str, method: str) -> None:
    vae, x, noise = case("mlp")
    small, large = (ALL[name](SHAPES["mlp"], size) for size in (0.5, 1.0))
    c = torch.randn(20, 3, 16, dtype=torch.float64)
    if name in ("lighting", "frequencies"):  # a relaxed clamp is no minimum: its lines change with the set
        large = type(large)(large.directions, large.radius, -9.0, 9.0)  # type: ignore[attr-defined, call-arg]
        small = type(small)(small.directions, small.radius, -9.0, 9.0)  # type: ignore[attr-defined, call-arg]
    assert (large.concretize(c, x) <= small.concretize(c, x) + 1e-12).all()
    assert (large.concretize(c, x) < small.concretize(c, x)).any()
    inner, outer = (elbo_bounds(vae, x, each, noise, method, "clean") for each in (small, large))
    assert (outer.lower <= inner.lower + 1e-9).all() and (outer.upper >= inner.upper - 1e-9).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("network", SHAPES)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_certificates_are_trained_on(name: str, network: str, method: str) -> None:
    vae, x, noise = case(network)
    chosen = ALL[name](SHAPES[network], 1.0)
    parameters = [parameter for parameter in vae.encoder.parameters()]
    loss = robust_loss(vae, x, chosen, noise, 0.0, method)
    gradients = torch.autograd.grad(loss, parameters)
    step = 1e-6
    for parameter, gradient in zip(parameters[:1], gradients[:1], strict=True):  # of the first layer
        assert gradient.isfinite().all() and gradient.any()
        direction = torch.randn_like(parameter)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                ends.append(robust_loss(vae, x, chosen, noise, 0.0, method).item())
                parameter -= sign * step * direction
        slope = (gradient * direction).sum().item()
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_rows_of_certify_are_in_order(name: str) -> None:
    vae, x, noise = case("mlp")
    chosen = ALL[name](SHAPES["mlp"], 1.0)
    rows = certify(vae, x, chosen, noise, attack={"steps": 10}, method="crown")
    assert (rows["certified"] <= rows["attacked"] + 1e-9).all() and (rows["attacked"] <= rows["clean"] + 1e-9).all()
    assert (rows["eps"] == chosen.size).all()
    assert chosen.label


@pytest.mark.parametrize("name", [name for name in ALL if name != "one radius an example"])
def test_the_expectation_is_certified(name: str) -> None:
    vae, x, noise = case("mlp")
    chosen = ALL[name](SHAPES["mlp"], 1.0)
    rows = certify_expected(vae, x, chosen, samples=200, generator=torch.Generator().manual_seed(0))
    worst = pgd(vae, x, chosen, noise * 0, 10)
    draws = torch.randn(2000, 2, dtype=torch.float64)
    for example in range(3):
        repeated = worst[example].expand(2000, *x.shape[1:])
        assert rows["bound"][example] <= values(vae, repeated, repeated, draws, "perturbed").mean().item()


@pytest.mark.parametrize("name", ALL)
def test_examples_do_not_mix(name: str) -> None:
    _, x, _ = case("mlp")
    chosen = ALL[name](SHAPES["mlp"], 1.0)
    c, layer, far = torch.randn(4, 3, 16, dtype=torch.float64), nn.Linear(16, 5).double(), 1 - x
    region = chosen.region(x)
    for example in range(3):
        own = slice(example, example + 1)
        alone = chosen.rows(own, x).region(x[own])
        for part in (alone, region[own]):
            torch.testing.assert_close(part.concretize(c[:, own]), region.concretize(c)[:, own])
            torch.testing.assert_close(part.first_layer(layer).lower, region.first_layer(layer).lower[own])
            torch.testing.assert_close(part.project(far[own]), region.project(far)[own])
            assert torch.equal(part.box.upper, region.box.upper[own])
            if isinstance(region, ChangeRegion):
                assert isinstance(part, ChangeRegion) and torch.equal(part.x, x[own])
                torch.testing.assert_close(part.spread(c[:, own].abs()), region.spread(c.abs())[:, own])


@pytest.mark.parametrize("name", [name for name in ALL if name != "one radius an example"])
def test_an_empty_batch_has_a_region(name: str) -> None:
    chosen = ALL[name](SHAPES["mlp"], 1.0)
    x = torch.empty(0, 16, dtype=torch.float64)
    region = chosen.region(x)
    assert region.box.lower.shape == x.shape and region.project(x).shape == x.shape
    assert region.concretize(torch.empty(2, 0, 16, dtype=torch.float64)).shape == (2, 0)
    assert region.first_layer(nn.Linear(16, 5).double()).lower.shape == (0, 5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.5])
def test_data_outside_the_range_are_refused(name: str, bad: float) -> None:
    _, x, _ = case("mlp")
    x[1, 2] = bad
    chosen = ALL[name](SHAPES["mlp"], 1.0)
    for use in (chosen.box, chosen.sample, chosen.sound_region, chosen.region):
        with pytest.raises(ValueError, match=r"finite and in \[0\.0, 1\.0\].*\[1, 2\]"):
            use(x)


@given(st.integers(0, 2**16), st.sampled_from([*ALL]), st.sampled_from([torch.float32, torch.float64]))
def test_projections_are_in_the_set_and_stay(seed: int, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    x = torch.rand(3, 16).mul(1.5).sub(0.25).clamp(0, 1).to(dtype)
    chosen = ALL[name](SHAPES["mlp"], 1.0)
    near = chosen.project(torch.randn(3, 16).to(dtype), x)
    assert near.dtype == dtype and chosen.box(x).contains(near).all()
    again = chosen.project(near, x)
    if isinstance(chosen, LinearSet):
        torch.testing.assert_close(again, near, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    else:
        assert torch.equal(again, near)
    # a linear function that the point lowers has no greater minimum
    c = x.double() - near.double()
    assert (chosen.sound_region(x).concretize(c) <= (c * near.double()).sum(1) + 1e-13).all()


@pytest.mark.parametrize("name", SETS)
def test_a_scaled_set_is_the_one_of_that_size(name: str) -> None:
    _, x, _ = case("mlp")
    chosen, half = (SETS[name](SHAPES["mlp"], size) for size in (1.0, 0.5))
    scaled, c = chosen.scaled(0.5), torch.randn(4, 3, 16, dtype=torch.float64)
    assert scaled.size == pytest.approx(half.size) and type(scaled) is type(chosen)
    torch.testing.assert_close(scaled.concretize(c, x), half.concretize(c, x))
    assert (scaled.concretize(c, x) >= chosen.concretize(c, x)).all() and not scaled.scaled(0.0).size
    assert chosen.scaled(2.0).scaled(0.5).size == pytest.approx(chosen.size)


def test_a_ball_has_one_factor_an_example() -> None:
    _, x, _ = case("mlp")
    factor = torch.tensor([[0.0], [1.0], [3.0]]).double()
    for eps in (0.1, _half((16,)) * 0.1):
        box = LinfBall(eps).scaled(factor).box(x)
        for k in range(3):
            expected = LinfBall(eps).scaled(factor[k].item()).box(x[k : k + 1])
            torch.testing.assert_close(box.lower[k : k + 1], expected.lower)


def test_a_patch_has_no_factor() -> None:
    with pytest.raises(NotImplementedError, match="a PatchSet has no size that a factor scales"):
        PatchSet(2, 2).scaled(0.5)


def test_frozen_features_do_not_move() -> None:
    vae, x, noise = case("mlp")
    frozen = _half((16,)) == 0
    ball = LinfBall(torch.where(frozen, 0.0, 0.2).double())
    for point in (pgd(vae, x, ball, noise, 10, 2), fgsm(vae, x, ball, noise), ball.sample(x)):
        assert torch.equal(point[:, frozen], x[:, frozen]) and not torch.equal(point, x)
    for method in METHODS:
        some = elbo_bounds(vae, x, ball, noise, method, "clean")
        every = elbo_bounds(vae, x, LinfBall(0.2), noise, method, "clean")
        none = elbo(vae, x, noise)
        assert (every.lower < some.lower).all() and (some.lower < none).all()


@pytest.mark.parametrize("method", METHODS)
def test_one_radius_an_example_is_a_run_for_each(method: str) -> None:
    vae, x, noise = case("mlp")
    radii = [0.1, 0.0, 0.2]
    together = LinfBall(torch.tensor(radii, dtype=torch.float64).view(3, 1))
    bounds = elbo_bounds(vae, x, together, noise, method)
    attacked = pgd(vae, x, together, noise, 5)
    for i, eps in enumerate(radii):
        one = slice(i, i + 1)
        alone = elbo_bounds(vae, x[one], LinfBall(eps), noise[one], method)
        torch.testing.assert_close(bounds.lower[one], alone.lower)
        torch.testing.assert_close(bounds.upper[one], alone.upper)
        torch.testing.assert_close(attacked[one], pgd(vae, x[one], LinfBall(eps), noise[one], 5))


def test_one_radius_for_all_features_is_the_scalar_ball() -> None:
    vae, x, noise = case("conv")
    same = LinfBall(torch.full((1, 4, 4), 0.1, dtype=torch.float64))
    for method in METHODS:
        one, other = (elbo_bounds(vae, x, ball, noise, method) for ball in (same, LinfBall(0.1)))
        assert torch.equal(one.lower, other.lower) and torch.equal(one.upper, other.upper)


def test_the_coordinates_of_a_box_are_its_own() -> None:
    _, x, _ = case("mlp")
    region = LinfBall(0.1).region(x)
    rows = torch.tensor([1, 1])
    part = region.part(region.coordinates.map(lambda end: end[rows]), rows)
    assert torch.equal(region.points(x[rows], rows), x[rows]) and torch.equal(part.box.lower, region.box.lower[rows])


@pytest.mark.parametrize("chosen", [L2Ball(0.1), L1Ball(0.1), PatchSet(2, 2)])
def test_a_region_without_few_coordinates_says_so(chosen: PerturbationSet) -> None:
    region = chosen.region(torch.zeros(1, 16))
    assert region.coordinates is None
    rows = torch.tensor([0])
    for use in (lambda: region.points(torch.zeros(1, 1), rows), lambda: region.part(region.box, rows)):
        with pytest.raises(NotImplementedError, match=f"points of a {type(region).__name__}"):
            use()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 5),
        nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2, padding=1)),
        nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 7)),
        nn.Sequential(nn.Linear(12, 30), nn.Unflatten(1, (5, 6)), nn.Flatten()),
        nn.Identity(),
    ],
    ids=["linear", "conv", "pooled", "reshaped", "identity"],
)
@pytest.mark.parametrize("at_once", [4, 128])
def test_rows_are_those_of_the_jacobian(layer: nn.Module, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperlib.bounds.affine.ROWS", at_once)
    x = torch.rand(2, 12)
    rows = torch.cat([*affine_rows(layer, x)])
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v).flatten(), x[:1]).squeeze(1)
    torch.testing.assert_close(rows, jacobian)


def test_a_layer_that_is_not_affine_has_no_rows() -> None:
    with pytest.raises(UnsupportedLayerError, match="is not affine"):
        next(affine_rows(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.zeros(1, 3)))


def test_shapes_of_images() -> None:
    expected: dict[Any, Any] = {(16,): (1, 4, 4), (2, 3): (1, 2, 3), (3, 2, 4): (3, 2, 4)}
    assert {shape: image_shape(shape) for shape in expected} == expected
    for bad in ((15,), (1, 2, 3, 4), (), (0, 4)):
        with pytest.raises(ValueError, match="are no images"):
            image_shape(bad)
