"""Where a linear bound of the ELBO is least: a start for attacks that the certificate itself gives."""

import torch
from torch import Tensor

from paperlib.certificates.backward import backward_elbo, terms_below
from paperlib.certificates.crown import CrownIBP
from paperlib.certificates.method import Problem
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet, Region


@outside_inference_mode
def linear_bound_point(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    method: CrownIBP | None = None,
    target: Target = "perturbed",
) -> Tensor:
    """A point of the set where the linear bound of the ELBO is least, [batch, *data_shape].

    Nothing is promised about the ELBO there: it is a start for attacks, `strongest(..., starts=[point])`. In a box it
    is a corner. In a set of which the bound's minimum is only bounded from outside, it is near to the least point.

    Args:
        method: `CrownIBP` (None is its default) or `Crown`; the bound is that of the initial alphas.
        target: as for `elbo_bounds`.

    Raises:
        ValueError, UnsupportedLayerError, NotImplementedError: as `elbo_bounds`.
    """
    with torch.no_grad():
        relaxed = (method or CrownIBP()).relax(Problem.checked(vae, x, ball, noise, target, sound=False))
        coefficients, _ = backward_elbo(relaxed, 1.0, terms_below(relaxed))
    return ball.project(least_point(relaxed.bounds.region, coefficients), x)


def least_point(region: Region, coefficients: Tensor) -> Tensor:
    """Where  coefficients . x'  is least over the region, or near to it, [batch, *data_shape]: see above."""
    # The least value of a linear function over a set is concave in its coefficients, and its gradient in them is the
    # point at which it is attained, whatever the set.
    coefficients = coefficients.detach().requires_grad_()
    with torch.enable_grad():
        (point,) = torch.autograd.grad(region.concretize(coefficients).sum(), coefficients)
    return region.project(point)
