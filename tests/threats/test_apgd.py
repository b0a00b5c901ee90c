"""Auto-PGD: its schedule is the paper's, its moves are those of algorithm 1, its results keep every promise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attacked import BALL, COUNT, Disc, constant_vae, corners, curved, digits, draw, linear_vae, seeded, value
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paperlib import LinfBall, apgd, fgsm, pgd
from paperlib.threats.apgd import auto_descend, checkpoints, stalled
from paperlib.threats.attacks import descend


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


@given(st.integers(1, 3000))
def test_checkpoints_are_rounded_up_and_never_the_same_twice(steps: int) -> None:
    made = checkpoints(steps)
    assert made == sorted({math.ceil(steps * place / 100 - 1e-9) for place in checkpoints(100)})
    assert made[0] == 0 and made[-1] <= steps


def test_a_step_size_is_halved_by_either_condition_of_the_paper() -> None:
    improvements = torch.tensor([15.0, 14, 15, 15])  # of 20 steps; rho is 0.75
    halved = torch.tensor([False, False, False, True])
    unimproved = torch.tensor([False, False, True, True])
    # enough improvements; too few; enough, but a best value that stands; the same right after a halving
    assert stalled(improvements, 20, halved, unimproved).tolist() == [False, True, True, False]


def algorithm_1(values: list[float], gradients: list[float], eps: float) -> list[float]:
    """Points of algorithm 1 for one feature around 0: a plain transcript; the objective is lowered."""
    steps, step_size, points = len(values) - 1, 2 * eps, [0.0]
    near = lambda point: max(-eps, min(eps, point))  # noqa: E731
    sign = lambda number: (number > 0) - (number < 0)  # noqa: E731
    x, before, f = 0.0, 0.0, values[0]
    best, least, best_gradient = 0.0, values[0], gradients[0]
    least_then, step_size_then, improved, last_check = least, step_size, 0, 0
    gradient = gradients[0]
    for step in range(steps):
        aim = near(x - step_size * sign(gradient))
        new = aim if step == 0 else near(x + 0.75 * (aim - x) + 0.25 * (x - before))
        x, before = new, x
        points.append(x)
        improved += values[step + 1] < f
        f, gradient = values[step + 1], gradients[step + 1]
        if f < least:
            best, least, best_gradient = x, f, gradient
        done = step + 1
        if done in checkpoints(steps) and done < steps:
            size_now = step_size
            if improved < 0.75 * (done - last_check) or (step_size == step_size_then and least == least_then):
                step_size, x, f, gradient = step_size / 2, best, least, best_gradient
            least_then, step_size_then, improved, last_check = least, size_now, 0, done
    return points


def replay(values: Tensor, gradients: Tensor) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """An objective with made-up values and gradients [steps + 1, batch], whatever the points, and the points it saw."""
    seen: list[Tensor] = []

    def objective(point: Tensor) -> Tensor:
        call = len(seen)
        seen.append(point.detach())
        return values[call] + gradients[call] * (point - point.detach())[:, 0]

    return objective, seen


@pytest.mark.parametrize("falling", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("steps", [7, 40, 100])
def test_moves_are_those_of_algorithm_1_for_each_example(steps: int, falling: float) -> None:
    batch, generator = 30, seeded(steps)
    falls = torch.rand(steps + 1, batch, generator=generator, dtype=torch.float64) < falling
    values = torch.where(falls, -1.0, 1.5).double().cumsum(0)
    gradients = torch.randn(steps + 1, batch, generator=generator, dtype=torch.float64)
    objective, seen = replay(values, gradients)
    x = torch.zeros(batch, 1).double()
    best, least = auto_descend(objective, x, LinfBall(0.5, -10.0, 10.0), x, steps)
    for example in range(batch):
        expected = algorithm_1(values[:, example].tolist(), gradients[:, example].tolist(), 0.5)
        assert torch.stack(seen)[:, example, 0].tolist() == pytest.approx(expected, abs=1e-12)
    lowest = values.argmin(0)
    assert torch.equal(least, values.amin(0))
    assert torch.equal(best[:, 0], torch.stack(seen)[lowest, torch.arange(batch), 0])


@pytest.mark.parametrize("seed", range(3))
def test_the_lowest_corner_of_a_concave_elbo_is_reached_and_never_passed(seed: int) -> None:
    vae, ball = linear_vae(6, seed), LinfBall(0.4, -5.0, 5.0)
    x, noise = torch.randn(COUNT, 6, generator=seeded(seed)).double(), draw()
    all_corners = corners(ball.box(x))
    values = torch.stack([value(vae, corner, noise) for corner in all_corners])
    for attack in (pgd, apgd):
        reached = value(vae, attack(vae, x, ball, noise, restarts=40, generator=seeded(1)), noise)
        torch.testing.assert_close(reached, values.amin(0), rtol=1e-12, atol=1e-12)
    assert (value(vae, apgd(vae, x, ball, noise), noise) >= values.amin(0) - 1e-9).all()


def test_worst_and_best_points_of_a_constant_decoder_are_those_of_the_formula() -> None:
    output = torch.tensor([0.3, -0.2, 0.55, 0.9, 0.0]).double()
    vae, ball = constant_vae(output), LinfBall(0.2)
    x, noise = torch.rand(COUNT, 5, generator=seeded(3)).double(), draw()
    low, high = ball.box(x)
    farthest = torch.where((low - output).abs() > (high - output).abs(), low, high)
    assert torch.equal(apgd(vae, x, ball, noise, restarts=40, generator=seeded(0)), farthest)
    nearest = output.clamp(low, high)
    likely = apgd(vae, x, ball, noise, steps=100, maximize=True)
    torch.testing.assert_close(value(vae, likely, noise), value(vae, nearest, noise), rtol=0, atol=1e-4)
    assert (value(vae, likely, noise) <= value(vae, nearest, noise)).all()


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_apgd_is_never_above_clean_fgsm_or_its_starts(target: str) -> None:
    vae, x, noise = curved(), digits(), draw()
    explained = {"perturbed": "perturbed", "clean": x}[target]
    start = pgd(vae, x, BALL, noise, target=target)
    reached = value(vae, apgd(vae, x, BALL, noise, 3, target=target, starts=[start]), noise, explained)
    for rival in (x, fgsm(vae, x, BALL, noise, target), start):
        assert (reached <= value(vae, rival, noise, explained)).all()


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_apgd_raises_the_elbo_where_it_is_asked_to(target: str) -> None:
    vae, x, noise = curved(), digits(), draw()
    explained = {"perturbed": "perturbed", "clean": x}[target]
    for attack in (fgsm, pgd, apgd):
        raised = value(vae, attack(vae, x, BALL, noise, target=target, maximize=True), noise, explained)
        assert raised.mean() > value(vae, x, noise).mean() + 1
    for attack in (pgd, apgd):
        assert (value(vae, attack(vae, x, BALL, noise, 2, maximize=True), noise) >= value(vae, x, noise)).all()


def test_apgd_stays_in_a_set_that_is_no_box() -> None:
    vae, x, ball, noise = linear_vae(), torch.randn(COUNT, 8).double(), Disc(0.7), draw()
    for restarts, maximize in ((1, False), (3, False), (1, True)):
        point = apgd(vae, x, ball, noise, restarts=restarts, generator=seeded(0), maximize=maximize)
        assert ((point - x).norm(dim=1) <= 0.7 * (1 + 1e-12)).all()
    lower = value(vae, apgd(vae, x, ball, noise), noise)
    assert (lower <= value(vae, ball.project(x + ball.steepest(torch.randn(x.shape), x), x), noise)).all()


@given(eps=st.floats(0, 2), dtype=st.sampled_from([torch.float32, torch.float64]), steps=st.integers(1, 12))
def test_no_point_ever_leaves_the_ball_or_the_pixel_range(eps: float, dtype: torch.dtype, steps: int) -> None:
    vae, x, noise, ball = curved().to(dtype), digits(4).to(dtype), draw(4).to(dtype), LinfBall(eps)
    point = apgd(vae, x, ball, noise, steps, 2, seeded(0), starts=[torch.full_like(x, 3.0)])
    assert ball.box(x).contains(point).all()
    assert point.dtype == dtype and point.shape == x.shape and not point.requires_grad


def test_restarts_and_starts_only_help_and_the_generator_decides() -> None:
    vae, x, noise = curved(scale=4.0), digits(), draw()
    reached = [value(vae, apgd(vae, x, BALL, noise, 3, restarts, seeded(0)), noise) for restarts in (1, 2, 6)]
    assert (reached[1] <= reached[0]).all() and (reached[2] <= reached[1]).all()
    assert (reached[2] < reached[0]).any()
    more = value(vae, apgd(vae, x, BALL, noise, 3, starts=[BALL.sample(x, seeded(4))]), noise)
    assert (more <= reached[0]).all() and (more < reached[0]).any()
    first, again, other = (apgd(vae, x, BALL, noise, 3, 6, seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_examples_do_not_influence_each_other() -> None:
    vae, x, noise = curved(), digits(), draw()
    together = apgd(vae, x, BALL, noise)
    alone = torch.cat([apgd(vae, x[i : i + 1], BALL, noise[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together[:4], alone, rtol=0, atol=1e-12)


def test_radius_zero_returns_the_image_itself() -> None:
    vae, x, noise = curved(), digits(), draw()
    assert torch.equal(apgd(vae, x, LinfBall(0.0), noise, restarts=2), x)


def test_apgd_works_without_gradients_and_in_inference_mode() -> None:
    vae, x, noise = curved(), digits(), draw()
    expected = apgd(vae, x, BALL, noise, steps=5)
    with torch.no_grad():
        assert torch.equal(apgd(vae, x, BALL, noise, steps=5), expected)
    with torch.inference_mode():
        assert torch.equal(apgd(vae, x.clone(), BALL, noise.clone(), steps=5, starts=[x.clone()]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"noise": draw(COUNT - 1)}, "noise"),
        ({"x": digits() + 0.5}, r"in \[0"),
        ({"target": "Clean"}, "target"),
        ({"ball": LinfBall(0.1, -1.0, 2.0)}, "Bernoulli explains targets"),
        ({"starts": [digits()[:3]]}, "a start must be finite and of the shape and dtype of x"),
        ({"starts": [digits().float()]}, "a start must be finite and of the shape and dtype of x"),
        ({"starts": [digits() * torch.nan]}, "a start must be finite and of the shape and dtype of x"),
    ],
)
@pytest.mark.parametrize("attack", [pgd, apgd])
def test_bad_input_is_an_error_that_says_what_is_wrong(attack: Any, change: dict[str, Any], message: str) -> None:
    arguments = {"vae": curved(), "x": digits(), "ball": BALL, "noise": draw()} | change
    with pytest.raises(ValueError, match=message):
        attack(**arguments)


@pytest.mark.parametrize("descent", [descend, auto_descend])
def test_a_value_that_is_not_a_number_does_not_end_the_search(descent: Any) -> None:
    def objective(point: Tensor) -> Tensor:
        return (torch.where((point > 0.55) & (point < 0.65), torch.nan, 0.0) - point)[:, 0]

    x = torch.full((1, 1), 0.5).double()  # the first step from 0.1 leads to 0.6 or to the end
    for start in (0.1, 0.6):
        best, least = descent(objective, x, LinfBall(0.5), torch.full_like(x, start), 20)
        assert least.item() == -best.item() < -0.9
