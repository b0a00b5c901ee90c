"""Lipschitz VAEs (Barrett, Camuto, Willetts & Rainforth 2022, "Certifiably robust variational autoencoders", AISTATS,
arXiv 2102.07559): networks whose Lipschitz constants are chosen before training, and the radius that these certify.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, skip_init

from paperlib.models.likelihood import Likelihood
from paperlib.models.vae import VAE
from paperlib.rivals.lipschitz_layers import GroupSort, LogVariance, TwoLinear


class LipschitzConstants(NamedTuple):
    """Of the networks of decoder, mean and sigma, before any sigmoid, in l2: a, b and c of the published margin."""

    decoder: float
    mean: float
    sigma: float


def lipschitz_vae(
    data_shape: Sequence[int],
    hidden: Sequence[int],
    latent_dim: int,
    likelihood: Likelihood,
    *,
    a: float,
    b: float,
    c: float,
) -> VAE:
    """A VAE whose decoder is a-Lipschitz, mean b-Lipschitz and sigma c-Lipschitz in l2, before and after any training.

    As published, mean and sigma are separate networks, and each of the three is made of linear layers with orthonormal
    rows or columns, GroupSort of pairs between them, and a factor for each layer, so that the factors' product is the
    network's constant; sigma is the sigmoid of its network, which lies in (0, 1). The encoder returns mean and
    log sigma^2, as that of every VAE here. For a Bernoulli likelihood the decoder gives logits, and the published
    decoder is their sigmoid.

    The sigmoid's own constant is 1/4, which the publication does not use: sigma is even c/4-Lipschitz, and so are the
    pixel means of a Bernoulli decoder with a/4.

    Constants hold in real arithmetic for orthonormal weights; in float32 weights are so within 1e-6. `train` takes the
    VAE as it is. Then take `materialize(vae)`, whose weights are plain, and save that.

    Args:
        data_shape: shape of one example, without the batch.
        hidden: even widths of the hidden layers of each encoder network, which the decoder mirrors.

    Raises:
        ValueError: an odd width, a constant that is not positive and finite.
    """
    for name, constant in zip("abc", (a, b, c), strict=True):
        if not 0 < constant < math.inf:
            raise ValueError(f"the Lipschitz constant {name} must be positive and finite, got {constant}")
    size, layers = math.prod(data_shape), len(hidden) + 1
    of_decoder, of_mean, of_sigma = (constant ** (1 / layers) for constant in (a, b, c))
    encoder, decoder = nn.Sequential(), nn.Sequential()
    for place, widths in enumerate(pairwise([size, *hidden, latent_dim])):
        if place:
            encoder.append(GroupSort(2 * widths[0]))
        encoder.append(TwoLinear(_orthonormal(*widths, of_mean), _orthonormal(*widths, of_sigma), shared=place == 0))
    for place, widths in enumerate(pairwise([latent_dim, *reversed(hidden), size])):
        if place:
            decoder.append(GroupSort(widths[0]))
        decoder.append(_orthonormal(*widths, of_decoder))
    encoder.append(LogVariance())
    if len(data_shape) > 1:
        encoder.insert(0, nn.Flatten())
        decoder.append(nn.Unflatten(1, tuple(data_shape)))
    return VAE(encoder, decoder, likelihood, latent_dim)


class _Orthonormal(nn.Module):
    """Any matrix -> `factor` times one with orthonormal columns, or rows if it has fewer of them: Q of its QR
    decomposition, which is unique with a positive diagonal of R.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, matrix: Tensor) -> Tensor:
        wide = matrix.shape[0] < matrix.shape[1]
        q, r = torch.linalg.qr(matrix.T if wide else matrix)
        q = q * (self.factor * r.diagonal().sign())
        return q.T if wide else q


def _orthonormal(fan_in: int, fan_out: int, factor: float) -> nn.Linear:
    """A linear layer whose weight is `factor` times a matrix of orthonormal rows or columns, however it is trained."""
    # torch.nn.utils.parametrizations.orthogonal maps through square matrices of the larger side: three to eight times
    # the cost for layers of 784 to 512 or 256 units.
    layer = nn.Linear(fan_in, fan_out)
    parametrize.register_parametrization(layer, "weight", _Orthonormal(factor))
    return layer


@torch.no_grad()
def materialize(vae: VAE) -> VAE:
    """A copy with plain weights that computes the same: what `sound=True` asks for, and quicker.

    A file that `save` makes of it is read by `load(path, vae=materialize(lipschitz_vae(...)))`.
    """
    plain = copy.deepcopy(vae)
    for parent in list(plain.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer):
                setattr(parent, name, _plain(layer))
    return plain


def _plain(layer: nn.Linear) -> nn.Linear:
    # torch's remove_parametrizations takes the weight from the class, which all copies of the layer share.
    like = layer.weight
    plain = skip_init(
        nn.Linear, layer.in_features, layer.out_features, layer.bias is not None, device=like.device, dtype=like.dtype
    )
    plain.weight.copy_(like)
    if layer.bias is not None:
        plain.bias.copy_(layer.bias)
    return plain.train(layer.training)


@torch.no_grad()
def lipschitz_constants(vae: VAE) -> LipschitzConstants:
    """The constants of a Lipschitz VAE from its weights as they are: products of spectral norms, in float64.

    Raises:
        ValueError: a model with another layer than `lipschitz_vae` makes.
    """
    linear: dict[str, list[nn.Linear]] = {"decoder": [], "mean": [], "sigma": []}
    for network in (vae.encoder, vae.decoder):
        for layer in network.children():
            if isinstance(layer, TwoLinear):
                linear["mean"].append(layer.mean)
                linear["sigma"].append(layer.sigma)
            elif isinstance(layer, nn.Linear) and network is vae.decoder:
                linear["decoder"].append(layer)
            elif not isinstance(layer, GroupSort | LogVariance | nn.Flatten | nn.Unflatten):
                raise ValueError(f"not a model of lipschitz_vae: it has the layer {layer}")
    norms = {
        name: math.prod(torch.linalg.matrix_norm(layer.weight.double(), 2).item() for layer in layers)
        for name, layers in linear.items()
    }
    return LipschitzConstants(**norms)


def r_robustness_margin(a: float, b: float, c: float, s: Tensor, r: float) -> Tensor:
    """The published margin: for every x' with ||x' - x||_2 <= R the reconstruction is damaged by more than r with
    probability at most 1/2,

        P( ||dec(z') - dec(z)||_2 <= r ) >= 1/2     for  z ~ q(z|x)  and  z' ~ q(z|x'),

    and with more than 1/2 where the two draws are independent. R is 0 where not even x itself has this promise.

    By Markov's inequality on the squared damage, which is at most a^2 ||z' - z||^2. With z = mean + sigma xi the
    noise has mean 0, so that by Minkowski's inequality, however xi and xi' depend on each other,

        E ||z' - z||^2  <=  ||mean' - mean||^2 + (||sigma'|| + ||sigma||)^2  <=  b^2 R^2 + (c R + 2 s)^2.

    R is the largest radius at which a^2 times this is at most r^2 / 2:

        (c^2 + b^2) R^2 + 4 c s R + 4 s^2 - r^2 / (2 a^2)  <=  0.

    It speaks of the damage to a reconstruction, not of the ELBO, and of draws, not of every draw.

    Args:
        a, b, c: Lipschitz constants of decoder, mean and sigma, positive.
        s: ||sigma(x)||_2, [batch].
        r: the damage that is allowed, an l2 distance in the units of what the decoder gives.

    Returns:
        R: [batch], an l2 radius in the units of the data.

    Raises:
        ValueError: a constant that is not positive and finite, an r or s that is negative, an infinite r.
    """
    if not all(0 < constant < math.inf for constant in (a, b, c)) or not 0 <= r < math.inf or not (s >= 0).all():
        raise ValueError(
            f"the margin needs positive a, b, c, a finite r and no negative s, got a={a}, b={b}, c={c}, r={r}"
        )
    room = r**2 / (2 * a**2) - 4 * s.square()
    half = 2 * c * s
    # the larger root, in the form that does not subtract two near numbers
    root = room / (half + (half.square() + (c**2 + b**2) * room.clamp(min=0)).sqrt())
    return torch.where(room > 0, root, 0.0)
