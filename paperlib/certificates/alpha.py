"""The optimisation of alpha, the free slope of linear relaxations (alpha-CROWN: Xu et al. 2021, arXiv 2011.13824)."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paperlib.bounds.linear import AlphaRelaxation, AlphaSelector, initial_alpha

LEARNING_RATE = 0.25  # of alphas, which lie in [0, 1]


def optimize_alpha(
    lower_bound: Callable[[AlphaSelector], Tensor], steps: int, time_limit: float | None = None
) -> Tensor:
    """maximise  lower_bound(alpha)  over alpha in [0, 1], elementwise, by Adam. Every alpha gives a bound, so that the
    best one met is returned, whenever the optimisation ends: after these steps, or `time_limit` seconds.

    Args:
        lower_bound: [*rows, batch]; each row has alphas of its own.
    """
    end = time.monotonic() + (math.inf if time_limit is None else time_limit)
    if steps == 0:
        return lower_bound(initial_alpha)
    initial: dict[int, Tensor] = {}

    def collect_alpha(bound: Any) -> Any:
        if isinstance(bound, AlphaRelaxation):
            initial[id(bound)] = bound.alpha.detach()
        return initial_alpha(bound)

    def select_alpha(bound: Any) -> Any:
        return bound.at(alphas[id(bound)]) if isinstance(bound, AlphaRelaxation) else bound

    best = lower_bound(collect_alpha).detach()
    rows = best.shape[:-1]
    alphas = {key: alpha.expand(*rows, *alpha.shape).clone().requires_grad_() for key, alpha in initial.items()}
    parameters = list(alphas.values())
    if not parameters:
        return best
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), maximize=True)
    for step in range(steps):
        if time.monotonic() >= end:
            break
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        with torch.enable_grad():
            value = lower_bound(select_alpha)
            gradients = torch.autograd.grad(value.sum(), parameters)
        best = torch.fmax(best, value.detach())  # a NaN bounds nothing
        for alpha, gradient in zip(parameters, gradients, strict=True):
            alpha.grad = gradient
        optimizer.step()
        with torch.no_grad():
            for alpha in parameters:
                alpha.clamp_(0, 1)
    with torch.no_grad():
        return torch.fmax(best, lower_bound(select_alpha))
