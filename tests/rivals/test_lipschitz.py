"""Lipschitz VAEs: constants hold whatever the weights, certificates enclose, and the margin keeps its promise."""

import copy
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from oracles import assert_encloses, audit, hard_points, values_at
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Crown,
    CrownIBP,
    Dataset,
    Gaussian,
    LinfBall,
    TrainConfig,
    elbo,
    elbo_bounds,
    load,
    mlp_vae,
    save,
    train,
)
from paperlib.rivals.lipschitz import lipschitz_constants, lipschitz_vae, materialize, r_robustness_margin

A, B, C = 3.0, 2.0, 0.5
EXACT = 1e-12


def small(hidden: tuple[int, ...] = (8, 6), shape: tuple[int, ...] = (10,), gaussian: bool = False) -> VAE:
    """In float64, with weights as if it had been trained."""
    likelihood = Gaussian(0.5) if gaussian else Bernoulli()
    vae = lipschitz_vae(shape, hidden, 2, likelihood, a=A, b=B, c=C).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return vae


def norms(jacobian: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(jacobian, 2)


# ---- Lipschitz constants


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6), (4, 12)])
def test_the_constants_are_those_asked_for_whatever_the_weights(hidden: tuple[int, ...]) -> None:
    assert lipschitz_constants(small(hidden)) == pytest.approx((A, B, C), rel=EXACT)
    assert lipschitz_constants(materialize(small(hidden))) == pytest.approx((A, B, C), rel=EXACT)


def test_float32_weights_have_the_constants_within_a_millionth() -> None:
    vae = lipschitz_vae((100,), (64, 32), 8, Bernoulli(), a=10.0, b=5.0, c=3.0)
    assert lipschitz_constants(vae) == pytest.approx((10.0, 5.0, 3.0), rel=1e-6)


def test_rows_or_columns_are_orthonormal_up_to_the_layers_factor() -> None:
    for layer in small().modules():
        if isinstance(layer, nn.Linear):
            spread = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(spread, spread[:1].expand_as(spread), rtol=EXACT, atol=EXACT)


def test_weights_move_continuously_with_their_parameters() -> None:
    """As Q with a diagonal of R of any sign does not: it turns a column round where a pivot crosses 0."""
    torch.manual_seed(3)
    layer = small().decoder[0]
    original = layer.parametrizations.weight.original
    direction = torch.randn_like(original)
    before = layer.weight
    for _ in range(2000):
        with torch.no_grad():
            original.add_(direction, alpha=2e-3)
        assert (layer.weight - before).abs().max() < 0.5
        before = layer.weight


@pytest.mark.parametrize("gaussian", [False, True])
def test_no_network_expands_more_than_its_constant(gaussian: bool) -> None:
    vae = small(gaussian=gaussian)
    x, z = torch.rand(200, 10).double(), 3 * torch.randn(200, 2).double()
    other_x, other_z = x + torch.randn_like(x) * torch.rand(200, 1).double(), z + torch.randn_like(z)

    def sigma(point: Tensor) -> Tensor:
        return (vae.encode(point)[1] / 2).exp()

    networks = [
        (vae.decoder, z, other_z, A),
        (lambda point: vae.likelihood.mean(vae.decoder(point)), z, other_z, A if gaussian else A / 4),
        (lambda point: vae.encode(point)[0], x, other_x, B),
        (sigma, x, other_x, C / 4),
    ]
    for network, first, second, constant in networks:
        quotient = (network(first) - network(second)).norm(dim=1) / (first - second).norm(dim=1)
        assert quotient.max() <= constant * (1 + EXACT)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda v, network=network: network(v[None])[0]))(first)
        assert norms(jacobian).max() <= constant * (1 + EXACT)


def test_the_decoder_attains_its_constant_in_every_direction() -> None:
    """Its layers widen: each is an isometry times its factor, and GroupSort permutes."""
    decoder = small((6, 4)).decoder
    for z in torch.randn(20, 2).double():
        spread = torch.linalg.svdvals(torch.func.jacrev(lambda v: decoder(v[None])[0])(z))
        torch.testing.assert_close(spread, torch.full_like(spread, A), rtol=EXACT, atol=EXACT)


def test_sigma_is_the_sigmoid_of_its_network() -> None:
    mean, log_var = small().encode(torch.rand(50, 10).double())
    assert mean.shape == log_var.shape == (50, 2) and (log_var < 0).all()


@pytest.mark.parametrize("constants", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, math.inf), (math.nan, 1.0, 1.0)])
def test_a_constant_that_is_not_positive_is_an_error(constants: tuple[float, float, float]) -> None:
    a, b, c = constants
    with pytest.raises(ValueError, match="must be positive and finite"):
        lipschitz_vae((10,), (8,), 2, Bernoulli(), a=a, b=b, c=c)


def test_an_odd_width_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be even, got 7"):
        lipschitz_vae((10,), (8, 7), 2, Bernoulli(), a=A, b=B, c=C)


def test_constants_of_another_model_are_an_error() -> None:
    with pytest.raises(ValueError, match="not a model of lipschitz_vae: it has the layer Linear"):
        lipschitz_constants(mlp_vae((10,), (8,), 2))
    changed = materialize(small())
    changed.decoder.insert(1, nn.ReLU())
    with pytest.raises(ValueError, match="it has the layer ReLU"):
        lipschitz_constants(changed)


# ---- plain weights, certificates, training


def test_the_materialized_copy_computes_the_same_and_leaves_the_model_as_it_is() -> None:
    vae = small((8,), (2, 5))
    twin = copy.deepcopy(vae)
    plain = materialize(vae)
    x, noise = torch.rand(3, 2, 5).double(), torch.randn(3, 2).double()
    assert torch.equal(elbo(plain, x, noise), elbo(vae, x, noise))
    assert torch.equal(elbo(twin, x, noise), elbo(vae, x, noise))
    assert not any("parametrizations" in name for name in plain.state_dict())
    assert materialize(plain).state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("eps", [0.02, 0.2])
@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("gaussian", [False, True])
def test_every_bound_encloses_it(eps: float, target: str, gaussian: bool) -> None:
    x, noise = torch.rand(3, 10).double(), torch.randn(3, 2).double()
    vae = small(gaussian=gaussian)
    audit(vae, x, eps, noise, target, [CrownIBP(), CrownIBP(alpha_steps=3)])
    values = values_at(vae, hard_points(vae, x, eps, noise, target), x, noise, target)
    looser = elbo_bounds(vae, x, LinfBall(eps), noise, target=target)
    bounds = elbo_bounds(materialize(vae), x, LinfBall(eps), noise, Crown(), target)
    assert_encloses(bounds, values.detach())
    assert (bounds.lower > looser.lower).all() and (bounds.upper <= looser.upper).all()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_sound_bounds_need_plain_weights_and_hold_in_float32(method: str) -> None:
    vae = small().float()
    x, noise, ball = torch.rand(5, 10), torch.randn(5, 2), LinfBall(0.05)
    with pytest.raises(ValueError, match="sound bounds need plain weights"):
        elbo_bounds(vae, x, ball, noise, method, sound=True)
    plain = materialize(vae)
    bounds = elbo_bounds(plain, x, ball, noise, method, sound=True)
    for _ in range(50):
        values = elbo(plain, ball.sample(x), noise).double()
        assert (bounds.lower <= values).all() and (values <= bounds.upper).all()


def data() -> Dataset:
    return Dataset("small", torch.rand(80, 10))


CONFIG = TrainConfig(data_shape=(10,), hidden=(8,), latent_dim=2, steps=8, batch_size=24, kappa=1.0, eps=0.05, lr=0.05)


def untrained() -> VAE:
    torch.manual_seed(7)
    return lipschitz_vae((10,), (8,), 2, Bernoulli(), a=A, b=B, c=C)


def test_training_keeps_the_constants_and_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, sets = untrained(), data()
    whole = train(CONFIG, vae=vae, data=sets, device="cpu")
    assert not torch.equal(whole.vae.decoder[0].weight, vae.decoder[0].weight)
    assert lipschitz_constants(whole.vae) == pytest.approx((A, B, C), rel=1e-6)
    assert isinstance(whole.history, pd.DataFrame) and whole.history.certified.notna().all()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    steps, step = iter(range(5)), torch.optim.Adam.step  # up to the second of three epochs
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", lambda self: step(self) if next(steps, None) is not None else stop())
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, vae=vae, data=sets, device="cpu", folder=tmp_path)
    resumed = train(CONFIG, vae=vae, data=sets, device="cpu", folder=tmp_path)
    for name, tensor in whole.vae.state_dict().items():
        assert torch.equal(resumed.vae.state_dict()[name], tensor), name


def test_a_trained_model_is_saved_plain_and_loaded_into_a_new_one(tmp_path: Path) -> None:
    plain = materialize(train(CONFIG, vae=untrained(), data=data(), device="cpu").vae)
    save(tmp_path / "rival.safetensors", plain, CONFIG)
    loaded = load(tmp_path / "rival.safetensors", CONFIG, vae=materialize(untrained()))
    x, noise = torch.rand(3, 10), torch.randn(3, 2)
    assert torch.equal(elbo(loaded, x, noise), elbo(plain, x, noise))


# ---- the margin


def test_the_margin_by_hand() -> None:
    # b = 3, c = 4, s = 1, a = 1:  25 R^2 + 16 R + 4 - r^2 / 2 = 0  has the root R = 1 for r^2 = 90
    s = torch.tensor([1.0], dtype=torch.float64)
    assert r_robustness_margin(1.0, 3.0, 4.0, s, math.sqrt(90)).item() == pytest.approx(1, rel=EXACT)
    assert r_robustness_margin(0.5, 3.0, 4.0, s, math.sqrt(90) / 2).item() == pytest.approx(1, rel=EXACT)
    # without noise: R = r / (a sqrt(2 (b^2 + c^2)))
    assert r_robustness_margin(2.0, 3.0, 4.0, 0 * s, 5.0).item() == pytest.approx(1 / (2 * math.sqrt(2)), rel=EXACT)
    # the promise fails at x itself where 2 sqrt(2) a s > r
    edge = r_robustness_margin(1.0, 3.0, 4.0, torch.tensor([0.99, 1.01, 30.0]), 2 * math.sqrt(2))
    assert edge[0] > 0 and edge[1:].tolist() == [0.0, 0.0]


def test_the_margin_solves_the_published_inequality() -> None:
    a, b, c, r = (0.1 + 5 * torch.rand(4, 300).double()).tolist()
    for constants in zip(a, b, c, r, strict=True):
        s = torch.rand(20).double() * 0.3
        a_, b_, c_, r_ = constants
        margin = r_robustness_margin(a_, b_, c_, s, r_)

        def excess(radius: Tensor, a_=a_, b_=b_, c_=c_, r_=r_, s=s) -> Tensor:  # type: ignore[no-untyped-def]
            return (c_**2 + b_**2) * radius**2 + 4 * c_ * s * radius + 4 * s**2 - r_**2 / (2 * a_**2)

        holds = margin > 0
        assert (excess(0.999999 * margin)[holds] < 0).all() and (excess(1.000001 * margin)[holds] > 0).all()
        assert (excess(torch.zeros_like(s))[~holds] >= 0).all()


def test_the_margin_is_monotone_in_everything() -> None:
    base = {"a": 2.0, "b": 1.5, "c": 0.7, "r": 3.0}
    s = torch.linspace(0, 0.5, 20)
    margin = r_robustness_margin(s=s, **base)
    assert (margin.diff() < 0).all()
    assert (r_robustness_margin(s=s, **base | {"r": 3.3}) > margin).all()
    for name in "abc":
        changed = r_robustness_margin(s=s, **base | {name: 1.1 * base[name]})
        assert (changed <= margin).all() and (changed < margin)[1:].all()


@pytest.mark.parametrize(
    "bad", [{"a": 0.0}, {"b": -1.0}, {"c": math.inf}, {"r": -1.0}, {"r": math.inf}, {"s": torch.tensor([-0.1])}]
)
def test_a_margin_of_nothing_is_an_error(bad: dict[str, float | Tensor]) -> None:
    with pytest.raises(ValueError, match="the margin needs positive a, b, c"):
        r_robustness_margin(**{"a": 1.0, "b": 1.0, "c": 1.0, "s": torch.zeros(1), "r": 1.0} | bad)


def worst_point(vae: VAE, x: Tensor, radius: Tensor, noise: Tensor, other: Tensor) -> Tensor:
    """By projected gradient ascent of the mean squared damage over pairs of draws, [draws, batch, latent] each."""
    mean, log_var = (part.detach() for part in vae.encode(x))
    clean = vae.likelihood.mean(vae.decoder((mean + (log_var / 2).exp() * noise).flatten(0, 1))).detach()
    step = torch.randn_like(x)
    for _ in range(40):
        step = step * (radius / step.norm(dim=1)).unsqueeze(1).clamp(max=1)
        step.requires_grad_()
        mean, log_var = vae.encode(x + step)
        output = vae.likelihood.mean(vae.decoder((mean + (log_var / 2).exp() * other).flatten(0, 1)))
        (gradient,) = torch.autograd.grad((output - clean).square().sum(), step)
        step = step.detach() + 0.3 * radius.unsqueeze(1) * gradient / gradient.norm(dim=1, keepdim=True)
    return x + step * (radius / step.norm(dim=1)).unsqueeze(1).clamp(max=1)


@pytest.mark.parametrize("coupling", ["independent", "the same", "opposite"])
@pytest.mark.parametrize("gaussian", [False, True])
def test_an_attack_within_the_margin_does_more_damage_than_allowed_in_at_most_half_of_the_draws(
    gaussian: bool, coupling: str
) -> None:
    vae = small(gaussian=gaussian).requires_grad_(False)
    a, b, c = (
        A if gaussian else A / 4,
        B,
        C / 4,
    )  # with the sigmoids' own constants
    x = torch.rand(12, 10).double()
    s = (vae.encode(x)[1] / 2).exp().norm(dim=1)
    r = 1.5 * 2 * math.sqrt(2) * a * s.max().item()
    margin = r_robustness_margin(a, b, c, s, r)
    assert (margin > 0).all()

    def draws(count: int) -> tuple[Tensor, Tensor]:
        noise, fresh = torch.randn(2, count, 12, 2).double()
        return noise, {"independent": fresh, "the same": noise, "opposite": -noise}[coupling]

    x_adv = worst_point(vae, x, margin, *draws(100))
    assert ((x_adv - x).norm(dim=1) <= margin * (1 + EXACT)).all()
    outputs = []
    for point, noise in zip((x, x_adv), draws(4000), strict=True):
        mean, log_var = vae.encode(point)
        output = vae.likelihood.mean(vae.decoder((mean + (log_var / 2).exp() * noise).flatten(0, 1)))
        outputs.append(output.view(4000, 12, 10))
    damage = (outputs[0] - outputs[1]).norm(dim=2)
    assert ((damage <= r).double().mean(0) > 0.5).all()
    # what Markov's inequality is applied to, with room for the mean of 4,000 draws
    assert (damage.square().mean(0) <= 1.1 * r**2 / 2).all()


def test_of_linear_networks_little_more_than_the_margin_breaks_the_promise() -> None:
    """Where the noise is small, Markov's inequality costs a factor of sqrt(2), and nothing else costs anything."""
    vae = small((), gaussian=True).requires_grad_(False)
    x = torch.rand(12, 10).double()
    mean, log_var = vae.encode(x)
    s = (log_var / 2).exp().norm(dim=1)
    r = 1e4 * s.max().item()
    margin = r_robustness_margin(A, B, C / 4, s, r)
    direction = vae.encoder[0].mean.weight[:1] / B
    for factor, holds in ((1.0, True), (1.5, False)):
        moved = x + factor * margin.unsqueeze(1) * direction
        noise, other = torch.randn(2, 1000, 12, 2).double()
        first = vae.decoder(mean + (log_var / 2).exp() * noise)
        moved_mean, moved_log_var = vae.encode(moved)
        second = vae.decoder(moved_mean + (moved_log_var / 2).exp() * other)
        held = ((first - second).norm(dim=2) <= r).double().mean(0)
        assert ((held > 0.5) == holds).all(), (factor, held)


def test_opposite_draws_at_the_same_point_attain_the_constant_term() -> None:
    """E ||z' - z||^2 = 4 s^2  for  xi' = -xi,  and a linear decoder that widens keeps distances but for a."""
    vae = small((), gaussian=True)
    mean, log_var = vae.encode(torch.rand(1, 10).double())
    noise = torch.randn(100_000, 2).double() * (log_var / 2).exp()
    pair = [vae.decoder(mean + sign * noise) for sign in (1, -1)]
    squared = (pair[0] - pair[1]).square().sum(1).mean().item()
    assert squared == pytest.approx(4 * A**2 * log_var.exp().sum().item(), rel=0.02)
