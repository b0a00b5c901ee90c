"""What outlier detectors are for a table that compares them: a score, the attack on it, and bounds if it has any."""

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.threats.attacks import Objective
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.search import lowest


class OutlierScore(ABC):
    """A score of rows [batch, features] in float64, whatever its unit: the higher, the more normal is the row."""

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """[batch, features] -> [batch]; each row by itself."""

    def bounds(self, x: Tensor, ball: PerturbationSet) -> Interval | None:
        """Contains the score of every x' of the set around each row, [batch]; None where nothing is proven of it."""
        return None

    def attack(
        self, x: Tensor, ball: PerturbationSet, steps: int, generator: torch.Generator, *, maximize: bool
    ) -> Tensor:
        """The point of the set with the lowest score that a search meets, or with `maximize` with the highest: never
        above (below) the score of x itself. [batch, features].

        By gradients (`threats.attacks.descend`), from x and from one random point of the set.

        Args:
            steps: evaluations of the score for each row, about.
        """
        starts = (x, ball.sample(x, generator))
        return lowest(signed(self, maximize), x, ball, starts, max(1, steps // 2))[0]


def signed(detector: OutlierScore, maximize: bool) -> Objective:
    """What an attack lowers: the score, or with `maximize` its negative."""
    return partial(_signed, detector, -1.0 if maximize else 1.0)


def _signed(detector: OutlierScore, sign: float, x: Tensor) -> Tensor:
    return sign * detector.score(x)
