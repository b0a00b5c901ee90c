"""Zonotopes of several quantities that share their errors, and that of the latents from that of mean and log_var."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import outward
from paperlib.bounds.linear import parallel
from paperlib.bounds.rounding import magnitude
from paperlib.certificates import posterior_bounds
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.backward_rounding import ACCUMULATION_ERROR, PosteriorRounding
from paperlib.certificates.input_term import InputTerm

KEPT = 0.999  # share of a zonotope's size that keeps its directions when its order is reduced


@dataclass(frozen=True)
class Zonotope:
    """All  center + generators . eta + independent_error * eta'  with eta [errors], which the rows share, and with
    eta' [rows], both in [-1, 1]; and with the term of inputs, where there is one, which the rows share as well.
    """

    center: Tensor  # [batch, rows]
    generators: Tensor  # [batch, rows, errors]
    independent_error: Tensor  # [batch, rows]
    inputs: InputTerm | None = None  # None: the generators hold those of a box of inputs

    @property
    def box(self) -> Interval:
        radius = self.generators.abs().sum(2) + self.independent_error
        radius = radius * outward(self.generators.shape[2], radius.dtype)
        if self.inputs is None:
            return Interval(self.center - radius, self.center + radius)
        lower, upper = self.inputs.box
        return Interval(self.center + lower, self.center + upper).widen(radius)


def reparametrize(
    relaxed: RelaxedVAE, posterior: Zonotope, mean: Interval, log_var: Interval
) -> tuple[Zonotope, Interval]:
    """The latents' zonotope and their box, from the zonotope of mean and log_var and the boxes of both."""
    # latent = mean + noise * exp(log_var / 2): errors that both share cancel where they can, before a box is taken
    noise = relaxed.noise
    scale = parallel(posterior_bounds.scale_relaxation(log_var), log_var)
    slope = noise * scale.slope
    (mean_center, log_var_center), (mean_generators, log_var_generators) = (
        part.chunk(2, 1) for part in (posterior.center, posterior.generators)
    )
    center = mean_center + slope * log_var_center + noise * scale.middle
    independent_error = noise.abs() * scale.radius
    interval = posterior_bounds.reparametrize_bounds(mean, log_var, noise)
    if relaxed.deployed is not None:
        tighter = replace(relaxed.bounds, mean=mean, log_var=log_var)
        rounding = PosteriorRounding.of(tighter, noise, posterior_bounds.scale_relaxation(log_var), relaxed.deployed)
        mean_error, log_var_error = posterior.independent_error.chunk(2, 1)
        mean_size, log_var_size = (magnitude(part) for part in posterior.box.chunk(2, 1))
        independent_error = independent_error + mean_error + slope.abs() * log_var_error + rounding.latent
        size = mean_size + slope.abs() * log_var_size + (noise * scale.middle).abs()
        independent_error = independent_error + ACCUMULATION_ERROR * size
        interval = interval.widen(rounding.latent)
    generators = mean_generators + slope.unsqueeze(2) * log_var_generators
    inputs = posterior.inputs
    if inputs is not None:
        mean_coefficients, log_var_coefficients = inputs.coefficients.chunk(2, 0)
        rows = slope.T.view(*log_var_coefficients.shape[:2], *[1] * (log_var_coefficients.ndim - 2))
        inputs = InputTerm(mean_coefficients + rows * log_var_coefficients, inputs.region)
    latents = Zonotope(center, generators, independent_error, inputs)
    return latents, latents.box.intersect(interval)


def reduce_order(generators: Tensor) -> Tensor:
    """Generators [rows, fewer] of a zonotope that contains the one of generators [rows, errors]: where less than a
    quarter of them make up nearly all of its size, a box stands for the others (order reduction: Girard 2005,
    "Reachability of uncertain linear systems using zonotopes"). Most errors of convolutions are small.
    """
    sizes, order = generators.abs().sum(0).sort(descending=True, stable=True)
    kept = 1 + int((sizes.cumsum(0) < KEPT * sizes.sum()).sum())
    if 4 * kept >= len(sizes):
        return generators
    others = generators[:, order[kept:]]
    box = others.abs().sum(1) * outward(others.shape[1], others.dtype)
    return torch.cat([generators[:, order[:kept]], box.diag()], 1)
