"""Bounds by random projections of the dual network (Wong et al. 2018, arXiv 1805.12514): no certificates, as they hold
with a stated probability only.

The radius of a unit's box is an l1 norm |v|_1, for which the dual network takes a pass backward for each unit. With
independent standard Cauchy variables C the product v . C is Cauchy of the scale |v|_1. One pass forward of k random
vectors gives k such products for every unit of a layer, and the median of their sizes estimates the norm.

What the paper trains on is this estimate, which is below the norm half of the time. A bound divides the median by a
number a so small that the quotient is below the norm of *no* unit but with the probability that is stated:

    |v . C| < a |v|_1  with probability  p = 2 / pi * arctan(a),  so
    median of k < a |v|_1  with probability  P(Binomial(k, p) >= (k + 1) / 2),  for an odd k

Each layer has draws of its own. Given the boxes before it, of which its v are made, its products are then exactly
Cauchy, and the probabilities of all units add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import ParallelRelaxation, parallel
from paperlib.bounds.relaxation import Affine
from paperlib.certificates import posterior_bounds
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.crown import CrownIBP
from paperlib.certificates.ladder.dual_network import over, over_boxes
from paperlib.certificates.method import Problem
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.balls import LinfBall
from paperlib.threats.perturbation import PerturbationSet


@dataclass(frozen=True)
class ProbableBound:
    """For each x by itself, with at least this probability over the random projections, every x' in the ball around it
    has  ELBO(x'; noise) >= lower. No certificate: a draw for which it fails looks like any other.
    """

    lower: Tensor  # [batch], nats
    confidence: float


BISECTIONS = 60  # from 1 / 2: the chance below is met to the last digit


@outside_inference_mode
@torch.no_grad()
def random_projection_bound(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    projections: int = 1001,
    confidence: float = 0.999,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
) -> ProbableBound:
    """The bound of `DualNetwork` over boxes that hold, all of one x together, with probability `confidence`.

    Never looser than intervals; in real arithmetic; without a gradient.

    Args:
        ball: a `LinfBall`, whose dual norm is the l1 norm.
        projections: random vectors for each layer, an odd number; in memory each is one more image.
        confidence: above 0 and below 1, for each x by itself.

    Raises ValueError for another set, projections or a confidence of other values, and as `elbo_bounds`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, got {confidence}")
    problem = _problem(vae, x, ball, noise, target, projections)
    factor = inflation(projections, (1 - confidence) / _bounded_units(problem))
    return ProbableBound(_lower(problem, _Projector(projections, factor, generator)), confidence)


@outside_inference_mode
@torch.no_grad()
def random_projection_estimate(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    projections: int = 51,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
) -> Tensor:
    """An estimate of the bound of `DualNetwork`, [batch], nats, and no bound: every radius is the plain median of Wong
    et al., which is too small for about half of the units. Arguments and errors as of `random_projection_bound`.
    """
    problem = _problem(vae, x, ball, noise, target, projections)
    return _lower(problem, _Projector(projections, 1.0, generator))


def inflation(projections: int, chance: float) -> float:
    """The factor by which the median size of so many independent Cauchy variables is at least their scale, but for this
    chance; an odd number of them.
    """
    at_least = torch.arange((projections + 1) // 2, projections + 1, dtype=torch.float64)
    whole = torch.tensor(projections + 1.0, dtype=torch.float64)
    ways = torch.lgamma(whole) - torch.lgamma(at_least + 1) - torch.lgamma(whole - at_least)
    low, high = 0.0, 0.5  # of p: the larger, the less is added, and at low the chance is kept
    for _ in range(BISECTIONS):
        p = (low + high) / 2
        logarithms = ways + at_least * math.log(p) + (projections - at_least) * math.log1p(-p)
        low, high = (p, high) if logarithms.logsumexp(0) <= math.log(chance) else (low, p)
    return 1 / math.tan(math.pi / 2 * low) if low > 0 else math.inf


def _problem(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target, projections: int) -> Problem:
    if not isinstance(ball, LinfBall):
        raise ValueError(f"random projections are for a LinfBall, whose dual norm is the l1 norm, got {ball}")
    if projections < 1 or projections % 2 == 0:
        raise ValueError(f"projections must be an odd number of at least 1, which has a median, got {projections}")
    return Problem.checked(vae, x, ball, noise, target, sound=False)


def _bounded_units(problem: Problem) -> int:
    """The number of units whose boxes are projected, for one x, and the encoder's first activation."""
    bounds = problem.bounds
    relaxed = RelaxedVAE.of(problem.vae, bounds, problem.noise)
    activations = [layer.box for layer in (*relaxed.encoder, *relaxed.decoder) if not _is_affine(layer)]
    return sum(box.lower[0].numel() for box in (*activations, bounds.encoder[-1], bounds.output))


def _is_affine(layer: RelaxedLayer) -> bool:
    return isinstance(layer.relaxation, Affine)


def _lower(problem: Problem, projector: "_Projector") -> Tensor:
    relaxed = projector.relax(RelaxedVAE.of(problem.vae, problem.bounds, problem.noise))
    return CrownIBP().lower_from(problem, relaxed)


@dataclass(frozen=True)
class _Products:
    """center + radius . C  of each unit, for k draws of C: Cauchy of the unit's radius around its center."""

    center: Tensor  # [batch, *shape]
    spread: Tensor  # [k, batch, *shape], without the center

    def through(self, layers: Sequence[RelaxedLayer], projector: "_Projector") -> "_Products":
        """The same of what the layers put out."""
        center, spread = self.center, self.spread
        for layer in layers:
            if isinstance(layer.relaxation, Affine):
                center = layer.layer(center)
                spread = (layer.layer(spread.flatten(0, 1)) - layer.relaxation.offset).unflatten(0, spread.shape[:2])
            else:
                lines = parallel(layer.relaxation, layer.box)
                center = lines.slope_times(center) + lines.middle
                spread = lines.slope_times(spread) + projector.draw(lines.radius)
        return _Products(center, spread)


@dataclass(frozen=True)
class _Projector:
    """Boxes by projections, for each of which draws are made anew."""

    projections: int
    factor: float  # of medians
    generator: torch.Generator | None

    def relax(self, relaxed: RelaxedVAE) -> RelaxedVAE:
        """The same VAE with two lines of one slope for each layer, over projected boxes."""
        bounds, noise = relaxed.bounds, relaxed.noise

        def of_encoder(layers: Sequence[RelaxedLayer], box: Interval) -> Interval:
            return self._box(self._input(relaxed).through(layers, self), box)

        encoder, posterior_box = over_boxes(relaxed.encoder, bounds.encoder[-1], of_encoder, first_is_tight=True)
        mean, log_var = posterior_box.chunk(2, 1)
        scale = posterior_bounds.scale_relaxation(log_var)
        lines = parallel(scale, log_var)

        def of_decoder(layers: Sequence[RelaxedLayer], box: Interval) -> Interval:
            posterior = self._input(relaxed).through(encoder, self)
            return self._box(self._latents(posterior, noise, lines).through(layers, self), box)

        decoder, output = over_boxes(relaxed.decoder, bounds.output, of_decoder, first_is_tight=False)
        return over(relaxed, encoder, (mean, log_var), scale, decoder, output)

    def _input(self, relaxed: RelaxedVAE) -> _Products:
        box = relaxed.bounds.input
        return _Products(box.center, self.draw(box.radius))

    def _latents(self, posterior: _Products, noise: Tensor, scale: ParallelRelaxation) -> _Products:
        """mean + noise * exp(log_var / 2)"""
        mean, log_var = posterior.center.chunk(2, 1)
        mean_spread, log_var_spread = posterior.spread.chunk(2, 2)
        center = mean + noise * (scale.slope * log_var + scale.middle)
        spread = mean_spread + noise * (scale.slope * log_var_spread + self.draw(scale.radius))
        return _Products(center, spread)

    def draw(self, radius: Tensor) -> Tensor:
        """Independent Cauchy variables of these scales, [k, batch, *shape]."""
        standard = torch.empty(self.projections, *radius.shape, dtype=radius.dtype, device=radius.device)
        return standard.cauchy_(generator=self.generator) * radius

    def _box(self, products: _Products, interval: Interval) -> Interval:
        """The box of units whose interval bounds are given, too."""
        radius = self.factor * products.spread.abs().median(0).values
        lower = torch.fmax(interval.lower, products.center - radius)
        upper = torch.fmin(interval.upper, products.center + radius)
        apart = lower > upper  # by rounding, or as the radius is too small
        return Interval(torch.where(apart, interval.lower, lower), torch.where(apart, interval.upper, upper))
