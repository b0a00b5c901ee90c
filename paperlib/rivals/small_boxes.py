"""SABR, small adversarial bounding regions (Mueller et al., "Certified training: small boxes are all you need", ICLR
2023, arXiv 2210.04871): the certificate of a small ball around an attacked point stands for that of the whole set.

It promises nothing of the whole set while it trains, as the small ball may miss the worst input; in exchange the bounds
that it trains on are tighter, and constrain the weights less.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperlib.models.elbo import unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.rivals.inner_attack import attacked, check_share, check_steps
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.loss import certified_term
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class SmallBoxes(Objective):
    """Maximises  kappa * ELBO(x) + (1 - kappa) * C(x_adv),  C the certificate of the ball of `share` times the radius.

    x_adv is what PGD from a random point makes of x within the other part of the radius, 1 - share, so that by the
    triangle inequality the small ball around it lies in the ball of x, in any norm. Each step of the attack costs a
    pass forwards and one backwards.

    Args:
        share: of the radius, in (0, 1]; 1 is proVAE.
        steps: gradient steps of the attack.

    Raises ValueError for a share outside (0, 1], and for fewer than one step.
    """

    share: float = 0.5
    steps: int = 3

    def __post_init__(self) -> None:
        check_share(self.share)
        check_steps(self.steps)

    @property
    def bounds_layers(self) -> bool:
        return True

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        return ball.scaled(1 - self.share).sample(x, generator)

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        def value(point: Tensor) -> Tensor:
            return unchecked_elbo(vae, point, step.noise, step.target_of(point), step.beta)

        point = attacked(vae, value, replace(step, ball=step.ball.scaled(1 - self.share)), self.steps)
        return certified_term(vae, step, step.ball.scaled(self.share).unchecked_region(point))


OBJECTIVES["sabr"] = SmallBoxes()
