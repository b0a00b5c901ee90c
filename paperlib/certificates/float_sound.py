"""Interval bounds that hold for the numbers which the deployed network computes in floating point, and not only in real
arithmetic.

They are computed in float64 on the same weights. After each step the box is widened by what that step can round, in the
deployed precision and in float64 itself.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.rounding import Rounding, check_deployed, gamma, magnitude, rounding_rule, unit_roundoff
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.certificates import posterior_bounds
from paperlib.certificates.intervals import AffinePrefix, IntervalBounds, posterior_boxes, target_box
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.perturbed_target import TargetTerm
from paperlib.models.elbo import Target, check_shape
from paperlib.models.likelihood import sum_per_example
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import BoxRegion, PerturbationSet, Region


@dataclass(frozen=True)
class SoundBounds:
    """Boxes of the deployed network's values, and how far rounding moves each step. All are float64.

    For every x' of deployed precision in the ball, `elbo(vae, x', noise)` as it is evaluated is at least
    elbo_lower(network, bounds) - value_rounding  and at most  elbo_upper(network, bounds) + value_rounding. The value
    of each step is within its rounding of what the exact step gives for the deployed value before it.
    """

    network: VAE  # the deployed weights in float64
    deployed: torch.dtype
    bounds: IntervalBounds
    encoder_rounding: list[Tensor]  # after each layer, of its output's shape
    latent_rounding: Tensor  # [batch, latent_dim]
    decoder_rounding: list[Tensor]  # after each layer, of its output's shape
    value_rounding: Tensor  # [batch], nats: log p, KL and their difference; infinite where any step may overflow

    @classmethod
    @torch.no_grad()
    def of(cls, vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target) -> "SoundBounds":
        """Interval bounds, sound for the network as it is evaluated in the precision of its weights.

        They cover any order of summation, with or without fused multiply-add, and every point that the set's
        `project` returns in that precision. They are computed in float64, whose own rounding is included.

        Raises:
            ValueError: arithmetic whose rounding has no bound, see `check_deployed`; x out of range, shapes that do not
                fit.
            UnsupportedLayerError: a layer without interval rule or rounding rule.
            NotImplementedError: a likelihood without `rounding`.
        """
        check_deployed(vae, x)
        for half in ("encoder", "decoder"):  # before they are copied, as a copy is no longer compiled
            list(named_layers(getattr(vae, half), half))
        deployed = x.dtype
        # modes stay as they are: the rules refuse what is random
        network = vae if deployed == torch.float64 else copy.deepcopy(vae).double()
        noise = noise.double()

        region = ball.sound_region(x)
        encoder, encoder_rounding = _propagate_all(network.encoder, region, "encoder", deployed)
        mean, log_var = posterior_boxes(vae, encoder[-1], noise, x)
        latent_rounding = posterior_bounds.reparametrize_rounding(mean, log_var, noise).bound(deployed)
        latent = posterior_bounds.reparametrize_bounds(mean, log_var, noise).widen(latent_rounding)
        decoder, decoder_rounding = _propagate_all(network.decoder, BoxRegion(latent), "decoder", deployed)
        check_shape("the decoder's output", decoder[-1].lower, "target", x, x)

        bounds = IntervalBounds(region, target_box(target, region.box, x.double()), encoder, mean, log_var, decoder)
        value = value_rounding(network, bounds, deployed, [*encoder_rounding, latent_rounding, *decoder_rounding])
        return cls(network, deployed, bounds, encoder_rounding, latent_rounding, decoder_rounding, value)


def _propagate_all(
    module: nn.Module, inputs: Region, name: str, deployed: torch.dtype
) -> tuple[list[Interval], list[Tensor]]:
    boxes, roundings, prefix = [inputs.box], [], AffinePrefix(inputs)
    for place, layer in named_layers(module, name):
        image = prefix.image(place, layer, boxes[-1])
        rounding = apply_rule(rounding_rule, place, layer, boxes[-1]).bound(deployed)
        prefix.goes_on = prefix.goes_on and not rounding.any()  # a next layer gets rounded values, not the region's
        roundings.append(rounding)
        boxes.append(image.widen(rounding))
    return boxes, roundings


def value_rounding(network: VAE, bounds: IntervalBounds, deployed: torch.dtype, steps: Sequence[Tensor]) -> Tensor:
    """How far log p, KL and their difference are rounded, for quantities within these bounds: [batch], nats.

    Infinite where the rounding of any of the `steps` before them is, each [batch, *shape]: it may overflow.
    """
    likelihood = bounds_of(network.likelihood)
    fit_rounding = likelihood.rounding(bounds.output, bounds.target).bound(deployed)
    kl_rounding = posterior_bounds.kl_rounding(bounds.mean, bounds.log_var).bound(deployed)
    largest_fit = magnitude(likelihood.bounds(bounds.output, bounds.target)) + fit_rounding
    largest_kl = magnitude(posterior_bounds.kl_bounds(bounds.mean, bounds.log_var)) + kl_rounding
    difference = Rounding(1, largest_fit + largest_kl)  # the ELBO is the difference of both
    rounding = fit_rounding + kl_rounding + difference.bound(deployed)
    if (term := TargetTerm.of(network.likelihood, bounds)) is not None:  # its range is a float64 sum of its own
        size = sum_per_example(term.coefficients.abs() * magnitude(bounds.input)) + term.error
        summands = bounds.input.lower[0].numel() + 64
        rounding = rounding + 8 * gamma(summands, unit_roundoff(torch.float64)) * size
    for step in steps:  # none is negative, so that the largest is finite only if all are
        rounding = torch.where(step.flatten(1).amax(1).isfinite(), rounding, torch.inf)
    return rounding
