"""A confidence bound for the mean of random numbers of which nothing is given but a floor."""

import math

import torch
from torch import Tensor

MAX_STAKE = 0.95  # the largest part of the capital that one draw may cost
BISECTIONS = 60  # of the range of the draws: ends at float64 neighbours


def lower_confidence_bound(draws: Tensor, floor: Tensor, confidence: float) -> Tensor:
    """With probability at least `confidence` at most the mean of the distribution that made the draws, for each column.

    Asks nothing of that distribution but draws that are independent and never below `floor`. For a mean m the capital

        K(m) = product over i of (1 + bet_i * (draw_i - m)),    0 <= bet_i <= MAX_STAKE / (m - floor),

    with a bet that earlier draws alone decide, has expectation 1 at the true mean, where it reaches
    1 / (1 - confidence) with probability 1 - confidence at most (Markov). K falls in m: the bound is the largest m
    that it refutes. A floor far below all draws costs about (mean - floor) * log(1 / (1 - confidence)) / samples.
    The bets are those of Waudby-Smith & Ramdas 2024 (arXiv 2010.09686, section 4), one-sided.

    Args:
        draws: [samples, batch] in the order in which they were made.
        floor: [batch].
    """
    refuted = -math.log1p(-confidence)
    shifted = draws - floor
    bet = bets(shifted, refuted)
    low, high = torch.zeros_like(floor), shifted.amax(0)
    for _ in range(BISECTIONS):
        mean = (low + high) / 2
        capital = torch.log1p(torch.minimum(bet, MAX_STAKE / mean) * (shifted - mean)).sum(0)
        low, high = torch.where(capital >= refuted, mean, low), torch.where(capital >= refuted, high, mean)
    return floor + low


def bets(draws: Tensor, refuted: float) -> Tensor:
    """The best bet for a spread like that of the draws before each draw; without limit until they differ."""
    count = torch.arange(1, len(draws) + 1, dtype=draws.dtype, device=draws.device).unsqueeze(1)
    running = draws.cumsum(0) / count
    variance = (draws - running).square().cumsum(0) / count
    before = torch.cat([torch.zeros_like(variance[:1]), variance[:-1]])
    return (2 * refuted / (len(draws) * before)).sqrt()
