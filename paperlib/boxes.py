"""The boxes of the interval certificate: from the input through encoder, reparametrisation and decoder."""

from dataclasses import dataclass

from torch import Tensor

from paperlib import gaussian
from paperlib.interval import Interval, trace
from paperlib.vae import VAE


@dataclass(frozen=True)
class Boxes:
    """What a certificate finds on its way from the input to the likelihood: a box for each quantity."""

    target: Interval  # [batch, *data_shape]; the input's own box, or a single point
    encoder: list[Interval]  # from the input [batch, *data_shape] on, after each layer
    mean: Interval  # [batch, latent_dim]
    log_var: Interval  # [batch, latent_dim]
    decoder: list[Interval]  # from the latent [batch, latent_dim] on, after each layer

    @property
    def input(self) -> Interval:
        return self.encoder[0]

    @property
    def latent(self) -> Interval:
        return self.decoder[0]

    @property
    def output(self) -> Interval:
        return self.decoder[-1]


def boxes(vae: VAE, box: Interval, noise: Tensor, target: Interval) -> Boxes:
    """Propagate an input box through encoder, reparametrisation and decoder (paper, section 3).

    Raises ValueError for an encoder or decoder whose output does not fit noise or target.
    """
    encoder = trace(vae.encoder, box, "encoder")
    mean, log_var = encoder[-1].chunk(2, dim=-1)
    same_shape("the encoder's mean", mean.lower, "noise", noise, box.lower)
    decoder = trace(vae.decoder, gaussian.reparametrize_bounds(mean, log_var, noise), "decoder")
    same_shape("the decoder's output", decoder[-1].lower, "target", target.lower, box.lower)
    return Boxes(target, encoder, mean, log_var, decoder)


def same_shape(what: str, made: Tensor, name: str, given: Tensor, x: Tensor) -> None:
    """Raises ValueError where broadcasting would turn a wrong shape into a wrong number."""
    if made.shape != given.shape:
        raise ValueError(f"{what} is {list(made.shape)} for x of {list(x.shape)}, {name} is {list(given.shape)}")
