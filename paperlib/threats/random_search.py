"""A search without gradients: it tells whether gradients mislead an attack (Athalye et al. 2018, arXiv 1802.00420)."""

import torch
from torch import Tensor

from paperlib.models.elbo import Target, check_inputs
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.attacks import Objective, check_search, elbo_objective, keep_lower
from paperlib.threats.perturbation import PerturbationSet

FIRST_SHARE = 0.3  # of the features that a proposal changes; it falls to one feature in the end


@outside_inference_mode
def random_search(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    steps: int = 1000,
    generator: torch.Generator | None = None,
    target: Target = "perturbed",
    *,
    maximize: bool = False,
) -> Tensor:
    """The point of lowest ELBO that a random search from x meets, [batch, *data_shape]: never above that of x.

    Args:
        steps: evaluations of the ELBO for each example; no gradient is taken.

    Other arguments and errors as for `pgd`.
    """
    check_search(steps)
    check_inputs(vae, x, noise)
    return random_descend(elbo_objective(vae, x, ball, noise, target, maximize), x, ball, x, steps, generator)[0]


@torch.no_grad()
def random_descend(
    objective: Objective,
    x: Tensor,
    ball: PerturbationSet,
    start: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The best point around each x that random proposals meet and its value, for any objective.

    As in the Square attack (Andriushchenko et al. 2020, arXiv 1912.00049) a proposal moves a run of neighbouring
    features of the best point, ever shorter, and is kept if it is better. They move in one direction, as far as the set
    allows, and to a random point of the set, in turns.
    """
    region, size = ball.region(x), x[:1].numel()
    best, least = start, objective(start)
    places = torch.arange(size, device=x.device)
    for step in range(steps):
        random = torch.rand(2, len(x), 1, generator=generator, dtype=x.dtype, device=x.device)
        if step % 2 == 0:
            direction = (random[0] - 0.5).expand(-1, size).view_as(x)
            proposal = x + ball.steepest(direction, x)
        else:
            proposal = ball.sample(x, generator)
        length = max(round(FIRST_SHARE * (1 - step / steps) ** 4 * size), 1)
        moves = ((places - (random[1] * size).floor()) % size < length).view_as(x)
        point = region.project(torch.where(moves, proposal, best))
        best, least = keep_lower(best, least, point, objective(point))
    return best, least
