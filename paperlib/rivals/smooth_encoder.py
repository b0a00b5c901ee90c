"""Smooth encoders (Cemgil et al., "Adversarially robust representations with smooth encoders", ICLR 2020).

The posteriors of x and of an attacked x' are coupled: z and z' have a joint Gaussian with these marginals, and may only
be far apart at a price. It promises nothing, and it speaks of the encoder alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.models.gaussian import kl
from paperlib.models.vae import VAE
from paperlib.rivals.inner_attack import attacked, check_steps
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class SmoothEncoder(Objective):
    """Maximises  kappa * ELBO(x) - (1 - kappa) * ( KL' + W ),  KL' that of q(z|x') to the prior, and W the cost of
    coupling q(z|x) to q(z|x'), see `coupling_cost`.

    With kappa = 1/2 it is half the ELBO of a pair of latents with the prior  N(z; 0, I) N(z'; 0, I) exp(-gamma |z -
    z'|^2 / 2),  without its constant, where x depends on z alone: then gamma is what is tuned. x' is what PGD from a
    random point of the set makes of it to raise W; the gradient in the weights runs through both posteriors. Each step
    of the attack costs a pass through the encoder forwards and one backwards.

    Written from that mathematics, and not compared with code of the authors. The weight of the second term beside
    gamma, the ramp of kappa and eps, and the 5 steps of the attack are this library's.

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
            raise ValueError("smooth-encoder needs a kappa above 0: without an ELBO it is no objective")
        mean, log_var = clean = vae.encode(step.x)
        fixed = mean.detach(), log_var.detach()

        def nearness(point: Tensor) -> Tensor:
            return -coupling_cost(fixed, vae.encode(point), self.gamma)

        coupled = vae.encode(attacked(vae, nearness, step, self.steps))
        return -step.beta * kl(*coupled) - coupling_cost(clean, coupled, self.gamma)


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
