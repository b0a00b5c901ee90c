"""The classifier: margins that hold within their set, scikit-learn's conventions, and one file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from paperlib import elbo
from paperlib.detection import CertifiedDetector, GenerativeClassifier
from paperlib.runtime.files import DamagedFileError

SMALL: dict[str, Any] = {"shared": 16, "hidden": 8, "latent_dim": 2, "steps": 100, "batch_size": 32, "lr": 2e-2}


def table(rows: int = 120) -> tuple[pd.DataFrame, NDArray[np.str_]]:
    """Three classes apart in features of different size."""
    random = np.random.default_rng(0)
    number = random.integers(3, size=rows)
    columns = {"volts": number + random.normal(0, 0.2, rows), "watts": 100 * (number == 1) + random.normal(0, 20, rows)}
    return pd.DataFrame(columns), np.array(["idle", "load", "fault"])[number]


def images(rows: int = 60) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Two classes of images of six pixels in [0, 1]."""
    random = np.random.default_rng(0)
    y = random.integers(2, size=rows)
    return np.clip(
        np.where(y[:, None], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]) + random.normal(0, 0.2, (rows, 6)), 0, 1
    ), y


@pytest.fixture(scope="module")
def fitted() -> GenerativeClassifier:
    X, y = table()
    return GenerativeClassifier(eps=[0.1, 10.0], **SMALL).fit(X, y)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
def test_no_point_of_the_set_has_another_class(fitted: GenerativeClassifier, method: str, sound: bool) -> None:
    X, y = table()
    rows = fitted.certify(X, fitted.ball([0.1, 10.0]), y, method=method, sound=sound, attack=5)
    assert [*rows] == ["prediction", "margin", "certified", "separate", "attacked", "met"]
    assert (rows["separate"] <= rows["certified"]).all() and (rows["certified"] <= rows["attacked"] + 1e-9).all()
    proven = rows["certified"] > 0
    assert (rows["met"][proven] == 6 + 2 * 3).all()  # the attacks on both rivals do not spare them
    assert proven.mean() > 0.5 and (rows["prediction"][proven] == y[proven]).all()
    random = np.random.default_rng(0)
    for _ in range(30):
        moved = X + np.array([0.1, 10.0]) * random.choice([-1.0, 0.3, 1.0], X.shape)
        assert (fitted.predict(moved)[proven] == y[proven]).all()


def test_scores_are_the_elbos_of_the_models(fitted: GenerativeClassifier) -> None:
    X, _ = table()
    x = torch.from_numpy(X.to_numpy(copy=True))
    noise = torch.zeros(len(x), 2, dtype=torch.float64)
    scores = torch.stack([elbo(vae, x, noise) for vae in fitted.vaes_], 1).detach().numpy() + fitted.log_prior_
    assert fitted.decision_function(X) == pytest.approx(scores, rel=1e-9)
    assert (fitted.predict(X) == fitted.classes_[scores.argmax(1)]).all()
    assert np.exp(fitted.predict_log_proba(X)).sum(1) == pytest.approx(1.0)
    assert all(vae.encoder[1] is fitted.vaes_[0].encoder[1] for vae in fitted.vaes_)


def test_features_far_from_0_have_the_scores_that_certificates_bound() -> None:
    X, y = table()
    far = X + np.array([5e4, 0.0])
    classifier = GenerativeClassifier(eps=[0.1, 10.0], **SMALL).fit(far, y)
    x = torch.from_numpy(far.to_numpy(copy=True))
    noise = torch.zeros(len(x), 2, dtype=torch.float64)
    scores = torch.stack([elbo(vae, x, noise) for vae in classifier.vaes_], 1).detach().numpy() + classifier.log_prior_
    assert classifier.decision_function(far) == pytest.approx(scores, rel=1e-14)
    rows = classifier.certify(far, 0.0, y, attack=1)  # raises where a certified margin is above the attacked one
    assert rows["certified"].to_numpy() == pytest.approx(rows["margin"].to_numpy(), rel=1e-6, abs=1e-6)


def test_scores_of_a_few_classes_are_those_of_all(fitted: GenerativeClassifier) -> None:
    X, _ = table()
    x = torch.from_numpy(X.to_numpy(copy=True))
    classes = torch.stack([torch.arange(len(x)) % 3, (torch.arange(len(x)) + 1) % 3])
    scores = fitted._scores
    torch.testing.assert_close(scores.of_classes(x, classes), scores(x).gather(0, classes), rtol=1e-12, atol=1e-12)


def test_training_on_margins_certifies_more_than_by_likelihood_and_joint_bounds_more_than_separate_ones() -> None:
    X, y = images()
    how: dict[str, Any] = {**SMALL, "steps": 80, "likelihood": "bernoulli", "low": 0, "high": 1}
    plain, robust = (GenerativeClassifier(eps=eps, **how).fit(X, y).certify(X, 0.25, y) for eps in (0.0, 0.25))
    assert (robust["certified"] > 0).sum() > (plain["certified"] > 0).sum()
    assert (robust["certified"] > robust["separate"]).any()


def test_a_classifier_on_disk_is_the_same(fitted: GenerativeClassifier, tmp_path: Path) -> None:
    X, _ = table()
    fitted.save(tmp_path / "pump.classifier")
    loaded = GenerativeClassifier.load(tmp_path / "pump.classifier")
    pd.testing.assert_frame_equal(loaded.certify(X, 0.05), fitted.certify(X, 0.05), check_exact=True)
    assert loaded.get_params() == fitted.get_params() and [*loaded.feature_names_in_] == [*X]
    with pytest.raises(DamagedFileError, match="no detector"):
        CertifiedDetector.load(tmp_path / "pump.classifier")


def test_a_classifier_with_layers_of_the_users_own_is_loaded_with_the_same_layers(tmp_path: Path) -> None:
    X, y = images()
    shared = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    path = tmp_path / "own.classifier"
    how: dict[str, Any] = {**SMALL, "steps": 2, "likelihood": "bernoulli", "low": 0, "high": 1, "shared": shared}
    classifier = GenerativeClassifier(eps=0.1, **how).fit(X, y)
    classifier.save(path)
    loaded = GenerativeClassifier.load(path, nn.Sequential(nn.Linear(6, 4), nn.ReLU()))
    assert np.array_equal(loaded.decision_function(X), classifier.decision_function(X))
    with pytest.raises(ValueError, match=r"layers of the user's own, .*ReLU.*pass such layers") as missing:
        GenerativeClassifier.load(path)
    assert not isinstance(missing.value, DamagedFileError)
    with pytest.raises(ValueError, match=r"layer 1 is ReLU\(\) there, and Tanh\(\) was given"):
        GenerativeClassifier.load(path, nn.Sequential(nn.Linear(6, 4), nn.Tanh()))
    with pytest.raises(ValueError, match=r"layer 2 is none there, and ReLU\(\) was given"):
        GenerativeClassifier.load(path, nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.ReLU()))


@pytest.mark.parametrize(
    ("X", "y", "parameters", "message"),
    [
        ([[0.0], [1.0], [2.0]], ["a", "a", "a"], {}, "one class"),
        ([[0.0, 1.0], [1.0, 1.0]], ["a", "b"], {}, "column 1 is constant"),
        ([[0.0], [2.0]], ["a", "b"], {"likelihood": "bernoulli"}, "outside the data range"),
        ([[0.0], [1.0]], ["a", "b"], {"temperature": 0.0}, "temperature is out of range"),
        ([[0.0], [1.0]], ["a", "b"], {"eps": -1.0}, "not negative"),
        ([[0.0], [1.0]], ["a"], {}, "2 rows and 1 classes"),
    ],
)
def test_what_cannot_be_fitted(X: Any, y: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerativeClassifier(**(SMALL | parameters)).fit(X, y)


def test_an_unknown_class_has_no_margin(fitted: GenerativeClassifier) -> None:
    X, _ = table()
    with pytest.raises(ValueError, match="'broken' is none of the classes"):
        fitted.certify(X[:1], 0.1, ["broken"])


def test_a_negative_number_of_attack_steps_is_refused(fitted: GenerativeClassifier) -> None:
    X, _ = table()
    with pytest.raises(ValueError, match="at least one step"):
        fitted.certify(X[:1], 0.1, attack=-1)


CHECKED = GenerativeClassifier(
    shared=8, hidden=4, latent_dim=2, steps=40, batch_size=32, lr=2e-2, scale=1.0, temperature=2.0
)
FAILS = {
    "check_do_not_raise_errors_in_init_or_set_params": "the tests check type hints, and it passes numbers for all "
    "parameters; without that check __init__ only stores them",
}


@parametrize_with_checks([CHECKED], expected_failed_checks=lambda _: FAILS)
def test_it_is_an_estimator(estimator: Any, check: Any) -> None:
    check(estimator)
