"""The experiments on methods and on tighter training at tiny size: the rows that they promise, true to `certify`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from paperlib import VAE, Interval, TrainConfig, certify, certify_expected
from paperlib.bounds import rounding as rounding_module
from paperlib.certificates import float_sound as sound_module
from paperlib.data.datasets import Dataset
from paperlib.paper import linear_bounds as methods
from paperlib.paper import mnist_training as experiments
from paperlib.paper import tighter_training as front
from paperlib.paper import toy_2d as toys
from paperlib.paper.mnist_training import EPS, EPS_GRID, ProfileSizes, digit_models
from paperlib.training.loop import TrainResult

NAMES = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]
TINY = ProfileSizes(
    3, 8, attacked=4, attack_steps=2, certified=6, draws=3, strength=5, looseness=2, strength_steps=(1, 3)
)
noise_of = experiments.test_noise  # by another name: pytest would collect it
CONFIGS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        experiments.attack_config,
        experiments.strength_config,
        experiments.certified_config,
        experiments.looseness_config,
        methods.methods_config,
        methods.linear_config,
        methods.rounding_config,
        methods.expected_config,
        front.front_config,
    )
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiments.SIZES, "smoke", TINY)
    monkeypatch.setitem(methods.SAMPLES, "smoke", (20, 40))
    monkeypatch.setattr(methods, "EXPECTED", 3)
    monkeypatch.setattr(methods, "ROUNDED", 5)
    monkeypatch.setattr(methods, "POINTS", 4)
    for module in (experiments, methods, front):  # in this process, where the sizes are tiny
        monkeypatch.setattr(module, "in_parallel", lambda task, items, **_: [task(item) for item in items])
    for sizes, size in ((front.STEPS, (2, 3, 2)), (front.IMAGES, 5), (front.ATTACKED, 3)):
        monkeypatch.setitem(sizes, "smoke", size)


@pytest.fixture
def models() -> dict[str, VAE]:
    configs = digit_models("mnist5k", "smoke")
    return {name: replace(config, seed=seed).build() for seed, (name, config) in enumerate(configs.items())}


@pytest.fixture
def test() -> Dataset:
    kind, grey = torch.rand(2, 12, 784, generator=torch.Generator().manual_seed(0))
    return Dataset("mnist5k", torch.where(kind < 0.8, 0.0, grey), torch.zeros(12).long())


# Configurations


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
    ("name", "module", "constant", "value"),
    [
        ("methods_config", methods, "SEARCH", 3),
        ("linear_config", methods, "SEARCH", 3),
        ("linear_config", methods, "VACUOUS", 0.02),
        ("rounding_config", methods, "TINY", (1e-7,)),
        ("rounding_config", methods, "ROUNDED", 4),
        ("rounding_config", methods, "POINTS", 3),
        ("expected_config", methods, "CONFIDENCE", 0.99),
        ("expected_config", methods, "EXPECTED", 4),
        ("expected_config", methods, "SAMPLES", {"smoke": (20, 41)}),
        ("front_config", front, "SEARCH", 3),
        ("front_config", front, "SEEDS", (0, 1)),
        ("front_config", front, "IMAGES", {"smoke": 6}),
        ("front_config", front, "ATTACKED", {"smoke": 6}),
        ("front_config", front, "STEPS", {"smoke": (6, 6, 6)}),
        ("front_config", front, "NOISE_SEED", 99),
    ],
)
def test_what_rows_depend_on_is_in_their_configuration(
    name: str, module: Any, constant: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    monkeypatch.setattr(module, constant, value)
    assert CONFIGS[name]("mnist5k", "smoke") != before


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "front_config"])
def test_the_models_and_their_noise_are_in_each_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = CONFIGS[name]("mnist5k", "smoke")
    assert list(before["models"]) == NAMES and before["models"]["VAE"]["dataset"] == "mnist5k"
    monkeypatch.setattr(experiments, "NOISE_SEED", 99)
    assert CONFIGS[name]("mnist5k", "smoke") != before


def test_the_full_size_is_the_one_that_is_promised() -> None:
    config = methods.linear_config("mnist", "paper")
    assert config["images"] == 10_000 and config["eps"] == [0.1, 0.01]
    assert methods.methods_config("mnist", "paper")["images"] == experiments.attack_config("mnist", "paper")["images"]
    assert methods.expected_config("mnist", "paper")["confidence"] == 0.999
    assert front.front_config("mnist", "paper")["images"] == 10_000


# Methods


def test_method_rows_are_those_of_certify_for_the_images_and_the_noise_of_the_attack(
    models: dict[str, VAE], test: Dataset
) -> None:
    rows = methods.method_rows(models, test, "smoke")
    assert list(rows.columns) == ["index", "clean", "ibp", "crown-ibp", "crown", "model", "eps"]
    assert len(rows) == len(NAMES) * len(methods.RADII) * TINY.attacked
    attacked = experiments.attacked_rows(models, test, "smoke")
    both = rows.merge(attacked, on=["model", "eps", "index"], suffixes=("", "_attacked"))
    assert len(both) == len(rows), "a row has no attack"
    np.testing.assert_allclose(both["clean"], both["clean_attacked"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(both["ibp"], both["certified"], rtol=1e-12)
    for lower, upper in (("ibp", "crown-ibp"), ("ibp", "crown"), ("crown", "attacked"), ("crown-ibp", "attacked")):
        assert (both[lower] <= both[upper]).all()
    assert (both["crown"] > both["ibp"]).all() and (both["crown-ibp"] != both["crown"]).all()

    name, eps = NAMES[1], EPS_GRID[3]
    found = certify(
        models[name], test.x[: TINY.attacked], test.ball(eps), noise_of(TINY.attacked, 20, 1)[0],
        method="crown", steps=methods.SEARCH,
    )  # fmt: skip
    stored = rows[(rows["model"] == name) & (rows["eps"] == eps)]
    np.testing.assert_allclose(stored["crown"], found["certified"], rtol=1e-12)


def test_linear_rows_are_means_with_standard_errors(models: dict[str, VAE], test: Dataset) -> None:
    rows = methods.linear_rows(models, test, "smoke")
    assert rows[["model", "eps"]].to_numpy().tolist() == [
        ["VAE", EPS], ["VAE", methods.VACUOUS], [NAMES[1], EPS], [NAMES[2], EPS],
    ]  # fmt: skip
    columns = ["clean", "ibp", "crown-ibp", "crown"]
    assert list(rows.columns) == ["model", "eps", "images", *columns, *(f"{name}_se" for name in columns)]
    assert (rows["images"] == TINY.certified).all()
    x, noise = test.x[: TINY.certified], noise_of(TINY.certified, 20, 1)[0]
    for row in rows.iloc[[1, 3]].to_dict("records"):
        for method in methods.METHODS:
            steps = methods.SEARCH if method == "crown" else 0
            values = certify(models[row["model"]], x, test.ball(row["eps"]), noise, method=method, steps=steps)
            assert row[method] == pytest.approx(values["certified"].mean(), rel=1e-12)
            assert row[f"{method}_se"] == pytest.approx(values["certified"].std() / TINY.certified**0.5)
        assert row["clean"] == pytest.approx(values["clean"].mean(), rel=1e-12)


PLACES = ["encoder 1", "encoder 2", "decoder 1", "decoder 2", "ELBO", "ELBO", "ELBO"]


def test_rounding_rows_find_plain_bounds_broken_and_sound_ones_never(models: dict[str, VAE], test: Dataset) -> None:
    rows = methods.rounding_rows(models, test)
    assert rows["place"].tolist() == PLACES * 3 and rows["model"].tolist() == [n for n in NAMES for _ in PLACES]
    assert rows["eps"].tolist() == [EPS, EPS, EPS, EPS, *methods.TINY] * 3
    units = {"encoder 1": 8, "encoder 2": 40, "decoder 1": 8, "decoder 2": 784, "ELBO": 1 + methods.POINTS}
    assert rows["checked"].tolist() == [5 * units[place] for place in PLACES] * 3
    assert (rows[["sound_broken", "sound_excess"]] == 0).all(axis=None)
    assert (rows.loc[rows["place"] != "ELBO", "plain_broken"] > 0.05).all()
    assert ((rows["plain_excess"] > 0) == (rows["plain_broken"] > 0)).all()
    assert (rows["plain_excess"] < 1e-3).all()


def test_rounding_rows_would_show_an_unsound_bound(
    models: dict[str, VAE], test: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rounding_module, sound_module):
        monkeypatch.setattr(module, "gamma", lambda count, unit: 0.0)
    rows = methods.rounding_rows(models, test)
    assert (rows.loc[rows["place"] != "ELBO", "sound_broken"] > 0.05).all()


def test_the_excess_is_the_largest_distance_on_either_side() -> None:
    value = torch.tensor([[0.5, -1.25], [3.0, 1.0]])
    tight, wide = (
        Interval(torch.zeros(2, 2), torch.ones(2, 2)),
        Interval(torch.full((2, 2), -2.0), torch.full((2, 2), 3.0)),
    )
    assert methods._excess(value, tight, wide) == {
        "checked": 4, "plain_broken": 0.5, "plain_excess": 2.0, "sound_broken": 0.0, "sound_excess": 0.0,
    }  # fmt: skip
    assert methods._excess(-value, tight, wide)["plain_excess"] == 3.0


def test_expected_rows_are_those_of_certify_expected(models: dict[str, VAE], test: Dataset) -> None:
    rows = methods.expected_rows(models, test, "smoke")
    assert list(rows.columns) == [
        "index", "eps", "samples", "confidence", "bound", "mean", "width", "tail", "noise_box", "model",
    ]  # fmt: skip
    counts = rows.groupby(["model", "samples"], sort=False)["index"].apply(list)
    assert list(counts.index) == [(name, samples) for name in NAMES[1:] for samples in (20, 40)]
    assert all(index == [0, 1, 2] for index in counts)
    assert (rows["confidence"] == methods.CONFIDENCE).all() and (rows["eps"] == EPS).all()
    generator = torch.Generator().manual_seed(experiments.NOISE_SEED)
    found = certify_expected(models[NAMES[2]], test.x[:3], test.ball(EPS), samples=40, generator=generator)
    stored = rows[(rows["model"] == NAMES[2]) & (rows["samples"] == 40)]
    np.testing.assert_allclose(stored["bound"], found["bound"], rtol=1e-12)
    pd.testing.assert_frame_equal(methods.expected_rows(models, test, "smoke"), rows)


# The front


def test_the_front_varies_bound_kappa_radius_and_seed_and_nothing_else() -> None:
    configs = front.front_models("mnist", "paper")
    assert len({config.digest for config in configs}) == len(configs) == 18
    varied = [(c.bound, c.kappa, c.eps, c.seed) for c in configs]
    assert len(set(varied)) == 18
    assert {(bound, kappa, eps) for bound, kappa, eps, _ in varied} == {
        (bound, *point) for bound in ("ibp", "crown-ibp") for point in front.POINTS
    }
    assert {0.0, 0.5} <= {kappa for kappa, _ in front.POINTS} and len(front.SEEDS) == 3
    assert len({replace(c, bound="ibp", kappa=0.0, eps=EPS, seed=0, steps=1) for c in configs}) == 1
    for point in front.POINTS:
        assert len({c.steps for c in configs if (c.kappa, c.eps) == point}) == 1, "steps differ between the bounds"


@pytest.mark.parametrize(("dataset", "profile"), [("mnist", "paper"), ("mnist5k", "smoke")])
def test_the_released_models_are_part_of_the_front(dataset: str, profile: str) -> None:
    released = front.released_models(dataset, profile)
    assert list(released) == ["05_provae_kappa_0", "05_provae_kappa_0.5"]
    assert [(c.bound, (c.kappa, c.eps), c.seed) for c in released.values()] == [
        ("crown-ibp", point, 0) for point in front.POINTS[:2]
    ]
    assert set(released.values()) <= set(front.front_models(dataset, profile))


def test_front_rows_train_and_measure_each_model(
    test: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "POINTS", ((0.0, EPS), (0.5, 0.12)))
    monkeypatch.setitem(front.STEPS, "smoke", (2, 3))
    monkeypatch.setattr(front, "SEEDS", (0, 1))
    configs = front.front_models("mnist5k", "smoke")

    def train(config: TrainConfig, *, folder: Path) -> TrainResult:
        assert folder == tmp_path / config.digest
        return TrainResult(config.build().eval(), pd.DataFrame())

    monkeypatch.setattr(front, "train", train)
    rows = front.front_rows(test, "smoke", tmp_path)
    assert list(rows.columns) == [
        "bound", "kappa", "train_eps", "steps", "seed",
        "clean", "kl", "ibp", "crown_ibp", "few_clean", "few_crown", "few_attacked",
    ]  # fmt: skip
    points = list(rows[["bound", "kappa", "train_eps", "steps", "seed"]].itertuples(index=False, name=None))
    assert points == [(c.bound, c.kappa, c.eps, c.steps, c.seed) for c in configs]
    for lower, upper in (
        ("ibp", "crown_ibp"), ("crown_ibp", "clean"), ("few_crown", "few_attacked"), ("few_attacked", "few_clean"),
    ):  # fmt: skip
        assert (rows[lower] < rows[upper]).all()

    for number, row in enumerate(rows.to_dict("records")):
        if number not in (1, 2):
            continue
        vae = configs[number].build()
        x, noise, ball = test.x[:5], noise_of(5, 20, 1)[0], test.ball(EPS)
        plain, linear = certify(vae, x, ball, noise), certify(vae, x, ball, noise, method="crown-ibp")
        few = certify(
            vae, x[:3], ball, noise[:3], attack={"steps": TINY.attack_steps}, method="crown", steps=front.SEARCH
        )
        expected = {
            "clean": plain["clean"], "kl": plain["kl"], "ibp": plain["certified"], "crown_ibp": linear["certified"],
            "few_clean": few["clean"], "few_crown": few["certified"], "few_attacked": few["attacked"],
        }  # fmt: skip
        assert {name: row[name] for name in expected} == pytest.approx(
            {name: column.mean() for name, column in expected.items()}, rel=1e-12
        )
