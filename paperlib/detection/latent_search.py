"""The search for the latent whose image is nearest, as it is published: samples of the prior, then gradient descent."""

import torch
from torch import Tensor, nn

from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.attacks import keep_lower, value_and_gradient

SAMPLES = 2_000  # of the prior
STEPS = 50  # of Adam, from the best sample
LR = 0.05


@outside_inference_mode
def nearest_latents(
    decoder: nn.Module,
    x: Tensor,
    latent_dim: int,
    weight: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Latents at which  ||x - decoder(z)||^2 + weight * ||z||^2  is low, [batch, latent_dim]: the best that was met.

    It proves nothing: the minimum may be lower elsewhere (Schott et al. 2019, arXiv 1805.09190, search likewise).

    Args:
        decoder: latents -> flat images [count, pixels].
        x: [batch, pixels].
    """
    samples = torch.randn(SAMPLES, latent_dim, generator=generator, dtype=x.dtype)

    def score(z: Tensor) -> Tensor:
        return (x - decoder(z)).square().sum(1) + weight * z.square().sum(1)

    with torch.no_grad():
        cost = torch.cdist(x, decoder(samples)).square() + weight * samples.square().sum(1)
    z = samples[cost.argmin(1)].clone()
    best, least = z.clone(), torch.full_like(z[:, 0], torch.inf)
    optimizer = torch.optim.Adam([z], lr=LR)
    for _ in range(STEPS):
        value, z.grad = value_and_gradient(score, z.detach())
        best, least = keep_lower(best, least, z.detach().clone(), value)
        optimizer.step()
    with torch.no_grad():
        return keep_lower(best, least, z, score(z))[0]
