"""The support vector machine: scikit-learn's own score, and bounds that hold and are tight where they should be."""

import math

import pytest
import torch
from sklearn.svm import OneClassSVM

from paperlib import L2Ball, LinfBall
from paperlib.rivals.one_class_svm import KernelScore, squared_distances
from paperlib.threats.perturbation import PerturbationSet

X = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = 2 * torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
BALLS = [LinfBall(0.3, -math.inf, math.inf), LinfBall(0.3, -1.0, 8.0), L2Ball(0.6, -10.0, 10.0)]
MACHINE = KernelScore.fit(X, nu=0.3)


def test_the_score_is_scikit_learns() -> None:
    machine = OneClassSVM(nu=0.3).fit(X.numpy())
    torch.testing.assert_close(MACHINE.score(ROWS), torch.from_numpy(machine.score_samples(ROWS.numpy())))
    assert (MACHINE.weights > 0).all()
    with pytest.raises(ValueError, match='only the kernel "rbf"'):
        KernelScore.of(OneClassSVM(kernel="linear").fit(X.numpy()))


@pytest.mark.parametrize("ball", BALLS, ids=["linf", "clipped", "l2"])
def test_no_point_of_the_set_and_no_attack_leaves_the_bounds(ball: PerturbationSet) -> None:
    rows, generator = ROWS.clamp(ball.low, ball.high), torch.Generator().manual_seed(2)
    lower, upper = MACHINE.bounds(rows, ball)
    worst = [MACHINE.attack(rows, ball, 20, generator, maximize=maximize) for maximize in (False, True)]
    for point in (rows, *worst, *(ball.sample(rows, generator) for _ in range(50))):
        torch.testing.assert_close(ball.project(point, rows), point)
        assert (lower <= MACHINE.score(point)).all() and (MACHINE.score(point) <= upper).all()
    low, clean, high = MACHINE.score(worst[0]), MACHINE.score(rows), MACHINE.score(worst[1])
    assert (low <= clean).all() and (clean <= high).all()
    # tight: the attack goes most of the way from the score to its bounds
    assert ((high - low) / (upper - lower)).median() > 0.75


@pytest.mark.parametrize("ball", BALLS[::2], ids=["linf", "l2"])
def test_far_from_all_vectors_where_each_kernel_is_zero_in_floats_the_bounds_are_numbers(ball: PerturbationSet) -> None:
    rows = 60 * ROWS
    lower, upper = MACHINE.bounds(rows, ball)
    assert (MACHINE.score(rows) == 0).any(), "no row is far enough to test anything"
    assert (lower >= 0).all() and (lower <= MACHINE.score(rows)).all() and (MACHINE.score(rows) <= upper).all()
    assert upper.isfinite().all()


def test_bounds_are_tighter_than_those_of_each_kernel_alone() -> None:
    near, far = squared_distances(ROWS.unsqueeze(1), MACHINE.vectors.expand(len(ROWS), -1, -1), BALLS[0])
    apart = [torch.exp(-MACHINE.gamma * square) @ MACHINE.weights for square in (far, near)]
    lower, upper = MACHINE.bounds(ROWS, BALLS[0])
    assert (lower >= apart[0]).all() and (upper <= apart[1]).all()
    assert ((upper - lower) / (apart[1] - apart[0])).mean() < 0.9


def test_without_a_radius_both_bounds_are_the_score() -> None:
    for end in MACHINE.bounds(ROWS, LinfBall(0.0, -math.inf, math.inf)):
        torch.testing.assert_close(end, MACHINE.score(ROWS))


@pytest.mark.parametrize("ball", [LinfBall(0.3, -math.inf, math.inf), L2Ball(0.6, -10.0, 10.0)], ids=["linf", "l2"])
def test_with_one_support_vector_bounds_are_attained(ball: PerturbationSet) -> None:
    one = KernelScore(torch.zeros(1, 5, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0.2)
    lower, upper = one.bounds(ROWS, ball)
    for end, sign in ((lower, 1.0), (upper, -1.0)):
        step = torch.minimum(ball.steepest(ROWS, ROWS).abs(), ROWS.abs() if sign < 0 else torch.tensor(math.inf))
        torch.testing.assert_close(one.score(ROWS + sign * step * ROWS.sign()), end)


def test_a_radius_for_each_row_is_that_of_the_row_beyond_the_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    eps = torch.linspace(0, 0.5, len(ROWS), dtype=torch.float64).unsqueeze(1)
    whole = MACHINE.bounds(ROWS, LinfBall(eps, -math.inf, math.inf))
    monkeypatch.setattr("paperlib.rivals.one_class_svm.ROWS", 7)
    for end, part in zip(whole, MACHINE.bounds(ROWS, LinfBall(eps, -math.inf, math.inf)), strict=True):
        torch.testing.assert_close(end, part)


def test_a_point_inside_the_ball_is_at_distance_zero_of_it() -> None:
    near, _ = squared_distances(X, X + 0.1, L2Ball(0.6, -10.0, 10.0))
    assert (near == 0).all()
