"""The tightest method within a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.crown import Crown, CrownIBP
from paperlib.certificates.ibp import IBP
from paperlib.certificates.method import METHODS, MemoryUse, Method
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


@dataclass(frozen=True)
class Auto(Method):
    """The tightest of `IBP`, `CrownIBP` and `Crown`, with as many steps for alpha as a budget allows.

    Args:
        budget: evaluations of the ELBO for each example.
    """

    budget: int = 100

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        return self.choose(vae).bounds(vae, x, ball, noise, target, sound)

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        return self.choose(vae).lower(vae, x, ball, noise, target, sound)

    def choose(self, vae: VAE) -> Method:
        """By costs in evaluations of the ELBO: `IBP` 2, `CrownIBP` 4, each backward pass of `Crown` 4 for a latent; a
        step for alpha takes a bound and its gradient, 4.
        """
        linear, step = 4, 4
        refined = linear + 4 * vae.latent_dim
        if self.budget < linear:
            return IBP()
        if self.budget < refined:
            return CrownIBP((self.budget - linear) // step)
        return Crown((self.budget - refined) // step)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return self.choose(vae).memory(vae, layer_sizes)


METHODS["best"] = Auto()
