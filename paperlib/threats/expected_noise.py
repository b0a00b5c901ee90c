"""The objective of an attacker who does not know the noise draw."""

import torch
from torch import Tensor

from paperlib.models.elbo import Target, check_inputs, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.attacks import Objective, check_explained
from paperlib.threats.perturbation import PerturbationSet


def expected_objective(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    draws: int = 16,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
    *,
    maximize: bool = False,
) -> Objective:
    """The mean ELBO over noise draws, [batch, *data_shape] -> [batch], in nats, for `descend` and `auto_descend`.

    Its gradients are those of `draws` fresh draws each time (expectation over transformation: Athalye et al. 2018,
    arXiv 1707.07397). Its values are means over as many draws that stay the same: so points are comparable, and the
    best one that is kept is not merely the luckiest. With `maximize` its negative.

    Args:
        generator: draws all noise.

    Raises:
        ValueError: fewer than one draw, and as `pgd` for x, the set and the target.
    """
    if draws < 1:
        raise ValueError(f"a mean over noise needs at least one draw, got draws={draws}")

    def noise() -> Tensor:
        return torch.randn(draws, len(x), vae.latent_dim, generator=generator, dtype=x.dtype, device=x.device)

    def mean(point: Tensor, noises: Tensor) -> Tensor:
        explained = x if target == "clean" else point
        value = torch.stack([unchecked_elbo(vae, point, draw, explained) for draw in noises]).mean(0)
        return -value if maximize else value

    kept = noise()
    check_inputs(vae, x, kept[0])
    check_explained(vae, x, ball, target)

    def objective(point: Tensor) -> Tensor:
        with torch.no_grad():
            value = mean(point, kept)
        if not (torch.is_grad_enabled() and point.requires_grad):
            return value
        fresh = mean(point, noise())
        return value + (fresh - fresh.detach())

    return objective
