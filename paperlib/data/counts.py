"""A table of counts, from scikit-learn: ink in blocks of handwritten digits."""

import hashlib
from typing import Literal

import numpy as np

from paperlib.data.arrays import DataError, Dataset


def digit_counts(split: Literal["train", "test"], expected: str) -> Dataset:
    """1,797 handwritten digits, each as 64 counts: how many of the 16 dots of each block of 4 x 4 are ink.

    The test set of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, UCI repository, CC BY 4.0),
    from 13 writers, whose digits come in order: the rows are shuffled by a fixed seed; 1,438 train, 359 test. y is the
    digit.

    Raises ModuleNotFoundError without scikit-learn, and DataError if it brings other numbers than `expected`.
    """
    try:
        from sklearn.datasets import load_digits  # here, as nothing else in this room needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("digit-counts is scikit-learn's: pip install scikit-learn") from error
    source = load_digits()
    counts, digits = source.data.astype(np.uint8), source.target.astype(np.uint8)
    actual = hashlib.sha256(counts.tobytes() + digits.tobytes()).hexdigest()
    if actual != expected:
        raise DataError(f"scikit-learn's digits have SHA-256 {actual}, expected {expected}")
    order = np.random.default_rng(0).permutation(len(counts))
    rows = order[:1_438] if split == "train" else order[1_438:]
    return Dataset("digit-counts", counts[rows], digits[rows], 0.0, 16.0)
