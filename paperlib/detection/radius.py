"""The largest radius at which a verdict is certified, by bisection over a perturbation set scaled by a factor.

A certificate at one factor covers every smaller set, which is part of it. So each radius that is certified is one up to
which the verdict holds, whether or not the bounds themselves are monotone in it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paperlib.threats.balls import LinfBall
from paperlib.threats.perturbation import PerturbationSet

PRECISION = 2.0**-8  # by which a factor may fall short of the largest one that is certified, of its size
SMALLEST, LARGEST = 2.0**-12, 2.0**10  # factors that are tried; below the smallest a radius is given as 0

Certified = Callable[[PerturbationSet, Tensor], Tensor]  # (set around these rows, rows) -> whether, [count]


def certified_radius(x: Tensor, perturbation: PerturbationSet, holds: Tensor, certified: Certified) -> Tensor:
    """Certified: each row keeps its verdict in the set scaled to this radius, in the unit of the set's size: [batch].

    Args:
        x: [batch, features].
        holds: whether each row is certified at the set's own size, [batch].
        certified: whether rows are certified in another set.

    Raises NotImplementedError for a set that cannot be scaled.
    """
    low = torch.where(holds, 1.0, 0.0).double()
    high = torch.where(holds, torch.inf, 1.0).double()
    while True:
        factor = torch.where(high.isinf(), 2 * low, (low + high) / 2)
        open_rows = (high.isinf() & (factor <= LARGEST)) | (high.isfinite() & (high - low > PRECISION * high))
        rows = (open_rows & (high > SMALLEST)).nonzero().flatten()
        if not len(rows):
            return low * _sizes(x, perturbation)
        tried = factor[rows]
        kept = _each(x, perturbation, rows, tried, certified)
        low[rows] = torch.where(kept, tried, low[rows])
        high[rows] = torch.where(kept, high[rows], tried)


def _each(x: Tensor, perturbation: PerturbationSet, rows: Tensor, factor: Tensor, certified: Certified) -> Tensor:
    """Whether each row is certified at its own factor. A ball in l-infinity has them in one batch."""
    if isinstance(perturbation, LinfBall):
        return certified(perturbation.rows(rows, x).scaled(factor.view(-1, *[1] * (x.ndim - 1))), rows)
    kept = torch.zeros_like(rows, dtype=torch.bool)
    for value in factor.unique():
        same = factor == value
        kept[same] = certified(perturbation.rows(rows[same], x).scaled(value.item()), rows[same])
    return kept


def _sizes(x: Tensor, perturbation: PerturbationSet) -> float | Tensor:
    """The size of the set around each row."""
    if isinstance(perturbation, LinfBall) and isinstance(perturbation.eps, Tensor):
        return perturbation.eps.to(x).expand_as(x).flatten(1).amax(1)
    return perturbation.size
