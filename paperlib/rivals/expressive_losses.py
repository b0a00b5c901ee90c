"""Expressive losses (De Palma et al., "Expressive losses for verified robustness via convex combinations", ICLR 2024,
arXiv 2305.13991): between the loss at an attacked input and that of the certificate, which have it between them.

Where the two differ much, a certificate alone constrains the weights more than the worst input asks for.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.models.elbo import unchecked_elbo
from paperlib.models.likelihood import Bernoulli
from paperlib.models.vae import VAE
from paperlib.rivals.inner_attack import attacked, check_share, check_steps
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.loss import certified_term
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class ExpressiveLoss(Objective):
    """Maximises  kappa * ELBO(x) + (1 - kappa) * M,  M a mean of the certificate and the ELBO at an attacked input.

    x_adv by PGD from a random point of the set; the gradient in the weights is taken at x_adv as it is. Each step of
    the attack costs a pass forwards and one backwards, and the loss at x_adv another of both.

    Args:
        share: weight of the certificate in the mean, in (0, 1]; 1 is proVAE.
        steps: gradient steps of the attack.

    Raises ValueError for a share outside (0, 1], and for fewer than one step.
    """

    share: float = 0.5
    steps: int = 1

    def __post_init__(self) -> None:
        check_share(self.share)
        check_steps(self.steps)

    @property
    def bounds_layers(self) -> bool:
        return True

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        return ball.sample(x, generator)

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        def value(point: Tensor) -> Tensor:
            return unchecked_elbo(vae, point, step.noise, step.target_of(point), step.beta)

        x_adv = attacked(vae, value, step, self.steps)
        return self.mean(vae, certified_term(vae, step, step.ball.unchecked_region(step.x)), value(x_adv))

    @abstractmethod
    def mean(self, vae: VAE, certified: Tensor, attacked: Tensor) -> Tensor:
        """A number between the two, [batch], in nats."""


@dataclass(frozen=True)
class MtlIbp(ExpressiveLoss):
    """The arithmetic mean,  share * certified + (1 - share) * attacked."""

    def mean(self, vae: VAE, certified: Tensor, attacked: Tensor) -> Tensor:
        return torch.lerp(attacked, certified, self.share)


@dataclass(frozen=True)
class ExpIbp(ExpressiveLoss):
    """The geometric mean of both losses,  -(-certified)^share (-attacked)^(1 - share).

    It has a meaning where the ELBO is never positive, as with a Bernoulli likelihood.
    """

    def mean(self, vae: VAE, certified: Tensor, attacked: Tensor) -> Tensor:
        """Raises ValueError for another likelihood than Bernoulli, whose ELBO may be positive."""
        if not isinstance(vae.likelihood, Bernoulli):
            raise ValueError(
                f"exp-ibp takes a geometric mean of losses, which a {type(vae.likelihood).__name__} can make "
                "negative: use mtl-ibp"
            )
        return -torch.exp(torch.lerp(torch.log(-attacked), torch.log(-certified), self.share))


OBJECTIVES["mtl-ibp"] = MtlIbp()
OBJECTIVES["exp-ibp"] = ExpIbp()
