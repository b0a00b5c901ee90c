"""Tables of numbers as they come, checked: what is wrong with one is said by the name of its column."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from paperlib.models.likelihood import Likelihood
from paperlib.threats.perturbation import check_range


def numeric_rows(estimator: BaseEstimator, X: Any, low: float, high: float, *, reset: bool) -> Tensor:
    """The rows as a float64 tensor [rows, features], finite and in [low, high].

    Args:
        reset: whether they are the first that the estimator sees; else they need its columns.

    Raises ValueError, naming the column and the row (counted from 0), for text, missing or infinite values and values
    out of range; and for another number of columns, or other names, than at the time of fit.
    """
    try:
        rows = validate_data(estimator, X, dtype=np.float64, ensure_all_finite=False, reset=reset)
    except ValueError as error:
        text = _first_text(X)
        if text is None:
            raise
        column, row, value = text
        raise ValueError(f"column {column!r} holds {value!r} in row {row}, which is no number") from error
    names = column_names(estimator)
    for bad, why in (
        (~np.isfinite(rows), "which is NaN or infinite: fill in or leave out rows with missing values"),
        ((rows < low) | (rows > high), f"outside the data range [{low:g}, {high:g}]"),
    ):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(f"column {names[column]!r} holds {rows[row, column]:g} in row {row}, {why}")
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())  # torch warns of what is read-only


def data_range(low: float, high: float, likelihood: Likelihood | type[Likelihood]) -> tuple[float, float]:
    """The part of [low, high] that the likelihood explains. Raises ValueError unless low < high, for either."""
    check_range(low, high)
    least, most = likelihood.support
    check_range(max(low, least), min(high, most))
    return max(low, least), min(high, most)


def column_names(estimator: BaseEstimator) -> list[Any]:
    """Those of the table that the estimator was fitted to; numbers where it had none."""
    return [*getattr(estimator, "feature_names_in_", range(estimator.n_features_in_))]


def _first_text(X: Any) -> tuple[Any, int, Any] | None:
    """Column, row and value of the first that is no number."""
    try:
        table = pd.DataFrame(X)
    except ValueError:
        return None
    for name in table.columns:
        for row, value in enumerate(table[name]):
            if isinstance(value, complex):
                continue  # validate_data says what is wrong with it
            try:
                float(value)
            except (TypeError, ValueError):
                return name, row, value
    return None
