"""The shifts that a perturbation set allows to all inputs alike: the set around 0."""

from dataclasses import is_dataclass, replace

import torch
from torch import Tensor

from paperlib.threats.perturbation import PerturbationSet


def around_zero(ball: PerturbationSet, reach: float) -> PerturbationSet:
    """The same set with [-reach, reach] as its data range: around 0 it holds the shifts themselves.

    Raises TypeError for a set that is no dataclass with the fields low and high.
    """
    if not is_dataclass(ball):
        raise TypeError(f"{type(ball).__name__} must be a dataclass with the fields low and high")
    return replace(ball, low=-reach, high=reach)


@torch.no_grad()
def add(shift: Tensor, x: Tensor, ball: PerturbationSet) -> Tensor:
    """x + shift for each example, brought back into the set around it and the data range: [batch, *data_shape].

    Raises ValueError for a shift that is not of the shape of one example, and as `PerturbationSet.region`.
    """
    if shift.shape != x.shape[1:]:
        raise ValueError(f"the shift must have the shape of one example, {list(x.shape[1:])}, got {list(shift.shape)}")
    return ball.project(x + shift, x)
