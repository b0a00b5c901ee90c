"""The ELBO for a fixed noise draw.

Shapes: x is [batch, *data_shape], noise is [batch, latent_dim], results are [batch], in nats.
`target` says what the decoder must explain at a perturbed input x': "perturbed" is x' itself (the paper), "clean" is
the unperturbed x (denoising), and for `elbo` any tensor of the shape of x.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from paperlib.models import gaussian
from paperlib.models.vae import VAE

Target = Literal["perturbed", "clean"]


def elbo(vae: VAE, x: Tensor, noise: Tensor, target: Target | Tensor = "perturbed") -> Tensor:
    """ELBO(x; noise) = log p(target | z) - KL( q(z|x) || N(0, I) ) at the latent z of this noise: [batch], nats.

    At the unperturbed x itself "perturbed" and "clean" are the same; a perturbed point x' that is to explain the clean
    x passes that x as `target`.

    Raises:
        ValueError: shapes or dtypes that do not fit, or x or noise not finite.
    """
    if isinstance(target, str):
        check_target(target)
        target = x
    check_inputs(vae, x, noise)
    with explain_misfit(x):
        return unchecked_elbo(vae, x, noise, target)


def unchecked_elbo(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
    """`elbo` for inner loops: checks shapes alone."""
    log_likelihood, kl = elbo_terms(vae, x, noise, target)
    return log_likelihood - kl


def elbo_terms(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the ELBO, log p(target | z) and KL, each [batch], nats; checks shapes alone, for inner loops."""
    mean, log_var = vae.encode(x)
    check_shape("the encoder's mean", mean, "noise", noise, x)
    check_shape("the encoder's log_var", log_var, "noise", noise, x)
    output = vae.decoder(gaussian.reparametrize(mean, log_var, noise))
    check_shape("the decoder's output", output, "target", target, x)
    return vae.likelihood.log_prob(output, target), gaussian.kl(mean, log_var)


def check_target(target: str) -> None:
    """Raises ValueError unless the word is "perturbed" or "clean"."""
    if target not in ("perturbed", "clean"):
        raise ValueError(f'target must be "perturbed" or "clean", got {target!r}')


def check_inputs(vae: VAE, x: Tensor, noise: Tensor) -> None:
    """Raises ValueError, saying what is wrong, unless x and noise are finite and fit the model and each other."""
    if noise.shape != (len(x), vae.latent_dim):
        raise ValueError(f"noise must be [batch, latent_dim] = {[len(x), vae.latent_dim]}, got {list(noise.shape)}")
    parameter = next(vae.parameters())
    for name, tensor in (("x", x), ("noise", noise)):
        if tensor.dtype != parameter.dtype or tensor.device != parameter.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, the model is {parameter.dtype} on {parameter.device}"
            )
    for name, tensor in (("x", x), ("noise", noise)):
        if not torch.isfinite(tensor).all():
            index = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            raise ValueError(f"{name} is not finite at index {index}")


def check_shape(what: str, made: Tensor, name: str, given: Tensor, x: Tensor) -> None:
    """Raises ValueError where broadcasting would turn a wrong shape into a wrong number."""
    if made.shape != given.shape:
        raise ValueError(f"{what} is {list(made.shape)} for x of {list(x.shape)}, {name} is {list(given.shape)}")


@contextmanager
def explain_misfit(x: Tensor) -> Iterator[None]:
    """Turns torch's RuntimeError on an x that the network cannot take into a ValueError that names the shape of x."""
    try:
        yield
    except (torch.OutOfMemoryError, NotImplementedError):  # both are RuntimeErrors that say what is wrong
        raise
    except RuntimeError as error:
        raise ValueError(f"x of shape {list(x.shape)} does not fit the model: {error}") from error
