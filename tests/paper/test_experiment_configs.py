"""What a row file depends on is in the configuration that its header must have."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tiny import NAMES, TINY

from paperlib.paper import attacks, certification, mnist_training
from paperlib.paper import tighter_training as tighter
from paperlib.paper import toy_2d as toys

CONFIGS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        attacks.attack_config,
        attacks.strength_config,
        attacks.ceiling_config,
        certification.certified_config,
        certification.looseness_config,
        certification.rounding_config,
        certification.expected_config,
        tighter.tradeoff_config,
    )
}
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(("dataset", "profile"), [("mnist", "paper"), ("mnist5k", "smoke")])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_equals_itself_after_a_round_trip_through_a_file(name: str, dataset: str, profile: str) -> None:
    # a tuple comes back as a list, which is another value: its rows would be refused for ever
    config = CONFIGS[name](dataset, profile)
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("profile", ["paper", "smoke"])
def test_so_does_that_of_the_plane(profile: str) -> None:
    assert json.loads(json.dumps(toys.toy_config(profile))) == toys.toy_config(profile)


@pytest.mark.parametrize(
    "name", ["attack_config", "strength_config", "ceiling_config", "certified_config", "looseness_config"]
)
def test_the_images_and_the_data_set_are_in_the_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    sizes = replace(TINY, attacked=9, certified=9, strength=9, looseness=9, draws=3)
    monkeypatch.setitem(mnist_training.SIZES, "smoke", sizes)
    assert CONFIGS[name]("mnist5k", "smoke")["images"] == 9 != before["images"]
    assert CONFIGS[name]("mnist", "smoke") != CONFIGS[name]("mnist5k", "smoke")


@pytest.mark.parametrize(
    ("name", "module", "constant", "value"),
    [
        ("ceiling_config", attacks, "EPS_GRID", (0.0, 0.3)),
        ("ceiling_config", attacks, "SIZES", {"smoke": replace(TINY, attacked=3)}),
        ("rounding_config", certification, "TINY_RADII", (1e-7,)),
        ("rounding_config", certification, "ROUNDED_IMAGES", 4),
        ("rounding_config", certification, "CORNERS", 3),
        ("expected_config", certification, "CONFIDENCE", 0.99),
        ("expected_config", certification, "EXPECTED_IMAGES", 4),
        ("expected_config", certification, "EXPECTED_DRAWS", {"smoke": (20, 41)}),
        ("tradeoff_config", tighter, "ALPHA_STEPS", 3),
        ("tradeoff_config", tighter, "SEEDS", (0, 1)),
        ("tradeoff_config", tighter, "IMAGES", {"smoke": 6}),
        ("tradeoff_config", tighter, "SUBSET", {"smoke": 6}),
        ("tradeoff_config", tighter, "TRAINING_STEPS", {"smoke": (6, 6, 6)}),
        ("tradeoff_config", tighter, "NOISE_SEED", 99),
    ],
)
def test_what_rows_depend_on_is_in_their_configuration(
    name: str, module: Any, constant: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    monkeypatch.setattr(module, constant, value)
    assert CONFIGS[name]("mnist5k", "smoke") != before


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("tradeoff_config", "ceiling_config")])
def test_the_models_and_their_noise_are_in_each_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    assert list(before["models"]) == NAMES and before["models"]["VAE"]["dataset"] == "mnist5k"
    monkeypatch.setattr(mnist_training, "NOISE_SEED", 99)
    assert CONFIGS[name]("mnist5k", "smoke") != before


def test_the_full_size_of_expectations_and_of_the_tradeoff_is_the_one_that_is_promised() -> None:
    assert certification.expected_config("mnist", "paper")["confidence"] == 0.999
    assert tighter.tradeoff_config("mnist", "paper")["images"] == 10_000
