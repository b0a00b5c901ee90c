"""Labels of classes as they come, checked, and as numbers."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor


def checked_labels(y: Any, count: int) -> NDArray[Any]:
    """The class of each of `count` rows, [count]. Raises ValueError for another number of them, or what is no class."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    labels: NDArray[Any] = column_or_1d(y, warn=True)
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    if len(labels) != count:
        raise ValueError(f"there are {count} rows and {len(labels)} classes")
    return labels


def class_numbers(labels: NDArray[Any], classes: NDArray[Any]) -> Tensor:
    """The place of each label among the sorted classes, [count]. Raises ValueError for a label that is none of them."""
    unknown = labels[~np.isin(labels, classes)].tolist()
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of the classes {classes.tolist()}")
    return torch.from_numpy(np.searchsorted(classes, labels))
