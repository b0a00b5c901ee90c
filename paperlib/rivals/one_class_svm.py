"""The one-class support vector machine with a Gaussian kernel (Schölkopf et al. 2001), with bounds of its score.

    score(x) = sum_i a_i exp(-gamma |x - s_i|^2),   a_i > 0

Its bounds take all kernels together. Over the distances that the perturbation set allows, each kernel lies between two
linear functions of |x' - s_i|^2, as exp(-gamma t) is convex in t. A weighted sum of such squares is one square more,

    sum_i w_i |x' - s_i|^2  =  W |x' - c|^2 + sum_i w_i |s_i|^2 - W |c|^2,   W = sum_i w_i,  c = sum_i w_i s_i / W,

whose least and greatest value over a box or an l2 ball are exact.
"""

from dataclasses import dataclass
from typing import Self

import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.rivals.outlier_score import OutlierScore
from paperlib.threats.l2_ball import L2Ball
from paperlib.threats.perturbation import PerturbationSet

ROWS = 256  # bounded at a time: each takes features * support vectors numbers


@dataclass(frozen=True)
class KernelScore(OutlierScore):
    """`score` equals scikit-learn's `score_samples`; it has a gradient.

    Attributes:
        vectors: the support vectors s_i, [vectors, features].
        weights: a_i, [vectors], all positive.
        gamma: positive, of the Gaussian kernel.
    """

    vectors: Tensor
    weights: Tensor
    gamma: float

    @classmethod
    def fit(cls, x: Tensor, nu: float = 0.05) -> Self:
        """scikit-learn's `OneClassSVM`, whose gamma is 1 / (features * variance of x) ("scale").

        Args:
            x: normal rows, [rows, features].
            nu: share of the rows that may lie outside, in (0, 1].
        """
        return cls.of(OneClassSVM(nu=nu, gamma="scale").fit(x.double().numpy()))

    @classmethod
    def of(cls, machine: OneClassSVM) -> Self:
        """The score of a fitted machine. Raises ValueError for another kernel than "rbf"."""
        if machine.kernel != "rbf":
            raise ValueError(f'only the kernel "rbf" has bounds here, got {machine.kernel!r}')
        vectors, weights = torch.from_numpy(machine.support_vectors_), torch.from_numpy(machine.dual_coef_[0])
        return cls(vectors.clone(), weights.clone(), float(machine._gamma))

    def score(self, x: Tensor) -> Tensor:
        squares = x.square().sum(1, keepdim=True) - 2 * x @ self.vectors.T + self.vectors.square().sum(1)
        return torch.exp(-self.gamma * squares.clamp(min=0)) @ self.weights

    @torch.no_grad()
    def bounds(self, x: Tensor, ball: PerturbationSet) -> Interval:
        """In real arithmetic, computed in float64; exact for one support vector."""
        starts = range(0, len(x), ROWS)
        parts = [self._bounds(x[start : start + ROWS], ball.rows(slice(start, start + ROWS), x)) for start in starts]
        return Interval(*(torch.cat(ends) for ends in zip(*parts, strict=True)))

    def _bounds(self, x: Tensor, ball: PerturbationSet) -> Interval:
        near, far = squared_distances(x.unsqueeze(1), self.vectors.expand(len(x), -1, -1), ball)  # [batch, vectors]
        highest, gap = torch.exp(-self.gamma * near), self.gamma * (far - near)
        each = Interval(torch.exp(-self.gamma * far) @ self.weights, highest @ self.weights)
        # the chord of exp(-gamma t) over [near, far] lies above it: highest - slope * (t - near)
        slope = highest * torch.where(gap > 0, -torch.expm1(-gap) / torch.where(gap > 0, gap, 1.0), 1.0) * self.gamma
        above = (highest + slope * near) @ self.weights - self._weighted(x, slope * self.weights, ball).lower
        # the tangent at x's own distance lies below it: value - gamma * value * (t - own)
        own = (x.unsqueeze(1) - self.vectors).square().sum(-1)
        value = torch.exp(-self.gamma * own)
        tangent = self.gamma * value * self.weights
        below = (value + self.gamma * value * own) @ self.weights - self._weighted(x, tangent, ball).upper
        # far from all vectors the weights are 0 in floats: their center is 0 / 0, and a NaN bounds nothing
        return Interval(torch.fmax(each.lower, below), torch.fmin(each.upper, above))

    def _weighted(self, x: Tensor, weights: Tensor, ball: PerturbationSet) -> Interval:
        """The least and the greatest of  sum_i w_i |x' - s_i|^2,  for weights [batch, vectors]: [batch] each."""
        total = weights.sum(1)
        center = weights @ self.vectors / total.unsqueeze(1)
        rest = weights @ self.vectors.square().sum(1) - total * center.square().sum(1)
        return squared_distances(x, center, ball).map(lambda square: total * square + rest)


def squared_distances(x: Tensor, points: Tensor, ball: PerturbationSet) -> Interval:
    """Contains |x' - point|^2 for every x' of the set around x: exact for the box of the set; for an `L2Ball` exact for
    the ball without the data range.

    Args:
        x: [batch, features] or [batch, 1, features].
        points: [batch, features] or [batch, count, features], which the set around x broadcasts to.

    Returns:
        Ends of the shape of `points` without its features.
    """
    if isinstance(ball, L2Ball):
        distance = (x - points).norm(dim=-1)
        return Interval((distance - ball.eps).clamp(min=0).square(), (distance + ball.eps).square())
    box = ball.box(x.flatten(0, -2)).map(lambda end: end.view_as(x))
    nearest = torch.maximum(box.lower - points, points - box.upper).clamp(min=0)
    farthest = torch.maximum((box.lower - points).abs(), (box.upper - points).abs())
    return Interval(nearest.square().sum(-1), farthest.square().sum(-1))
