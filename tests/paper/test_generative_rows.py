"""The rows of notebook 9 on analysis by synthesis and on the manifold defence, at tiny size and in this process."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from paperlib.data.datasets import Dataset
from paperlib.paper import manifold, manifold_defence, manifold_tables
from paperlib.training.config import TrainConfig


def tiny_data(name: str, split: str = "train") -> Dataset:
    """Twelve pixels; each of ten classes has one of them white."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat(20)
    x = 0.2 * torch.rand(200, 12, generator=generator)
    x[torch.arange(200), y] = 1.0
    return Dataset(name, x, y)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifold, manifold_defence):
        monkeypatch.setattr(module, "load_dataset", tiny_data)
    monkeypatch.setattr(manifold.latent_search, "SAMPLES", 50)
    monkeypatch.setattr(manifold.latent_search, "STEPS", 10)
    monkeypatch.setattr(manifold, "in_parallel", lambda task, items, **_: [task(item) for item in items])

    def shrunk(config: TrainConfig) -> TrainConfig:
        return replace(config, data_shape=(12,), hidden=(4,), latent_dim=2, steps=15, batch_size=8)

    models, vae = manifold.class_models, manifold_defence.vae_config
    monkeypatch.setattr(manifold, "class_models", lambda *about: [shrunk(config) for config in models(*about)])
    monkeypatch.setattr(manifold_defence, "vae_config", lambda *about: shrunk(vae(*about)))


@pytest.mark.filterwarnings("ignore::paperlib.training.loop.CollapsedPosteriorWarning")
def test_each_image_has_its_radii_beside_what_a_search_claims_and_an_attack_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(manifold.PART, "smoke", 2)  # so that there are two parts, of two and one
    monkeypatch.setitem(manifold.IMAGES, "smoke", 3)
    rows = manifold.manifold_rows("mnist5k", "smoke", tmp_path)
    assert list(rows["index"]) == [0, 1, 2] and list(rows["digit"]) == [0, 1, 2]
    assert ((rows["label"] == rows["digit"]) == rows["right"]).all()
    assert (rows["published"] <= rows["searched"]).all()
    assert (rows["published"] <= rows["radius"] + manifold.TOL["smoke"]).all() and (rows["radius"] > 0).any()
    assert (rows["attacked"] >= rows["radius"]).all()


@pytest.mark.filterwarnings("ignore::paperlib.training.loop.CollapsedPosteriorWarning")
def test_the_classifier_is_measured_without_and_with_the_defence_at_each_radius(tmp_path: Path) -> None:
    rows = manifold_defence.defence_rows("mnist5k", "smoke", tmp_path)
    assert rows["eps"].tolist() == [0.05, 0.05, 0.1, 0.1, 0.2, 0.2]
    assert rows["defence"].tolist() == ["none", "manifold"] * 3 and (rows["certified"] == "none").all()
    assert (rows["attacked"] <= rows["clean"]).all()
    defended = rows[rows["defence"] == "manifold"]
    assert (defended["attacked"] <= defended[["unrolled", "straight-through", "reconstruction"]].min(axis=1)).all()


def test_the_classifier_learns_its_classes_and_is_the_same_each_time() -> None:
    data = tiny_data("mnist5k")
    one, other = (manifold_defence.trained_classifier(data, 30) for _ in range(2))
    assert torch.equal(one(data.x), other(data.x))
    assert (one(data.x).argmax(1) == data.y).double().mean() > 0.9


def test_what_is_said_of_manifolds_follows_the_rows() -> None:
    good = {"digit": 1, "right": True, "radius": 0.649, "published": 0.419, "searched": 0.43, "gap": 0.05}
    rows = pd.DataFrame([good | {"attacked": 1.996}, good | {"digit": 2, "attacked": math.inf, "gap": 0.0}])
    table = manifold_tables.radii(pd.concat([rows, rows[:1].assign(digit=3, right=False)]), 0.01).set_index("digit")
    assert [*table.loc["1"]] == [1, 1, "0.64", "0.41", "1.55", "0.43", "1", "2.00"]
    assert table.loc["2", "attacked"] == "not met by half" and table.loc["2", "missed"] == "0"
    assert table.loc["3", "joint radius"] == "" and table.loc["all", "missed"] == "1"
    said = manifold_tables.manifold_statements
    assert all(said(pd.DataFrame([good | {"attacked": 0.649}])).values())
    assert [*said(rows).values()] == [True, False]  # attacks met another class for half of them only
    assert [*said(pd.DataFrame([good | {"attacked": 0.6}])).values()] == [True, False]
    assert not any(said(pd.DataFrame([good | {"radius": 0.0, "attacked": math.inf}])).values())


CONFIGS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "manifold": manifold.manifold_config,
    "defence": manifold_defence.defence_config,
}


@pytest.mark.parametrize("profile", ["paper", "smoke"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_equals_itself_after_a_round_trip_through_a_file(name: str, profile: str) -> None:
    config = CONFIGS[name]("mnist", profile)
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("name", "module", "constant", "value"),
    [
        ("manifold", manifold, "WEIGHT", 0.1),
        ("manifold", manifold, "TOL", {"smoke": 0.1}),
        ("manifold", manifold, "IMAGES", {"smoke": 9}),
        ("manifold", manifold, "PART", {"smoke": 1}),
        ("manifold", manifold, "ROUNDS", {"smoke": 3}),
        ("manifold", manifold, "SEED", 3),
        ("manifold", manifold.latent_search, "SAMPLES", 3),
        ("defence", manifold_defence, "RADII", (0.1,)),
        ("defence", manifold_defence, "IMAGES", {"smoke": 9}),
        ("defence", manifold_defence, "ATTACK_STEPS", {"smoke": 9}),
        ("defence", manifold_defence, "PROJECTION_STEPS", {"smoke": 9}),
        ("defence", manifold_defence, "RATE", 0.2),
        ("defence", manifold_defence, "EPOCHS", {"smoke": 9}),
        ("defence", manifold_defence, "WIDTH", 3),
    ],
)
def test_what_rows_depend_on_is_in_their_configuration(
    name: str, module: Any, constant: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    monkeypatch.setattr(module, constant, value)
    assert CONFIGS[name]("mnist5k", "smoke") != before
