"""Boxes, points of balls and values of the ELBO that share no code with what paperlib computes, and the audit of both.

Everything is float64. `ROUNDING` is the one allowance: sums of up to some hundred terms taken in another order than the
bound takes them differ by about 1e-15 of their size, and 1e-12 leaves room for cancellation.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as BernoulliDensity
from torch.distributions import Normal, kl_divergence

from paperlib import VAE, Bernoulli, Gaussian, Interval, LinfBall, conv_vae, elbo, elbo_bounds, mlp_vae
from paperlib.elbo import certificate
from paperlib.likelihood import Likelihood

ROUNDING = 1e-12
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": partial(Gaussian, scale=0.5),
    "learned": partial(Gaussian, scale=2.0, learned=True),
}
TARGETS = ["perturbed", "clean"]


def random_box(*shape: int) -> Interval:
    """Ends of both signs around 0; one coordinate in eight has radius 0."""
    center = torch.randn(shape, dtype=torch.float64)
    radius = torch.rand(shape, dtype=torch.float64) * (torch.rand(shape) > 1 / 8)
    return Interval(center - radius, center + radius)


def points_of(lower: Tensor, upper: Tensor, count: int = 16) -> Tensor:
    """Both ends, the centre, corners (all of them, if a row has at most 2^6) and uniform points: [points, *shape]."""
    size = lower[0].numel() if lower.ndim > 1 else lower.numel()
    if size <= 6:
        corners = torch.tensor(list(product([0.0, 1.0], repeat=size))).view(
            -1, *[1] * (lower.ndim > 1), *lower.shape[1:]
        )
        corners = corners.expand(-1, *lower.shape) if lower.ndim > 1 else corners.view(-1, *lower.shape)
    else:
        corners = torch.randint(0, 2, (count, *lower.shape))
    place = torch.cat([corners.double(), torch.rand(count, *lower.shape, dtype=torch.float64)])
    inside = torch.where(place == 1, upper, lower + (upper - lower) * place)  # a corner is the end itself, bit for bit
    return torch.cat([torch.stack([lower, upper, (lower + upper) / 2]), inside.clamp(lower, upper)])


def assert_encloses(box: Interval, values: Tensor, rounding: float = ROUNDING) -> None:
    """Elementwise, for values [points, *shape of the box]; `rounding` is relative to the larger end, or to 1."""
    slack = rounding * torch.maximum(box.lower.abs(), box.upper.abs()).clamp(min=1)
    assert (box.lower <= box.upper).all(), "the ends of the bound are swapped, or NaN"
    assert (box.lower - slack <= values).all(), f"below the lower end by {(box.lower - values).max():.3g}"
    assert (values <= box.upper + slack).all(), f"above the upper end by {(values - box.upper).max():.3g}"


def reference_elbo(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
    """log p(target | z) - KL by torch.distributions from the plain encoder and decoder, [batch], in nats."""
    raw = vae.encoder(x)
    posterior = Normal(raw[:, : vae.latent_dim], raw[:, vae.latent_dim :].exp().sqrt())
    kl = kl_divergence(posterior, Normal(torch.zeros_like(noise), torch.ones_like(noise)))
    output = vae.decoder(posterior.mean + posterior.stddev * noise)
    if isinstance(vae.likelihood, Gaussian):
        pixels = Normal(output, vae.likelihood.log_scale.exp())
    else:
        pixels = BernoulliDensity(logits=output, validate_args=False)  # grey values are outside its support
    return pixels.log_prob(target).flatten(1).sum(1) - kl.sum(1)


@torch.no_grad()
def audit(vae: VAE, x: Tensor, eps: float, noise: Tensor, target: str) -> None:
    """Fails unless `elbo` is the reference and `elbo_bounds` encloses it on [0, 1], and both close exactly at eps 0."""
    clean = reference_elbo(vae, x, noise, x)
    torch.testing.assert_close(elbo(vae, x, noise), clean, rtol=ROUNDING, atol=ROUNDING)

    points = points_of(torch.maximum(x - eps, torch.zeros_like(x)), torch.minimum(x + eps, torch.ones_like(x)))
    values = torch.stack([reference_elbo(vae, p, noise, p if target == "perturbed" else x) for p in points])
    bounds = elbo_bounds(vae, x, LinfBall(eps), noise, target=target)
    assert_encloses(bounds, values)
    assert torch.equal(certificate(vae, x, LinfBall(eps), noise, target=target), bounds.lower), "two certificates"

    closed = elbo_bounds(vae, x, LinfBall(0.0), noise, target=target)
    assert torch.equal(closed.lower, closed.upper), "the bounds do not close at eps 0"
    assert torch.equal(closed.lower, elbo(vae, x, noise)), "the bounds at eps 0 are not the ELBO"


def audit_case(name: str, likelihood: str = "bernoulli", batch: int = 3) -> tuple[VAE, Tensor, Tensor]:
    """A seeded network in float64 with inputs and noise: `CASES` names them.

    Interval bounds of a random network are so loose that most bugs hide in the slack, thus some are built to be tight:
    each of "chain", "spread" and "flat" reaches one bound of the certificate at a corner.
    """
    torch.manual_seed(1)
    vae = CASES[name](LIKELIHOODS[likelihood]()).double().eval()
    shape = {"conv": (1, 4, 4), "chain": (1,)}.get(name, (3,))
    x = torch.rand(batch, *shape, dtype=torch.float64).round(decimals=1)  # some pixels near or on the edge of [0, 1]
    x[0], x[-1] = 0.0, 1.0
    noise = torch.randn(batch, vae.latent_dim, dtype=torch.float64)
    return vae, x, noise


def _affine(rows: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.weight.data, layer.bias.data = torch.tensor(rows), torch.tensor(bias)
    return layer


def _chain(likelihood: Likelihood) -> VAE:
    """One pixel and one latent: mean = 3x - 1, log_var = -20, output = 1 - 2z, so the KL and the fit are tight."""
    return VAE(_affine([[3.0], [0.0]], [-1.0, -20.0]), _affine([[-2.0]], [1.0]), likelihood, 1)


def _spread(likelihood: Likelihood) -> VAE:
    """The log-variances alone move, from -2 to 2 with the pixels, and the decoder magnifies z: a tight latent box."""
    encoder = _affine([[0.0] * 3] * 3 + [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], [0.0] * 3 + [-2.0] * 3)
    return VAE(encoder, _affine([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]], [0.5, 0.5, 0.5]), likelihood, 3)


def _flat(likelihood: Likelihood) -> VAE:
    """The decoder ignores z and says 5, -5, 0: only the target's box matters."""
    return VAE(_affine([[0.0] * 3] * 2, [0.0, 0.0]), _affine([[0.0]] * 3, [5.0, -5.0, 0.0]), likelihood, 1)


CASES = {
    "mlp": lambda likelihood: mlp_vae((3,), (5,), 2, likelihood),
    "deep": lambda likelihood: mlp_vae((3,), (6, 4), 2, likelihood),
    "conv": lambda likelihood: conv_vae((1, 4, 4), (2, 3), 2, likelihood),
    "chain": _chain,
    "spread": _spread,
    "flat": _flat,
}


def grid(lower: float, upper: float, count: int = 101) -> Tensor:
    """Evenly spaced from end to end, both ends exact."""
    points = torch.linspace(lower, upper, count, dtype=torch.float64)
    points[0], points[-1] = lower, upper
    return points.clamp(lower, upper)
