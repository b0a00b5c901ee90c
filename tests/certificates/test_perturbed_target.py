"""The perturbed target as a linear term: bounds over a small set hold, and are far tighter than those over its box."""

import pytest
import torch
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Gaussian,
    L1Ball,
    L2Ball,
    LinfBall,
    PatchSet,
    elbo,
    elbo_bounds,
    lighting,
    mlp_vae,
    pgd,
)
from paperlib.certificates.float_sound import SoundBounds
from paperlib.certificates.perturbed_target import TargetTerm
from paperlib.threats.l2_ball import L2Region
from paperlib.threats.perturbation import PerturbationSet

PIXELS, LATENT, COUNT = 36, 3, 5
SETS = (L2Ball(0.5), L1Ball(1.0), PatchSet(2, 2), lighting(0.1, 0.1))
METHODS = ("ibp", "crown-ibp", "crown")


def case(likelihood: type = Bernoulli) -> tuple[VAE, Tensor, Tensor]:
    torch.manual_seed(0)
    vae = mlp_vae((PIXELS,), (16,), LATENT, likelihood()).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= 1.5
    return vae, torch.rand(COUNT, PIXELS).double(), torch.randn(COUNT, LATENT).double()


def without_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TargetTerm, "of", classmethod(lambda *_: None))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ball", SETS, ids=lambda ball: type(ball).__name__)
@torch.no_grad()
def test_both_ends_hold_at_attacked_and_random_points(method: str, ball: PerturbationSet) -> None:
    vae, x, noise = case()
    bounds = elbo_bounds(vae, x, ball, noise, method=method)
    points = [ball.sample(x, torch.Generator().manual_seed(seed)) for seed in range(200)]
    points += [pgd(vae, x, ball, noise), pgd(vae, x, ball, noise, maximize=True), x]
    for point in points:
        value = elbo(vae, point, noise)
        assert (bounds.lower <= value).all() and (value <= bounds.upper).all()


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_in_an_l2_ball_it_gains_over_the_box_of_targets(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, noise = case()
    linear = elbo_bounds(vae, x, L2Ball(0.5), noise, method=method)
    without_term(monkeypatch)
    boxed = elbo_bounds(vae, x, L2Ball(0.5), noise, method=method)
    assert ((linear.upper - linear.lower) < 0.9 * (boxed.upper - boxed.lower)).all()


def opposed() -> VAE:
    """One pixel x, whose logit is  3 - 6 x:  a brighter target meets a decoder that is surer of black."""
    encoder, decoder = nn.Linear(1, 2).double(), nn.Linear(1, 1).double()
    with torch.no_grad():
        encoder.weight[:], encoder.bias[:] = torch.tensor([[6.0], [0.0]]), torch.tensor([-3.0, 0.0])
        decoder.weight[:], decoder.bias[:] = torch.tensor([[-1.0]]), torch.tensor([0.0])
    return VAE(nn.Sequential(encoder), nn.Sequential(decoder), Bernoulli(), 1)


@torch.no_grad()
def test_the_bound_of_one_pixel_is_reached_at_the_end_of_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    # log p, -KL and the product of target and logit are concave in x', so that their chords meet them at both ends
    vae, x, noise, ball = opposed(), torch.tensor([[0.5]]).double(), torch.zeros(1, 1).double(), L2Ball(0.4)
    ends = torch.stack([elbo(vae, x + d, noise) for d in (-0.4, 0.4)])
    bound = elbo_bounds(vae, x, ball, noise, method="crown-ibp").lower
    torch.testing.assert_close(bound, ends.amin(0), rtol=1e-9, atol=0)
    # without what the slope varies by, the bound would be passed there
    monkeypatch.setattr(L2Region, "spread", lambda region, weights: torch.zeros(len(weights)).double())
    broken = elbo_bounds(vae, x, ball, noise, method="crown-ibp").lower
    assert (broken > ends.amin(0) + 0.1).all()


@torch.no_grad()
def test_sound_bounds_allow_for_the_sums_of_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, noise = case()
    allowed = SoundBounds.of(vae, x, L2Ball(0.5), noise, "perturbed").value_rounding
    of_box = SoundBounds.of(vae, x, LinfBall(0.5), noise, "perturbed").bounds
    without_term(monkeypatch)
    bare = SoundBounds.of(vae, x, L2Ball(0.5), noise, "perturbed").value_rounding
    largest = of_box.output.lower.abs().maximum(of_box.output.upper.abs())
    # at least one rounding of each product of the sum, at most a millionth of their size
    assert (allowed - bare > torch.finfo(torch.float64).eps).all()
    assert (allowed - bare < 1e-6 * largest.sum(1)).all()


@torch.no_grad()
def test_other_likelihoods_and_targets_use_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    for likelihood, target in ((Gaussian, "perturbed"), (Bernoulli, "clean")):
        vae, x, noise = case(likelihood)
        bounds = elbo_bounds(vae, x, L2Ball(0.5), noise, "crown", target)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            without_term(patch)
            same = elbo_bounds(vae, x, L2Ball(0.5), noise, "crown", target)  # type: ignore[arg-type]
        assert torch.equal(bounds.lower, same.lower) and torch.equal(bounds.upper, same.upper)


def test_a_bound_that_is_trained_on_has_the_gradient_of_its_term() -> None:
    vae, x, noise = case()
    bias = vae.decoder[-1].bias
    bound = elbo_bounds(vae, x, L2Ball(0.5), noise, method="crown-ibp").lower.sum()
    (gradient,) = torch.autograd.grad(bound, bias)
    step = torch.randn(PIXELS, generator=torch.Generator().manual_seed(1)).double() * 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            bias += sign * step
            ends.append(elbo_bounds(vae, x, L2Ball(0.5), noise, method="crown-ibp").lower.sum())
            bias -= sign * step
    torch.testing.assert_close(ends[0] - ends[1], 2 * (gradient * step).sum(), rtol=1e-4, atol=1e-12)
