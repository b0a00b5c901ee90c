"""The semidefinite relaxation of a ReLU decoder over a box of latents (Raghunathan, Steinhardt & Liang 2018,
"Semidefinite relaxations for certifying robustness to adversarial examples", arXiv 1811.01057).

    maximise  cost(decoder(z))  over  z in a box

Let p be one, the latents, and the outputs of all ReLUs whose sign is not fixed, each moved and scaled from its box to
[-1, 1]. Everything in the network is then a linear function of p. A ReLU  v = max(a, 0)  with its negative part
q = v - a  over  l <= a <= u  is

    v q = 0,    v (u - v) >= 0,    q (-l - q) >= 0

in products of linear functions, as is a quadratic cost: a `MomentProblem`. The last two are the paper's constraints of
boxes, for both parts of a unit. A positive semidefinite moment matrix of (1, v, q) with E[v q] = 0 has

    1  >=  E[v]^2 / E[v^2] + E[q]^2 / E[q^2]  >=  E[v] / u + E[q] / -l,

which is the triangle  v <= u (a - l) / (u - l):  so no bound by triangles over the same boxes is tighter.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.ladder.latent_range import RelaxedDecoder, check_latents, each_box
from paperlib.certificates.ladder.moment_problem import STEPS, Array, MomentProblem, product
from paperlib.certificates.ladder.output_cost import OutputCost
from paperlib.certificates.relaxed_layer import RelaxedLayer


@torch.no_grad()
def semidefinite_upper(
    decoder: nn.Module, latent: Interval, cost: OutputCost, products: bool = False, steps: int = STEPS
) -> Tensor:
    """Above the cost of every output that latents of the box have, [batch], in real arithmetic; it is evaluated in
    float64.

    Args:
        decoder: affine layers and ReLUs, float64, in evaluation mode. Meant for some tens of hidden units.
        latent: [batch, latent].
        products: tighter and slower, by the products of the sides of all boxes, see `MomentProblem.with_products`.
        steps: of the solver, at most. However few, what they give is a bound.

    Raises:
        ModuleNotFoundError: cvxpy is not installed.
        UnsupportedLayerError: a layer of another kind.
        ValueError: a box that is not finite, or images of another shape than that of the outputs.
    """
    check_latents(decoder, latent, cost)
    bounds = []
    for row, box in each_box(latent):
        relaxed, own = RelaxedDecoder.by_linear_bounds(decoder, box), cost.of(row)
        problem = moment_problem(relaxed, own)
        upper = (problem.with_products() if products else problem).upper(steps)
        bounds.append(relaxed.upper(own).clamp(max=upper))  # a solver that stops early gives less than linear bounds
    return torch.cat(bounds)


def moment_problem(relaxed: RelaxedDecoder, cost: OutputCost) -> MomentProblem:
    """The largest cost over one box of latents, [1, latent].

    Raises UnsupportedLayerError for a layer that is neither affine nor a ReLU.
    """
    size = 1 + relaxed.latent.lower.shape[1] + sum(int(_bends(layer).sum()) for layer in relaxed.layers)
    one = np.eye(size)[0]
    rows = latent_rows(relaxed.latent, size)
    used = 1 + len(rows)
    nonnegative, zero = [], []
    for layer in relaxed.layers:
        if isinstance(layer.relaxation, Affine):
            rows = affine_rows(layer, layer.relaxation, rows)
            continue
        if type(layer.layer) is not nn.ReLU:
            raise UnsupportedLayerError(
                f"semidefinite bounds are for affine layers and ReLUs, not for {layer.place}: use another bound"
            )
        low, high = (array(end) for end in layer.box)
        before, rows = rows, (low >= 0)[:, None] * rows
        for unit in np.flatnonzero(_bends(layer)):
            rows[unit, [0, used]] = high[unit] / 2  # scaled to [-1, 1], so that  v (u - v) >= 0  is  s^2 <= 1
            used += 1
            negative = rows[unit] - before[unit]
            zero.append(product(rows[unit], negative))
            nonnegative.append(product(negative, -low[unit] * one - negative))
    above = cost.quadratic(relaxed.output)
    curvature, slope, offset = (
        array(part.expand_as(relaxed.output.lower)) for part in (above.curvature, above.slope, above.offset)
    )
    objective = product(curvature[:, None] * rows, rows) + product(slope @ rows, one)
    objective[0, 0] += offset.sum()
    # an output's square is at most its chord, as linear bounds have it
    low, high = (array(end) for end in relaxed.output)
    for output in np.flatnonzero(curvature):
        nonnegative.append(product(rows[output] - low[output] * one, high[output] * one - rows[output]))
    return MomentProblem.of(objective, nonnegative, zero)


def latent_rows(latent: Interval, size: int) -> Array:
    """The latents of one box as linear functions of p = (1, latents scaled to [-1, 1], ...): [latent, size]."""
    center = array(latent.center)
    rows = np.zeros((len(center), size))
    rows[:, 0] = center
    rows[:, 1 : 1 + len(center)] = np.diag(array(latent.radius))
    return rows


def affine_rows(layer: RelaxedLayer, relaxation: Affine, rows: Array) -> Array:
    """What an affine layer makes of linear functions of p, [units, size] of its input, [units, size] of its output."""
    size = rows.shape[1]
    like = layer.box.lower
    columns = torch.as_tensor(rows.T, dtype=like.dtype, device=like.device).reshape(size, *like.shape[1:])
    image: Array = array(layer.layer(columns) - relaxation.offset).reshape(size, -1).T
    image[:, 0] += array(relaxation.offset)
    return image


def array(values: Tensor) -> Array:
    """The numbers of a tensor in flat order, in float64."""
    return values.detach().double().cpu().flatten().numpy()


def _bends(layer: RelaxedLayer) -> NDArray[np.bool_]:
    """Which units have a sign that is not fixed, where the layer is a ReLU, [units]."""
    low, high = (array(end) for end in layer.box)
    return (low < 0) & (high > 0) & (not isinstance(layer.relaxation, Affine))
