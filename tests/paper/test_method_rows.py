"""The rows of notebook 5 at tiny size: certificates by each method, true to `certify`."""

import json

import numpy as np
import pytest
from tiny import NAMES, TINY

from paperlib import VAE, Crown, certify
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.paper import attacks, mnist_training
from paperlib.paper import linear_bounds as methods
from paperlib.paper.mnist_training import EPS, EPS_GRID

CONFIGS = {function.__name__: function for function in (methods.methods_config, methods.linear_config)}


@pytest.mark.parametrize(("dataset", "profile"), [("mnist", "paper"), ("mnist5k", "smoke")])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_methods_survives_a_file(tiny: None, name: str, dataset: str, profile: str) -> None:
    config = CONFIGS[name](dataset, profile)
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("name", "constant", "value"),
    [
        ("methods_config", "ALPHA_STEPS", 3),
        ("methods_config", "RADII", (0.3,)),
        ("linear_config", "ALPHA_STEPS", 3),
        ("linear_config", "VACUOUS", 0.02),
    ],
)
def test_what_the_rows_of_methods_depend_on_is_in_their_configuration(
    tiny: None, name: str, constant: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    monkeypatch.setattr(methods, constant, value)
    assert CONFIGS[name]("mnist5k", "smoke") != before


@pytest.mark.parametrize("name", CONFIGS)
def test_so_are_the_models_and_their_noise(tiny: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    assert list(before["models"]) == NAMES and before["models"]["VAE"]["dataset"] == "mnist5k"
    monkeypatch.setattr(mnist_training, "NOISE_SEED", 99)
    assert CONFIGS[name]("mnist5k", "smoke") != before


def test_the_full_size_of_methods_is_the_one_that_is_promised() -> None:
    config = methods.linear_config("mnist", "paper")
    assert config["images"] == 10_000 and config["eps"] == [0.1, 0.01]
    assert methods.methods_config("mnist", "paper")["images"] == attacks.attack_config("mnist", "paper")["images"]


def test_method_rows_are_those_of_certify_for_the_images_and_the_noise_of_the_attack(
    models: dict[str, VAE], test: Dataset
) -> None:
    rows = methods.method_rows(models, test, "smoke")
    assert list(rows.columns) == ["index", "clean", "ibp", "crown-ibp", "crown", "model", "eps"]
    assert len(rows) == len(NAMES) * len(methods.RADII) * TINY.attacked
    attacked = attacks.attacked_rows(models, test, "smoke")
    both = rows.merge(attacked, on=["model", "eps", "index"], suffixes=("", "_attacked"))
    assert len(both) == len(rows), "a row has no attack"
    np.testing.assert_allclose(both["clean"], both["clean_attacked"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(both["ibp"], both["certified"], rtol=1e-12)
    for lower, upper in (("ibp", "crown-ibp"), ("ibp", "crown"), ("crown", "attacked"), ("crown-ibp", "attacked")):
        assert (both[lower] <= both[upper]).all()
    assert (both["crown"] > both["ibp"]).all() and (both["crown-ibp"] != both["crown"]).all()

    name, eps = NAMES[1], EPS_GRID[3]
    x, noise = test.x[: TINY.attacked], evaluation_noise(TINY.attacked, 20)[0]
    again = certify(models[name], x, test.ball(eps), noise, method=Crown(methods.ALPHA_STEPS))
    stored = rows[(rows["model"] == name) & (rows["eps"] == eps)]
    np.testing.assert_allclose(stored["crown"], again["certified"], rtol=1e-12)


def test_linear_rows_are_means_with_standard_errors(models: dict[str, VAE], test: Dataset) -> None:
    rows = methods.linear_rows(models, test, "smoke")
    assert rows[["model", "eps"]].to_numpy().tolist() == [
        ["VAE", EPS], ["VAE", methods.VACUOUS], [NAMES[1], EPS], [NAMES[2], EPS],
    ]  # fmt: skip
    columns = ["clean", "ibp", "crown-ibp", "crown"]
    assert list(rows.columns) == ["model", "eps", "images", *columns, *(f"{name}_se" for name in columns)]
    assert (rows["images"] == TINY.certified).all()
    x, noise = test.x[: TINY.certified], evaluation_noise(TINY.certified, 20)[0]
    for row in rows.iloc[[1, 3]].to_dict("records"):
        for name, method in {"ibp": "ibp", "crown-ibp": "crown-ibp", "crown": Crown(methods.ALPHA_STEPS)}.items():
            values = certify(models[row["model"]], x, test.ball(row["eps"]), noise, method=method)
            assert row[name] == pytest.approx(values["certified"].mean(), rel=1e-12)
            assert row[f"{name}_se"] == pytest.approx(values["certified"].std() / TINY.certified**0.5)
        assert row["clean"] == pytest.approx(values["clean"].mean(), rel=1e-12)
