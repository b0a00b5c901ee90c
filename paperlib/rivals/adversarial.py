"""Adversarial training (Madry et al. 2018) of a VAE: the ELBO at an attacked input takes the place of the certificate.

It promises nothing: the attack bounds the robust ELBO from above, not from below.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.models.elbo import unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.rivals.inner_attack import attacked, check_steps
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class Adversarial(Objective):
    """Maximises  kappa * ELBO(x) + (1 - kappa) * ELBO(x_adv),  x_adv by PGD from a random point of the set.

    The attack lowers the same ELBO at the same noise; the gradient in the weights is taken at x_adv as it is. Each of
    its steps costs a pass forwards and one backwards.

    Args:
        steps: gradient steps of the attack.

    Raises ValueError for fewer than one step.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        return ball.sample(x, generator)

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        def value(point: Tensor) -> Tensor:
            return unchecked_elbo(vae, point, step.noise, step.target_of(point), step.beta)

        return value(attacked(vae, value, step, self.steps))


OBJECTIVES["adversarial"] = Adversarial()
