"""Interval bounds of the ELBO: a box through encoder, reparametrisation, decoder and both terms (paper, section 3).

lower:  smallest log-likelihood over the boxes of output and target  -  largest KL over the boxes of mean and log_var
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import propagate_all
from paperlib.bounds.rules import UnsupportedLayerError, overridden
from paperlib.certificates import posterior_bounds
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.models.elbo import Target, check_shape
from paperlib.models.vae import VAE

INF = float("inf")  # what overflows may be NaN, and then bounds nothing


@dataclass(frozen=True)
class IntervalBounds:
    """A box for each quantity on the way from the input to the likelihood, for every input of a box."""

    target: Interval  # [batch, *data_shape]; the input's own box, or a single point
    encoder: list[Interval]  # from the input [batch, *data_shape] on, after each layer
    mean: Interval  # [batch, latent_dim]
    log_var: Interval  # [batch, latent_dim]
    decoder: list[Interval]  # from the latent [batch, latent_dim] on, after each layer

    @classmethod
    def of(cls, vae: VAE, box: Interval, noise: Tensor, target: Interval) -> Self:
        """Propagate an input box through encoder, reparametrisation and decoder.

        Raises:
            ValueError: an encoder or decoder whose output does not fit noise or target.
            UnsupportedLayerError: a layer without an interval rule, or a model with an `encode` of its own.
        """
        encoder = propagate_all(vae.encoder, box, "encoder")
        mean, log_var = posterior_boxes(vae, encoder[-1], noise, box.lower)
        latent = posterior_bounds.reparametrize_bounds(mean, log_var, noise)
        decoder = propagate_all(vae.decoder, latent, "decoder")
        check_shape("the decoder's output", decoder[-1].lower, "target", target.lower, box.lower)
        return cls(target, encoder, mean, log_var, decoder)

    @property
    def input(self) -> Interval:
        return self.encoder[0]

    @property
    def latent(self) -> Interval:
        return self.decoder[0]

    @property
    def output(self) -> Interval:
        return self.decoder[-1]


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


def elbo_lower(vae: VAE, bounds: IntervalBounds) -> Tensor:
    """A lower bound of the ELBO from the boxes of both its terms, [batch], nats: lower(log p) - upper(KL)."""
    fit = bounds_of(vae.likelihood).lower(bounds.output, bounds.target)
    return (fit - posterior_bounds.kl_upper(bounds.mean, bounds.log_var)).nan_to_num(-INF, INF, -INF)


def elbo_upper(vae: VAE, bounds: IntervalBounds) -> Tensor:
    """An upper bound of the ELBO from the boxes of both its terms, [batch], nats: upper(log p) - lower(KL)."""
    fit = bounds_of(vae.likelihood).upper(bounds.output, bounds.target)
    return (fit - posterior_bounds.kl_bounds(bounds.mean, bounds.log_var).lower).nan_to_num(INF, INF, -INF)
