"""Certified maxima of quadratic problems, whatever the solver gives."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from paperlib.certificates.ladder import moment_problem
from paperlib.certificates.ladder.moment_problem import STEPS, Array, MomentProblem, product

# The maximum cut of a triangle: maximise  -(s_1 s_2 + s_2 s_3 + s_1 s_3)  over |s_i| <= 1.  At a corner two of the s_i
# have one sign, so that the maximum is 1. The relaxation takes three vectors at angles of 120 degrees: 3 / 2.
TRIANGLE = MomentProblem.of(np.pad((np.eye(3) - np.ones((3, 3))) / 2, (1, 0)), [], [])


def test_the_triangle_by_hand() -> None:
    assert TRIANGLE.upper(STEPS) == pytest.approx(1.5, abs=1e-6)


def test_products_of_sides_by_hand() -> None:
    """maximise  s_1 s_2 + s_1 - s_2  over the square, where it is bilinear, so largest at a corner: 1.

    The relaxation has it at E[s_1] = -E[s_2] = a, where E[s_1 s_2] <= -a^2 + (1 - a^2):  1 - 2 a^2 + 2 a,  which is
    3 / 2 at a = 1 / 2. The product  (1 - s_1) (1 + s_2) >= 0  says just  s_1 s_2 + s_1 - s_2 <= 1.
    """
    one, s_1, s_2 = np.eye(3)
    problem = MomentProblem.of(product(s_1, s_2) + product(s_1 - s_2, one), [], [])
    assert problem.upper(STEPS) == pytest.approx(1.5, abs=1e-6)
    assert problem.with_products().upper(STEPS) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_solver_that_stops_early_gives_a_bound(steps: int) -> None:
    assert 1 <= TRIANGLE.upper(steps) < 10


def test_any_multipliers_give_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even those of the wrong sign, with a constant far below the maximum: that is 1 with s_1 = -s_2 and s_3 >= 0, too,
    at (1, -1, 1).
    """
    one, s_1, s_2, s_3 = np.eye(4)
    problem = replace(TRIANGLE, nonnegative=product(s_3, one)[None], zero=product(s_1 + s_2, s_1 + s_2)[None])
    generator = np.random.default_rng(0)

    def solve(objective: Array, matrices: Array, signed: int, steps: int) -> tuple[float, Array]:
        assert len(matrices) == 3 + 1 + 1 and signed == 4
        return generator.normal(), generator.normal(size=5)

    monkeypatch.setattr(moment_problem, "_solve", solve)
    bounds = [problem.upper(STEPS) for _ in range(200)]
    assert min(bounds) >= 1 and max(bounds) > 3


def test_a_solver_that_fails_gives_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the largest eigenvalue, 1/2, and the four elements of p."""
    cvxpy = moment_problem.load_solver()

    def fail(*args: object, **options: object) -> None:
        raise cvxpy.SolverError("no solution")

    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    assert TRIANGLE.upper(STEPS) == pytest.approx(4 / 2, abs=1e-9)


def test_a_missing_solver_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"cvxpy, which is not installed: pip install 'provae\[ladder\]'"):
        TRIANGLE.upper(STEPS)


def test_a_constant_is_its_own_maximum() -> None:
    zero = MomentProblem.of(np.zeros((3, 3)), [], [])
    assert zero.upper(STEPS) == pytest.approx(0, abs=1e-6)


def test_numbers_that_overflow_are_bounded_by_infinity() -> None:
    assert replace(TRIANGLE, objective=np.full((4, 4), np.inf)).upper(STEPS) == math.inf
