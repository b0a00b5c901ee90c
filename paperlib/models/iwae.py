"""The importance-weighted bound of log p(x) for fixed noise draws (Burda et al. 2016, arXiv 1509.00519).

    iwae_K(x; noise) = log( 1/K sum over k of w(x; noise_k) ),    w = p(target | z) p(z) / q(z|x)

Its expectation rises with K from the ELBO to log p(x). Shapes: x is [batch, *data_shape], noise is
[K, batch, latent_dim], weights are [K, batch] and bounds are [batch], in nats.
"""

import math

import torch
from torch import Tensor

from paperlib.models import gaussian
from paperlib.models.elbo import Target, check_inputs, check_shape, check_target, check_targets, explain_misfit
from paperlib.models.vae import VAE


def iwae(vae: VAE, x: Tensor, noise: Tensor, target: Target | Tensor = "perturbed") -> Tensor:
    """log of the mean of the importance weights at K noise draws: [batch], nats. Arguments and errors: `log_weights`.

    In expectation over standard normal noise a lower bound of log p(x), which for one draw is the ELBO.
    """
    return log_mean_exp(log_weights(vae, x, noise, target))


def log_weights(vae: VAE, x: Tensor, noise: Tensor, target: Target | Tensor = "perturbed") -> Tensor:
    """log w = log p(target | z) + log p(z) - log q(z|x)  at the latents z of each noise draw: [K, batch], nats.

    With z = mean + exp(log_var / 2) * noise the normalisers of both densities cancel:

        log w  =  log p(target | z) - |z|^2 / 2 + |noise|^2 / 2 + sum(log_var) / 2

    Args:
        noise: [K, batch, latent_dim].
        target: as for `elbo`.

    Raises:
        ValueError: shapes or dtypes that do not fit, x or noise not finite, a target that the likelihood does not
            explain.
    """
    if isinstance(target, str):
        check_target(target)
        target = x
    check_draws(vae, x, noise)
    check_targets(vae, target)
    with explain_misfit(x):
        return unchecked_log_weights(vae, x, noise, target)


def unchecked_log_weights(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
    """`log_weights` for inner loops: checks shapes alone."""
    mean, log_var = vae.encode(x)
    check_shape("the encoder's mean", mean, "each draw of noise", noise[0], x)
    check_shape("the encoder's log_var", log_var, "each draw of noise", noise[0], x)
    z = gaussian.reparametrize(mean, log_var, noise)
    return log_likelihoods(vae, z, target) + log_ratio(z, log_var, noise)


def log_likelihoods(vae: VAE, z: Tensor, target: Tensor) -> Tensor:
    """log p(target | z) of each latent, [K, batch], nats; z is [K, batch, latent_dim]. Checks shapes alone."""
    output = vae.decoder(z.flatten(0, 1))
    targets = target.expand(len(z), *target.shape).flatten(0, 1)
    check_shape("the decoder's output", output, "target", targets, targets)
    return vae.likelihood.log_prob(output, targets).view(z.shape[:2])


def log_ratio(z: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """log p(z) - log q(z)  for a posterior of this log_var at  z = mean + exp(log_var / 2) * noise: summed, nats."""
    return (noise.square() - z.square() + log_var).sum(-1) / 2


def log_mean_exp(values: Tensor) -> Tensor:
    """log of the mean over the first dimension of exp(values)."""
    return torch.logsumexp(values, 0) - math.log(len(values))


def check_draws(vae: VAE, x: Tensor, noise: Tensor) -> None:
    """Raises ValueError, saying what is wrong, unless x is finite and fits the model, and noise holds draws for it."""
    if noise.ndim != 3 or len(noise) == 0:
        wanted = f"[K, batch, latent_dim] = [K, {len(x)}, {vae.latent_dim}] with K >= 1"
        raise ValueError(f"noise must be {wanted}, got {list(noise.shape)}")
    check_inputs(vae, x, noise[0])
    if not torch.isfinite(noise).all():
        raise ValueError(f"noise is not finite at index {(~torch.isfinite(noise)).nonzero()[0].tolist()}")
