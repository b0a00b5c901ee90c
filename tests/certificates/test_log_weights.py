"""Bounds of importance weights and of their mean: enclosure, a hand-worked network, orderings, and planted bugs."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import CASES, LIKELIHOODS, ROUNDING, assert_encloses, audit_case, grid, points_of, random_box
from torch import Tensor

from paperlib import (
    IBP,
    VAE,
    BranchAndBound,
    Crown,
    CrownIBP,
    Interval,
    L2Ball,
    LinearFunction,
    LinfBall,
    iwae,
    iwae_bounds,
    log_weights,
)
from paperlib.certificates import log_weights as module
from paperlib.certificates.log_weights import log_weight_bounds
from paperlib.certificates.method import Method
from paperlib.certificates.posterior_bounds import log_ratio_bounds
from paperlib.models.gaussian import reparametrize
from paperlib.models.iwae import log_mean_exp, log_ratio
from paperlib.threats.attacks import descend
from paperlib.threats.perturbation import PerturbationSet

METHODS = [IBP(), CrownIBP(), Crown()]
DRAWS = 3


def draws_of(vae: VAE, x: Tensor, draws: int = DRAWS) -> Tensor:
    return torch.randn(draws, len(x), vae.latent_dim, generator=torch.Generator().manual_seed(5)).double()


def attacked(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: str, sign: float) -> Tensor:
    """The point of the lowest sign * iwae that gradient descent of this very objective meets."""
    return descend(lambda at: sign * iwae(vae, at, noise, at if target == "perturbed" else x), x, ball, x, steps=3)[0]


@torch.no_grad()
def audit_weights(vae: VAE, x: Tensor, ball: PerturbationSet, target: str) -> None:
    """Fails unless the bounds hold at random points, corners and attacked points, and none is looser than intervals."""
    noise = draws_of(vae, x)
    inside = points_of(*ball.box(x), 4)
    if not isinstance(ball, LinfBall):
        inside = torch.stack([ball.project(point, x) for point in inside])
    searched = [attacked(vae, x, ball, noise, target, sign) for sign in (1.0, -1.0)]
    points = torch.cat([inside, torch.stack(searched)])
    goals = points if target == "perturbed" else x.expand_as(points)
    values = log_weights(vae, points.flatten(0, 1), noise.repeat(1, len(points), 1), goals.flatten(0, 1))
    each = values.unflatten(1, points.shape[:2]).transpose(0, 1)
    looser = None
    for method in METHODS:
        weights = log_weight_bounds(vae, x, ball, noise, method, target)
        bounds = iwae_bounds(vae, x, ball, noise, method, target)
        assert_encloses(weights, each)
        assert_encloses(bounds, torch.stack([log_mean_exp(value) for value in each]))
        assert (bounds.lower >= log_mean_exp(weights.lower)).all(), "looser than draw by draw"
        looser = looser or (weights, bounds)
        for now, intervals in zip((weights, bounds), looser, strict=True):
            assert (now.lower >= intervals.lower).all() and (now.upper <= intervals.upper).all(), (
                "looser than intervals"
            )


@pytest.mark.parametrize("case", CASES)
def test_no_input_of_the_set_passes_the_bounds(case: str) -> None:
    vae, x, _ = audit_case(case, batch=2)
    audit_weights(vae, x, LinfBall(0.1), "perturbed")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_no_input_passes_the_bounds_of_the_clean_target(likelihood: str) -> None:
    vae, x, _ = audit_case("mlp", likelihood, batch=2)
    audit_weights(vae, x, LinfBall(0.1), "clean")


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_bounds_hold_in_a_euclidean_ball(likelihood: str) -> None:
    vae, x, _ = audit_case("mlp", likelihood)
    audit_weights(vae, x, L2Ball(0.1), "perturbed")


@pytest.mark.parametrize("method", METHODS, ids=repr)
@torch.no_grad()
def test_at_radius_0_the_bounds_are_the_value(method: Method) -> None:
    vae, x, _ = audit_case("deep")
    noise = draws_of(vae, x)
    for end in iwae_bounds(vae, x, LinfBall(0.0), noise, method):
        torch.testing.assert_close(end, iwae(vae, x, noise), rtol=1e-12, atol=1e-12)


def test_a_chain_has_the_hand_worked_bounds() -> None:
    # One pixel at 1/2 +- 0.1: mean = 3x - 1 in [0.2, 0.8], log_var = -20, l = 1 - 2z. At zero noise z is the mean, so
    # log w = x l - log(1 + e^l) - z^2 / 2 - 10  with  l = 3 - 6x  is one curve in x. In intervals: l in [-0.6, 0.6],
    # whose corner x = 0.6, l = -0.6 has the least fit -0.36 - log(1 + e^-0.6); the least ratio is -0.8^2 / 2 - 10.
    vae, _, _ = audit_case("chain")
    x, noise = torch.full((1, 1), 0.5).double(), torch.zeros(1, 1, 1).double()
    with torch.no_grad():
        interval = iwae_bounds(vae, x, LinfBall(0.1), noise, "ibp")
        linear = iwae_bounds(vae, x, LinfBall(0.1), noise, "crown-ibp")
    assert interval.lower.item() == pytest.approx(-0.36 - math.log1p(math.exp(-0.6)) - 0.32 - 10, rel=1e-12)
    at = grid(0.4, 0.6)
    truth = (at * (3 - 6 * at) - torch.log1p((3 - 6 * at).exp()) - (3 * at - 1).square() / 2 - 10).min().item()
    assert truth - 0.05 < linear.lower.item() <= truth, "the corner is attained, and the chords are nearly tight"


@torch.no_grad()
def test_the_range_of_the_ratio_is_exact() -> None:
    mean, log_var = random_box(40, 1), random_box(40, 1)
    noise = torch.randn(40, 1).double() * 2
    noise[0] = 0.0
    bounds = log_ratio_bounds(mean, log_var, noise)
    steps = grid(0, 1, 201)
    means = mean.lower + (mean.upper - mean.lower) * steps.view(-1, 1, 1, 1)
    log_vars = log_var.lower + (log_var.upper - log_var.lower) * steps.view(1, -1, 1, 1)
    values = log_ratio(reparametrize(means, log_vars, noise), log_vars, noise).flatten(0, 1)
    assert_encloses(bounds, values)
    assert (values.amin(0) - bounds.lower <= 1e-12).all() and (bounds.upper - values.amax(0) <= 1e-3).all()


@torch.no_grad()
def test_more_is_certified_jointly_than_draw_by_draw() -> None:
    vae, x, _ = audit_case("deep")
    noise = draws_of(vae, x, 8)
    joint = iwae_bounds(vae, x, LinfBall(0.1), noise).lower
    alone = log_mean_exp(log_weight_bounds(vae, x, LinfBall(0.1), noise).lower)
    assert (joint >= alone).all() and (joint > alone + 1e-3).any()


def test_the_bounds_have_the_gradient_of_training() -> None:
    vae, x, _ = audit_case("mlp")
    iwae_bounds(vae, x, LinfBall(0.1), draws_of(vae, x)).lower.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in vae.parameters())


def test_a_method_that_bounds_the_elbo_alone_is_refused() -> None:
    vae, x, _ = audit_case("chain")
    with pytest.raises(ValueError, match="bounds the ELBO and no importance weights"):
        iwae_bounds(vae, x, LinfBall(0.1), draws_of(vae, x), BranchAndBound())


# Planted bugs: the audit must fail for each


def forget_the_prior(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "_log_prior", lambda z: 0 * z)


def chord_above_instead_of_below(patch: pytest.MonkeyPatch) -> None:
    real = module.chord_below

    def shifted(function: object, derivative: object, box: Interval) -> LinearFunction:
        chord = real(function, derivative, box)
        return replace(chord, offset=chord.offset + 0.5 * box.radius)

    patch.setattr(module, "chord_below", shifted)


def forget_log_k(patch: pytest.MonkeyPatch) -> None:
    real = module._joint_lower
    patch.setattr(
        module, "_joint_lower", lambda relaxed, single, each: real(relaxed, single, each) + math.log(len(each))
    )


def count_the_log_variance_twice(patch: pytest.MonkeyPatch) -> None:
    real = module._with_ratio

    def doubled(*arguments: object) -> object:
        terms = real(*arguments)
        return replace(terms, log_var=replace(terms.log_var, slope=2 * terms.log_var.slope))

    patch.setattr(module, "_with_ratio", doubled)


def audit_tight_cases() -> None:
    for case in ("chain", "bend"):
        vae, x, _ = audit_case(case)
        audit_weights(vae, x, LinfBall(0.02), "perturbed")


def test_the_audit_passes_without_a_bug() -> None:
    audit_tight_cases()


@pytest.mark.parametrize(
    "bug", [forget_the_prior, chord_above_instead_of_below, forget_log_k, count_the_log_variance_twice]
)
def test_the_audit_finds(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, ArithmeticError)):
        audit_tight_cases()


def test_the_joint_bound_needs_the_entropy_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    # At radius 0 it is the value itself. Without the entropy it is lower by up to log K, and is then never the larger.
    vae, x, _ = audit_case("mlp")
    noise = draws_of(vae, x)
    real = module._joint_lower
    seen: list[Tensor] = []
    monkeypatch.setattr(module, "_joint_lower", lambda *arguments: seen.append(real(*arguments)) or seen[-1])
    with torch.no_grad():
        iwae_bounds(vae, x, LinfBall(0.0), noise)
        torch.testing.assert_close(seen[0], iwae(vae, x, noise), rtol=ROUNDING, atol=1e-11)
