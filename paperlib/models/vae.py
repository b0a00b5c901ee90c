"""The variational auto-encoder: a plain encoder, a plain decoder and a likelihood around a latent Gaussian."""

import copy
import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from paperlib.models.likelihood import Bernoulli, Likelihood


class GaussianHeads(nn.Module):
    """The last layer of an encoder with two heads, as one layer that bounds can see: [batch, n] -> [batch, 2 * latent],
    first the means and then the log-variances.

    Args:
        mean, log_var: linear layers of as many outputs as there are latents.

    Raises:
        ValueError: other layers, or different numbers of outputs.
    """

    def __init__(self, mean: nn.Linear, log_var: nn.Linear):
        super().__init__()
        if not (isinstance(mean, nn.Linear) and isinstance(log_var, nn.Linear)):
            raise ValueError(f"the heads must be two nn.Linear, got {mean} and {log_var}")
        if mean.out_features != log_var.out_features:
            raise ValueError(f"the heads have {mean.out_features} means and {log_var.out_features} log-variances")
        self.mean = mean
        self.log_var = log_var

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.mean(x), self.log_var(x)], dim=-1)


class VAE(nn.Module):
    """Kingma & Welling 2014 (arXiv 1312.6114): q(z|x) = N(mean, diag exp(log_var)), p(z) = N(0, I), p(x|z) as given.

    Calling it gives the reconstruction, `forward`; the ELBO is `paperlib.elbo`.

    Args:
        encoder: any module [batch, *data_shape] -> [batch, 2 * latent_dim], first the means and then the log-variances,
            or -> (mean, log_var), each [batch, latent_dim].
        decoder: any module [batch, latent_dim] -> [batch, *data_shape], the raw output that the likelihood reads.
        likelihood: log p(x | decoder output).
        latent_dim: number of latent coordinates.

    For certificates, encoder and decoder are built of layers with an interval rule (`paperlib.propagate`). No rule sees
    what returns two tensors: an encoder with two heads is then a `nn.Sequential` that ends in `GaussianHeads`.

    Warns of a decoder that ends in a Sigmoid before a Bernoulli, which reads its output as logits.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, latent_dim: int):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.latent_dim = latent_dim
        if isinstance(likelihood, Bernoulli) and isinstance(_last_layer(decoder, "decoder")[1], nn.Sigmoid):
            warnings.warn(
                f"{_last_layer(decoder, 'decoder')[0]} is a Sigmoid, but Bernoulli() reads the decoder's output as "
                "logits and takes their sigmoid itself: leave that layer out",
                stacklevel=2,
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each [batch, latent_dim]."""
        posterior = self.encoder(x)
        parts = posterior.chunk(2, dim=-1) if isinstance(posterior, Tensor) else tuple(posterior)
        if len(parts) != 2:
            raise ValueError(f"the encoder must return mean and log-variance, or both in one tensor; got {len(parts)}")
        return parts

    def forward(self, x: Tensor) -> Tensor:
        """The expected data of the decoder at the posterior mean, [batch, *data_shape], with its gradient."""
        mean, _ = self.encode(x)
        return self.likelihood.mean(self.decoder(mean))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The same without a gradient: what a picture shows."""
        return self(x)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """The expected data at `count` draws from the prior, [count, *data_shape]."""
        like = next(self.parameters())
        z = torch.randn(count, self.latent_dim, generator=generator, dtype=like.dtype, device=like.device)
        return self.likelihood.mean(self.decoder(z))

    def in_float64(self) -> "VAE":
        """A copy in evaluation mode and double precision: the network that certificates and attacks speak about."""
        return copy.deepcopy(self).double().eval()


def _last_layer(module: nn.Module, name: str) -> tuple[str, nn.Module]:
    """The last layer of a possibly nested `nn.Sequential` that does more than reshape, and its place."""
    if isinstance(module, nn.Sequential):
        for child_name, child in reversed(module._modules.items()):
            assert child is not None
            if not isinstance(child, nn.Flatten | nn.Unflatten | nn.Identity):
                return _last_layer(child, f"{name}.{child_name}")
    return name, module


def mlp_vae(
    data_shape: Sequence[int] = (784,),
    hidden: Sequence[int] = (512,),
    latent_dim: int = 20,
    likelihood: Likelihood | None = None,
    input_clip: float = 0.0,
) -> VAE:
    """A fully connected VAE with ReLU; the decoder mirrors the encoder. The default is the model of the experiments.

    Args:
        data_shape: shape of one example, without the batch.
        hidden: widths of the encoder's hidden layers, in order.
        latent_dim: number of latent coordinates.
        likelihood: `Bernoulli()` if not given.
        input_clip: the encoder sees the inputs clipped to [input_clip, 1 - input_clip], if it is above 0: for data in
            [0, 1], whose features are mostly at an end. No change of such a feature by up to input_clip is seen.

    Raises ValueError for an input_clip outside [0, 0.5).
    """
    if not 0 <= input_clip < 0.5:
        raise ValueError(f"input_clip must be in [0, 0.5), got {input_clip}")
    size = math.prod(data_shape)
    encoder = _mlp([size, *hidden, 2 * latent_dim])
    decoder = _mlp([latent_dim, *reversed(hidden), size])
    if input_clip > 0:
        encoder.insert(0, nn.Hardtanh(input_clip, 1 - input_clip))
    if len(data_shape) > 1:
        encoder.insert(0, nn.Flatten())
        decoder.append(nn.Unflatten(1, tuple(data_shape)))
    return VAE(encoder, decoder, likelihood or Bernoulli(), latent_dim)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_vae(
    data_shape: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (16, 32),
    latent_dim: int = 20,
    likelihood: Likelihood | None = None,
) -> VAE:
    """A convolutional VAE with ReLU: each stage halves the sides; transposed convolutions mirror it.

    Raises:
        ValueError: data_shape is not (channels, height, width) with height and width divisible by 2 ** len(channels).
    """
    factor = 2 ** len(channels)
    if len(data_shape) != 3 or data_shape[1] % factor or data_shape[2] % factor:
        raise ValueError(
            f"data_shape must be (channels, height, width) with sides divisible by {factor}, got {tuple(data_shape)}"
        )
    depths = [data_shape[0], *channels]
    inner = (channels[-1], data_shape[1] // factor, data_shape[2] // factor)
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for outer, deeper in pairwise(depths):
        down += [nn.Conv2d(outer, deeper, kernel_size=4, stride=2, padding=1), nn.ReLU()]
        up = [nn.ReLU(), nn.ConvTranspose2d(deeper, outer, kernel_size=4, stride=2, padding=1), *up]
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(inner), 2 * latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, math.prod(inner)), nn.Unflatten(1, inner), *up)
    return VAE(encoder, decoder, likelihood or Bernoulli(), latent_dim)
