"""Split conformal calibration: the guarantee by exact counting and by simulation, and what it needs."""

import math
from fractions import Fraction
from itertools import permutations, product

import pytest
import torch

from paperlib.detection.conformal import calibration_count, rows_needed, threshold


@pytest.mark.parametrize("alpha", [0.2, 0.25, 0.4, 0.5])
def test_every_order_of_distinct_scores_is_as_likely_and_at_most_alpha_of_them_raise_an_alarm(alpha: float) -> None:
    count = 6  # rows to calibrate, and a new one
    alarms = [order[-1] < threshold(torch.tensor(order[:-1]).double(), alpha) for order in permutations(range(count))]
    rate = Fraction(sum(alarms), len(alarms))
    assert rate <= Fraction(str(alpha))
    # floor(alpha n) of n ranks, less one of ties with the threshold itself, which raises none
    assert rate == Fraction(math.floor(Fraction(str(alpha)) * count), count)


def test_ties_raise_no_more_alarms() -> None:
    for scores in product([0.0, 1.0], repeat=5):
        alarms = [order[-1] < threshold(torch.tensor(order[:-1]).double(), 0.4) for order in permutations(scores)]
        assert sum(alarms) <= 0.4 * len(alarms)


def test_a_simulation_meets_alpha_and_not_far_below() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(400):
        scores = torch.randn(99, generator=generator).exp().neg().double()
        new = torch.randn(200, generator=generator).exp().neg().double()
        rates.append((new < threshold(scores, 0.1)).double().mean().item())
    assert 0.09 < sum(rates) / len(rates) < 0.11


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.5, 1), (0.9, 1), (0.01, 99), (0.3, 3), (0.29, 3)])
def test_fewer_rows_than_needed_are_an_error_that_says_how_many(alpha: float, needed: int) -> None:
    assert rows_needed(alpha) == needed
    assert threshold(torch.arange(float(needed)), alpha) == 0
    with pytest.raises(ValueError, match=f"at least {needed} normal rows .* got {needed - 1}"):
        threshold(torch.arange(float(needed - 1)), alpha)


def test_alpha_counts_as_it_is_written() -> None:
    assert threshold(torch.arange(99.0), 0.29) == 28  # 0.29 * 100 is below 29 in binary


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan, 2.0])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        threshold(torch.arange(100.0), alpha)


def test_a_score_that_is_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        threshold(torch.full((100,), math.nan), 0.1)


def test_rows_are_held_out_for_the_threshold() -> None:
    assert calibration_count(100, 0.2, 0.05) == 20
    with pytest.raises(ValueError, match="needs 19 normal rows to calibrate the threshold, so 95 in all"):
        calibration_count(90, 0.2, 0.05)
    with pytest.raises(ValueError, match="at least 2 rows are to be trained on"):
        calibration_count(20, 0.95, 0.05)
    with pytest.raises(ValueError, match="calibration must be between 0 and 1"):
        calibration_count(100, 1.0, 0.05)
