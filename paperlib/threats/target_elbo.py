"""The attack L_VAE of Kos et al. 2018 (arXiv 1702.06832): the encoder sees x', the decoder must explain a target."""

import torch
from torch import Tensor

from paperlib.models.elbo import check_inputs, check_targets, explain_misfit, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.search import check_attack, check_like, lowest, random_starts


@outside_inference_mode
def target_elbo_attack(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    toward: Tensor,
    steps: int = 40,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The point of the set whose code explains `toward` best, among all that projected gradient descent meets:
    [batch, *data_shape].

        min over x' in B(x) of  L_VAE(x') = -log p(toward | z(x')) + KL( q(z|x') || N(0, I) )

    The first restart begins at x and once more at the point of the set nearest to the target: the ELBO of the target is
    never below that which x, or that point, gives it.

    Args:
        x: [batch, *data_shape] in the data range.
        noise: [batch, latent_dim], z(x') = mean + exp(log_var / 2) * noise.
        toward: of the shape of x.
        steps: gradient steps of each restart.
        generator: draws the random starts.

    Raises:
        ValueError: fewer than one step or restart, x outside the data range, shapes or dtypes that do not fit, a target
            that the likelihood does not explain.
    """
    check_attack(vae, x, steps, restarts)
    check_inputs(vae, x, noise)
    check_like("toward", toward, x)
    check_targets(vae, toward)
    ball.check(x)

    def objective(point: Tensor) -> Tensor:
        return -unchecked_elbo(vae, point, noise, toward)

    starts = (x, ball.project(toward, x), *random_starts(ball, x, restarts - 1, generator))
    with explain_misfit(x):
        best, _ = lowest(objective, x, ball, starts, steps)
    return best
