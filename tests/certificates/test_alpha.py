"""The optimisation of alpha, on families of numbers whose best alpha is known."""

import torch
from torch import Tensor

from paperlib.bounds.linear import AlphaRelaxation, AlphaSelector, LinearFunction
from paperlib.certificates.alpha import optimize_alpha


def test_a_value_that_overflows_is_passed_over_and_the_best_one_met_is_kept() -> None:
    def at(alpha: Tensor) -> LinearFunction:
        # the second number has no value beyond the start; the third is best there
        values = torch.stack([alpha[0], torch.where(alpha[1] > 0, torch.nan, 0.0 * alpha[1]), -alpha[2]])
        return LinearFunction(torch.zeros_like(alpha), values + alpha - alpha.detach())

    alpha = torch.zeros(3)
    family = AlphaRelaxation(at(alpha), alpha, at)

    def lower_bound(select_alpha: AlphaSelector) -> Tensor:
        return select_alpha(family).offset

    best = optimize_alpha(lower_bound, steps=10)
    assert best[0] > 0.5 and best[1] == 0 and best[2] == 0
