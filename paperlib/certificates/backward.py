"""Linear bounds of the scalar ELBO over a box of inputs (CROWN: Zhang et al. 2018, arXiv 1811.00866; CROWN-IBP:
Zhang et al. 2020, arXiv 1906.06316).

    ELBO(x'; noise) = sum over pixels of log p(x'_i | output_i)  -  sum over latents of KL(mean_k, log_var_k)

Every term is replaced by a linear function on its side. The coefficients of their sum are substituted backward through
decoder, reparametrisation and encoder, until the whole ELBO is bounded by one linear function of the input. Its minimum
over the box has a closed form. So pixels and latents are bounded together, not each at a worst input of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import (
    AlphaRelaxation,
    AlphaSelector,
    JointLinearFunction,
    LinearFunction,
    LinearRelaxation,
    backward_substitute,
    concretize,
    initial_alpha,
)
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rounding import magnitude
from paperlib.certificates import posterior_bounds
from paperlib.certificates.alpha import optimize_alpha
from paperlib.certificates.backward_rounding import (
    ACCUMULATION_ERROR,
    MOST_SUMMANDS,
    PosteriorRounding,
    cancellation,
    joint_size,
)
from paperlib.certificates.float_sound import SoundBounds, value_rounding
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.perturbed_target import TargetTerm
from paperlib.certificates.relaxed_layer import RelaxedLayer, relaxed_layers
from paperlib.models.likelihood import sum_per_example
from paperlib.models.vae import VAE


@dataclass(frozen=True)
class RelaxedVAE:
    """A VAE at one noise draw over a box of inputs, with linear relaxations of each of its parts."""

    vae: VAE
    bounds: IntervalBounds
    noise: Tensor  # [batch, latent_dim]
    encoder: tuple[RelaxedLayer, ...]
    decoder: tuple[RelaxedLayer, ...]
    scale: LinearRelaxation  # of exp(log_var / 2), [batch, latent_dim]
    deployed: torch.dtype | None  # None: real arithmetic
    rounding: PosteriorRounding | None  # None: real arithmetic

    @classmethod
    def of(cls, vae: VAE, bounds: IntervalBounds, noise: Tensor, sound: SoundBounds | None = None) -> Self:
        """Relaxations over the boxes of interval propagation (CROWN-IBP); with `sound`, whose bounds these must be, of
        the network as it is deployed.

        Raises ValueError for bounds other than those of `sound`, whose rounding speaks of no others; and for a deployed
        network of more units than the error of sums allows for.
        """
        if sound is not None and bounds is not sound.bounds:
            raise ValueError("these bounds are not those of the sound ones: pass sound.bounds")
        boxes = [*bounds.encoder, *bounds.decoder]
        units = sum(math.prod(box.lower.shape[1:]) for box in boxes)
        deployed = None if sound is None else sound.deployed
        if deployed is not None and units > MOST_SUMMANDS:
            raise ValueError(
                f'sound linear bounds are for at most {MOST_SUMMANDS} units, this network has {units}: use method="ibp"'
            )
        scale = posterior_bounds.scale_relaxation(bounds.log_var)
        roundings = (None, None) if sound is None else (sound.encoder_rounding, sound.decoder_rounding)
        encoder = relaxed_layers(vae.encoder, "encoder", bounds.encoder, deployed, roundings[0])
        decoder = relaxed_layers(vae.decoder, "decoder", bounds.decoder, deployed, roundings[1])
        rounding = None if deployed is None else PosteriorRounding.of(bounds, noise, scale, deployed)
        return cls(vae, bounds, noise, encoder, decoder, scale, deployed, rounding)

    def over(self, mean: Interval, log_var: Interval) -> Self:
        """The same over tighter boxes of mean and log_var; encoder and decoder stay."""
        bounds, scale = replace(self.bounds, mean=mean, log_var=log_var), posterior_bounds.scale_relaxation(log_var)
        rounding = self.rounding
        if self.deployed is not None:
            rounding = PosteriorRounding.of(bounds, self.noise, scale, self.deployed)
        return replace(self, bounds=bounds, scale=scale, rounding=rounding)

    @property
    def value_rounding(self) -> Tensor:
        """How far the ELBO's own terms are rounded as they are deployed, over the boxes of all steps: [batch], nats."""
        assert self.deployed is not None and self.rounding is not None
        layers = (layer.rounding for layer in (*self.encoder, *self.decoder))
        steps = [self.rounding.deployed, *(rounding for rounding in layers if rounding is not None)]
        return value_rounding(self.vae, self.bounds, self.deployed, steps)


@dataclass(frozen=True)
class ElboTerms:
    """Linear functions on one side of the terms of the ELBO: of log p in output and target, of -KL in mean and log_var.

    With `target`, `fit` is that of the single target  target.point, and the rest is what the perturbed target adds.
    What stands in the place of -KL may depend on the latents as well.
    """

    fit: JointLinearFunction | AlphaRelaxation[JointLinearFunction]
    mean: LinearFunction
    log_var: LinearFunction
    target: TargetTerm | None
    latent: LinearFunction | None = None


def terms_below(relaxed: RelaxedVAE, beta: float = 1.0) -> ElboTerms:
    """Linear functions below log p and below  -beta * KL,  over the boxes of all that they depend on."""
    bounds, likelihood = relaxed.bounds, relaxed.vae.likelihood
    target = TargetTerm.of(likelihood, bounds)
    fit = bounds_of(likelihood).linear_below(bounds.output, bounds.target if target is None else target.point)
    negative_kl = posterior_bounds.negative_kl_below(bounds.mean, bounds.log_var)
    mean, log_var = (LinearFunction(beta * term.slope, beta * term.offset) for term in negative_kl)
    return ElboTerms(fit, mean, log_var, target)


def terms_above(relaxed: RelaxedVAE) -> ElboTerms:
    """Linear functions above log p and above -KL, likewise."""
    bounds, likelihood = relaxed.bounds, relaxed.vae.likelihood
    target = TargetTerm.of(likelihood, bounds)
    fit = bounds_of(likelihood).linear_above(bounds.output, bounds.target if target is None else target.point)
    return ElboTerms(fit, *posterior_bounds.negative_kl_above(bounds.mean, bounds.log_var), target)


def linear_lower(relaxed: RelaxedVAE, alpha_steps: int = 0, beta: float = 1.0) -> Tensor:
    """A lower bound of the ELBO over the region, [batch], in nats; the best that `alpha_steps` steps for alpha meet.

    Or one of  log p - beta * KL  for any beta >= 0.
    """
    return optimize_alpha(partial(backward_elbo_bound, relaxed, 1.0, terms_below(relaxed, beta)), alpha_steps)


def linear_upper(relaxed: RelaxedVAE, alpha_steps: int = 0) -> Tensor:
    """An upper bound of the ELBO over the region, [batch], nats; the best that `alpha_steps` steps for alpha meet."""
    return -optimize_alpha(partial(backward_elbo_bound, relaxed, -1.0, terms_above(relaxed)), alpha_steps)


def backward_elbo_bound(relaxed: RelaxedVAE, sign: float, terms: ElboTerms, select_alpha: AlphaSelector) -> Tensor:
    """A lower bound of  sign * ELBO  over the region of inputs, [batch], in nats. Arguments as for `backward_elbo`."""
    coefficients, constant = backward_elbo(relaxed, sign, terms, select_alpha)
    return constant + relaxed.bounds.region.concretize(coefficients)


def backward_elbo(
    relaxed: RelaxedVAE, sign: float, terms: ElboTerms, select_alpha: AlphaSelector = initial_alpha
) -> tuple[Tensor, Tensor]:
    """sign * ELBO(x')  >=  c . x' + d,  in nats, for every x' of the region: c [batch, *data_shape] and d [batch].

    Args:
        terms: below the terms of the ELBO for sign = 1, above them for sign = -1.
        select_alpha: picks one bound of each `AlphaRelaxation`.
    """
    posterior = backward_posterior(relaxed, sign, terms, select_alpha)
    x_coefficients, constant = backward_pass(relaxed.encoder, posterior.coefficients, posterior.constant, select_alpha)
    return posterior.with_target(x_coefficients, constant)


@dataclass(frozen=True)
class PosteriorFunction:
    """sign * ELBO  >=  coefficients . (mean, log_var) + constant + what `with_target` adds."""

    relaxed: RelaxedVAE
    sign: float
    terms: ElboTerms
    fit: JointLinearFunction  # the one of `terms.fit` that was picked
    latent_coefficients: Tensor  # [batch, latent_dim]
    coefficients: Tensor  # [batch, 2 * latent_dim]
    constant: Tensor  # [batch]

    def with_target(self, x_coefficients: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """The linear function of x' that those from the encoder make with the target's part and what rounding takes."""
        relaxed, bounds, terms = self.relaxed, self.relaxed.bounds, self.terms
        target_coefficients = self.fit.target_slope if self.sign > 0 else -self.fit.target_slope
        if relaxed.rounding is not None:
            latent_rounding = sum_per_example(self.latent_coefficients.abs() * relaxed.rounding.latent)
            constant = constant - latent_rounding - relaxed.rounding.kl
            input_size = x_coefficients.abs() * magnitude(bounds.input)
            constant = constant - ACCUMULATION_ERROR * sum_per_example(joint_size(self.fit, bounds) + input_size)
        else:
            lost = cancellation(x_coefficients, bounds.input), cancellation(target_coefficients, bounds.target)
            constant = constant - lost[0] - lost[1]
        if (term := terms.target) is not None:
            if relaxed.rounding is not None:
                size = sum_per_example(term.coefficients.abs() * magnitude(bounds.input)) + term.error
                constant = constant - 4 * ACCUMULATION_ERROR * size
            x_coefficients = x_coefficients + self.sign * term.coefficients
            constant = constant + self.sign * term.offset - term.error + concretize(target_coefficients, term.point)
        elif bounds.target is bounds.input:  # the same x' is input and target: its coefficients add up
            x_coefficients = x_coefficients + target_coefficients
        else:
            constant = constant + concretize(target_coefficients, bounds.target)
        return x_coefficients, constant


def backward_posterior(
    relaxed: RelaxedVAE, sign: float, terms: ElboTerms, select_alpha: AlphaSelector = initial_alpha
) -> PosteriorFunction:
    """The first half of `backward_elbo`: from the terms of the ELBO to the encoder's output. Arguments as there."""
    function = select_alpha(terms.fit)
    constant = sign * sum_per_example(function.offset)
    output_coefficients = function.output_slope if sign > 0 else -function.output_slope
    latent_coefficients, constant = backward_pass(relaxed.decoder, output_coefficients, constant, select_alpha)
    if terms.latent is not None:
        latent_coefficients = latent_coefficients + sign * terms.latent.slope
        constant = constant + sign * sum_per_example(terms.latent.offset)

    # latent = mean + exp(log_var / 2) * noise, and the KL adds its own terms in mean and log_var
    scale_coefficients, offset = backward_substitute(latent_coefficients * relaxed.noise, relaxed.scale, select_alpha)
    slopes = latent_coefficients + sign * terms.mean.slope, scale_coefficients + sign * terms.log_var.slope
    constant = constant + sum_per_example(offset + sign * (terms.mean.offset + terms.log_var.offset))
    return PosteriorFunction(relaxed, sign, terms, function, latent_coefficients, torch.cat(slopes, 1), constant)


def backward_pass(
    layers: Sequence[RelaxedLayer], coefficients: Tensor, constant: Tensor, select_alpha: AlphaSelector
) -> tuple[Tensor, Tensor]:
    """coefficients . network(v) + constant  >=  c' . v + d  over the box of v: returns c' and d, [*rows, batch].

    Args:
        coefficients: [*rows, batch, *shape] on the last layer's output.
        constant: [*rows, batch].
    """
    data = constant.ndim
    for relaxed in reversed(layers):
        if relaxed.error is not None:
            constant = constant - (coefficients.abs() * relaxed.error).flatten(data).sum(data)
        if isinstance(relaxed.relaxation, Affine):
            constant = constant + coefficients.flatten(data) @ relaxed.relaxation.offset.flatten()
            coefficients = relaxed.relaxation.transpose(coefficients)
        else:
            coefficients, offset = backward_substitute(coefficients, relaxed.relaxation, select_alpha)
            constant = constant + offset.flatten(data).sum(data)
    return coefficients, constant
