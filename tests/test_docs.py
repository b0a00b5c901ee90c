"""The examples of docs/layers.md run as they stand, and what they bound is bounded."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from paperlib import elbo, elbo_bounds, interval_rule

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "layers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's examples define, one after the other."""
    torch.manual_seed(0)
    defined: dict[str, Any] = {"__name__": __name__}
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(code, defined)
    return defined


def test_the_residual_network_of_the_recipe_is_bounded_by_every_method(names: dict[str, Any]) -> None:
    vae, x, noise, ball = (names[name] for name in ("vae", "x", "noise", "LinfBall"))
    ball = ball(0.001)
    with torch.no_grad():
        value = elbo(vae, ball.sample(x), noise)
    for bounds in (names["bounds"], elbo_bounds(vae, x, ball, noise), elbo_bounds(vae, x, ball, noise, sound=True)):
        assert (bounds.lower <= value).all() and (value <= bounds.upper).all()


def test_the_rules_of_both_recipes_were_checked(names: dict[str, Any]) -> None:
    assert names["checked"] == ("interval_rule", "relaxation_rule", "rounding_rule")
    assert names["checked_affine"] == ("interval_rule", "relaxation_rule")


def test_the_mistake_that_the_recipe_warns_of_is_refuted(names: dict[str, Any]) -> None:
    class Wrong(names["Scale"]):
        pass

    interval_rule.register(Wrong, lambda layer, box: box.map(layer))
    with pytest.raises(ValueError, match="the interval rule is wrong"):
        names["check_rules"](Wrong(4), names["box"])
