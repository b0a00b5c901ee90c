"""The diagonal Gaussian posterior of a VAE: reparametrisation, KL divergence, and how far two posteriors are apart.

Shapes: mean, log_var and noise are [batch, latent]; divergences are [batch], KL in nats. A `Posterior` is the pair of
mean and log_var that `VAE.encode` returns.
"""

import torch
from torch import Tensor

Posterior = tuple[Tensor, Tensor]
COLLAPSED_KL = 0.5  # nats: below it a code tells the inputs of a data set hardly apart


def reparametrize(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = mean + exp(log_var / 2) * noise, [batch, latent] (Kingma & Welling 2014, section 2.4)."""
    return mean + torch.exp(log_var / 2) * noise


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL( N(mean, diag exp(log_var)) || N(0, I) ) = 1/2 sum( mean^2 + exp(log_var) - 1 - log_var ), [batch], nats."""
    return (kl_mean_term(mean) + kl_log_var_term(log_var)).sum(-1) / 2


def kl_between(p: Posterior, q: Posterior) -> Tensor:
    """KL(p || q) = 1/2 sum( (m_p - m_q)^2 / v_q + v_p / v_q - 1 - log(v_p / v_q) ), [batch], nats; v = exp(log_var)."""
    (mean, log_var), (other_mean, other_log_var) = p, q
    standardized = (mean - other_mean) * torch.exp(-other_log_var / 2)
    return kl(standardized, log_var - other_log_var)


def symmetric_kl(p: Posterior, q: Posterior) -> Tensor:
    """( KL(p || q) + KL(q || p) ) / 2, [batch], nats."""
    return (kl_between(p, q) + kl_between(q, p)) / 2


def squared_mean_distance(p: Posterior, q: Posterior) -> Tensor:
    """||m_p - m_q||_2^2, [batch]; it ignores the variances."""
    return (p[0] - q[0]).square().sum(-1)


def squared_wasserstein(p: Posterior, q: Posterior) -> Tensor:
    """The squared 2-Wasserstein distance  ||m_p - m_q||_2^2 + ||s_p - s_q||_2^2, [batch]; s = exp(log_var / 2)."""
    spread = torch.exp(p[1] / 2) - torch.exp(q[1] / 2)
    return squared_mean_distance(p, q) + spread.square().sum(-1)


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
