"""Certified lower bounds of the difference of two ELBOs at the same perturbed input.

    margin(x')  =  ELBO_a(x'; noise_a) - ELBO_b(x'; noise_b)

Backward substitution bounds the first ELBO from below and the second from above by one linear function of x' each
(`paperlib.certificates.backward`). Their sum is concretized once:

    min over x' in B(x) of  margin(x')  >=  min over x' in B(x) of  (c_a + c_b) . x'  +  d_a + d_b

Most of what a perturbation does is common to both models and cancels in c_a + c_b. Bounds of each ELBO on its own give
both of them their own worst x', and lose that. Where both encoders begin with the same layers, the coefficients are
added behind the last of these already: what is common then cancels before it is relaxed.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import AlphaRelaxation, JointLinearFunction, initial_alpha
from paperlib.certificates.backward import (
    ElboTerms,
    PosteriorFunction,
    RelaxedVAE,
    backward_pass,
    backward_posterior,
    terms_above,
    terms_below,
)
from paperlib.certificates.crown import CrownIBP, slack
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.method import Method, Problem, find_method
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet


@outside_inference_mode
def elbo_difference(
    a: VAE,
    b: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise_a: Tensor,
    noise_b: Tensor,
    method: str | Method = "crown-ibp",
    target: Target = "perturbed",
    *,
    sound: bool = False,
) -> Tensor:
    """Certified: ELBO_a(x'; noise_a) - ELBO_b(x'; noise_b) is at least this for every x' in the ball around x, [batch],
    in nats.

    Never looser than the difference of the separate bounds of `elbo_bounds` by the same method. Holds in real
    arithmetic; with `sound` for the real difference of the two numbers that `elbo` returns in the precision of its
    arguments, so that a positive bound means that the first is the larger. Differentiable by "crown-ibp" in the
    parameters of both models.

    Args:
        a, b: models of the same data, in evaluation mode. Layers that their encoders share are the same objects.
        x: [batch, *data_shape] in the data range.
        noise_a, noise_b: [batch, latent_dim] of each model.
        method: "crown-ibp" or "crown", or such a method's object without steps for alpha.
        target: what both decoders must explain, see `elbo_bounds`.

    Raises ValueError for a method without linear bounds or one with steps for alpha, and as `elbo_bounds`.
    """
    first, second = (
        LinearElboBounds.of(vae, x, ball, noise, method, target, sound) for vae, noise in ((a, noise_a), (b, noise_b))
    )
    return difference_lower(first, second)


@dataclass(frozen=True)
class HalfBound:
    """Linear functions below sign * ELBO: one of the input of each layer of the encoder, so the first of x' itself."""

    posterior: PosteriorFunction
    coefficients: tuple[Tensor, ...]  # [batch, *shape] of each
    constants: tuple[Tensor, ...]  # [batch] of each, but for what the target adds

    @classmethod
    def of(cls, relaxed: RelaxedVAE, sign: float, terms: ElboTerms) -> Self:
        posterior = backward_posterior(relaxed, sign, terms, middle_plane)
        functions = [(posterior.coefficients, posterior.constant)]
        for layer in reversed(relaxed.encoder):
            functions.append(backward_pass((layer,), *functions[-1], middle_plane))
        coefficients, constants = zip(*reversed(functions), strict=True)
        return cls(posterior, coefficients, constants)

    @property
    def minimum(self) -> Tensor:
        """A lower bound of sign * ELBO over the region, [batch], but for what its own sums round."""
        coefficients, constant = self.posterior.with_target(self.coefficients[0], self.constants[0])
        return self.posterior.relaxed.bounds.region.concretize(coefficients) + constant


@dataclass(frozen=True)
class LinearElboBounds:
    """Bounds of one model's ELBO over a region from both sides: made once, and combined for each pair of models."""

    below: HalfBound  # of the ELBO
    below_negative: HalfBound  # of minus the ELBO
    loss: Tensor  # [batch], nats: what rounding takes from any use of the two
    interval: Interval  # of the ELBO on its own, [batch], nats

    @classmethod
    def of(
        cls,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        method: str | Method = "crown-ibp",
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Self:
        """Arguments and errors as for `elbo_difference`."""
        chosen = linear_method(method)
        with torch.set_grad_enabled(torch.is_grad_enabled() and chosen.differentiable):
            relaxed = chosen.relax(Problem.checked(vae, x, ball, noise, target, sound))
            below = HalfBound.of(relaxed, 1.0, terms_below(relaxed))
            below_negative = HalfBound.of(relaxed, -1.0, terms_above(relaxed))
            interval = Interval(elbo_lower(relaxed.vae, relaxed.bounds), elbo_upper(relaxed.vae, relaxed.bounds))
            loss = torch.maximum(slack(below.minimum, interval.lower), slack(below_negative.minimum, interval.upper))
            if relaxed.deployed is not None:
                loss = loss + relaxed.value_rounding
            return cls(below, below_negative, loss, chosen.bounds(vae, x, ball, noise, target, sound))


def linear_method(method: str | Method) -> CrownIBP:
    """The method of linear bounds that a word or an object stands for.

    Raises ValueError for one without linear bounds, or with steps for alpha: they are those of one ELBO alone.
    """
    chosen = find_method(method)
    if not isinstance(chosen, CrownIBP):
        raise ValueError(f'{chosen} has no linear bounds, which a difference needs: use "crown-ibp" or "crown"')
    if chosen.alpha_steps:
        raise ValueError(f"{chosen} optimises alpha for one ELBO alone: a difference is bounded without alpha_steps")
    return chosen


def middle_plane(bound: Any) -> Any:
    """Selects, of the planes for the product of target and output, the mean of McCormick's two.

    It is off by the same at every corner, so that its error does not lean to either end of the target: at which end a
    margin is least depends on both models. The initial one is best for a single ELBO.
    """
    if isinstance(bound, AlphaRelaxation) and isinstance(bound.initial, JointLinearFunction):
        return bound.at(torch.full_like(bound.alpha, 0.5))
    return initial_alpha(bound)


def difference_lower(a: LinearElboBounds, b: LinearElboBounds) -> Tensor:
    """A lower bound of ELBO_a - ELBO_b over the region that both are bounds over, [batch], nats: the joint one or that
    of the separate bounds, whichever is larger.
    """
    first, second = a.below, b.below_negative
    relaxed = first.posterior.relaxed
    shared = _shared_layers(relaxed, second.posterior.relaxed)
    coefficients, constant = backward_pass(
        relaxed.encoder[:shared],
        first.coefficients[shared] + second.coefficients[shared],
        first.constants[shared] + second.constants[shared],
        middle_plane,
    )
    for half in (first, second):
        coefficients, constant = half.posterior.with_target(coefficients, constant)
    joint = relaxed.bounds.region.concretize(coefficients) + constant - a.loss - b.loss
    return torch.fmax(joint, a.interval.lower - b.interval.upper)  # a NaN bounds nothing


def _shared_layers(a: RelaxedVAE, b: RelaxedVAE) -> int:
    """How many layers both encoders begin with. Their relaxations are the same, as both boxes of inputs are.

    None with rounding, as two evaluations of one layer may round in different ways.
    """
    if a.deployed is not None:
        return 0
    count = 0
    for first, second in zip(a.encoder, b.encoder, strict=False):
        if first.layer is not second.layer:
            break
        count += 1
    return count
