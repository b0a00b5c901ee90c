"""Interval bound propagation as a method of certification (Gowal et al. 2018; paper, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.method import METHODS, MemoryUse, Problem, TrainableMethod
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


@dataclass(frozen=True)
class IBP(TrainableMethod):
    """A box for every unit of every layer: two products a layer, differentiable in the parameters."""

    @property
    def differentiable(self) -> bool:
        return True

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        return Problem.checked(vae, x, ball, noise, target, sound).interval_elbo

    def lower_over(self, problem: Problem) -> Tensor:
        return problem.interval_elbo_lower

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return MemoryUse(per_image=12 * sum(layer_sizes))


METHODS["ibp"] = IBP()
