"""The semidefinite relaxation of a ReLU decoder over a box of latents (Raghunathan, Steinhardt & Liang 2018,
"Semidefinite relaxations for certifying robustness to adversarial examples", arXiv 1811.01057).

    maximise  cost(decoder(z))  over  z in a box

Let p = (1, s) be one, the latents and the outputs of all ReLUs whose sign is not fixed, each moved and scaled from its
box to [-1, 1]. Everything in the network is then a linear function of p, and a ReLU  v = max(a, 0)  over l <= a <= u
is

    v (v - a) = 0,    v (u - v) >= 0,    (v - a) (a - l - v) >= 0    and    s^2 <= 1 :

products of linear functions, as is a quadratic cost. So they are linear in the moment matrix  P = p p'.  The relaxation
admits every positive semidefinite P with P_00 = 1. The last two constraints of a ReLU, the positive and the negative
part's, are those on the boxes in the paper, and imply the triangle  v <= u (a - l) / (u - l):  with q = v - a and
E[v q] = 0 a positive semidefinite moment matrix of (1, v, q) has  1 >= E[v]^2 / E[v^2] + E[q]^2 / E[q^2]  >=
E[v] / u + E[q] / -l.

The bound is the value of the dual problem. With C the cost's matrix, B_i those of the constraints  p' B_i p >= 0  and
E_j those of  p' E_j p = 0,  for any multipliers b_i >= 0, e_j and any number c

    p' C p  <=  c - p' S p  <=  c + max(0, -least eigenvalue of S) ||p||^2,
    S = c e_0 e_0' - C - sum b_i B_i - sum e_j E_j,

and ||p||^2 is at most the number of its elements. A solver chooses the multipliers such that S is positive semidefinite
and c is least, but the bound does not rely on its accuracy.
"""

import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.ladder.latent_range import RelaxedDecoder
from paperlib.certificates.ladder.output_cost import OutputCost
from paperlib.certificates.relaxed_layer import RelaxedLayer

Array = NDArray[np.float64]
STEPS = 200  # of the interior-point method, at most: a few tens are usual


@torch.no_grad()
def semidefinite_upper(decoder: nn.Module, latent: Interval, cost: OutputCost, steps: int = STEPS) -> Tensor:
    """Above the cost of every output that latents of the box have, [batch], in real arithmetic, evaluated in float64.
    With enough steps it is at least as tight as any bound by triangles over the same boxes of layers.

    Args:
        decoder: affine layers and ReLUs, float64, in evaluation mode. Meant for some tens of hidden units.
        latent: [batch, latent].
        steps: of the solver, at most. However few, what they give is a bound.

    Raises:
        ModuleNotFoundError: cvxpy is not installed.
        UnsupportedLayerError: a layer of another kind.
    """
    bounds = []
    for row in torch.arange(len(latent.lower)).split(1):
        relaxed = RelaxedDecoder.by_linear_bounds(decoder, latent.map(lambda end, row=row: end[row]))
        bounds.append(MomentProblem.of(relaxed, cost.of(row)).upper(steps))
    return torch.tensor(bounds, dtype=latent.lower.dtype, device=latent.lower.device)


@dataclass(frozen=True)
class MomentProblem:
    """maximise  p' objective p  over all p = (1, s) with |s_i| <= 1,  p' B p >= 0  and  p' E p = 0  for all B and E."""

    objective: Array  # [size, size]; all matrices are symmetric
    nonnegative: Array  # B, [count, size, size]
    zero: Array  # E, [count, size, size]

    @classmethod
    def of(cls, relaxed: RelaxedDecoder, cost: OutputCost) -> Self:
        """The largest cost over one box of latents.

        Raises UnsupportedLayerError for a layer that is neither affine nor a ReLU.
        """
        size = 1 + relaxed.latent.lower.shape[1] + sum(int(_bends(layer).sum()) for layer in relaxed.layers)
        center, radius = (_array(part) for part in (relaxed.latent.center, relaxed.latent.radius))
        # each quantity of the network is a row: a linear function of p
        rows = np.zeros((len(center), size))
        rows[:, 0] = center
        rows[np.arange(len(center)), 1 + np.arange(len(center))] = radius
        used = 1 + len(center)
        nonnegative, zero = [], []
        for layer in relaxed.layers:
            if isinstance(layer.relaxation, Affine):
                columns = torch.from_numpy(rows.T.copy()).to(layer.box.lower).view(size, *layer.box.lower.shape[1:])
                rows = _array(layer.layer(columns) - layer.relaxation.offset).reshape(size, -1).T
                rows[:, 0] += _array(layer.relaxation.offset)
                continue
            if type(layer.layer) is not nn.ReLU:
                raise UnsupportedLayerError(
                    f"the semidefinite bound is for affine layers and ReLUs, not {type(layer.layer).__name__} at "
                    f"{layer.place}: use another bound"
                )
            low, high = (_array(end) for end in layer.box)
            before, rows = rows, np.where(low >= 0, 1.0, 0.0)[:, None] * rows
            for unit in np.flatnonzero(_bends(layer)):
                rows[unit, [0, used]] = high[unit] / 2
                negative = rows[unit] - before[unit]
                zero.append(_product(rows[unit], negative))
                nonnegative.append(_product(negative, -low[unit] * np.eye(size)[0] - negative))
                used += 1
        quadratic = cost.quadratic(relaxed.output)
        curvature, slope, offset = (
            _array(part.expand_as(relaxed.output.lower))
            for part in (quadratic.curvature, quadratic.slope, quadratic.offset)
        )
        one = np.eye(size)[0]
        objective = np.einsum("i,ij,ik->jk", curvature, rows, rows) + _product(slope @ rows, one)
        objective[0, 0] += offset.sum()
        # a box of outputs tells apart what no box of hidden units does, once squares of outputs count
        low, high = (_array(end) for end in relaxed.output)
        for output in np.flatnonzero(curvature > 0):
            nonnegative.append(_product(rows[output] - low[output] * one, high[output] * one - rows[output]))
        return cls(objective, *(np.array(part).reshape(-1, size, size) for part in (nonnegative, zero)))

    def upper(self, steps: int) -> float:
        """Never below the maximum, whatever the solver gives after at most so many steps."""
        size = len(self.objective)
        one = np.eye(size)[0]
        squares = [np.outer(one, one) - np.outer(row, row) for row in np.eye(size)[1:]]
        nonnegative = np.concatenate([np.array(squares).reshape(-1, size, size), self.nonnegative])
        matrices = np.concatenate([_of_unit_norm(nonnegative), _of_unit_norm(self.zero)])
        scale = np.abs(self.objective).max() or 1.0
        constant, multipliers = _solve(self.objective / scale, matrices, len(nonnegative), steps)
        multipliers[: len(nonnegative)] = multipliers[: len(nonnegative)].clip(min=0)
        slack = constant * np.outer(one, one) - self.objective / scale - np.tensordot(multipliers, matrices, 1)
        least = np.linalg.eigvalsh(slack)[0] - size * np.finfo(float).eps * np.linalg.norm(slack)  # as it is rounded
        return float(scale * (constant + size * max(0.0, -least)))


def _solve(objective: Array, matrices: Array, nonnegative: int, steps: int) -> tuple[float, Array]:
    """The constant c and the multipliers of the dual problem, of which the first `nonnegative` should be at least 0, as
    the solver leaves them; zeros where it gives none.
    """
    try:
        import cvxpy as cp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the semidefinite bound needs the solver cvxpy: pip install 'provae[ladder]', or use another bound"
        ) from error
    size = len(objective)
    constant, multipliers = cp.Variable(), cp.Variable(len(matrices))
    one = np.outer(np.eye(size)[0], np.eye(size)[0])
    combined = cp.reshape(matrices.reshape(len(matrices), -1).T @ multipliers, (size, size), order="C")
    slack = constant * one - objective - combined
    problem = cp.Problem(cp.Minimize(constant), [slack >> 0, multipliers[:nonnegative] >= 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an inaccurate solution, which costs tightness alone
        with suppress(cp.SolverError):
            problem.solve(solver=cp.CLARABEL, max_iter=steps)
    if (
        constant.value is None
        or multipliers.value is None
        or not np.isfinite([constant.value, *multipliers.value]).all()
    ):
        return 0.0, np.zeros(len(matrices))
    return float(constant.value), np.array(multipliers.value)


def _bends(layer: RelaxedLayer) -> Array:
    """Which units of a ReLU have a sign that is not fixed, [units]; none of an affine layer."""
    low, high = (_array(end) for end in layer.box)
    return (low < 0) & (high > 0) & (not isinstance(layer.relaxation, Affine))


def _product(first: Array, second: Array) -> Array:
    """The symmetric matrix of  p -> (first . p) (second . p)."""
    return (np.outer(first, second) + np.outer(second, first)) / 2


def _of_unit_norm(matrices: Array) -> Array:
    norm = np.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    return matrices / np.where(norm > 0, norm, 1.0)


def _array(values: Tensor) -> Array:
    return values.detach().double().cpu().numpy().ravel()
