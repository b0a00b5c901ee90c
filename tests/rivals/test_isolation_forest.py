"""The forest as a score: scikit-learn's own, and what a box of inputs can reach in each tree."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest

from paperlib import LinfBall
from paperlib.rivals.isolation_forest import ForestScore, average_path_length

X = torch.randn(80, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = 2 * torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
BALL = LinfBall(0.3, -math.inf, math.inf)
FOREST = ForestScore.fit(X, trees=20)


def test_the_score_is_scikit_learns() -> None:
    forest = IsolationForest(n_estimators=20, random_state=0).fit(X.numpy())
    torch.testing.assert_close(FOREST.score(ROWS), torch.from_numpy(forest.score_samples(ROWS.numpy())))
    with pytest.raises(ValueError, match="trees must see all features"):
        ForestScore.of(IsolationForest(n_estimators=2, max_features=0.5).fit(X.numpy()))


def test_a_row_at_a_threshold_goes_where_scikit_learn_sends_it() -> None:
    forest = IsolationForest(n_estimators=20, random_state=0).fit(X.numpy())
    rows = ROWS.clone()
    rows[:, 0] = FOREST.threshold[FOREST.feature.eq(0) & FOREST.left.ne(torch.arange(len(FOREST.left)))][: len(rows)]
    torch.testing.assert_close(FOREST.score(rows), torch.from_numpy(forest.score_samples(rows.numpy())))


def test_mean_depth_of_an_unsuccessful_search() -> None:
    assert [average_path_length(rows) for rows in (0, 1, 2)] == [0.0, 0.0, 1.0]
    harmonic = np.sum(1 / np.arange(1, 256))  # which the formula has as log(255) + Euler's constant
    assert average_path_length(256) == pytest.approx(2 * harmonic - 2 * 255 / 256, abs=5e-3)


def test_no_point_of_the_set_and_no_attack_leaves_the_bounds() -> None:
    generator = torch.Generator().manual_seed(2)
    lower, upper = FOREST.bounds(ROWS, BALL)
    low, high = (FOREST.attack(ROWS, BALL, 60, generator, maximize=maximize) for maximize in (False, True))
    for point in (ROWS, low, high, *(BALL.sample(ROWS, generator) for _ in range(50))):
        torch.testing.assert_close(BALL.project(point, ROWS), point)
        assert (lower <= FOREST.score(point)).all() and (FOREST.score(point) <= upper).all()
    assert (FOREST.score(low) <= FOREST.score(ROWS)).all() and (FOREST.score(ROWS) <= FOREST.score(high)).all()
    # rows far from all others reach one leaf in each tree, and there is nothing between their bounds
    assert (FOREST.score(high) - FOREST.score(low)).sum() > 0.75 * (upper - lower).sum()


def test_bounds_of_a_single_tree_are_the_ends_of_what_a_box_reaches() -> None:
    tree = ForestScore.fit(X, trees=1)
    # all that a box holds: between any two neighbouring thresholds of a feature the score is constant
    lower, upper = (end.numpy() for end in tree.bounds(ROWS, BALL))
    thresholds = [tree.threshold[tree.feature == place].tolist() for place in range(3)]
    for row, least, most in zip(ROWS[:10], lower, upper, strict=False):
        values = []
        for value, splits in zip(row.tolist(), thresholds, strict=True):
            inside = [split for split in splits if value - 0.3 <= split <= value + 0.3]
            values.append([value - 0.3, value + 0.3, *inside, *(split + 1e-6 for split in inside)])
        grid = torch.tensor(list(itertools.product(*values)), dtype=torch.float64)
        scores = tree.score(BALL.project(grid, row.expand_as(grid)))
        assert (scores.min().item(), scores.max().item()) == (least, most)


def test_without_a_radius_both_bounds_are_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperlib.rivals.isolation_forest.ROWS", 7)  # in several parts
    for end in FOREST.bounds(ROWS, LinfBall(0.0, -math.inf, math.inf)):
        assert torch.equal(end, FOREST.score(ROWS))


def test_where_trees_vote_to_move_the_score_rises_and_falls() -> None:
    lower, value, upper = (FOREST.score(point).mean() for point in (
        FOREST._voted(ROWS, BALL, maximize=False), ROWS, FOREST._voted(ROWS, BALL, maximize=True)
    ))  # fmt: skip
    assert lower < value < upper
