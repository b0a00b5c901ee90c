"""The exact range of the ELBO over a set with at most three coordinates: branch and bound by input splitting.

    minimise  ELBO(x'(v); noise)  over  v in a box of coordinates

The coordinates are the inputs themselves, or those of a `LinearSet`. The linear bound of the ELBO closes as a box
shrinks. So a box is halved until the bound of each subproblem meets the least ELBO that was evaluated, to within a
tolerance. The maximum likewise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.backward import RelaxedVAE, linear_lower, linear_upper
from paperlib.certificates.crown import Crown, slack
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.certificates.method import METHODS, MemoryUse, Method
from paperlib.certificates.refinement import refine
from paperlib.certificates.splitting import minimum
from paperlib.models.elbo import Target, check_inputs, check_target, check_targets, explain_misfit, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import BoxRegion, PerturbationSet, Region

DIMENSIONS = 3  # coordinates, at most: the number of subproblems grows exponentially with them


@dataclass(frozen=True)
class BranchAndBound(Method):
    """Both ends within `tol` nats of the truth, for inputs of at most three numbers, or for the perturbations of a
    `LinearSet` with at most three directions; no gradients.

    Args:
        tol: in nats.
        time_limit: seconds for a batch, or None. When they have passed, the bounds so far are returned: they hold, but
            may be farther from the truth than `tol`.

    Raises ValueError for a `tol` that is not positive and finite, or a `time_limit` that is not positive.
    """

    tol: float = 1e-3
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tol < math.inf:
            raise ValueError(f"tol must be positive and finite, in nats, got {self.tol}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit must be positive, in seconds, got {self.time_limit}")

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        search = _search(vae, x, ball, noise, target, sound)
        with explain_misfit(x):
            return search.bounds(self.tol, self.time_limit)

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        search = _search(vae, x, ball, noise, target, sound)
        with explain_misfit(x):
            return search.lower(self.tol, self.time_limit)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return MemoryUse(per_image=Crown().memory(vae, layer_sizes).per_image)


METHODS["exact"] = BranchAndBound()


def _search(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target, sound: bool) -> "Search":
    if sound:
        raise ValueError("branch and bound holds in real arithmetic: with sound=True use another method")
    check_target(target)
    check_inputs(vae, x, noise)
    region = ball.region(x)
    targets = target_box(target, region.box, x)
    check_targets(vae, *targets)
    return Search(vae, region, noise, targets)


def _seconds(time_limit: float | None) -> float:
    return math.inf if time_limit is None else time_limit


def exact_bounds(
    vae: VAE, box: Interval, noise: Tensor, target: Interval, tol: float, time_limit: float | None = None
) -> Interval:
    """`Search.bounds` over a box of inputs, [batch, *data_shape]."""
    return Search(vae, BoxRegion(box), noise, target).bounds(tol, time_limit)


@dataclass(frozen=True)
class Search:
    """The search for the exact range of the ELBO at one noise draw, in real arithmetic; no gradients.

    Args:
        vae: in evaluation mode, of layers with an interval and a relaxation rule.
        region: of inputs, with at most three coordinates; float64, unless the tolerance is far above rounding, which in
            float64 is about 1e-12 of a value.
        noise: [batch, latent_dim].
        target: the box of the region, this very object, where x' explains itself; otherwise a single point, the same
            for all x'.

    Raises:
        ToleranceError: without a time limit, a box needs too many subproblems, or its ELBO is not a number.
        ValueError: more than three coordinates, or a target of another kind.
        UnsupportedLayerError, NotImplementedError: a layer or a likelihood without linear bounds.
    """

    vae: VAE
    region: Region
    noise: Tensor
    target: Interval

    def __post_init__(self) -> None:
        box = self.region.coordinates
        size = math.prod((self.region.box if box is None else box).lower.shape[1:])
        if box is None or size > DIMENSIONS:
            raise ValueError(
                f"exact bounds are for inputs of at most {DIMENSIONS} dimensions, got {size}; or for a LinearSet of as "
                "many directions"
            )
        if self.target is not self.region.box and not torch.equal(*self.target):
            raise ValueError("the target of exact bounds must be the input's own box or a single point")

    def bounds(self, tol: float, time_limit: float | None) -> Interval:
        """Certified: every x' of the region has lower <= ELBO(x'; noise) <= upper, [batch], in nats; and both ends are
        within `tol` nats of the truth, unless time is up: some x' has an ELBO of at most lower + tol, some one of at
        least upper - tol. Each end takes half of the time limit, in seconds; None: no limit.
        """
        half = None if time_limit is None else time_limit / 2
        return Interval(self.lower(tol, half), self.upper(tol, half))

    def lower(self, tol: float, time_limit: float | None) -> Tensor:
        """The lower end alone."""
        return minimum(self._value, self._below, self._coordinates, tol, _seconds(time_limit))

    def upper(self, tol: float, time_limit: float | None) -> Tensor:
        """The upper end alone."""

        def negated(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
            return lambda of, example: -function(of, example)

        return -minimum(negated(self._value), negated(self._above), self._coordinates, tol, _seconds(time_limit))

    @property
    def _coordinates(self) -> Interval:
        assert self.region.coordinates is not None
        return self.region.coordinates

    def _target(self, box: Interval, example: Tensor) -> Interval:
        return box if self.target is self.region.box else self.target.map(lambda end: end[example])

    def _value(self, point: Tensor, example: Tensor) -> Tensor:
        x = self.region.points(point, example)
        return unchecked_elbo(self.vae, x, self.noise[example], self._target(Interval(x, x), example).lower)

    def _relaxed(self, part: Interval, example: Tensor) -> tuple[IntervalBounds, RelaxedVAE]:
        region, noise = self.region.part(part, example), self.noise[example]
        bounds = IntervalBounds.of(self.vae, region, noise, self._target(region.box, example))
        return bounds, refine(RelaxedVAE.of(self.vae, bounds, noise))

    def _below(self, part: Interval, example: Tensor) -> Tensor:
        bounds, relaxed = self._relaxed(part, example)
        interval, linear = elbo_lower(self.vae, bounds), linear_lower(relaxed)
        return torch.fmax(interval, linear - slack(linear, interval))

    def _above(self, part: Interval, example: Tensor) -> Tensor:
        bounds, relaxed = self._relaxed(part, example)
        interval, linear = elbo_upper(self.vae, bounds), linear_upper(relaxed)
        return torch.fmin(interval, linear + slack(linear, interval))
