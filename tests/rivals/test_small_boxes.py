"""SABR: the small ball lies in the whole one, and the loss is the certificate of that ball."""

from typing import Any

import pytest
import torch

from paperlib import VAE, Bernoulli, L1Ball, L2Ball, LinfBall, TrainingStep, certificate, elbo, mlp_vae, robust_loss
from paperlib.rivals import small_boxes
from paperlib.rivals.small_boxes import SmallBoxes
from paperlib.threats.perturbation import PerturbationSet

BALL = LinfBall(0.1)


def case(ball: PerturbationSet = BALL, share: float = 0.4, **settings: Any) -> tuple[VAE, TrainingStep]:
    generator = torch.Generator().manual_seed(0)
    vae = mlp_vae((9,), (12,), 2, Bernoulli()).double()
    x, noise = (torch.rand(6, n, generator=generator, dtype=torch.float64) for n in (9, 2))
    x[:, 0], x[:, 1] = 0.0, 1.0
    start = SmallBoxes(share).draw(x, ball, generator)
    return vae, TrainingStep(x, start, ball, noise, 0.0, **settings)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_the_loss_is_the_certificate_of_the_small_ball_around_the_attacked_point(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, step = case(method=method)
    point = LinfBall(0.06).sample(step.x, torch.Generator().manual_seed(1))
    monkeypatch.setattr(small_boxes, "attacked", lambda *_: point)
    expected = -certificate(vae, point, LinfBall(0.04), step.noise, method=method).mean()
    torch.testing.assert_close(SmallBoxes(0.4).loss(vae, step), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("ball", [BALL, L2Ball(0.5), L1Ball(1.0)], ids=lambda ball: type(ball).__name__)
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_the_small_ball_around_each_point_of_the_attack_lies_in_the_whole_one(
    ball: PerturbationSet, share: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    _, step = case(ball, share)
    points = [step.start, ball.scaled(1 - share).sample(step.x, generator)]
    for point in points:
        for _ in range(20):
            inside = ball.scaled(share).sample(point, generator)
            torch.testing.assert_close(ball.project(inside, step.x), inside, rtol=0, atol=1e-12)


def test_it_attacks_within_the_rest_of_the_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, step = case(share=0.4)
    seen: list[TrainingStep] = []
    real = small_boxes.attacked
    monkeypatch.setattr(small_boxes, "attacked", lambda *args: seen.append(args[2]) or real(*args))
    SmallBoxes(0.4).loss(vae, step)
    assert seen[0].ball == LinfBall(0.6 * 0.1)
    x_adv = real(vae, lambda point: elbo(vae, point, step.noise), seen[0], 3)
    assert (x_adv - step.x).abs().max() <= 0.06 + 1e-12
    assert elbo(vae, x_adv, step.noise).mean() < elbo(vae, step.start, step.noise).mean()


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_a_share_of_1_is_provae(target: Any) -> None:
    vae, step = case(share=1.0, target=target)
    expected = robust_loss(vae, step.x, BALL, step.noise, 0.0, target=target)
    torch.testing.assert_close(SmallBoxes(1.0).loss(vae, step), expected)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        SmallBoxes(share)
