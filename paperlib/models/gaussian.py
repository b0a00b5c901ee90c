"""The diagonal Gaussian posterior of a VAE: reparametrisation and KL divergence.

Shapes: mean, log_var and noise are [batch, latent]; divergences are [batch], in nats.
"""

import torch
from torch import Tensor

COLLAPSED_KL = 0.5  # nats: below it a code tells the inputs of a data set hardly apart


def reparametrize(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = mean + exp(log_var / 2) * noise, [batch, latent] (Kingma & Welling 2014, section 2.4)."""
    return mean + torch.exp(log_var / 2) * noise


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL( N(mean, diag exp(log_var)) || N(0, I) ) = 1/2 sum( mean^2 + exp(log_var) - 1 - log_var ), [batch], nats."""
    return (kl_mean_term(mean) + kl_log_var_term(log_var)).sum(-1) / 2


def collapse_warning(kl: float) -> str | None:
    """What to tell people of a model with this mean KL, in nats; None where there is nothing to tell."""
    if kl >= COLLAPSED_KL:
        return None
    return (
        f"the posterior has collapsed: a KL of {kl:.2g} nats is below {COLLAPSED_KL:g}, so its latents say hardly "
        "anything of the input; such a model is easy to certify and of no use"
    )


def kl_mean_term(mean: Tensor) -> Tensor:
    """mean^2, twice what the mean adds to the KL: [batch, latent]."""
    return mean.square()


def kl_log_var_term(log_var: Tensor) -> Tensor:
    """exp(log_var) - 1 - log_var, twice what the variance adds to the KL: [batch, latent]."""
    return torch.expm1(log_var) - log_var
