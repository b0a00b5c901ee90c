"""The classifier: margins that hold within their set, scikit-learn's conventions, and one file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.utils.estimator_checks import parametrize_with_checks

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
    assert [*rows] == ["prediction", "margin", "certified", "separate", "attacked"]
    assert (rows["separate"] <= rows["certified"]).all() and (rows["certified"] <= rows["attacked"] + 1e-9).all()
    proven = rows["certified"] > 0
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


CHECKED = GenerativeClassifier(shared=8, hidden=4, latent_dim=2, steps=25, batch_size=16, lr=5e-2)
FAILS = {
    "check_do_not_raise_errors_in_init_or_set_params": "the tests check type hints, and it passes numbers for all "
    "parameters; without that check __init__ only stores them",
}


@parametrize_with_checks([CHECKED], expected_failed_checks=lambda _: FAILS)
def test_it_is_an_estimator(estimator: Any, check: Any) -> None:
    check(estimator)
