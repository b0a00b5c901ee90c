"""Two tables for anomaly detection: heartbeats, which the library brings, and breast tumours, from scikit-learn.

In both y = 0 is normal and y > 0 abnormal, and the split is by index. Number the normal rows 0, 1, 2, ... in the order
of their archive: those whose number is 0, 1 or 2 modulo 5 are the training split, which holds nothing else. The others
and all abnormal rows are the test split, in the archive's order. No row is there twice, so none is in both.
"""

import hashlib
from typing import Any, Literal

import numpy as np

from paperlib.data.arrays import DataError, Dataset
from paperlib.data.embedded import embedded_arrays


def heartbeats(split: Literal["train", "test"], expected: str) -> Dataset:
    """ECG5000: heartbeats of one patient, drawn at random: 140 samples in units of the beat's standard deviation.

    2,919 beats are normal, 2,081 abnormal: 1,752 normal ones train, 1,167 and all abnormal ones test. y is the
    archive's class less one: 0 normal, 1 R-on-T premature ventricular contraction, 2 premature ventricular contraction,
    3 supra-ventricular premature or ectopic beat, 4 unclassified. The archive's 500 beats for training come first, its
    4,500 for testing after them; its own split, which trains on abnormal beats, too, is not used. The values have no
    range: low and high are infinite.

    Raises DataError as `embedded_arrays`.
    """
    beats, classes = embedded_arrays("ecg5000.npz", ("beats", "classes"), expected)
    y = classes.astype(np.int64) - 1
    rows = _split(y, split)
    return Dataset("ecg5000", beats[rows], y[rows], -np.inf, np.inf)


def tumours(split: Literal["train", "test"], expected: str) -> Dataset:
    """WDBC: 569 tumours of the breast, each with 30 measurements of cell nuclei in their own units, none negative.

    357 are benign (y = 0), 212 malignant (y = 1): 215 benign ones train, 142 and all malignant ones test.
    `wdbc_features` names the columns.

    Raises ModuleNotFoundError without scikit-learn, and DataError if it brings other numbers than `expected`.
    """
    source = _wdbc()
    benign = source.target.astype(np.uint8)
    actual = hashlib.sha256(source.data.tobytes() + benign.tobytes()).hexdigest()
    if actual != expected:
        raise DataError(f"scikit-learn's breast cancer table has SHA-256 {actual}, expected {expected}")
    y = 1 - benign.astype(np.int64)
    rows = _split(y, split)
    return Dataset("wdbc", source.data[rows], y[rows], 0.0, np.inf)


def wdbc_features() -> tuple[str, ...]:
    """The names of the 30 columns of "wdbc". Raises ModuleNotFoundError without scikit-learn."""
    return tuple(map(str, _wdbc().feature_names))


def _wdbc() -> Any:
    try:
        from sklearn.datasets import load_breast_cancer  # here, as nothing else in this room needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("wdbc is scikit-learn's: pip install scikit-learn") from error
    return load_breast_cancer()


def _split(y: np.ndarray, split: Literal["train", "test"]) -> np.ndarray:
    """The rows of a split in the archive's order, by the rule of this module."""
    normal = np.flatnonzero(y == 0)
    train = normal[np.arange(len(normal)) % 5 < 3]
    return train if split == "train" else np.setdiff1d(np.arange(len(y)), train)
