"""LatentPoison (Creswell et al. 2017, arXiv 1711.02879): one shift of the latent code against the decoder alone.

The adversary sits between encoder and decoder. No change of an input brings a code there, so what the attack reaches
says nothing about the ELBO at perturbed inputs, and certificates do not speak of it.
"""

import math

import torch
from torch import Tensor

from paperlib.models import gaussian
from paperlib.models.elbo import check_inputs, check_targets, explain_misfit
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.search import check_attack, lowest, random_starts
from paperlib.threats.shifts import around_zero


@outside_inference_mode
def latent_poison(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    steps: int = 40,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One shift v of all latent codes, [latent_dim], that makes the decoder explain the inputs badly:

        min over v in the set around 0 of  mean over i of  log p( x_i | z_i + v ),   z_i the code of the clean x_i,

    the best that projected gradient descent meets; the mean is never above that without a shift. The first restart
    begins at 0, further ones at random shifts. An attack on the decoder alone: see the top of this module.

    Args:
        x: [batch, *data_shape].
        ball: bounds the shift, in the units of the latents; its data range is not used.
        noise: [batch, latent_dim], z = mean + exp(log_var / 2) * noise.
        steps: gradient steps of each restart.
        generator: draws the random starts.

    Raises:
        ValueError: fewer than one step or restart, no example, shapes or dtypes that do not fit, targets that the
            likelihood does not explain.
    """
    check_attack(vae, x, steps, restarts)
    if len(x) < 1:
        raise ValueError("a shift for all examples needs at least one example")
    z = _codes(vae, x, noise)
    shifts, zero = around_zero(ball, math.inf), torch.zeros_like(z[:1])

    def objective(shift: Tensor) -> Tensor:
        return vae.likelihood.log_prob(vae.decoder(z + shift), x).mean(0, keepdim=True)

    starts = (zero, *random_starts(shifts, zero, restarts - 1, generator))
    best, _ = lowest(objective, zero, shifts, starts, steps)
    return best[0]


@torch.no_grad()
def shifted_log_likelihood(vae: VAE, x: Tensor, noise: Tensor, shift: Tensor) -> Tensor:
    """log p(x | z + shift) for each example with z the code of x, [batch], nats.

    Raises ValueError for a shift that is not [latent_dim], and as `latent_poison`.
    """
    if shift.shape != (vae.latent_dim,):
        raise ValueError(f"the shift must be [latent_dim] = [{vae.latent_dim}], got {list(shift.shape)}")
    return vae.likelihood.log_prob(vae.decoder(_codes(vae, x, noise) + shift), x)


@torch.no_grad()
def _codes(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    check_inputs(vae, x, noise)
    check_targets(vae, x)
    with explain_misfit(x):
        return gaussian.reparametrize(*vae.encode(x), noise)
