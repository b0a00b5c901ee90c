"""Isolation forests (Liu et al. 2008), with sound bounds of the score over a box.

    score(x) = -2^(-mean over trees of h(x) / c),   h: the depth of x's leaf and what its rows would still be split

A box of inputs reaches some leaves of each tree. Which ones is exact, and the least and greatest h of them with it; the
sum over trees of each is a bound, as the trees need not be at their worst at the same x'.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.rivals.outlier_score import OutlierScore, signed
from paperlib.threats.attacks import keep_lower
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.random_search import random_descend

ROWS = 256  # bounded at a time: each takes one number for each node of the forest


@dataclass(frozen=True)
class ForestScore(OutlierScore):
    """`score` equals scikit-learn's `score_samples`. All trees are one list of nodes, level by level.

    Attributes:
        feature, threshold: of the split of each node, [nodes]: to the left if the feature, in float32, is at most that.
        left, right: the nodes below, [nodes]; a leaf's are itself.
        parent: the node above, [nodes]; a root's is itself.
        tree: the tree of each node, [nodes].
        length: h of each leaf, [nodes].
        levels: where each level begins, and the number of nodes; the first level is the roots, one a tree.
        scale: trees * c, the sum of all h at which the score is -1/2.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    parent: Tensor
    tree: Tensor
    length: Tensor
    levels: tuple[int, ...]
    scale: float

    @classmethod
    def fit(cls, x: Tensor, trees: int = 100, seed: int = 0) -> Self:
        """scikit-learn's `IsolationForest` on normal rows [rows, features]; each tree is grown on at most 256 rows."""
        forest = IsolationForest(n_estimators=trees, random_state=seed)
        return cls.of(forest.fit(x.double().numpy()))

    @classmethod
    def of(cls, forest: IsolationForest) -> Self:
        """The score of a fitted forest. Raises ValueError for one whose trees see a part of the features each."""
        if forest.max_features != 1.0:
            raise ValueError(f"trees must see all features, got max_features={forest.max_features}")
        trees = [estimator.tree_ for estimator in forest.estimators_]
        first = np.cumsum([0, *(tree.node_count for tree in trees)])
        depth = np.concatenate([tree.compute_node_depths() for tree in trees]) - 1
        order = np.argsort(depth, kind="stable")
        place = np.argsort(order)  # of each node, by level
        own = np.arange(len(order))

        def below(side: str) -> NDArray[np.int64]:
            children = [getattr(tree, side) + start for tree, start in zip(trees, first, strict=False)]
            leaf = np.concatenate([getattr(tree, side) < 0 for tree in trees])
            return np.where(leaf[order], own, place[np.where(leaf, 0, np.concatenate(children))[order]])

        left, right = below("children_left"), below("children_right")
        parent = own.copy()
        for children in (left, right):
            parent[children[children != own]] = own[children != own]
        rows = np.concatenate([tree.n_node_samples for tree in trees])
        columns = {
            "feature": np.concatenate([tree.feature for tree in trees]).clip(0)[order],
            "threshold": np.concatenate([tree.threshold for tree in trees])[order],
            "left": left,
            "right": right,
            "parent": parent,
            "tree": np.repeat(np.arange(len(trees)), np.diff(first))[order],
            "length": (depth + [average_path_length(count) for count in rows.tolist()])[order],
        }
        levels = tuple(np.searchsorted(depth[order], np.arange(depth.max() + 2)).tolist())
        scale = len(trees) * average_path_length(forest.max_samples_)
        return cls(**{name: torch.from_numpy(column) for name, column in columns.items()}, levels=levels, scale=scale)

    def score(self, x: Tensor) -> Tensor:
        return self._of_lengths(self.length[self._leaves(x)])

    def _leaves(self, x: Tensor) -> Tensor:
        """The leaf of each row in each tree, [batch, trees]."""
        x, node = _as_split(x), torch.arange(self.levels[1]).expand(len(x), -1)
        for _ in self.levels[2:]:
            goes_left = x.gather(1, self.feature[node]) <= self.threshold[node]
            node = torch.where(goes_left, self.left[node], self.right[node])
        return node

    def _of_lengths(self, lengths: Tensor) -> Tensor:
        return -torch.exp2(-lengths.sum(1) / self.scale)

    def bounds(self, x: Tensor, ball: PerturbationSet) -> Interval:
        """Sound, over the box of the set."""
        shortest, longest = self._reached(x, ball)
        return Interval(*(self._of_lengths(self.length[leaves]) for leaves in (shortest, longest)))

    def _reached(self, x: Tensor, ball: PerturbationSet) -> tuple[Tensor, Tensor]:
        """Of the leaves that the box of the set reaches in each tree one of the least h, and one of the greatest,
        [batch, trees] each.
        """
        box = ball.box(x).map(_as_split)  # rounding is monotone
        parts = [self._reached_by(Interval(*ends)) for ends in zip(*(end.split(ROWS) for end in box), strict=True)]
        shortest, longest = (torch.cat(leaves) for leaves in zip(*parts, strict=True))
        return shortest, longest

    def _reached_by(self, box: Interval) -> tuple[Tensor, Tensor]:
        reached = torch.zeros(len(box.lower), len(self.tree), dtype=torch.bool)
        reached[:, : self.levels[1]] = True
        for start, stop in pairwise(self.levels):
            node = torch.arange(start, stop)
            node = node[self.left[node] != node]
            feature, threshold = self.feature[node], self.threshold[node]
            reached[:, self.left[node]] = reached[:, node] & (box.lower[:, feature] <= threshold)
            reached[:, self.right[node]] = reached[:, node] & (box.upper[:, feature] > threshold)
        leaf = (self.left == torch.arange(len(self.left))).nonzero().squeeze(1)
        leaf = leaf[self.length[leaf].argsort()]  # so that the first and the last one of a tree have the ends of h
        here, rank, last = reached[:, leaf], torch.arange(len(leaf)), len(leaf) - 1
        trees, empty = self.tree[leaf].expand_as(here), rank.new_zeros(len(here), self.levels[1])
        least = (empty + last).scatter_reduce(1, trees, torch.where(here, rank, last), "amin")
        most = empty.scatter_reduce(1, trees, torch.where(here, rank, 0), "amax")
        return leaf[least], leaf[most]

    def attack(
        self, x: Tensor, ball: PerturbationSet, steps: int, generator: torch.Generator, *, maximize: bool
    ) -> Tensor:
        """Without gradients, as the score has none: by random search (`random_descend`) from x, and from where most
        trees would have x moved.

        Each tree names the best leaf that the box reaches, and votes for each move that the way to it needs, with what
        it would gain.
        """
        objective = signed(self, maximize)
        best = x, objective(x)
        for start in (x, self._voted(x, ball, maximize)):
            best = keep_lower(*best, *random_descend(objective, x, ball, start, max(1, steps // 2), generator))
        return best[0]

    def _voted(self, x: Tensor, ball: PerturbationSet, maximize: bool) -> Tensor:
        wanted, point = self._reached(x, ball)[maximize], _as_split(x)
        gain = (self.length[wanted] - self.length[self._leaves(x)]).abs()
        votes, node = torch.zeros_like(x), wanted
        for _ in self.levels[2:]:
            above = self.parent[node]
            feature, threshold = self.feature[above], self.threshold[above]
            goes_left, wants_left = point.gather(1, feature) <= threshold, self.left[above] == node
            move = (goes_left.to(x) - wants_left.to(x)) * (above != node)  # up to go to the right
            votes.scatter_add_(1, feature, move * gain)
            node = above
        return ball.project(x + ball.steepest(votes, x), x)


def average_path_length(rows: int) -> float:
    """c(rows): the mean depth of an unsuccessful search in a binary tree of that many rows (Liu et al., equation 1)."""
    if rows <= 2:
        return float(rows == 2)
    return 2 * (math.log(rows - 1) + np.euler_gamma) - 2 * (rows - 1) / rows


def _as_split(x: Tensor) -> Tensor:
    """Features as the trees compare them with thresholds: rounded to float32."""
    return x.float().double()
