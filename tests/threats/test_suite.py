"""The suite: never above any of its attacks, their names told, starts that only help, and clear refusals."""

from typing import Any

import pytest
import torch
from attacked import BALL, COUNT, Disc, constant_vae, corners, curved, digits, draw, linear_vae, seeded, value

from paperlib import LinfBall, apgd, fgsm, pgd, strongest
from paperlib.threats.attacks import descend, elbo_objective
from paperlib.threats.suite import greyest_point, run_suite


@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_suite_is_never_beaten_by_any_of_its_attacks(target: str, maximize: bool) -> None:
    vae, x, noise = curved(scale=3.0), digits(), draw()
    explained = {"perturbed": "perturbed", "clean": x}[target]
    how: dict[str, Any] = {"target": target, "maximize": maximize}
    sign = -1 if maximize else 1
    result = run_suite(vae, x, BALL, noise, 10, seeded(0), **how)
    x_adv = strongest(vae, x, BALL, noise, 10, seeded(0), **how)
    assert torch.equal(result.x_adv, x_adv) and BALL.box(x).contains(x_adv).all()
    torch.testing.assert_close(result.elbo, value(vae, x_adv, noise, explained))
    for name, elbos in result.elbos.items():
        assert (sign * result.elbo <= sign * elbos).all(), name
    alone = {"clean": x, "shift up": BALL.project(x + 0.1, x), "shift down": BALL.project(x - 0.1, x)}
    alone |= {"greyest": greyest_point(x, BALL), "fgsm": fgsm(vae, x, BALL, noise, **how)}
    alone |= {"apgd from x": apgd(vae, x, BALL, noise, 10, **how)}
    objective = elbo_objective(vae, x, BALL, noise, **how)  # of which five steps of half the radius
    alone |= {"pgd in small steps": descend(objective, x, BALL, x, 5, lambda step, steps: 0.5)[0]}
    for name, point in alone.items():
        torch.testing.assert_close(result.elbos[name], value(vae, point, noise, explained))
    best_pgd = value(vae, pgd(vae, x, BALL, noise, 10, **how), noise, explained)
    assert (sign * result.elbo <= sign * best_pgd + 1e-12 * best_pgd.abs()).all()


def test_the_attack_that_won_is_the_first_of_the_lowest() -> None:
    vae, x, noise = curved(scale=3.0), digits(), draw()
    result = run_suite(vae, x, BALL, noise, generator=seeded(0))
    for index, name in enumerate(result.attack):
        assert result.elbos[name][index] == result.elbo[index]
        earlier = list(result.elbos)[: list(result.elbos).index(name)]
        assert all(result.elbos[other][index] > result.elbo[index] for other in earlier)
    assert len(set(result.attack)) > 1, "no single attack wins everywhere"


def test_starts_only_help_and_are_told_apart() -> None:
    vae, x, noise = curved(scale=4.0), digits(), draw()
    without = run_suite(vae, x, BALL, noise, 3, seeded(0))
    starts = [BALL.sample(x, seeded(seed)) for seed in (5, 6)]
    result = run_suite(vae, x, BALL, noise, 3, seeded(0), starts=starts)
    assert set(result.elbos) - set(without.elbos) == {"apgd from start 1", "apgd from start 2"}
    assert (result.elbo <= without.elbo).all() and (result.elbo < without.elbo).any()
    assert "apgd from start 1" in result.attack


def test_a_start_outside_the_set_is_projected_first() -> None:
    vae, x, noise = curved(), digits(), draw()
    point = strongest(vae, x, BALL, noise, 2, starts=[torch.full_like(x, 9.0)])
    assert BALL.box(x).contains(point).all()


def test_the_greyest_point_is_tried_where_targets_are_probabilities() -> None:
    x, noise = digits(), draw()
    assert "greyest" in run_suite(curved(), x, BALL, noise, 1).elbos
    gaussian = constant_vae(torch.zeros(x.shape[1]).double())
    toward = 0.5 - x
    nearest = x + 0.7 * toward / toward.norm(dim=1, keepdim=True)
    torch.testing.assert_close(greyest_point(x, Disc(0.7)), nearest)
    assert "greyest" not in run_suite(gaussian, x, BALL, noise, 1).elbos


def test_the_suite_reaches_the_lowest_corner_and_stays_in_a_disc() -> None:
    vae, x, noise = linear_vae(5), torch.randn(COUNT, 5, generator=seeded(0)).double(), draw()
    ball, disc = LinfBall(0.4, -5.0, 5.0), Disc(0.5)
    lowest = torch.stack([value(vae, corner, noise) for corner in corners(ball.box(x))]).amin(0)
    starts = [ball.sample(x, seeded(seed)) for seed in range(20)]
    reached = value(vae, strongest(vae, x, ball, noise, generator=seeded(0), starts=starts), noise)
    torch.testing.assert_close(reached, lowest, rtol=1e-12, atol=1e-12)
    assert ((strongest(vae, x, disc, noise) - x).norm(dim=1) <= 0.5 * (1 + 1e-12)).all()


def test_the_generator_decides_and_radius_zero_is_the_image() -> None:
    vae, x, noise = curved(scale=4.0), digits(), draw()
    first, again, other = (strongest(vae, x, BALL, noise, 3, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    still = run_suite(vae, x, LinfBall(0.0), noise, 3)
    assert torch.equal(still.x_adv, x) and set(still.attack) == {"clean"}


def test_examples_do_not_influence_each_other() -> None:
    vae, x, noise = curved(), digits(4), draw(4)
    starts = BALL.sample(x, seeded(0))
    together = run_suite(vae, x, BALL, noise, 5, starts=[starts])
    for i in range(4):
        row = slice(i, i + 1)
        alone = run_suite(vae, x[row], BALL, noise[row], 5, starts=[starts[row]])
        for name in set(alone.elbos) - {"random", "apgd from random", "apgd from best guess"}:
            torch.testing.assert_close(alone.elbos[name], together.elbos[name][row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"noise": draw(COUNT - 1)}, "noise"),
        ({"x": digits() + 0.5}, r"in \[0"),
        ({"target": "Clean"}, "target"),
        ({"starts": [digits()[:3]]}, "a start must be finite and of the shape and dtype of x"),
    ],
)
def test_bad_input_is_an_error_that_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    arguments = {"vae": curved(), "x": digits(), "ball": BALL, "noise": draw()} | change
    with pytest.raises(ValueError, match=message):
        strongest(**arguments)


def test_the_suite_runs_in_inference_mode() -> None:
    vae, x, noise = curved(), digits(), draw()
    expected = strongest(vae, x, BALL, noise, 3, seeded(0))
    with torch.inference_mode():
        assert torch.equal(strongest(vae, x.clone(), BALL, noise.clone(), 3, seeded(0)), expected)
