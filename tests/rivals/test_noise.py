"""Training at noisy inputs: the noise is what it says, and the loss is that of these inputs."""

import math
from typing import Any

import pytest
import torch

from paperlib import Bernoulli, LinfBall, TrainingStep, elbo, mlp_vae
from paperlib.rivals.noise import NoisyInputs


def test_the_noise_is_normal_with_the_size_of_the_ball_as_its_deviation() -> None:
    x = torch.full((200, 50), 3.0, dtype=torch.float64)
    noise = (NoisyInputs().draw(x, LinfBall(0.25, -10.0, 10.0), torch.Generator().manual_seed(0)) - x) / 0.25
    count = noise.numel()
    assert abs(noise.mean()) < 4 / math.sqrt(count)
    assert abs(noise.square().mean() - 1) < 4 * math.sqrt(2 / count)
    within = noise.abs().sort().values if noise.ndim == 1 else noise.abs().flatten().sort().values
    expected = torch.erf(within / math.sqrt(2))  # of |G|, against ranks: Kolmogorov's distance
    ranks = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert (expected - ranks).abs().max() < 2 / math.sqrt(count)
    rows = noise.reshape(-1, 2)
    assert abs((rows[:, 0] * rows[:, 1]).mean()) < 4 / math.sqrt(len(rows)), "features are independent"


def test_noisy_inputs_lie_in_the_data_range_and_come_from_the_generator() -> None:
    x = torch.rand(20, 30)
    draws = [NoisyInputs().draw(x, LinfBall(0.5), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].min() == 0 and draws[0].max() == 1
    assert torch.equal(NoisyInputs().draw(x, LinfBall(0.0), torch.Generator()), x)


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_the_loss_is_that_of_clean_and_noisy_inputs(target: Any) -> None:
    vae, ball = mlp_vae((9,), (12,), 2, Bernoulli()).double(), LinfBall(0.3)
    x, noise = torch.rand(6, 9).double(), torch.randn(6, 2).double()
    noisy = NoisyInputs().draw(x, ball, torch.Generator().manual_seed(0))
    robust = elbo(vae, noisy, noise, x if target == "clean" else noisy)
    expected = -(0.3 * elbo(vae, x, noise) + 0.7 * robust).mean()
    loss = NoisyInputs().loss(vae, TrainingStep(x, noisy, ball, noise, 0.3, target=target))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
