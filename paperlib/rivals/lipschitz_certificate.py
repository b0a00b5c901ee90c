"""A certified ELBO of a Lipschitz VAE from its constants alone. It is not in the publication, which bounds the damage
to a reconstruction; bounds that go layer by layer lose the constants that such a network is built for.
"""

import torch
from torch import Tensor, nn

from paperlib.models.elbo import Target, check_inputs, check_target, check_targets, elbo_terms
from paperlib.models.gaussian import reparametrize
from paperlib.models.likelihood import Bernoulli, Gaussian
from paperlib.models.vae import VAE
from paperlib.rivals.lipschitz import lipschitz_constants


@torch.no_grad()
def lipschitz_certificate(
    vae: VAE, x: Tensor, radius: float | Tensor, noise: Tensor, target: Target = "perturbed"
) -> Tensor:
    """Certified: every x' with ||x' - x||_2 <= R has an ELBO(x'; noise) of at least this, [batch], nats.

    With a, b, c the constants of decoder, mean and the network v of sigma = sigmoid(v), D the change of the latent and
    E that of the decoder's output,

        ||mean' - mean|| <= b R,   ||v' - v|| <= c R,   D <= (b + max |noise| c / 4) R,   E <= a D.

    Then, o being the output at x and p the pixel means there, for x' as the target

        Bernoulli:  log p(x'|o')  >=  log p(x|o) - R ||o|| - (||x - p|| + R) E - E^2 / 8
        Gaussian:   log p(x'|o')  >=  log N at the distance  ||x - o|| + R + E
        KL'         <=  KL + b R ||mean|| + (b R)^2 / 2 + c R ||slope||

    with `slope` the steepest that the KL in v is within c R of it; the KL is convex in v. For the clean target the
    terms of R that stand beside those of E are left out. Holds in real arithmetic.

    Args:
        vae: made by `lipschitz_vae`, plain or not.
        x: [batch, *data_shape].
        radius: R, one or [batch], in the units of the data. An l-infinity ball of radius eps lies within eps sqrt(n).
        noise: [batch, latent_dim].

    Raises:
        ValueError: a negative radius, another model or likelihood, inputs that do not fit; see `elbo`.
    """
    check_target(target)
    check_inputs(vae, x, noise)
    check_targets(vae, x)
    reach = torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand(len(x))
    if not (reach >= 0).all():
        raise ValueError(f"the radius must not be negative, got {radius}")
    a, b, c = lipschitz_constants(vae)
    networks = vae.encoder  # mean and v, then the layer that makes log sigma^2 of v
    assert isinstance(networks, nn.Sequential)
    log_likelihood, kl = elbo_terms(vae, x, noise, x)
    mean, log_var = vae.encode(x)
    output = vae.decoder(reparametrize(mean, log_var, noise))

    moved_output = a * (b + c / 4 * noise.abs().amax(1)) * reach
    moved_target = reach if target == "perturbed" else torch.zeros_like(reach)
    residual = (x - vae.likelihood.mean(output)).flatten(1).norm(dim=1)
    if isinstance(vae.likelihood, Bernoulli):
        fall = moved_target * output.flatten(1).norm(dim=1)
        fall = fall + (residual + moved_target) * moved_output + moved_output.square() / 8
    elif isinstance(vae.likelihood, Gaussian):
        moved = moved_target + moved_output
        fall = (residual + moved / 2) * moved * torch.exp(-2 * vae.likelihood.log_scale).amax()  # one a pixel, or one
    else:
        raise ValueError(f"there is no Lipschitz certificate for {type(vae.likelihood).__name__}")

    moved_mean, moved_v = b * reach, c * reach
    # KL in v: (sigma^2 - 1) / 2 - log sigma, with the derivative  -(1 - sigma)^2 (1 + sigma),  steepest furthest down
    _, v = networks[:-1](x).chunk(2, -1)
    sigma = torch.sigmoid(v - moved_v.unsqueeze(1))
    slope = ((1 - sigma).square() * (1 + sigma)).norm(dim=1)
    rise = moved_mean * (mean.norm(dim=1) + moved_mean / 2) + moved_v * slope
    return log_likelihood - fall - kl - rise
