"""Attacks stay inside the ball, are never beaten by simpler ones, and reach the minima that formulas and grids give."""

import copy
from typing import Any

import pytest
import torch
from attacked import BALL, COUNT, LATENT, PIXELS, curved, digits, draw, seeded, value
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paperlib import VAE, Bernoulli, Gaussian, LinfBall, elbo, fgsm, mlp_vae, pgd
from paperlib.threats.attacks import descend


def stalling_pgd(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, steps: int = 40) -> Tensor:
    """The trap: the clamp to the pixel range is part of the graph, so pixels at its boundary have no gradient."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        point = (x + delta).clamp(ball.low, ball.high)
        (gradient,) = torch.autograd.grad(elbo(vae, point, noise).sum(), delta)
        delta = (delta.detach() - ball.eps / 8 * gradient.sign()).clamp(-ball.eps, ball.eps)
    return (x + delta).clamp(ball.low, ball.high)


@given(
    eps=st.floats(0, 2),
    low=st.sampled_from([0.0, -4.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    restarts=st.integers(1, 3),
)
def test_no_point_ever_leaves_the_ball_or_the_pixel_range(
    eps: float, low: float, dtype: torch.dtype, restarts: int
) -> None:
    vae, x, noise, ball = curved().to(dtype), digits(4).to(dtype), draw(4).to(dtype), LinfBall(eps, low, 1.0)
    box, target = ball.box(x), "perturbed" if low == 0 else "clean"  # no Bernoulli explains a target below 0
    points = [fgsm(vae, x, ball, noise, target), pgd(vae, x, ball, noise, 3, restarts, seeded(0), target)]
    points.append(descend(lambda p: value(vae, p, noise, x) + p.sum(1), x, ball, ball.sample(x, seeded(1)), 2)[0])
    for point in points:
        assert box.contains(point).all()
        assert point.min() >= low and point.max() <= 1.0
        assert point.dtype == dtype and point.shape == x.shape


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_pgd_is_never_above_clean_shift_or_fgsm_on_any_image(seed: int, steps: int, target: str) -> None:
    vae, x, noise = curved(seed), digits(seed=seed), draw()
    explained = {"perturbed": "perturbed", "clean": x}[target]
    reached = value(vae, pgd(vae, x, BALL, noise, steps=steps, target=target), noise, explained)
    for rival in (x, BALL.project(x + BALL.eps, x), fgsm(vae, x, BALL, noise, target=target)):
        assert (reached <= value(vae, rival, noise, explained)).all()


class Bump(Bernoulli):
    """Rises at first as a pixel grows from 0 and falls later: the gradient at 0 leads an attack astray."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return (target - 20 * target.square()).sum(1) + 0 * output.sum(1)


def test_pgd_finds_the_shift_where_the_gradient_leads_astray() -> None:
    vae = mlp_vae((PIXELS,), (4,), LATENT, Bump()).double()
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.zero_()  # the KL is constant
    x, noise = torch.zeros(COUNT, PIXELS).double(), draw()
    assert (value(vae, fgsm(vae, x, BALL, noise), noise) == value(vae, x, noise)).all()
    reached = value(vae, pgd(vae, x, BALL, noise), noise)
    torch.testing.assert_close(reached, torch.full_like(reached, PIXELS * (0.1 - 20 * 0.1**2)))


def test_pgd_beats_the_shift_where_the_shift_is_a_strong_attack() -> None:
    torch.manual_seed(0)
    vae = mlp_vae((PIXELS,), (16,), LATENT).double()
    with torch.no_grad():
        vae.decoder[-1].bias -= 4  # predicts black: each brighter pixel is a surprise
    x, noise = digits(), draw()
    shifted = value(vae, BALL.project(x + BALL.eps, x), noise)
    assert (shifted < value(vae, x, noise) - 1).all()
    assert (value(vae, pgd(vae, x, BALL, noise, steps=1), noise) <= shifted).all()


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
def test_pgd_does_not_stall_at_the_pixel_boundary(scale: float) -> None:
    vae, x, noise = curved(scale=scale), digits(), draw()
    assert ((x == 0) | (x == 1)).double().mean() > 0.7
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(elbo(vae, point, noise).sum(), point)
    one_big_step = (x - BALL.eps * gradient.sign()).clamp(0, 1)

    ours = value(vae, pgd(vae, x, BALL, noise), noise)
    stalled = value(vae, stalling_pgd(vae, x, BALL, noise), noise)
    assert (ours <= value(vae, one_big_step, noise)).all()
    assert (ours < stalled).all()
    lost = value(vae, x, noise).mean()
    assert lost - ours.mean() > 1.5 * (lost - stalled.mean())


def test_more_steps_than_one_pay_on_a_curved_elbo() -> None:
    vae, x, noise = curved(scale=3.0), digits(), draw()
    one, many = (value(vae, pgd(vae, x, BALL, noise, steps=steps), noise).mean() for steps in (1, 40))
    assert many < one - 1


def test_restarts_only_help() -> None:
    vae, x, noise = curved(scale=4.0), digits(), draw()
    reached = [value(vae, pgd(vae, x, BALL, noise, 3, restarts, seeded(0)), noise) for restarts in (1, 2, 6)]
    assert (reached[1] <= reached[0]).all() and (reached[2] <= reached[1]).all()
    assert (reached[2] < reached[0]).any()


def test_the_generator_decides_the_random_starts() -> None:
    vae, x, noise = curved(scale=4.0), digits(), draw()
    first, again, other = (pgd(vae, x, BALL, noise, 3, 6, seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_attacking_the_clean_target_lowers_the_likelihood_of_the_clean_image() -> None:
    vae, x, noise = curved(), digits(), draw()
    denoising = value(vae, pgd(vae, x, BALL, noise, target="clean"), noise, x).mean()
    other_aim = value(vae, pgd(vae, x, BALL, noise, target="perturbed"), noise, x).mean()
    assert denoising < other_aim < value(vae, x, noise).mean()


@pytest.mark.parametrize("seed", range(4))
def test_pgd_reaches_the_dense_grid_minimum_in_the_plane(seed: int) -> None:
    torch.manual_seed(seed)
    vae = mlp_vae((2,), (16,), 2, Gaussian(0.5)).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter *= 2
    x, noise = torch.randn(1, 2).double(), torch.randn(1, 2).double()
    ball, side = LinfBall(0.3, -4.0, 4.0), 151
    steps = torch.linspace(-ball.eps, ball.eps, side, dtype=torch.float64)
    values = value(vae, ball.project(x + torch.cartesian_prod(steps, steps), x), noise.expand(side**2, -1))
    plane = values.view(side, side)
    neighbours = max(plane.diff(dim=0).abs().max().item(), plane.diff(dim=1).abs().max().item())

    reached = value(vae, pgd(vae, x, ball, noise, steps=60, restarts=4, generator=seeded(0)), noise).item()
    # Between grid points the ELBO moves by no more than one difference of neighbours along each axis.
    assert values.min().item() - 2 * neighbours <= reached <= values.min().item() + neighbours
    assert values.max() - values.min() > 20 * neighbours


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_an_attack_leaves_no_gradient_behind(attack: object) -> None:
    vae, x, noise = curved(), digits(), draw()
    point = attack(vae, x, BALL, noise)  # type: ignore[operator]
    assert not point.requires_grad and not x.requires_grad
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_an_attack_works_where_gradients_are_switched_off() -> None:
    vae, x, noise = curved(), digits(), draw()
    with torch.no_grad():
        assert torch.equal(pgd(vae, x, BALL, noise, steps=3), reached := pgd(vae, x, BALL, noise, steps=3))
        assert not torch.is_grad_enabled()
    assert torch.equal(reached, pgd(vae, x, BALL, noise, steps=3))


def test_examples_do_not_influence_each_other() -> None:
    vae, x, noise = curved(), digits(), draw()
    together = pgd(vae, x, BALL, noise, steps=5)
    alone = torch.cat([pgd(vae, x[i : i + 1], BALL, noise[i : i + 1], steps=5) for i in range(4)])
    torch.testing.assert_close(together[:4], alone, rtol=0, atol=1e-12)


def test_radius_zero_returns_the_image_itself() -> None:
    vae, x, noise = curved(), digits(), draw()
    assert torch.equal(pgd(vae, x, LinfBall(0.0), noise, restarts=2), x)
    assert torch.equal(fgsm(vae, x, LinfBall(0.0), noise), x)


@pytest.mark.parametrize(("steps", "restarts"), [(0, 1), (-1, 1), (1, 0), (1, -2)])
def test_fewer_than_one_step_or_restart_is_an_error(steps: int, restarts: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}, restarts={restarts}"):
        pgd(curved(), digits(), BALL, draw(), steps=steps, restarts=restarts)


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize(
    ("bad", "message"),
    [(torch.nan, "not finite|finite and in"), (torch.inf, "finite"), (-0.01, r"in \[0"), (1.5, r"in \[0")],
)
def test_an_image_outside_the_pixel_range_is_an_error_that_names_the_place(
    attack: object, bad: float, message: str
) -> None:
    x = digits()
    x[3, 5] = bad
    with pytest.raises(ValueError, match=rf"(?s)({message}).*\[3, 5\]"):
        attack(curved(), x, BALL, draw())  # type: ignore[operator]


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize(
    "noise",
    [draw(COUNT - 1), draw()[:, :2], draw().float(), draw() * torch.nan],
    ids=["too few", "too narrow", "float32", "NaN"],
)
def test_noise_that_does_not_fit_is_an_error(attack: object, noise: Tensor) -> None:
    with pytest.raises(ValueError, match="noise"):
        attack(curved(), digits(), BALL, noise)  # type: ignore[operator]


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_a_misspelt_target_is_an_error_and_not_the_default(attack: object) -> None:
    with pytest.raises(ValueError, match="target"):
        attack(curved(), digits(), BALL, draw(), target="Clean")  # type: ignore[operator]


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_an_attack_refuses_a_ball_with_targets_that_the_likelihood_does_not_explain(attack: Any) -> None:
    ball = LinfBall(0.1, -1.0, 2.0)
    with pytest.raises(ValueError, match=r"Bernoulli explains targets in \[0, 1\], but these are in \[-0\.1, 1\.1\]"):
        attack(curved(), digits(4), ball, draw(4))
    assert attack(curved(), digits(4), ball, draw(4), target="clean").shape == digits(4).shape


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_run_in_inference_mode_and_on_what_was_made_there(attack: Any) -> None:
    vae, x, noise = curved(), digits(), draw()
    expected = attack(vae, x, BALL, noise)
    with torch.inference_mode():
        made = [copy.deepcopy(vae), x.clone(), noise.clone()]
        assert torch.equal(attack(made[0], made[1], BALL, made[2]), expected)
    assert torch.equal(attack(made[0], made[1], BALL, made[2]), expected)
