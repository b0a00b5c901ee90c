"""The ELBO for a fixed noise draw, and certified bounds of it over an l-infinity ball.

Shapes: x is [batch, *data_shape], noise is [batch, latent_dim], results are [batch], in nats.
`target` says what the decoder must explain at a perturbed input x': "perturbed" is x' itself (the paper), "clean" is
the unperturbed x (denoising), and for `elbo` any tensor of the shape of x.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from paperlib import crown, gaussian
from paperlib.boxes import Boxes, boxes, same_shape
from paperlib.interval import Interval, LinfBall
from paperlib.vae import VAE

Target = Literal["perturbed", "clean"]
Method = Literal["ibp", "crown-ibp", "crown"]


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
    with _fitting(x):
        log_likelihood, kl = elbo_terms(vae, x, noise, target)
    return log_likelihood - kl


def elbo_terms(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the ELBO, log p(target | z) and KL, each [batch], nats; checks shapes alone, for inner loops."""
    mean, log_var = vae.encode(x)
    same_shape("the encoder's mean", mean, "noise", noise, x)
    output = vae.decoder(gaussian.reparametrize(mean, log_var, noise))
    same_shape("the decoder's output", output, "target", target, x)
    return vae.likelihood.log_prob(output, target), gaussian.kl(mean, log_var)


def elbo_bounds(
    vae: VAE,
    x: Tensor,
    ball: LinfBall,
    noise: Tensor,
    method: Method = "ibp",
    target: Target = "perturbed",
    steps: int = 0,
) -> Interval:
    """Certified: every x' in the ball around x has lower <= ELBO(x'; noise) <= upper, [batch], in nats.

    Holds for this noise draw and in real arithmetic; in float32 rounding can exceed it by about 1e-6 of its size.
    Differentiable in the parameters, so the lower end can be trained on.

    Args:
        vae: in evaluation mode if it has dropout or batch normalisation.
        method: "ibp", interval bound propagation.
        target: "perturbed": the likelihood of x' itself, whose box is the input's; "clean": the likelihood of x.

    Raises:
        ValueError: x outside the data range or not finite, misfitting shapes or dtypes, an unknown method or target.
        UnsupportedLayerError: a layer without interval rule.
    """
    known = _checked_boxes(vae, x, ball, noise, method, target)
    return bounds_over(vae, known, noise, method, steps)


def bounds_over(vae: VAE, known: Boxes, noise: Tensor, method: str, steps: int = 0) -> Interval:
    """`elbo_bounds` over boxes that are known: any box of inputs, not only a ball. Checks nothing."""
    log_likelihood = vae.likelihood.bounds(known.output, known.target)
    kl = gaussian.kl_bounds(known.mean, known.log_var)
    bounds = Interval(log_likelihood.lower - kl.upper, log_likelihood.upper - kl.lower)
    if method == "ibp":
        return bounds
    relaxed = _relaxed(vae, known, noise, method)
    return Interval(
        _better(bounds.lower, crown.lower(relaxed, steps), torch.maximum, -1),
        _better(bounds.upper, crown.upper(relaxed, steps), torch.minimum, 1),
    )


def certificate(
    vae: VAE,
    x: Tensor,
    ball: LinfBall,
    noise: Tensor,
    target: Target = "perturbed",
    method: Method = "ibp",
    steps: int = 0,
) -> Tensor:
    """The lower end of `elbo_bounds` alone, [batch], in nats: what proVAE trains on."""
    known = _checked_boxes(vae, x, ball, noise, method, target)
    lower = vae.likelihood.lower(known.output, known.target) - gaussian.kl_upper(known.mean, known.log_var)
    if method == "ibp":
        return lower
    relaxed = _relaxed(vae, known, noise, method)
    return _better(lower, crown.lower(relaxed, steps), torch.maximum, -1)


def _relaxed(vae: VAE, known: Boxes, noise: Tensor, method: str) -> crown.Relaxed:
    relaxed = crown.relax(vae, known, noise)
    return crown.refine(relaxed) if method == "crown" else relaxed


def _better(interval: Tensor, linear: Tensor, best: Callable[[Tensor, Tensor], Tensor], away: int) -> Tensor:
    # Moved away by a few units of rounding, a linear bound never passes the interval's by rounding alone.
    slack = away * 64 * torch.finfo(linear.dtype).eps * (1 + linear.detach().abs())
    return best(interval, linear + slack)


def _checked_boxes(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, method: str, target: str) -> Boxes:
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; use one of {', '.join(map(repr, get_args(Method)))}")
    check_target(target)
    check_inputs(vae, x, noise)
    box = ball.box(x)
    with _fitting(x):
        return boxes(vae, box, noise, box if target == "perturbed" else Interval(x, x))


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


@contextmanager
def _fitting(x: Tensor) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"x of shape {list(x.shape)} does not fit the model: {error}") from error
