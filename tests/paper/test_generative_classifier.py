"""The rows of notebook 9 on the classifier, at tiny size and in this process, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from paperlib.data.datasets import Dataset
from paperlib.detection import GenerativeClassifier
from paperlib.paper import classifier_tables, generative_classifier
from paperlib.paper.plots.generative_classifier import accuracies


def tiny_data(name: str, split: str = "train") -> Dataset:
    """Twelve pixels; each of ten classes has one of them white."""
    y = torch.arange(10).repeat(20)
    x = 0.2 * torch.rand(200, 12, generator=torch.Generator().manual_seed(0))
    x[torch.arange(200), y] = 1.0
    return Dataset(name, x, y)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generative_classifier, "load_dataset", tiny_data)
    monkeypatch.setattr(generative_classifier, "in_parallel", lambda task, items, **_: [task(item) for item in items])
    monkeypatch.setattr(
        generative_classifier, "shared_layers", lambda _: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16))
    )
    monkeypatch.setattr(generative_classifier, "RADII", (0.05, 0.1))
    monkeypatch.setattr(generative_classifier, "ALPHA", 0.4)
    monkeypatch.setitem(generative_classifier.CALIBRATION, "smoke", 100)


def test_rows_are_ordered_and_a_second_call_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    margins, errors = generative_classifier.classifier_rows("mnist5k", "smoke", tmp_path)
    assert [*margins["eps"]] == [0.05, 0.1] and (margins["images"] == 20).all()
    assert (margins["separate"] <= margins["certified"]).all() and (margins["broken"] == 0).all()
    assert (margins["certified"] <= margins["attacked"]).all() and (margins["attacked"] <= margins["clean"]).all()
    assert (margins["certified_accepted"] <= margins["accepted"]).all() and (
        errors["wrong_accepted"] <= errors["wrong"]
    ).all()
    assert (margins["met"] >= 20 * 3).all() and (margins["met_certified"] <= margins["met"]).all()
    assert "wrong predictions" in classifier_tables.wrong_predictions(errors)
    monkeypatch.setattr(generative_classifier.GenerativeClassifier, "fit", None)
    again, _ = generative_classifier.classifier_rows("mnist5k", "smoke", tmp_path)
    pd.testing.assert_frame_equal(again, margins, check_exact=True)
    stored = generative_classifier.pictures("mnist5k", "smoke", tmp_path)
    assert stored["rebuilt"].shape == (10, 6, 12) and stored["scores"].shape == (6, 10)
    table = classifier_tables.accuracy(margins)
    assert len(table) == 2 + len(classifier_tables.PUBLISHED) and "92.9" in set(table["certified"])
    assert len(accuracies(margins, "tiny").axes[0].lines) == 4
    assert len(classifier_tables.rejection(margins)) == 2


def test_a_small_data_set_is_divided_at_the_sizes_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {"hidden": 4, "latent_dim": 2}
    classifier = GenerativeClassifier(shared=4, **generative_classifier.PARAMETERS, **sizes)
    classifier.classes_, classifier.n_features_in_ = np.arange(10), 12
    classifier.log_prior_ = np.full(10, -np.log(10))
    classifier.set_model(classifier.untrained(0), None)
    fitted, scored = [], []

    def fit(self: GenerativeClassifier, X: NDArray[np.float64], y: NDArray[np.int64]) -> None:
        fitted.append(X)
        self.__dict__.update(classifier.__dict__)

    def score(self: GenerativeClassifier, X: NDArray[np.float64]) -> NDArray[np.float64]:
        scored.append(X)
        return whole(self, X)

    whole = GenerativeClassifier.decision_function
    monkeypatch.setattr(GenerativeClassifier, "fit", fit)
    monkeypatch.setattr(GenerativeClassifier, "decision_function", score)
    monkeypatch.setattr(GenerativeClassifier, "load", lambda *_: classifier)
    monkeypatch.setitem(generative_classifier.ATTACK_STEPS, "paper", 1)
    monkeypatch.setattr(generative_classifier, "RADII", (0.05,))
    margins, _ = generative_classifier.classifier_rows("mnist5k", "paper", tmp_path)
    assert (margins["images"] == 200).all()
    x = tiny_data("mnist5k").x.double().numpy()
    assert len(fitted) == 1 and np.array_equal(fitted[0], x[:180])
    assert np.array_equal(scored[0], x[180:])


@pytest.mark.parametrize("profile", ["paper", "smoke"])
def test_the_configuration_is_of_json_types(profile: str) -> None:
    config = generative_classifier.classifier_config("mnist", profile)
    assert json.loads(json.dumps(config)) == config


def test_statements_follow_the_rows() -> None:
    good = {"eps": 0.1, "clean": 0.97, "certified": 0.9, "separate": 0.1, "broken": 0, "accepted": 0.93}
    good |= {"met": 200_000, "met_certified": 100_000}
    errors = pd.DataFrame([{"wrong": 10, "wrong_accepted": 4}])
    assert all(classifier_tables.statements(pd.DataFrame([good]), errors, 0.1).values())
    bad = {**good, "certified": 0.84, "separate": 0.85, "broken": 1, "accepted": 0.3}
    assert not any(classifier_tables.statements(pd.DataFrame([bad]), errors, 0.1).values())
    for few in ({"met": 99_999}, {"met_certified": 99_999}):
        said = classifier_tables.statements(pd.DataFrame([good | few]), errors, 0.1)
        assert [statement for statement, holds in said.items() if not holds] == [
            statement for statement in said if "No attack broke" in statement
        ]
