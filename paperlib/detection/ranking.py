"""How well scores tell outliers from normal rows: the area under the ROC curve, clean and guaranteed."""

import torch
from torch import Tensor


def auc(normal: Tensor, outlier: Tensor) -> float:
    """The share of pairs of a normal row and an outlier in which the normal one has the higher score, in [0, 1]; a tie
    counts a half. (The area under the ROC curve: Hanley & McNeil 1982.)

    Args:
        normal, outlier: scores, [count] each, higher is more normal.

    Raises ValueError where either is empty or holds NaN.
    """
    return (_pairs(normal, outlier, right=False) + _pairs(normal, outlier, right=True)) / 2


def guaranteed_auc(normal: Tensor, outlier_upper: Tensor) -> float:
    """Guaranteed: no perturbation of the outliers within their set makes the AUC lower. Ties lose.

    That is the AUC with each outlier at its certified upper bound (Bitterwolf et al. 2020, "GOOD", arXiv 2007.08473).

    Args:
        normal: clean scores of normal rows, [count].
        outlier_upper: upper bounds of the scores of outliers, [count].

    Raises as `auc`.
    """
    return _pairs(normal, outlier_upper, right=False)


def two_sided_guaranteed_auc(normal_lower: Tensor, outlier_upper: Tensor) -> float:
    """The same where normal rows are perturbed as well: they are at their certified lower bounds."""
    return _pairs(normal_lower, outlier_upper, right=False)


def _pairs(normal: Tensor, outlier: Tensor, right: bool) -> float:
    """The share of pairs with  outlier < normal,  or with `right`  outlier <= normal.  Exact, by sorting."""
    for name, scores in (("normal", normal), ("outlier", outlier)):
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(f"{name} scores must be [count] with at least one row, got {list(scores.shape)}")
        if missing := int(scores.isnan().sum()):
            raise ValueError(f"{name} scores must not be NaN, and {missing} of {len(scores)} are")
    below = torch.searchsorted(outlier.double().sort().values, normal.double(), right=right)
    return below.sum().item() / (len(normal) * len(outlier))
