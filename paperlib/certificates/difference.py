"""Certified lower bounds of the difference of two ELBOs at the same perturbed input.

    margin(x')  =  ELBO_a(x'; noise_a) - ELBO_b(x'; noise_b)

Backward substitution bounds the first ELBO from below and the second from above by one linear function of x' each
(`paperlib.certificates.backward`). Their sum is concretized once:

    min over x' in B(x) of  margin(x')  >=  min over x' in B(x) of  (c_a + c_b) . x'  +  d_a + d_b

Most of what a perturbation does is common to both models and cancels in c_a + c_b. Bounds of each ELBO on its own give
both of them their own worst x', and lose that. Where both encoders begin with the same layers, the coefficients are
added behind the last of these already: what is common then cancels before it is relaxed.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import chord_below, tangent
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
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.method import Method, Problem, find_method
from paperlib.models.elbo import Target
from paperlib.models.likelihood import Likelihood
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

    Never looser than the difference of the separate bounds of `elbo_bounds` by the same method, and no tighter for two
    Gaussians of different scales. Holds in real arithmetic; with `sound` for the real difference of the two numbers
    that `elbo` returns in the precision of its arguments, so that a positive bound means that the first is the larger.
    Differentiable by "crown-ibp" in the parameters of both models.

    Args:
        a, b: models of the same data, in evaluation mode. Layers that their encoders share are the same objects.
        x: [batch, *data_shape] in the data range.
        noise_a, noise_b: [batch, latent_dim] of each model.
        method: "crown-ibp" or "crown", or such a method's object without steps for alpha.
        target: what both decoders must explain, see `elbo_bounds`.

    Raises ValueError for a method without linear bounds or one with steps for alpha, and as `elbo_bounds`.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and linear_method(method).differentiable):
        first = LinearElboBounds.of(a, x, ball, noise_a, method, target, sound)
        return difference_lower(first, LinearElboBounds.of(b, x, ball, noise_b, method, target, sound))


@dataclass(frozen=True)
class HalfBound:
    """Linear functions below sign * ELBO, but for the term h(t) of `_fit`: one of the input of each layer of the
    encoder, so the first of x' itself. Each is made when it is first asked for.
    """

    posterior: PosteriorFunction
    functions: dict[int, tuple[Tensor, Tensor]]  # by the number of layers before it: [batch, *shape] and [batch]

    @classmethod
    def of(cls, relaxed: RelaxedVAE, sign: float) -> Self:
        terms = terms_below(relaxed) if sign > 0 else terms_above(relaxed)
        posterior = backward_posterior(relaxed, sign, replace(terms, fit=_fit(relaxed, terms, sign)))
        return cls(posterior, {len(relaxed.encoder): (posterior.coefficients, posterior.constant)})

    def behind(self, layers: int) -> tuple[Tensor, Tensor]:
        """Coefficients of what the encoder's first layers put out, [batch, *shape], and the constant, [batch], but for
        what the target adds.
        """
        if layers not in self.functions:
            rest = self.posterior.relaxed.encoder[layers:]
            self.functions[layers] = backward_pass(
                rest, self.posterior.coefficients, self.posterior.constant, initial_alpha
            )
        return self.functions[layers]


@dataclass(frozen=True)
class LinearElboBounds:
    """Bounds of one model's ELBO over a region from both sides: made once, and combined for each pair of models."""

    below: HalfBound  # of the ELBO
    below_negative: HalfBound  # of minus the ELBO
    boxes: Interval  # of the ELBO by intervals over the boxes of the linear bounds, [batch], nats
    interval: Interval  # of the ELBO on its own by the whole method, [batch], nats

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
        problem = Problem.checked(vae, x, ball, noise, target, sound)
        relaxed = chosen.relax(problem)
        boxes = Interval(elbo_lower(relaxed.vae, relaxed.bounds), elbo_upper(relaxed.vae, relaxed.bounds))
        alone = chosen.bounds_over(problem, relaxed)
        return cls(HalfBound.of(relaxed, 1.0), HalfBound.of(relaxed, -1.0), boxes, alone)


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


def _fit(relaxed: RelaxedVAE, terms: ElboTerms, sign: float) -> JointLinearFunction | AlphaRelaxation[Any]:
    """A linear function of output and target below (sign = 1) or above log p, but for what is a function of the target
    alone; for likelihoods of the form  log p = precision * t * l - A(l) + h(t).

    The product of target and output is replaced by the mean of McCormick's planes, which are off by the same at every
    corner: at which end of the target a margin is least depends on both models. The convex A is below its chord and
    above its tangent at the middle of the box. Without h(t) much of what is common to two models is gone.
    """
    bounds, form = relaxed.bounds, bounds_of(relaxed.vae.likelihood).natural_form()
    if form is None:
        return terms.fit

    def negative(value: Tensor) -> Tensor:
        return -form.normalizer(value)

    def slope(value: Tensor) -> Tensor:
        return -form.mean(value)

    output, target = bounds.output, bounds.target if terms.target is None else terms.target.point
    line = chord_below(negative, slope, output) if sign > 0 else tangent(negative, slope, output.center)
    product = target.center * output.center + sign * target.radius * output.radius
    return JointLinearFunction(
        line.slope + form.precision * target.center,
        form.precision * output.center,
        line.offset - form.precision * product,
    )


def difference_lower(a: LinearElboBounds, b: LinearElboBounds) -> Tensor:
    """A lower bound of ELBO_a - ELBO_b over the region that both are bounds over, [batch], nats: the joint one or that
    of the separate bounds, whichever is larger.
    """
    separate = a.interval.lower - b.interval.upper
    first, second = a.below, b.below_negative
    relaxed, other = first.posterior.relaxed, second.posterior.relaxed
    if not _same_term_of_target(relaxed.vae.likelihood, other.vae.likelihood):
        return separate
    shared = _shared_layers(relaxed, other)
    (first_coefficients, first_constant), (second_coefficients, second_constant) = (
        half.behind(shared) for half in (first, second)
    )
    coefficients, constant = backward_pass(
        relaxed.encoder[:shared],
        first_coefficients + second_coefficients,
        first_constant + second_constant,
        initial_alpha,
    )
    for half in (first, second):
        coefficients, constant = half.posterior.with_target(coefficients, constant)
    joint = relaxed.bounds.region.concretize(coefficients) + constant
    # the terms of each sum are about as large as its interval bound, and in the sum they cancel
    joint = joint - slack(joint, a.boxes.lower) - slack(joint, b.boxes.upper)
    for side in (relaxed, other):
        if side.deployed is not None:
            joint = joint - side.value_rounding
    return torch.fmax(joint, separate)  # a NaN bounds nothing


def _same_term_of_target(a: Likelihood, b: Likelihood) -> bool:
    """Whether h(t) of `_fit` is the same of both, and their difference is without it."""
    first, second = (
        None if form is None else form.base_of for form in (bounds_of(each).natural_form() for each in (a, b))
    )
    if first is None or second is None:
        return first is second  # 0, or not apart from the rest
    parameters = zip(first.state_dict().values(), second.state_dict().values(), strict=False)
    return type(first) is type(second) and all(torch.equal(*torch.broadcast_tensors(*pair)) for pair in parameters)


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
