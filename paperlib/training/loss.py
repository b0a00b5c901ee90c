"""The objective of proVAE (paper, section 4)."""

from dataclasses import dataclass

from torch import Tensor

from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.certificates.method import Method, Problem, TrainableMethod, find_method
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet, Region
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep


@dataclass(frozen=True)
class ProVAE(Objective):
    """The robust term is a certified lower bound of the ELBO over the perturbation set, by the method of the step."""

    @property
    def bounds_layers(self) -> bool:
        return True

    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        return certified_term(vae, step, step.ball.unchecked_region(step.x))


OBJECTIVES["provae"] = ProVAE()


def certified_term(vae: VAE, step: TrainingStep, region: Region) -> Tensor:
    """A certified lower bound of the ELBO over a region, by the method of the step: [batch], in nats, differentiable.

    Args:
        region: around as many inputs as the step has, which need not be the whole set of the step.

    Raises ValueError for a method without a gradient.
    """
    method = _trainable(step.method)
    bounds = IntervalBounds.of(vae, region, step.noise, target_box(step.target, region.box, step.x))
    return method.lower_over(Problem(vae, step.noise, bounds, beta=step.beta))


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
    # minimise over the weights  -kappa ELBO(x) - (1 - kappa) C(x)  with  C(x) <= min over x' in the ball of ELBO(x')
    return ProVAE().loss(vae, TrainingStep(x, x, ball, noise, kappa, _trainable(method), target, beta))


def _trainable(method: str | Method) -> TrainableMethod:
    trained = find_method(method)
    if not (isinstance(trained, TrainableMethod) and trained.differentiable):
        raise ValueError(f"{trained} is not differentiable: train on 'ibp', or 'crown-ibp' without steps for alpha")
    return trained
