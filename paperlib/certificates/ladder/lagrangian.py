"""The Lagrangian dual of the ELBO's minimum over a perturbation set (Dvijotham et al. 2018, arXiv 1803.06567).

    minimise  ELBO(x', y_1, y_2, ...)  subject to  y_1 = W_1 x' + b_1,  y_2 = W_2 h(y_1) + b_2,  ...,  y in their boxes

Each equation is moved into the objective with a multiplier for each unit. Whatever the multipliers, the minimum of this
Lagrangian is a lower bound, and it falls apart into a linear function of x' and a problem of one variable for each
unit: the minimum of  c h(y) - mu y  over the unit's box, where mu is its own multiplier and c what those of the next
layer give it. That has a closed form, for log-variances and pixels likewise.

So it is backward substitution in which every line has a free slope, mu / c, and the best offset for that slope. It
begins with the slopes of CROWN, where it is no looser than the linear bound, and goes on by supergradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaRelaxation, AlphaSelector, LinearFunction, backward_substitute
from paperlib.certificates.alpha import optimize_alpha
from paperlib.certificates.backward import (
    ElboTerms,
    PosteriorFunction,
    RelaxedVAE,
    backward_pass,
    terms_above,
    terms_below,
)
from paperlib.certificates.crown import Crown, slack
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.ladder.free_slopes import free_fit, free_kl_above, free_layer, free_scale, log_var_minimum
from paperlib.certificates.method import METHODS, MemoryUse, Method, Problem
from paperlib.models.elbo import Target
from paperlib.models.likelihood import sum_per_example
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


@dataclass(frozen=True)
class Lagrangian(Method):
    """The Lagrangian dual over the boxes of `Crown`, at the best multipliers that supergradients (Adam) meet.

    Never looser than `IBP`, nor than `Crown` without steps but for rounding. No gradients. Raises ValueError for
    `sound`.

    Args:
        steps: of the search for multipliers; no number of steps is looser than none.
        time_limit: seconds of this search for a batch, half of them for each end of `bounds`, or None. When they have
            passed, the best bounds so far are returned. The boxes before it are not timed.

    Raises ValueError for a negative number of steps, or a `time_limit` that is not positive.
    """

    steps: int = 40
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")
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
        problem, relaxed = self._relax(vae, x, ball, noise, target, sound)
        half = None if self.time_limit is None else self.time_limit / 2
        lower, upper = (bound(relaxed, self.steps, half) for bound in (lagrangian_lower, lagrangian_upper))
        interval = Interval(elbo_lower(relaxed.vae, relaxed.bounds), elbo_upper(relaxed.vae, relaxed.bounds))
        dual = Interval(lower - slack(lower, interval.lower), upper + slack(upper, interval.upper))
        return dual.intersect(interval).intersect(problem.interval_elbo)

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        problem, relaxed = self._relax(vae, x, ball, noise, target, sound)
        dual = lagrangian_lower(relaxed, self.steps, self.time_limit)
        interval = elbo_lower(relaxed.vae, relaxed.bounds)
        return torch.fmax(torch.fmax(dual - slack(dual, interval), interval), problem.interval_elbo.lower)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return Crown().memory(vae, layer_sizes)

    def _relax(
        self, vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target, sound: bool
    ) -> tuple[Problem, RelaxedVAE]:
        if sound:
            raise ValueError("the Lagrangian dual holds in real arithmetic: with sound=True use another method")
        problem = Problem.checked(vae, x, ball, noise, target, sound)
        return problem, Crown().relax(problem)


METHODS["lagrangian"] = Lagrangian()


def lagrangian_lower(relaxed: RelaxedVAE, steps: int = 0, time_limit: float | None = None) -> Tensor:
    """A lower bound of the ELBO over the region, [batch], nats: the best dual value that the steps meet."""
    return optimize_alpha(partial(lagrangian, FreeSlopes.of(relaxed, 1.0)), steps, time_limit)


def lagrangian_upper(relaxed: RelaxedVAE, steps: int = 0, time_limit: float | None = None) -> Tensor:
    """An upper bound of the ELBO over the region, [batch], nats, likewise."""
    return -optimize_alpha(partial(lagrangian, FreeSlopes.of(relaxed, -1.0)), steps, time_limit)


@dataclass(frozen=True)
class FreeSlopes:
    """A relaxed VAE whose lines have free slopes, for bounds of  sign * ELBO  from below."""

    relaxed: RelaxedVAE
    sign: float
    terms: ElboTerms
    mean: LinearFunction | AlphaRelaxation[LinearFunction]  # of -KL, below it for sign = 1, above it for sign = -1
    log_var: LinearFunction | AlphaRelaxation[LinearFunction]

    @classmethod
    def of(cls, relaxed: RelaxedVAE, sign: float) -> "FreeSlopes":
        bounds = relaxed.bounds
        terms = terms_below(relaxed) if sign > 0 else terms_above(relaxed)
        target = bounds.target if terms.target is None else terms.target.point
        fit = free_fit(relaxed.vae.likelihood, bounds.output, target, sign, terms.fit)
        kl = (terms.mean, terms.log_var) if sign > 0 else free_kl_above(bounds.mean, bounds.log_var)
        free = replace(
            relaxed,
            encoder=tuple(map(free_layer, relaxed.encoder)),
            decoder=tuple(map(free_layer, relaxed.decoder)),
            scale=free_scale(bounds.log_var),
        )
        return cls(free, sign, replace(terms, fit=fit), *kl)


def lagrangian(free: FreeSlopes, select_alpha: AlphaSelector) -> Tensor:
    """The dual value at the multipliers of these slopes, a lower bound of  sign * ELBO  over the region: [batch], nats.

    Args:
        select_alpha: picks one bound of each `AlphaRelaxation`.
    """
    relaxed, sign, bounds = free.relaxed, free.sign, free.relaxed.bounds
    fit = select_alpha(free.terms.fit)
    constant = sign * sum_per_example(fit.offset)
    latent, constant = backward_pass(relaxed.decoder, sign * fit.output_slope, constant, select_alpha)

    # latent = mean + noise * exp(log_var / 2): a log-variance counts by its scale and by its KL, of the same value
    mean, log_var = select_alpha(free.mean), select_alpha(free.log_var)
    scale_slope, _ = backward_substitute(latent * relaxed.noise, relaxed.scale, select_alpha)
    slope = scale_slope + sign * log_var.slope
    constant = constant + sign * mean.offset.sum(1)
    constant = constant + log_var_minimum(latent * relaxed.noise, sign, slope, bounds.log_var).sum(1)

    coefficients = torch.cat([latent + sign * mean.slope, slope], 1)
    posterior = PosteriorFunction(relaxed, sign, free.terms, fit, latent, coefficients, constant)
    coefficients, constant = backward_pass(relaxed.encoder, coefficients, constant, select_alpha)
    coefficients, constant = posterior.with_target(coefficients, constant)
    return constant + bounds.region.concretize(coefficients)
