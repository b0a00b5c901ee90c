"""The objective of proVAE (paper, section 4)."""

import torch
from torch import Tensor

from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.certificates.method import Method, Problem, TrainableMethod, find_method
from paperlib.models.elbo import Target, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


def robust_loss(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    kappa: float,
    method: str | Method = "ibp",
    target: Target = "perturbed",
    beta: float = 1.0,
) -> Tensor:
    """minus the batch mean of  kappa * ELBO + (1 - kappa) * certificate  (paper, section 4): a scalar, in nats.

    With another beta than 1 both are of  log p - beta * KL,  and the certificate is below that at every x' of the ball.

    For inner loops: x must lie in the data range and is not checked, so that a device is never waited for.

    Args:
        x: [batch, *data_shape].
        noise: [batch, latent_dim].
        kappa: weight of the clean ELBO, in [0, 1]; at 1 no certificate is computed, at 0 no clean ELBO.
        method: of the certificate: "ibp" or "crown-ibp", which have a gradient.
        beta: weight of the KL (Higgins et al. 2017), not negative: the bounds hold for no other.

    Raises ValueError for an unknown method, or one without a gradient, and for a negative beta.
    """
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    trained = find_method(method)
    if not (isinstance(trained, TrainableMethod) and trained.differentiable):
        raise ValueError(f"{trained} is not differentiable: train on 'ibp', or 'crown-ibp' without steps for alpha")
    # minimise over the weights  -kappa ELBO(x) - (1 - kappa) C(x)  with  C(x) <= min over x' in the ball of ELBO(x')
    objective = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    if kappa > 0:
        objective = objective + kappa * unchecked_elbo(vae, x, noise, x, beta)
    if kappa < 1:
        region = ball.unchecked_region(x)
        bounds = IntervalBounds.of(vae, region, noise, target_box(target, region.box, x))
        objective = objective + (1 - kappa) * trained.lower_over(Problem(vae, noise, bounds, beta=beta))
    return -objective.mean()
