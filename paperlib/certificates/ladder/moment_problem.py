"""Semidefinite relaxations of quadratic problems in vectors p = (1, s) with |s_i| <= 1, and bounds by their duals.

All that is quadratic in p is linear in its moment matrix  P = p p'.  The relaxation admits every positive semidefinite
P with P_00 = 1. A maximum is bounded by the dual problem: with C the objective's matrix, B_i those of the constraints
p' B_i p >= 0  and E_j those of  p' E_j p = 0,  for any multipliers b_i >= 0 and e_j and any number c

    p' C p  <=  c - p' S p  <=  c + max(0, -least eigenvalue of S) * ||p||^2,
    S  =  c e_0 e_0' - C - sum b_i B_i - sum e_j E_j,

and ||p||^2 is at most the number of its elements. A solver chooses the multipliers such that c is least and S positive
semidefinite. It is accurate to a tolerance only, and the middle term pays for that: the bound holds for whatever it
gives.
"""

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STEPS = 200  # of the interior-point method, at most: a few tens are usual


@dataclass(frozen=True)
class MomentProblem:
    """maximise  p' objective p  over all p = (1, s) with |s_i| <= 1,  p' B p >= 0  and  p' E p = 0  for all B and E."""

    objective: Array  # [size, size]; all matrices are symmetric
    nonnegative: Array  # B, [count, size, size]
    zero: Array  # E, [count, size, size]

    @classmethod
    def of(cls, objective: Array, nonnegative: list[Array], zero: list[Array]) -> Self:
        """From lists of matrices, which may be empty."""
        shape = -1, *objective.shape
        return cls(objective, np.array(nonnegative).reshape(shape), np.array(zero).reshape(shape))

    def with_products(self) -> Self:
        """The same problem with all products of two of the constraints  1 + s_i >= 0  and  1 - s_i >= 0,  which every p
        meets but not every P (Anstreicher 2009, "Semidefinite programming versus the reformulation-linearization
        technique"). They are four for each pair of elements of s, so that a solver needs longer.
        """
        eye = np.eye(len(self.objective))
        ends = [(eye[0] - row, eye[0] + row) for row in eye[1:]]
        products = [
            product(one, other)
            for place, first in enumerate(ends)
            for second in ends[:place]
            for one in first
            for other in second
        ]
        return type(self).of(self.objective, [*self.nonnegative, *products], list(self.zero))

    def upper(self, steps: int) -> float:
        """Never below the maximum, in real arithmetic, evaluated in float64: whatever the solver gives after at most so
        many steps; infinite where a matrix has overflowed. Raises ModuleNotFoundError without cvxpy.
        """
        if not all(np.isfinite(part).all() for part in (self.objective, self.nonnegative, self.zero)):
            return math.inf
        size = len(self.objective)
        eye = np.eye(size)
        one = np.outer(eye[0], eye[0])
        squares = one - eye[1:, :, None] * eye[1:, None, :]  # 1 - s_i^2
        matrices = np.concatenate([squares, _of_unit_norm(self.nonnegative), _of_unit_norm(self.zero)])
        signed = len(matrices) - len(self.zero)
        scale = np.abs(self.objective).max() or 1.0
        constant, multipliers = _solve(self.objective / scale, matrices, signed, steps)
        multipliers[:signed] = multipliers[:signed].clip(min=0)
        slack = constant * one - self.objective / scale - np.tensordot(multipliers, matrices, 1)
        rounding = size * np.finfo(float).eps * np.linalg.norm(slack)  # of its eigenvalues
        least = np.linalg.eigvalsh(slack)[0] - rounding
        return float(scale * (constant + size * max(0.0, -least)))


def product(first: Array, second: Array) -> Array:
    """The symmetric matrix of  p -> (first . p) (second . p),  or of the sum of these over the rows of both."""
    matrix = np.atleast_2d(first).T @ np.atleast_2d(second)
    return (matrix + matrix.T) / 2


def _of_unit_norm(matrices: Array) -> Array:
    norm = np.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    return matrices / np.where(norm > 0, norm, 1.0)


def load_solver() -> Any:
    """The module cvxpy; raises ModuleNotFoundError, which says how to install it, where it is not."""
    try:
        return import_module("cvxpy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "semidefinite bounds are solved by cvxpy, which is not installed: pip install 'provae[ladder]'"
        ) from error


def _solve(objective: Array, matrices: Array, signed: int, steps: int) -> tuple[float, Array]:
    """The number c and the multipliers of the dual problem, of which the first `signed` should be at least 0, as the
    solver leaves them; zeros where it gives none.
    """
    cp = load_solver()
    sparse: Any = import_module("scipy.sparse")  # on which cvxpy stands
    size = len(objective)
    constant, multipliers = cp.Variable(), cp.Variable(len(matrices))
    columns = sparse.csr_array(matrices.reshape(len(matrices), -1).T)
    combined = cp.reshape(columns @ multipliers, (size, size), order="C")
    one = np.outer(np.eye(size)[0], np.eye(size)[0])
    problem = cp.Problem(cp.Minimize(constant), [constant * one - objective - combined >> 0, multipliers[:signed] >= 0])
    with warnings.catch_warnings(), suppress(cp.SolverError):
        warnings.simplefilter("ignore")  # of an inaccurate solution, which only loosens the bound
        problem.solve(solver=cp.CLARABEL, max_iter=steps)
    if constant.value is None or multipliers.value is None:
        return 0.0, np.zeros(len(matrices))
    solution = np.append(multipliers.value, constant.value)
    if not np.isfinite(solution).all():
        return 0.0, np.zeros(len(matrices))
    return float(solution[-1]), solution[:-1]
