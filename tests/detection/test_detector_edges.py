"""The detector at its edges: rows that overflow, rows that tie with the threshold, settings that change after `fit`."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from paperlib import Gaussian, Likelihood, mlp_vae
from paperlib.detection import CertifiedDetector
from paperlib.detection.explain import falls_picture

SMALL: dict[str, Any] = {"hidden": (8,), "latent_dim": 2, "steps": 20, "batch_size": 16}  # trained for a moment


def normal_rows(count: int = 100, features: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, features))


@cache
def fitted() -> CertifiedDetector:
    return CertifiedDetector(**SMALL).fit(normal_rows())


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("far", [1e4, 1e9, 1e160])
def test_a_row_whose_score_overflows_is_an_alarm_and_stops_no_other(far: float, sound: bool) -> None:
    directions = np.random.default_rng(1).normal(size=(50, 3))
    X = np.concatenate([far * directions, normal_rows()[:5]])
    detector = fitted()
    assert (detector.predict(X[:50]) == -1).all()
    assert not np.isnan(detector.score_samples(X)).any()
    rows = detector.certify(X, 0.1, sound=sound)
    alone = detector.certify(normal_rows()[:5], 0.1, sound=sound)
    assert not rows["lower"].isna().any() and not rows["upper"].isna().any()
    assert (rows["verdict"][:50] != "calm").all()
    assert rows["verdict"][50:].tolist() == alone["verdict"].tolist()


def test_a_row_that_overflows_is_not_explained() -> None:
    with pytest.raises(ValueError, match="so far out that the model overflows"):
        fitted().explain(np.full((1, 3), 1e200))


@pytest.mark.parametrize("sound", [False, True])
def test_rows_that_tie_with_the_threshold_have_one_verdict_in_any_batch(sound: bool) -> None:
    X = np.random.default_rng(3).normal(size=(300, 140))
    X[::2] = X[0]  # a machine that often idles in one state
    sizes = {"hidden": (64,), "latent_dim": 2, "steps": 5, "batch_size": 16}  # wide, so that sums depend on the batch
    detector = CertifiedDetector(**sizes, alpha=0.59, random_state=4).fit(X)
    ties = np.repeat(X[:1], 60, axis=0)
    assert abs(detector.decision_function(ties)).max() < 1e-6, "the threshold is not at the repeated row"
    batches = [detector.predict(ties), np.concatenate([detector.predict(row[None]) for row in ties])]
    batches += [np.concatenate([detector.predict(part) for part in np.split(ties, 20)])]
    assert all((batch == 1).all() for batch in batches)
    verdicts = detector.certify(ties, 0.0, sound=sound, radius=False, attack=False)["verdict"]
    assert set(verdicts) <= {"calm", "undecided"}


def test_what_was_fitted_does_not_change_with_the_parameters(tmp_path: Path) -> None:
    detector = CertifiedDetector(**SMALL).fit(normal_rows())
    detector.set_params(alpha=0.001, low=0.0, high=0.5)
    detector.save(tmp_path / "a.detector")
    same = CertifiedDetector.load(tmp_path / "a.detector")
    for each in (detector, same):
        assert (each.alpha_, each.low_, each.high_) == (0.05, -np.inf, np.inf)
        assert (each.ball(0.1).low, each.ball(0.1).high) == (-np.inf, np.inf)
    assert (same.score_samples(normal_rows()) == detector.score_samples(normal_rows())).all()


@pytest.mark.parametrize("eps", [np.array([0.1, 0.2, 0.3]), [0.1, 1, 0.1], np.float64(0.1)])
def test_parameters_of_any_type_of_number_are_saved(eps: Any, tmp_path: Path) -> None:
    detector = CertifiedDetector(eps, **SMALL, low=np.float64(-np.inf)).fit(normal_rows())
    detector.save(tmp_path / "a.detector")
    assert (CertifiedDetector.load(tmp_path / "a.detector").eps_ == detector.eps_).all()


class OwnLikelihood(Gaussian):
    """One without terms of each feature."""

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        return Likelihood.terms(self, output, target)


def test_a_likelihood_without_terms_is_scored_and_not_explained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = mlp_vae((3,), (8,), 2, OwnLikelihood(1.0))
    detector = CertifiedDetector(vae=vae).fit(normal_rows())
    detector.save(tmp_path / "a.detector")
    same = CertifiedDetector.load(tmp_path / "a.detector", vae=vae)
    assert (same.predict(normal_rows()) == detector.predict(normal_rows())).all()
    with pytest.raises(NotImplementedError, match="OwnLikelihood has no `terms`"):
        same.explain(normal_rows()[:1])
    with pytest.raises(ValueError, match=r"around a model of the user's own"):
        CertifiedDetector.load(tmp_path / "a.detector")


def test_a_model_is_not_given_to_a_detector_that_has_its_own(tmp_path: Path) -> None:
    fitted().save(tmp_path / "a.detector")
    with pytest.raises(ValueError, match="load it without `vae`"):
        CertifiedDetector.load(tmp_path / "a.detector", vae=mlp_vae((3,), (8,), 2))


@pytest.mark.parametrize("ends", [{"low": float("nan")}, {"low": 5.0, "high": -5.0}])
def test_a_data_range_without_room_is_an_error_before_training(ends: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the data range needs low < high"):
        CertifiedDetector(**SMALL, **ends).fit(normal_rows())


def test_bars_add_up_to_the_fall_where_two_features_have_one_name() -> None:
    falls = pd.Series([-5.0, 3.0, 1.0], index=["volts", "KL", "KL"])
    (axes,) = falls_picture(falls).axes
    assert [bar.get_width() for bar in axes.patches] == [-5.0, 3.0, 1.0]
