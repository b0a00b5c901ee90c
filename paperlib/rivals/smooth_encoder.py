"""Smooth encoders (Cemgil et al., "Adversarially robust representations with smooth encoders", ICLR 2020).

The posteriors of x and of an attacked x' are coupled: z and z' have a joint Gaussian with these marginals, and may only
be far apart at a price. It promises nothing, and it speaks of the encoder alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.models.vae import VAE
from paperlib.rivals.inner_attack import attacked, check_steps
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class SmoothEncoder(Objective):
    """Maximises  kappa * ELBO(x) - (1 - kappa) * W(q(z|x), q(z|x')),  W as in `coupling_cost`.

    Up to a factor this is  ELBO(x) - weight * W  with weight = (1 - kappa) / kappa, so that kappa is tuned as for the
    other objectives. x' is what PGD from a random point of the set makes of it to raise W; the gradient in the weights
    runs through both posteriors. Each step of the attack costs a pass through the encoder forwards and one backwards.

    Written from the mathematics, not from the authors' code, which is not public. They derive the coupling from a pair
    of latents with the prior N(z; 0, I) N(z'; 0, I) exp(-gamma |z - z'|^2 / 2), whose bound also holds the KL of
    q(z|x') to the prior; here it is left out, as W ties q(z|x') to a posterior with a KL already. They weigh the
    coupling by gamma alone (weight 1); here the weight can be chosen beside gamma.

    Args:
        gamma: precision of the coupling: the larger, the nearer is  2 W / gamma  to the squared 2-Wasserstein distance.
        steps: gradient steps of the attack.

    Raises ValueError for a gamma that is not positive and finite, and for fewer than one step.
    """

    gamma: float = 1.0
    steps: int = 5

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be positive and finite, got {self.gamma}")

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        return ball.sample(x, generator)  # at x itself the distance has no gradient

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        """Raises ValueError for kappa = 0: the coupling alone is best for an encoder that tells no inputs apart."""
        if step.kappa == 0:
            raise ValueError("smooth-encoder needs a kappa above 0: its coupling alone is no objective")
        mean, log_var = clean = vae.encode(step.x)
        fixed = mean.detach(), log_var.detach()

        def nearness(point: Tensor) -> Tensor:
            return -coupling_cost(fixed, vae.encode(point), self.gamma)

        return -coupling_cost(clean, vae.encode(attacked(vae, nearness, step, self.steps)), self.gamma)


def coupling_cost(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], gamma: float) -> Tensor:
    """The entropy-regularised squared 2-Wasserstein distance of two diagonal Gaussians, [batch], in nats:

        min over couplings of  gamma / 2 * E|z - z'|^2 + I(z; z')
          =  gamma / 2 * ( |mean - mean'|^2 + |s - s'|^2 )  +  sum of 1/2 (1 - 1 / (r + 2u)) + 1/2 log((1 + r) / 2)

    with u = gamma s s' and r = sqrt(1 + 4 u^2) for each coordinate. The best correlation is 2u / (1 + r), and the
    second sum is what its mutual information I, and its not being 1, cost.

    Args:
        one, other: mean and log-variance, each [batch, latent_dim].
    """
    (mean, log_var), (other_mean, other_log_var) = one, other
    scale, other_scale = torch.exp(log_var / 2), torch.exp(other_log_var / 2)
    squares = (mean - other_mean).square() + (scale - other_scale).square()
    u = gamma * torch.exp((log_var + other_log_var) / 2)
    r = torch.hypot(torch.ones_like(u), 2 * u)
    return (gamma * squares + (1 - 1 / (r + 2 * u)) + torch.log((1 + r) / 2)).sum(-1) / 2


OBJECTIVES["smooth-encoder"] = SmoothEncoder()
