"""Adversarial training: the attack inside a step against the optimum of models where it is known, and its loss."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, Gaussian, LinfBall, TrainingStep, certificate, elbo, mlp_vae
from paperlib.rivals.adversarial import Adversarial
from paperlib.rivals.inner_attack import attacked

BALL = LinfBall(0.1)


def case(target: Any = "perturbed", kappa: float = 0.0, ball: LinfBall = BALL) -> tuple[VAE, TrainingStep]:
    generator = torch.Generator().manual_seed(0)
    vae = mlp_vae((9,), (12,), 2, Bernoulli()).double()
    x, noise = (torch.rand(6, n, generator=generator, dtype=torch.float64) for n in (9, 2))
    x[:, 0], x[:, 1] = 0.0, 1.0
    return vae, TrainingStep(x, ball.sample(x, generator), ball, noise, kappa, target=target)


def by_hand(vae: VAE, step: TrainingStep, steps: int) -> Tensor:
    """PGD in a few lines that share nothing with the library's."""
    point = step.start
    low, high = (step.x - BALL.eps).clamp(0, 1), (step.x + BALL.eps).clamp(0, 1)
    for _ in range(steps):
        point = point.detach().requires_grad_()
        elbo(vae, point, step.noise, step.x if step.target == "clean" else point).sum().backward()
        assert point.grad is not None
        point = torch.minimum(torch.maximum(point - 2.5 / steps * BALL.eps * point.grad.sign(), low), high).detach()
    return point


@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_loss_is_that_of_clean_and_attacked_inputs(target: Any, steps: int) -> None:
    vae, step = case(target, kappa=0.3)
    x_adv = by_hand(vae, step, steps)
    vae.zero_grad()
    clean, robust = (elbo(vae, point, step.noise, step.x if target == "clean" else point) for point in (step.x, x_adv))
    expected = -(0.3 * clean + 0.7 * robust).mean()
    loss = Adversarial(steps).loss(vae, step)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(each, [*vae.parameters()]) for each in (loss, expected)]
    for one, other in zip(*gradients, strict=True):  # through the weights alone, at the attacked input as it is
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_linear_model_is_attacked_at_its_worst_input() -> None:
    """-|x - b|^2 / 2 + const is lowest, for x on one side of b, at the end of the ball that is farther from b."""
    encoder, decoder = nn.Linear(3, 2), nn.Linear(1, 3)
    with torch.no_grad():
        for layer in (encoder, decoder):
            layer.weight.zero_()
            layer.bias.zero_()
        decoder.bias += torch.tensor([0.1, 0.9, 0.5])
    vae = VAE(encoder, decoder, Gaussian(), 1)
    x = torch.tensor([[0.4, 0.4, 0.2], [0.6, 0.97, 0.8]])
    worst = torch.tensor([[0.5, 0.3, 0.1], [0.7, 1.0, 0.9]])
    step = TrainingStep(x, BALL.sample(x, torch.Generator().manual_seed(0)), BALL, torch.zeros(2, 1), 0.0)
    x_adv = attacked(vae, lambda point: elbo(vae, point, step.noise), step, 5)
    torch.testing.assert_close(x_adv, worst)
    torch.testing.assert_close(Adversarial().loss(vae, step), -elbo(vae, worst, step.noise).mean())


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.7])
def test_the_attack_stays_in_the_ball_and_lowers_the_elbo(radius: float) -> None:
    vae, step = case(ball=LinfBall(radius))
    x_adv = attacked(vae, lambda point: elbo(vae, point, step.noise), step, 5)
    box = step.ball.box(step.x)
    assert box.contains(x_adv).all() and not x_adv.requires_grad
    lowered = elbo(vae, x_adv, step.noise).detach()
    assert (lowered >= certificate(vae, step.x, step.ball, step.noise) - 1e-12).all()
    if radius:
        assert lowered.mean() < elbo(vae, step.start, step.noise).mean() < elbo(vae, step.x, step.noise).mean() + 1


def test_the_attack_leaves_statistics_gradients_and_modes_as_they_were() -> None:
    encoder = nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    vae = VAE(encoder, nn.Linear(2, 9), Bernoulli(), 2).double().train()
    _, step = case()
    before, state = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    attacked(vae, lambda point: elbo(vae, point, step.noise), step, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state), "dropout drew"
    assert all(module.training for module in vae.modules()) and all(p.grad is None for p in vae.parameters())
    with torch.no_grad():  # as the check before the first step calls it
        attacked(vae.eval(), lambda point: elbo(vae, point, step.noise), step, 3)
    assert not vae.training


def test_the_start_is_a_random_point_of_the_ball_drawn_from_the_generator() -> None:
    _, step = case()
    draws = [Adversarial().draw(step.x, BALL, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert all(BALL.box(step.x).contains(draw).all() for draw in draws)


def test_an_attack_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        Adversarial(0)
