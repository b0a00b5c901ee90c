"""Interval bounds of the ELBO: a box through encoder, reparametrisation, decoder and both terms (paper, section 3).

lower:  smallest log-likelihood over the boxes of output and target  -  largest KL over the boxes of mean and log_var
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule, propagate_all
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rules import UnsupportedLayerError, apply_rule, named_layers, overridden, registered_type
from paperlib.certificates import posterior_bounds
from paperlib.models.elbo import Target, check_shape
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import BoxRegion, Region


@dataclass(frozen=True)
class IntervalBounds:
    """A box for each quantity on the way from the input to the likelihood, for every input of a region."""

    region: Region  # of inputs
    target: Interval  # [batch, *data_shape]; the input's own box, or a single point
    encoder: list[Interval]  # from the region's box [batch, *data_shape] on, after each layer
    mean: Interval  # [batch, latent_dim]
    log_var: Interval  # [batch, latent_dim]
    decoder: list[Interval]  # from the latent [batch, latent_dim] on, after each layer

    @classmethod
    def of(cls, vae: VAE, inputs: Region | Interval, noise: Tensor, target: Interval, spread: float = 0.0) -> Self:
        """Propagate a region or a box of inputs through encoder, reparametrisation and decoder.

        Args:
            spread: the boxes hold for every noise whose elements are within this of those of `noise`.

        Raises:
            ValueError: an encoder or decoder whose output does not fit noise or target.
            UnsupportedLayerError: a layer without an interval rule, or a model with an `encode` of its own.
        """
        region = BoxRegion(inputs) if isinstance(inputs, Interval) else inputs
        prefix, encoder = AffinePrefix(region), [region.box]
        for place, layer in named_layers(vae.encoder, "encoder"):
            encoder.append(prefix.image(place, layer, encoder[-1]))
        mean, log_var = posterior_boxes(vae, encoder[-1], noise, region.box.lower)
        latent = posterior_bounds.reparametrize_bounds(mean, log_var, noise)
        if spread > 0:
            latent = latent.widen(spread * torch.exp(log_var.upper / 2))
        decoder = propagate_all(vae.decoder, latent, "decoder")
        check_shape("the decoder's output", decoder[-1].lower, "target", target.lower, region.box.lower)
        return cls(region, target, encoder, mean, log_var, decoder)

    @property
    def input(self) -> Interval:
        return self.encoder[0]

    @property
    def latent(self) -> Interval:
        return self.decoder[0]

    @property
    def output(self) -> Interval:
        return self.decoder[-1]


class AffinePrefix:
    """The affine layers with which an encoder begins, such as a scaling of the data and a linear layer. They map the
    region of inputs itself, which may be much smaller than its box.
    """

    def __init__(self, region: Region):
        self.region = region
        self.layers: list[nn.Module] = []
        self.goes_on = not isinstance(region, BoxRegion)  # a box gives what the interval rules give

    def image(self, place: str, layer: nn.Module, box: Interval) -> Interval:
        """The box of the next layer's outputs, whose inputs are in `box`."""
        image = apply_rule(interval_rule, place, layer, box)
        self.goes_on = self.goes_on and _is_affine(place, layer, box)
        if not self.goes_on:
            return image
        self.layers.append(layer)
        return image.intersect(self.region.first_layer(nn.Sequential(*self.layers)))


def _is_affine(place: str, layer: nn.Module, box: Interval) -> bool:
    has_rule = registered_type(relaxation_rule, type(layer)) is not None  # intervals alone do not need one
    return has_rule and isinstance(apply_rule(relaxation_rule, place, layer, box), Affine)


def posterior_boxes(vae: VAE, posterior: Interval, noise: Tensor, x: Tensor) -> tuple[Interval, Interval]:
    """The boxes of mean and log_var, each [batch, latent_dim], from that of the encoder's output. Raises as above."""
    encode = frozenset({"encode"})
    if overridden(type(vae), VAE, encode) or encode.intersection(vars(vae)):
        raise UnsupportedLayerError(
            f"{type(vae).__name__} has an encode of its own, which no rule can see: "
            "make what it does a layer of the encoder"
        )
    mean, log_var = posterior.chunk(2, dim=-1)
    check_shape("the encoder's mean", mean.lower, "noise", noise, x)
    check_shape("the encoder's log_var", log_var.lower, "noise", noise, x)
    return mean, log_var


def target_box(target: Target, box: Interval, x: Tensor) -> Interval:
    """What the decoder must explain at an input of `box`: that input itself, so that both share the box, or x."""
    return box if target == "perturbed" else Interval(x, x)
