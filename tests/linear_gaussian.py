"""A VAE whose likelihood has a closed form: a linear decoder and Gaussian noise make Gaussian data."""

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from paperlib import VAE, Gaussian


def linear_gaussian(seed: int = 0) -> tuple[VAE, Tensor]:
    """p(x) = N(b, W W^T + s^2 I) of three pixels and two latents, with an encoder near the exact posterior but too wide
    and a little off; and four inputs, in float64.
    """
    torch.manual_seed(seed)
    encoder, decoder, scale = nn.Linear(3, 4).double(), nn.Linear(2, 3).double(), 0.5
    weight = decoder.weight.data
    precision = torch.eye(2).double() + weight.T @ weight / scale**2
    gain = torch.linalg.solve(precision, weight.T) / scale**2  # of the posterior's mean
    encoder.weight.data = torch.cat([gain + 0.2, torch.zeros(2, 3).double()])
    log_var = -precision.diagonal().log() + 0.5
    encoder.bias.data = torch.cat([-gain @ decoder.bias.data, log_var])
    return VAE(encoder, decoder, Gaussian(scale), 2).double().eval(), torch.rand(4, 3).double()


def exact_log_likelihood(vae: VAE, x: Tensor) -> Tensor:
    """log N(x; b, W W^T + s^2 I), [...] for x of [..., 3]."""
    decoder, likelihood = vae.decoder, vae.likelihood
    assert isinstance(decoder, nn.Linear) and isinstance(likelihood, Gaussian)
    noise = likelihood.log_scale.exp().square() * torch.eye(3).double()
    return MultivariateNormal(decoder.bias, decoder.weight @ decoder.weight.T + noise).log_prob(x).detach()
