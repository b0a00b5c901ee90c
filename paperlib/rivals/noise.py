"""Training at noisy inputs, as smoothing a model by such noise asks for (Cohen et al. 2019; Chiang et al. 2020).

It promises nothing by itself; bounds by smoothing speak of the smoothed score alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.models.elbo import unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class NoisyInputs(Objective):
    """Maximises  kappa * ELBO(x) + (1 - kappa) * ELBO(clip(x + G)),  G ~ N(0, eps^2) for each feature.

    So `eps`, with its ramp, is the standard deviation here and no radius, whatever the norm of the ball. The noisy
    input is clipped to the data range, as a likelihood need not explain what lies outside: a score of such a model that
    is smoothed is one of clipped inputs.
    """

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        normal = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (x + ball.size * normal).clamp(ball.low, ball.high)

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        return unchecked_elbo(vae, step.start, step.noise, step.target_of(step.start), step.beta)


OBJECTIVES["noise"] = NoisyInputs()
