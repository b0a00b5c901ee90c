"""Heartbeats and tumours: what the archives hold, normal rows alone to train on, and no row on both sides."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from paperlib import Gaussian, elbo, elbo_bounds, load_dataset, mlp_vae, pgd
from paperlib.data import embedded as embedded_module
from paperlib.data.anomalies import wdbc_features
from paperlib.data.datasets import CHECKSUMS, DataError, Dataset

EMBEDDED = Path(embedded_module.__file__).with_name("ecg5000.npz")
SETS = {"ecg5000": (140, 2_919, 1_752, 2_081), "wdbc": (30, 357, 215, 212)}  # columns, normal, for training, abnormal


def archive() -> tuple[np.ndarray, np.ndarray]:
    """The heartbeats and their classes, as the file stores them."""
    with np.load(EMBEDDED) as file:
        return file["beats"], file["classes"]


def both(name: str) -> tuple[Dataset, Dataset]:
    return load_dataset(name, "train"), load_dataset(name, "test")


@pytest.mark.parametrize("name", SETS)
def test_normal_rows_alone_train_and_no_row_is_on_both_sides(name: str) -> None:
    columns, normal, for_training, abnormal = SETS[name]
    train, test = both(name)
    assert train.name == test.name == name and train.shape == test.shape == (columns,)
    assert train.x.dtype == torch.float32 and train.y is not None and test.y is not None
    assert len(train.x) == for_training and not train.y.any()
    assert (test.y == 0).sum() == normal - for_training and (test.y > 0).sum() == abnormal
    assert len(torch.cat([train.x, test.x]).unique(dim=0)) == normal + abnormal, "each row is there once"
    assert torch.equal(load_dataset(name, "train").x, train.x)


@pytest.mark.parametrize("name", SETS)
def test_the_split_is_the_rule_that_is_written(name: str) -> None:
    """Three of each five normal rows, in the archive's order, train."""
    train, test = both(name)
    assert test.y is not None
    trains, normal = iter(train.x), iter(test.x[test.y == 0])
    rows = torch.stack([next(trains if number % 5 < 3 else normal) for number in range(SETS[name][1])])
    if name == "wdbc":
        from sklearn.datasets import load_breast_cancer

        source = load_breast_cancer()
        assert list(source.target_names) == ["malignant", "benign"]
        expected = source.data[source.target == 1]
        assert torch.equal(test.x[test.y == 1], torch.from_numpy(source.data[source.target == 0]).float())
    else:
        beats, classes = archive()
        expected = beats[classes == 1]
    assert torch.equal(rows, torch.from_numpy(expected).float())
    assert next(trains, None) is None and next(normal, None) is None


def test_the_heartbeats_are_those_of_the_archive() -> None:
    train, test = both("ecg5000")
    assert train.y is not None and test.y is not None
    assert torch.cat([train.y, test.y]).bincount().tolist() == [2919, 1767, 96, 194, 24]
    first = [-0.11252183, -2.8272038, -3.7738969, -4.3497511, -4.376041]  # of the first line of ECG5000_TRAIN.tsv
    assert torch.equal(train.x[0, :5], torch.tensor(first))
    beats = torch.cat([train.x, test.x]).double()
    torch.testing.assert_close(beats.mean(1), torch.zeros(5_000).double(), rtol=0, atol=1e-6)
    assert beats.std(1, correction=0).min() > 0.996 and beats.std(1).max() < 1 + 1e-6
    stored, classes = archive()
    assert stored.dtype == np.float32 and classes.dtype == np.uint8
    assert torch.equal(test.x[test.y > 0], torch.from_numpy(stored[classes > 1]))
    assert test.y[test.y > 0].tolist() == (classes[classes > 1] - 1).tolist()
    assert EMBEDDED.name in EMBEDDED.with_name("LICENSES.md").read_text(encoding="utf-8"), "its licence lies beside it"


def test_the_measurements_of_tumours_have_names_and_are_not_negative() -> None:
    names = wdbc_features()
    assert len(names) == 30 and names[0] == "mean radius" and names[-1] == "worst fractal dimension"
    train, _ = both("wdbc")
    assert (train.low, train.high) == (0.0, math.inf)
    assert train.x[:, 0].min() > 5 and train.x[:, 0].max() < 20, "the radius of benign nuclei in micrometres"


def test_other_numbers_of_scikit_learn_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKSUMS, "wdbc", {"scikit-learn": "0" * 64})
    with pytest.raises(DataError, match=r"breast cancer table has SHA-256 3a54a12f\w+, expected 0{64}"):
        load_dataset("wdbc")


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="wdbc is scikit-learn's: pip install scikit-learn"):
        load_dataset("wdbc")
    assert len(load_dataset("ecg5000").x) == 1_752, "the heartbeats do not need it"


@pytest.mark.parametrize("name", SETS)
def test_a_range_without_ends_serves_bounds_and_attacks(name: str) -> None:
    data = load_dataset(name, "test")
    x, noise = data.x[:3].double(), torch.zeros(3, 2).double()
    torch.manual_seed(0)
    vae = mlp_vae(data_shape=data.shape, hidden=(4,), latent_dim=2, likelihood=Gaussian(scale=100.0)).double()
    vae.encoder[0].weight.data /= x.abs().max()  # to units in which the network is at home
    clean, norms = elbo(vae, x, noise), ("linf", "l2", "l1")
    for ball in [data.ball(0.05, norm) for norm in norms]:
        attacked = elbo(vae, pgd(vae, x, ball, noise, steps=3), noise)
        for method, sound in itertools.product(("ibp", "crown-ibp", "crown"), (False, True)):
            lower, upper = elbo_bounds(vae, x, ball, noise, method=method, sound=sound)
            assert lower.isfinite().all() and upper.isfinite().all()
            assert (lower <= attacked).all() and (attacked < clean).all() and (clean < upper).all()
