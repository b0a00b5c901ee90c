"""The detector: verdicts that hold within their set, what it is trained on, tables as they come, and one file."""

import json
import math
from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from paperlib import VAE, Bernoulli, Gaussian, L2Ball, LinearSet, LinfBall, PatchSet, TrainConfig, mlp_vae, save
from paperlib.certificates.evaluation import SandwichViolationError
from paperlib.detection import CertifiedDetector, verdicts
from paperlib.detection.explain import SHOWN, falls_picture
from paperlib.detection.verdicts import Separation, Summary
from paperlib.runtime.files import DamagedFileError, read_tensors

EPS = [0.1, 5.0, 0.2]
SMALL: dict[str, Any] = {"hidden": (8,), "latent_dim": 2, "steps": 20, "batch_size": 16}  # trained for a moment


def table(rows: int = 120) -> pd.DataFrame:
    """Three features of different size, two of them dependent."""
    random = np.random.default_rng(0)
    volts = random.normal(size=rows)
    watts, pressure = 100 * volts + random.normal(size=rows), 1e4 + random.normal(size=rows)
    return pd.DataFrame({"volts": volts, "watts": watts, "pressure": pressure})


def outliers() -> pd.DataFrame:
    """Near the normal rows and far from them."""
    rows = table()[:10]
    return pd.concat([rows + np.array([shift, 0.0, 0.0]) for shift in (0.0, 0.5, 5.0)], ignore_index=True)


@cache
def fitted(draws: int = 0) -> CertifiedDetector:
    return CertifiedDetector(**SMALL, draws=draws).fit(table())


# ---- what is certified


@pytest.mark.parametrize("draws", [0, 3])
@pytest.mark.parametrize("sound", [False, True])
def test_no_point_of_the_set_has_another_verdict(draws: int, sound: bool) -> None:
    detector, X = fitted(draws), outliers()
    rows = detector.certify(X, detector.ball(EPS), sound=sound)
    assert [*rows] == ["score", "lower", "upper", "verdict", "certified_radius", "attacked_lower", "attacked_upper"]
    assert {"alarm", "calm"} <= set(rows["verdict"])
    assert (rows["score"] == detector.score_samples(X)).all() and len(rows) == len(X)
    order = ["lower", "attacked_lower", "score", "attacked_upper", "upper"]
    assert all((rows[low] <= rows[high]).all() for low, high in pairwise(order))
    assert (rows["attacked_lower"] < rows["score"]).all() and (rows["score"] < rows["attacked_upper"]).all()
    random = np.random.default_rng(0)
    for _ in range(50):
        moved = X + np.array(EPS) * random.choice([-1.0, 0.3, 1.0], X.shape)
        score, alarm = detector.score_samples(moved), detector.predict(moved) == -1
        assert (rows["lower"] <= score + 1e-9).all() and (score - 1e-9 <= rows["upper"]).all()
        assert alarm[rows["verdict"] == "alarm"].all() and not alarm[rows["verdict"] == "calm"].any()


@pytest.mark.parametrize(
    "perturbation",
    [
        LinfBall(torch.tensor([0.02, 0.5, 0.0]), -math.inf, math.inf),
        LinfBall(torch.linspace(0, 0.1, 10).view(10, 1), -math.inf, math.inf),
        L2Ball(0.05, -math.inf, math.inf),
        LinearSet(torch.tensor([[0.01, 1.0, 0.0], [0.0, 0.0, 1.0]]), (1.0, 0.5), -math.inf, math.inf),
    ],
    ids=["one a feature", "one a row", "l2", "linear"],
)
def test_a_verdict_is_certified_up_to_its_radius_and_hardly_further(perturbation: Any) -> None:
    detector, X = fitted(), outliers()[::3].reset_index(drop=True)
    rows = detector.certify(X, perturbation, attack=False)
    decided = rows["verdict"] != "undecided"
    each = [perturbation.rows(slice(k, k + 1), torch.zeros(10, 3)) for k in range(10)]
    own = np.array([one.size for one in each])
    assert (rows["certified_radius"][decided] >= own[decided]).all()
    assert (rows["certified_radius"][~decided] < own[~decided]).all()
    inside = np.flatnonzero((rows["certified_radius"] > 0) & (rows["certified_radius"] < 500 * own))
    assert len(inside) > 5
    for k in inside[::3]:
        factor = rows["certified_radius"][k] / own[k]
        for scale, certified in ((1 - 1e-9, True), (1.01, False)):
            one = detector.certify(X[k : k + 1], each[k].scaled(factor * scale), radius=False, attack=False)
            assert (one["verdict"].item() != "undecided") == certified


def test_a_set_that_cannot_be_scaled_has_no_radius() -> None:
    random = np.random.default_rng(0)
    X, vae = random.uniform(size=(40, 16)), mlp_vae((16,), (4,), 2, Bernoulli())
    detector = CertifiedDetector(vae=vae).fit(X)
    patch = PatchSet(2, 2)
    with pytest.raises(NotImplementedError, match="a PatchSet has no size that a factor scales"):
        detector.certify(X, patch)
    rows = detector.certify(X, patch, radius=False, attack=False)
    assert rows[["certified_radius", "attacked_lower", "attacked_upper"]].isna().all(axis=None)
    assert (rows["lower"] < rows["score"]).all()


def test_a_bound_that_an_attack_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = fitted()
    honest = verdicts.score_bounds
    monkeypatch.setattr(verdicts, "score_bounds", lambda *args: honest(*args).map(lambda end: end - 100.0))
    with pytest.raises(SandwichViolationError, match="outside of its certified bounds"):
        detector.certify(outliers(), 0.01)


def test_rows_pass_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, X = fitted(3), outliers()
    radii = LinfBall(torch.linspace(0, 0.1, 30).double().view(30, 1), -math.inf, math.inf)
    whole = detector.certify(X, radii, radius=False)
    monkeypatch.setattr(verdicts, "chunk_size", lambda *_: 7)
    chunks = detector.certify(X, radii, radius=False)
    pd.testing.assert_frame_equal(chunks, whole, rtol=1e-9, atol=1e-9)


def test_more_draws_are_another_score() -> None:
    assert torch.equal(fitted().noise_, torch.zeros(1, 2).double()) and fitted(3).noise_.shape == (3, 2)
    assert not np.allclose(fitted().score_samples(table()), fitted(3).score_samples(table()))


def test_a_summary_adds_up() -> None:
    detector = fitted()
    rows = detector.certify(outliers(), detector.ball(EPS), radius=False, attack=False)
    summary = Summary.of(rows, detector.offset_)
    assert summary.certified_alarms + summary.certified_calm + summary.undecided == pytest.approx(1)
    assert summary.rows == 30 and summary.certified_alarms == (rows["verdict"] == "alarm").mean()
    assert summary.alarms == (detector.predict(outliers()) == -1).mean() >= summary.certified_alarms
    separation = Separation.of(rows[:10], rows[20:])
    assert 0.5 < separation.two_sided <= separation.guaranteed <= separation.auc <= 1
    with pytest.raises(ValueError, match="there is no row"):
        Summary.of(rows[:0], 0.0)


# ---- what it is fitted to


def test_false_alarms_are_at_most_alpha_of_the_rows_it_was_calibrated_on() -> None:
    detector = fitted()
    assert detector.calibration_size_ == 24  # a fifth of the rows, of which one may be below the threshold or at it
    order = np.random.RandomState(0).permutation(120)[:24]
    held_out = detector.score_samples(table().iloc[order])
    assert (held_out < detector.offset_).sum() == 0 and held_out.min() == pytest.approx(detector.offset_)


def test_training_on_the_bound_makes_it_tighter() -> None:
    random = np.random.default_rng(0)
    factors = random.normal(size=(300, 2))
    X = np.hstack([factors, factors @ random.normal(size=(2, 4))]) + 0.1 * random.normal(size=(300, 6))
    gaps = []
    for kappa in (0.0, 1.0):
        detector = CertifiedDetector(
            hidden=(8,), latent_dim=2, steps=100, batch_size=32, lr=1e-2, kappa=kappa, eps=0.3
        ).fit(X)
        rows = detector.certify(X, 0.3, radius=False, attack=False)
        gaps.append((rows["score"] - rows["lower"]).mean())
    assert gaps[0] < 0.5 * gaps[1]


def test_radii_are_in_the_units_of_the_user() -> None:
    X = table()
    detector, other = fitted(), CertifiedDetector(**SMALL).fit(X * [1.0, 1e-3, 10.0])
    assert detector.eps_ is not None and other.eps_ is not None
    np.testing.assert_allclose(other.eps_, detector.eps_ * [1.0, 1e-3, 10.0])
    one, two = (
        detector.certify(X[:9], detector.ball(EPS)),
        other.certify(X[:9] * [1, 1e-3, 10], other.ball([0.1, 5e-3, 2.0])),
    )
    units = math.log(1e-3) + math.log(10)  # a density is one in these units
    np.testing.assert_allclose(two[["score", "lower", "upper"]] + units, one[["score", "lower", "upper"]], atol=1e-2)
    assert (one["verdict"] == two["verdict"]).all()


def test_a_model_of_the_users_own_is_only_calibrated() -> None:
    vae = mlp_vae((3,), (4,), 2, Gaussian(50.0))
    X = table()
    detector = CertifiedDetector(vae=vae).fit(X)
    assert detector.calibration_size_ == len(X) and detector.eps_ is None
    assert all(torch.equal(a.double(), b) for a, b in zip(vae.parameters(), detector.vae_.parameters(), strict=True))
    with pytest.raises(ValueError, match="does not fit the model"):
        CertifiedDetector(vae=mlp_vae((4,), (4,), 2, Gaussian())).fit(X)


def test_pixels_are_not_standardized_and_stay_in_their_range() -> None:
    X = np.random.default_rng(0).uniform(size=(60, 4))
    X[:, 0] = 0.0  # constant, as the edge of images is
    detector = CertifiedDetector(**SMALL, likelihood="bernoulli", alpha=0.2).fit(X)
    assert isinstance(detector.vae_.likelihood, Bernoulli) and (detector.ball(0.1).low, detector.ball(0.1).high) == (
        0,
        1,
    )
    rows = detector.certify(X, 0.1, attack=False)
    assert (rows["lower"] < rows["upper"]).all()
    with pytest.raises(ValueError, match=r"column 2 holds 1\.5 in row 1, outside the data range \[0, 1\]"):
        detector.certify(np.array([[0, 0, 0, 0], [0, 0, 1.5, 0]]), 0.1)


def test_outliers_are_made_up_where_they_have_a_weight() -> None:
    detector = CertifiedDetector(**SMALL, outlier_weight=0.5).fit(table())
    assert detector.config_ is not None and detector.config_.objective == "detector outlier_weight=0.5"
    assert detector.offset_ != fitted().offset_


# ---- tables as they come


def with_cell(value: Any) -> pd.DataFrame:
    X = table().astype(object)
    X.loc[5, "watts"] = value
    return X


BAD_TABLES = {
    "NaN": (with_cell(math.nan), r"column 'watts' holds nan in row 5, which is NaN or infinite"),
    "infinite": (with_cell(-math.inf), r"column 'watts' holds -inf in row 5"),
    "text": (with_cell("high"), r"column 'watts' holds 'high' in row 5, which is no number"),
    "constant": (table().assign(watts=3.0), r"column 'watts' is constant in the 96 rows to train on"),
    "few": (table(50), r"n_samples=50 is too few: .* needs 19 normal rows .* so 95 in all"),
    "empty": (table()[:0], r"Found array with 0 sample"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_cannot_be_used_is_an_error_that_names_the_column(name: str) -> None:
    X, message = BAD_TABLES[name]
    with pytest.raises(ValueError, match=message):
        CertifiedDetector(**SMALL).fit(X)


def test_new_rows_need_the_same_columns() -> None:
    detector = fitted()
    for X, message in (
        (table().to_numpy()[:, :2], "X has 2 features, but CertifiedDetector is expecting 3"),
        (table().rename(columns={"watts": "kilowatts"}), r"(?s)unseen at fit time:\n- kilowatts.*missing:\n- watts"),
        (with_cell(None), r"column 'watts' holds (nan|None) in row 5"),
    ):
        with pytest.raises(ValueError, match=message), pytest.warns() if isinstance(X, np.ndarray) else nullcontext():
            detector.certify(X, 0.1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 0.0}, "alpha must be between 0 and 1"),
        ({"calibration": 1.5}, "calibration must be between 0 and 1"),
        ({"eps": -0.1}, "eps must be finite and not negative"),
        ({"eps": [0.1, 0.1]}, "eps must be one number or 3"),
        ({"kappa": 2.0}, r"TrainConfig\.kappa is out of range"),
        ({"likelihood": "laplace"}, r"TrainConfig\.likelihood is out of range"),
        ({"outlier_weight": -1.0}, "outlier_weight must not be negative"),
        ({"draws": -1}, "draws must not be negative"),
    ],
)
def test_a_parameter_out_of_range_is_said_before_training(
    parameters: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.detection.scaler.train", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=message):
        CertifiedDetector(**SMALL, **parameters).fit(table())


# ---- explanations


@pytest.mark.parametrize("draws", [0, 3])
def test_an_explanation_adds_up_to_the_fall_of_the_score(draws: int) -> None:
    detector, X = fitted(draws), table()
    odd = X[:1] + np.array([0.0, 0.0, 8.0])
    falls = detector.explain(odd)
    assert [*falls.index] == ["volts", "watts", "pressure", "KL"] and falls.idxmax() == "pressure"
    order = np.random.RandomState(0).permutation(120)[:24]
    normal = detector.score_samples(X.iloc[order]).mean()
    assert falls.sum() == pytest.approx(normal - detector.score_samples(odd)[0])
    with pytest.raises(ValueError, match="one row is explained at a time, got 2"):
        detector.explain(X[:2])


def test_a_picture_of_an_explanation_has_few_bars_that_add_up() -> None:
    falls = pd.Series(np.linspace(-1, 3, 40), index=[f"feature {k}" for k in range(40)])
    (axes,) = falls_picture(falls).axes
    assert len(axes.patches) == SHOWN + 1
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(falls.sum())
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "25 others"


# ---- one file


def test_a_detector_on_disk_is_the_same(tmp_path: Path) -> None:
    X = table()
    detector = CertifiedDetector(**SMALL, draws=2, eps=[0.1, 10.0, 0.1]).fit(X)
    detector.save(tmp_path / "pump.detector")
    loaded = CertifiedDetector.load(tmp_path / "pump.detector")
    pd.testing.assert_frame_equal(loaded.certify(X, 0.01), detector.certify(X, 0.01), check_exact=True)
    pd.testing.assert_series_equal(loaded.explain(X[:1]), detector.explain(X[:1]), check_exact=True)
    assert loaded.get_params() == detector.get_params() and [*loaded.feature_names_in_] == [*X]
    assert torch.equal(loaded.noise_, detector.noise_) and loaded.offset_ == detector.offset_
    header = read_tensors(tmp_path / "pump.detector")[1]
    assert "Infinity" not in json.dumps(header) and header["parameters"]["low"] == "-inf"
    loaded.save(tmp_path / "again.detector")
    assert (tmp_path / "again.detector").read_bytes() == (tmp_path / "pump.detector").read_bytes()


def test_a_detector_around_a_model_of_the_users_own_needs_it_again(tmp_path: Path) -> None:
    def model() -> VAE:
        return mlp_vae((3,), (4, 5), 2, Gaussian(50.0))

    detector = CertifiedDetector(vae=model()).fit(table().to_numpy())
    detector.save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"around a model of the user's own: .*load\(path, vae=my_vae\)"):
        CertifiedDetector.load(tmp_path / "own")
    loaded = CertifiedDetector.load(tmp_path / "own", vae=model())
    assert (loaded.score_samples(table().to_numpy()) == detector.score_samples(table().to_numpy())).all()


def test_a_file_that_is_no_detector_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("volts,watts\n")
    save(tmp_path / "model", TrainConfig(hidden=(4,)).build(), TrainConfig(hidden=(4,)))
    for name in ("text", "model"):
        with pytest.raises(DamagedFileError, match=str(tmp_path / name)):
            CertifiedDetector.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        CertifiedDetector.load(tmp_path / "none")
