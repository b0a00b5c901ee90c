"""Areas under the curve: by all pairs, and guaranteed ones that no perturbation of the outliers undercuts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from paperlib.detection.ranking import auc, guaranteed_auc, two_sided_guaranteed_auc

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=8)  # with ties


@given(SCORES, SCORES)
def test_it_is_the_area_under_the_curve(normal: list[float], outlier: list[float]) -> None:
    labels = [1] * len(normal) + [0] * len(outlier)
    expected = roc_auc_score(labels, normal + outlier)
    assert auc(torch.tensor(normal), torch.tensor(outlier)) == pytest.approx(expected)


@given(SCORES, SCORES)
def test_ties_lose_where_it_is_guaranteed(normal: list[float], outlier: list[float]) -> None:
    wins = sum(high > low for high in normal for low in outlier) / (len(normal) * len(outlier))
    assert guaranteed_auc(torch.tensor(normal), torch.tensor(outlier)) == pytest.approx(wins)
    assert two_sided_guaranteed_auc(torch.tensor(normal), torch.tensor(outlier)) == pytest.approx(wins)


def test_infinite_bounds_lose_and_nothing_is_nan() -> None:
    normal = torch.tensor([0.0, 1.0])
    assert guaranteed_auc(normal, torch.tensor([torch.inf])) == 0
    assert two_sided_guaranteed_auc(torch.tensor([-torch.inf]), torch.tensor([-torch.inf])) == 0


def test_what_is_wrong_with_which_scores_is_said() -> None:
    good, nan = torch.tensor([0.0, 1.0]), torch.tensor([0.0, torch.nan, torch.nan])
    for bad in (torch.empty(0), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="outlier scores must be "):
            auc(good, bad)
        with pytest.raises(ValueError, match="normal scores must be "):
            guaranteed_auc(bad, good)
    with pytest.raises(ValueError, match="outlier scores must not be NaN, and 2 of 3 are"):
        guaranteed_auc(good, nan)
    with pytest.raises(ValueError, match="normal scores must not be NaN, and 2 of 3 are"):
        two_sided_guaranteed_auc(nan, good)
