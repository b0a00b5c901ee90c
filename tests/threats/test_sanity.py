"""Sanity checks: a sound attack passes all of them, and each fails for the kind of weak attack that it is for."""

from typing import Any

import pytest
from attacked import BALL, curved, digits, draw, seeded, value
from torch import Tensor

from paperlib import LinfBall, pgd
from paperlib.threats.random_search import random_search
from paperlib.threats.sanity import loss_along_attack, sanity_checks


def checked(attack: Any, **options: Any) -> dict[str, bool]:
    """Whether each check holds for all of its rows."""
    arguments: dict[str, Any] = {"steps": (1, 5, 20), "queries": 200, "generator": seeded(0), **options}
    rows = sanity_checks(curved(), digits(), BALL, draw(), attacks={"attack": attack}, **arguments)
    return rows.groupby("check")["holds"].all().to_dict()


ALL_HOLD = {"gradient-free": True, "steps": True, "unbounded": True}


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_the_attacks_of_the_library_pass_and_the_table_is_complete(target: str) -> None:
    vae, x, noise = curved(), digits(), draw()
    explained = {"perturbed": "perturbed", "clean": x}[target]
    rows = sanity_checks(vae, x, BALL, noise, (1, 5, 20), 200, seeded(0), target)  # type: ignore[arg-type]
    assert rows["holds"].all()
    assert rows.groupby("attack")["check"].apply(list).to_dict() == {
        name: ["steps"] * 3 + ["gradient-free", "unbounded"] for name in ("pgd", "apgd")
    }
    first, *_, last = rows[(rows["attack"] == "pgd") & (rows["check"] == "steps")].to_dict("records")
    assert first["bar"] == value(vae, x, noise, explained).mean().item()
    reached = value(vae, pgd(vae, x, BALL, noise, 20, target=target), noise, explained).mean().item()
    assert last["elbo"] == pytest.approx(reached) and last["steps"] == 20
    unbounded = rows[(rows["attack"] == "pgd") & (rows["check"] == "unbounded")].iloc[0]
    whole = pgd(vae, x, LinfBall(1.0), noise, 20, target=target)
    assert unbounded["elbo"] == pytest.approx(value(vae, whole, noise, explained).mean().item())


def test_an_attack_that_gets_worse_with_steps_is_seen() -> None:
    def overshoots(vae: Any, x: Tensor, ball: Any, noise: Tensor, steps: int, target: str) -> Tensor:
        return pgd(vae, x, ball, noise, 20) if steps < 20 else x

    assert checked(overshoots)["steps"] is False


def test_an_attack_that_a_search_without_gradients_beats_is_seen() -> None:
    def timid(vae: Any, x: Tensor, ball: Any, noise: Tensor, steps: int, target: str) -> Tensor:
        return random_search(vae, x, ball, noise, 1 + steps // 10, seeded(0))

    assert checked(timid)["gradient-free"] is False


def test_an_attack_that_misses_the_floor_of_the_whole_range_is_seen() -> None:
    def bounded(vae: Any, x: Tensor, ball: Any, noise: Tensor, steps: int, target: str) -> Tensor:
        return pgd(vae, x, LinfBall(min(ball.size, 0.15)), noise, steps)

    assert checked(bounded) == ALL_HOLD | {"unbounded": False}


@pytest.mark.parametrize("steps", [(), (5, 1), (2, 2)])
def test_steps_must_ascend(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="steps must be ascending"):
        checked(pgd, steps=steps)


def test_the_way_to_the_attack_begins_at_the_clean_and_ends_at_the_attacked_elbo() -> None:
    vae, x, noise = curved(), digits(), draw()
    x_adv = pgd(vae, x, BALL, noise)
    rows = loss_along_attack(vae, x, x_adv, BALL, noise, 5, seeded(0))
    assert rows["share"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert rows["attack"].iloc[0] == rows["random"].iloc[0] == value(vae, x, noise).mean().item()
    assert rows["attack"].iloc[-1] == pytest.approx(value(vae, x_adv, noise).mean().item(), rel=1e-12)
    half = value(vae, (x + x_adv) / 2, noise).mean().item()
    assert rows["attack"].iloc[2] == pytest.approx(half, rel=1e-9)
    assert rows["random"].iloc[-1] > rows["attack"].iloc[-1]
    with pytest.raises(ValueError, match="points=1"):
        loss_along_attack(vae, x, x_adv, BALL, noise, 1)
