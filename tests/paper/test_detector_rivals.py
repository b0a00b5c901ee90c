"""The rivals of the certified detector at tiny size: all by one rule, and their rates in order."""

import json
import math

import pandas as pd
import pytest
import torch
from torch import nn

from paperlib import Gaussian
from paperlib.data.datasets import Dataset
from paperlib.detection import CertifiedDetector
from paperlib.detection.conformal import threshold
from paperlib.paper import detector_rivals
from paperlib.paper.detector_rivals import OURS, Tables, rival_rows, rivals, rivals_config
from paperlib.rivals.autoencoder import Autoencoder
from paperlib.rivals.smoothed_score import SmoothedScore

SHARES = [
    *("detection", "calm", "attacked_detection", "attacked_calm", "certified_detection", "certified_calm"),
    *("auc", "guaranteed_auc"),
]


def tiny_set(name: str, split: str = "train") -> Dataset:
    """Correlated features; outliers, in the test set alone, are far from all normal rows."""
    generator = torch.Generator().manual_seed(int(split == "train"))
    rows = torch.randn(110, 1, generator=generator) + 0.2 * torch.randn(110, 6, generator=generator)
    if split == "train":
        return Dataset(name, rows, torch.zeros(110).long(), -math.inf, math.inf)
    rows[30:] += 4 * torch.tensor([1.0, -1.0] * 3)
    return Dataset(name, rows[:60], (torch.arange(60) >= 30).long(), -math.inf, math.inf)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector_rivals, "load_dataset", tiny_set)
    for sizes, value in (("STEPS", 12), ("ROWS", 8), ("SMOOTHED", 3), ("SAMPLES", 60), ("ATTACK_STEPS", 4)):
        monkeypatch.setitem(getattr(detector_rivals, sizes), "smoke", value)
    monkeypatch.setattr(detector_rivals, "THREATS", (("linf", 0.02), ("l2", 0.05)))


@pytest.mark.filterwarnings("ignore::paperlib.training.loop.CollapsedPosteriorWarning")
def test_each_detector_is_attacked_and_certified_in_order(tiny: None) -> None:
    rows = rival_rows("ecg5000", "smoke", {**OURS, "hidden": (8,), "latent_dim": 2})
    assert tuple(rows.columns) == detector_rivals.COLUMNS
    assert rows["detector"].drop_duplicates().tolist() == [one.name for one in rivals("smoke", OURS)]
    assert rows["threat"].tolist() == ["linf", "l2"] * 7
    assert ((rows[SHARES] >= 0) & (rows[SHARES] <= 1) | rows[SHARES].isna()).all(axis=None)
    certain, none = rows[rows["promise"] == "certain"], rows[rows["promise"] == "none"]
    assert set(none["detector"]) == {"autoencoder"} and none[SHARES[4:6]].isna().all(axis=None)
    assert rows[rows["promise"] != "none"].drop(columns="kl").notna().all(axis=None)
    assert set(rows["detector"][rows["kl"].isna()]) == {"isolation forest", "one-class SVM", "autoencoder"}
    for what in ("detection", "calm"):
        assert (certain[f"certified_{what}"] <= certain[f"attacked_{what}"]).all()
        assert (rows[f"attacked_{what}"] <= rows[what]).all()
    assert (certain["guaranteed_auc"] <= certain["auc"]).all()
    assert (certain["certified_detection"] > 0).any(), "the outliers are far: some promise must hold"
    smoothed = rows["detector"].str.startswith("smoothed")
    assert rows["promise"].str.contains("confidence 0.999").equals(smoothed)
    assert set(rows["outliers"][smoothed]) == {3} and set(rows["outliers"][~smoothed]) == {8}


def test_thresholds_of_all_detectors_are_those_of_the_same_rows(tiny: None) -> None:
    tables = Tables.of(tiny_set("ecg5000"), tiny_set("ecg5000", "test"), 8, standardize=False)
    fit, calibration = tables.split
    assert (len(fit), len(calibration), len(tables.normal), len(tables.outlier)) == (88, 22, 8, 8)
    assert torch.equal(torch.cat([fit, calibration]).sort(0).values, tables.training.sort(0).values)
    ours = rivals("smoke", OURS)[-1].fit(tables)
    assert isinstance(ours, detector_rivals.ElboScore) and isinstance(ours.detector, CertifiedDetector)
    # a detector's own threshold is lower by what float64 rounds a score
    common = threshold(ours.score(calibration), detector_rivals.ALPHA)
    assert common - 1e-9 * (1 + abs(common)) < ours.detector.offset_ < common


@pytest.mark.filterwarnings("ignore::paperlib.training.loop.CollapsedPosteriorWarning")
def test_all_networks_have_the_widths_of_ours(tiny: None) -> None:
    tables = Tables.of(tiny_set("ecg5000"), tiny_set("ecg5000", "test"), 8, standardize=False)
    autoencoder, plain, smoothed = (
        rival.fit(tables) for rival in rivals("smoke", {**OURS, "hidden": [7], "latent_dim": 3, "scale": 0.4})[2:5]
    )
    assert isinstance(autoencoder, Autoencoder) and isinstance(plain, detector_rivals.ElboScore)
    assert isinstance(smoothed, SmoothedScore) and plain.detector.kappa == 1
    vaes = (plain.detector.vae_, smoothed.vae)
    for network in (autoencoder.network, *(vae.encoder for vae in vaes)):
        assert next(module for module in network.modules() if isinstance(module, nn.Linear)).out_features == 7
    assert [vae.latent_dim for vae in vaes] == [3, 3]
    scales = [vae.likelihood.log_scale.exp().item() for vae in vaes if isinstance(vae.likelihood, Gaussian)]
    assert scales == pytest.approx([0.4, 0.4])


def test_fewer_rows_to_test_are_spread_over_all() -> None:
    column = torch.arange(10.0, dtype=torch.float64).unsqueeze(1)
    some = Tables(column, column, column[:4]).some(4)
    assert some.normal.flatten().tolist() == [0, 3, 6, 9] and torch.equal(some.outlier, column[:4])
    assert torch.equal(some.training, column)


def test_standard_units_are_those_of_the_training_rows() -> None:
    tables = Tables.of(tiny_set("wdbc"), tiny_set("wdbc", "test"), 100, standardize=True)
    torch.testing.assert_close(tables.training.mean(0), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(tables.training.std(0), torch.ones(6, dtype=torch.float64))
    assert tables.outlier.abs().mean() > 2 * tables.normal.abs().mean()


def test_the_configuration_says_all_and_survives_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    config = rivals_config("ecg5000", "paper")
    assert json.loads(json.dumps(config)) == config
    assert rivals_config("ecg5000", "paper", {"eps": 0.2}) != config != rivals_config("ecg5000", "smoke")
    monkeypatch.setattr(detector_rivals, "SIGMAS", (1.0,))
    assert rivals_config("ecg5000", "paper") != config


def test_rows_are_a_table_of_numbers_and_words(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector_rivals, "rivals", lambda profile, ours: rivals(profile, ours)[1:2])
    rows = rival_rows("wdbc", "smoke")
    assert {name: kind for name, kind in rows.dtypes.astype(str).items() if name in SHARES} == dict.fromkeys(
        SHARES, "float64"
    )
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), rival_rows("wdbc", "smoke").drop(columns="seconds"))
