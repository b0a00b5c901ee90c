"""Certified lower bounds of the difference of two ELBOs at the same perturbed input.

    margin(x')  =  ELBO_a(x'; noise_a) - ELBO_b(x'; noise_b)

Backward substitution bounds the first ELBO from below and the second from above by one linear function of x' each
(`paperlib.certificates.backward`). Their sum is concretized once:

    min over x' in B(x) of  margin(x')  >=  min over x' in B(x) of  (c_a + c_b) . x'  +  d_a + d_b

Most of what a perturbation does is common to both models and cancels in c_a + c_b. Bounds of each ELBO on its own give
both of them their own worst x', and lose that.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.backward import RelaxedVAE, backward_elbo, terms_above, terms_below
from paperlib.certificates.crown import CrownIBP, slack
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.method import Method, Problem, find_method
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet, Region


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
    arguments, and then also its sign is that of the difference as evaluated. Differentiable by "crown-ibp" in the
    parameters of both models.

    Args:
        a, b: models of the same data, in evaluation mode.
        x: [batch, *data_shape] in the data range.
        noise_a, noise_b: [batch, latent_dim] of each model.
        method: "crown-ibp" or "crown", or such a method's object without steps for alpha.
        target: what both decoders must explain, see `elbo_bounds`.

    Raises ValueError for a method without linear bounds or one with steps for alpha, and as `elbo_bounds`.
    """
    ends = (LinearElboBounds.of(vae, x, ball, noise, method, target, sound) for vae, noise in ((a, noise_a), (b, noise_b)))
    first, second = ends
    return difference_lower(first, second)


@dataclass(frozen=True)
class InputFunction:
    """x' -> coefficients . x' + constant, for each example."""

    coefficients: Tensor  # [*rows, batch, *data_shape]
    constant: Tensor  # [*rows, batch]

    def __add__(self, other: "InputFunction") -> "InputFunction":
        return InputFunction(self.coefficients + other.coefficients, self.constant + other.constant)

    def __getitem__(self, rows: Tensor | slice) -> "InputFunction":
        return InputFunction(self.coefficients[rows], self.constant[rows])

    def minimum(self, region: Region) -> Tensor:
        """The least value over the region, or a number below it, [*rows, batch]."""
        return region.concretize(self.coefficients) + self.constant


@dataclass(frozen=True)
class LinearElboBounds:
    """A linear function of x' below the ELBO and one below minus the ELBO, for every x' of a region: made once for each
    model, and combined for each pair of models.
    """

    region: Region
    below: InputFunction  # ELBO(x') >= below(x')
    below_negative: InputFunction  # -ELBO(x') >= below_negative(x')
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
        """The bounds of one model. Arguments and errors as for `elbo_difference`."""
        chosen = linear_method(method)
        with torch.set_grad_enabled(torch.is_grad_enabled() and chosen.differentiable):
            problem = Problem.checked(vae, x, ball, noise, target, sound)
            relaxed = chosen.relax(problem)
            functions = lower_function(relaxed), negative_upper_function(relaxed)
            interval = Interval(elbo_lower(relaxed.vae, relaxed.bounds), elbo_upper(relaxed.vae, relaxed.bounds))
            lower, negated = (function.minimum(relaxed.bounds.region) for function in functions)
            # what the sums of a function can round is taken from its constant, once for all its uses
            losses = slack(lower, interval.lower), slack(negated, interval.upper)
            if relaxed.deployed is not None:
                losses = (losses[0] + relaxed.value_rounding, losses[1] + relaxed.value_rounding)
                interval = interval.widen(relaxed.value_rounding)
            below, below_negative = (
                InputFunction(function.coefficients, function.constant - loss)
                for function, loss in zip(functions, losses, strict=True)
            )
            separate = Interval(lower - losses[0], losses[1] - negated).intersect(interval)
            if relaxed.bounds is not problem.bounds:
                separate = separate.intersect(problem.interval_elbo)
            return cls(relaxed.bounds.region, below, below_negative, separate)


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


def lower_function(relaxed: RelaxedVAE) -> InputFunction:
    """ELBO(x') is at least this for every x' of the region, but for what its sums round; for inner loops."""
    return InputFunction(*backward_elbo(relaxed, 1.0, terms_below(relaxed)))


def negative_upper_function(relaxed: RelaxedVAE) -> InputFunction:
    """-ELBO(x') is at least this, likewise."""
    return InputFunction(*backward_elbo(relaxed, -1.0, terms_above(relaxed)))


def difference_lower(a: LinearElboBounds, b: LinearElboBounds) -> Tensor:
    """A lower bound of ELBO_a - ELBO_b over the region that both are bounds over, [batch], nats: the joint one or that
    of the separate bounds, whichever is larger.
    """
    joint = (a.below + b.below_negative).minimum(a.region)
    return torch.fmax(joint, a.interval.lower - b.interval.upper)  # a NaN bounds nothing
