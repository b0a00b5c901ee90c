"""The ELBO for a fixed noise draw, and certified bounds of it over an l-infinity ball.

Shapes: x is [batch, *data_shape], noise is [batch, latent_dim], results are [batch], in nats.
`target` says what the decoder must explain at a perturbed input x': "perturbed" is x' itself (the paper), "clean" is
the unperturbed x (denoising), and for `elbo` any tensor of the shape of x.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from paperlib import crown, gaussian
from paperlib.boxes import Boxes, boxes, same_shape
from paperlib.exact import exact_bounds
from paperlib.interval import Interval, LinfBall
from paperlib.refine import refine
from paperlib.rounding import widen
from paperlib.sound import SoundBoxes, sound_boxes
from paperlib.vae import VAE

Target = Literal["perturbed", "clean"]
Method = Literal["ibp", "crown-ibp", "crown", "exact", "best"]


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
    *,
    budget: int = 100,
    tol: float = 1e-3,
    sound: bool = False,
) -> Interval:
    """Certified: every x' in the ball around x has lower <= ELBO(x'; noise) <= upper, [batch], in nats.

    Holds for this noise draw and in real arithmetic; in float32 rounding can exceed it by about 1e-6 of its size. With
    `sound` it holds for the numbers that `elbo` returns in the precision of its arguments, whatever the order of its
    sums; the bounds are then float64. No method is ever looser than "ibp".

    Args:
        vae: in evaluation mode if it has dropout or batch normalisation.
        method: "ibp", interval bound propagation, two products a layer; differentiable in the parameters.
            "crown-ibp", linear bounds of the whole ELBO over the boxes of "ibp", one form pulled back; differentiable.
            "crown", the same over boxes that linear bounds have tightened, a form for each latent.
            "exact", branch and bound, for at most three inputs.
            "best", the tightest of the first three within `budget`.
        target: "perturbed": the likelihood of x' itself, whose box is the input's; "clean": the likelihood of x.
        steps: of a search for the free slopes of linear bounds. None is looser than no search, and none has a gradient.
        budget: of "best", in evaluations of the ELBO for each example.
        tol: of "exact": how far the ends may be from the true extremes, in nats.

    Raises:
        ValueError: x outside the data range or not finite, misfitting shapes or dtypes, an unknown method or target;
            with `sound`, arithmetic that rounds in ways without a bound (TF32, bfloat16), or "exact".
        UnsupportedLayerError: a layer without the rules that the method needs.
        NotImplementedError: a likelihood without them.
    """
    _check_method(method, sound)
    if method == "exact":
        return _exact(vae, x, ball, noise, target, tol)
    if method == "best":
        method, steps = _best(vae, budget)
    vae, noise, known, rounding = _prepared(vae, x, ball, noise, target, sound)
    log_likelihood = vae.likelihood.bounds(known.output, known.target)
    kl = gaussian.kl_bounds(known.mean, known.log_var)
    bounds = Interval(log_likelihood.lower - kl.upper, log_likelihood.upper - kl.lower)
    if method != "ibp":
        relaxed = _relaxed(vae, known, noise, rounding, method)
        lower, upper = crown.lower(relaxed, steps), crown.upper(relaxed, steps)
        bounds = Interval(
            torch.maximum(bounds.lower, lower - _slack(lower)), torch.minimum(bounds.upper, upper + _slack(upper))
        )
    return bounds if rounding is None else widen(bounds, rounding.value)


def certificate(
    vae: VAE,
    x: Tensor,
    ball: LinfBall,
    noise: Tensor,
    target: Target = "perturbed",
    method: Method = "ibp",
    steps: int = 0,
    *,
    budget: int = 100,
    tol: float = 1e-3,
    sound: bool = False,
) -> Tensor:
    """The lower end of `elbo_bounds` alone, [batch], in nats: what proVAE trains on. Arguments and errors as there."""
    _check_method(method, sound)
    if method == "exact":
        return _exact(vae, x, ball, noise, target, tol).lower
    if method == "best":
        method, steps = _best(vae, budget)
    return _lower(*_prepared(vae, x, ball, noise, target, sound), method, steps)


def box_certificate(vae: VAE, box: Interval, noise: Tensor, target: Interval, method: Method = "ibp") -> Tensor:
    """`certificate` for all inputs of a box and all targets of another, [batch]; checks shapes alone, for inner loops.

    `method` is "ibp" or "crown-ibp".
    """
    return _lower(vae, noise, boxes(vae, box, noise, target), None, method, 0)


def _lower(vae: VAE, noise: Tensor, known: Boxes, rounding: SoundBoxes | None, method: Method, steps: int) -> Tensor:
    bound = vae.likelihood.lower(known.output, known.target) - gaussian.kl_upper(known.mean, known.log_var)
    if method != "ibp":
        linear = crown.lower(_relaxed(vae, known, noise, rounding, method), steps)
        bound = torch.maximum(bound, linear - _slack(linear))
    return bound if rounding is None else bound - rounding.value


def _check_method(method: str, sound: bool) -> None:
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; use one of {', '.join(map(repr, get_args(Method)))}")
    if sound and method == "exact":
        raise ValueError('method="exact" holds in real arithmetic: with sound=True use another method')


def _prepared(
    vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: Target, sound: bool
) -> tuple[VAE, Tensor, Boxes, SoundBoxes | None]:
    """Checked arguments, and their boxes: those of the deployed network in float64 where the bound is to be sound."""
    check_target(target)
    check_inputs(vae, x, noise)
    with _fitting(x):
        if sound:
            found = sound_boxes(vae, x, ball, noise, target)
            return found.network, noise.double(), found.known, found
        box = ball.box(x)
        return vae, noise, boxes(vae, box, noise, box if target == "perturbed" else Interval(x, x)), None


def _exact(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor, target: Target, tol: float) -> Interval:
    check_target(target)
    check_inputs(vae, x, noise)
    box = ball.box(x)
    with _fitting(x):
        return exact_bounds(vae, box, noise, box if target == "perturbed" else Interval(x, x), tol)


def _relaxed(vae: VAE, known: Boxes, noise: Tensor, sound: SoundBoxes | None, method: Method) -> crown.Relaxed:
    relaxed = crown.relax(vae, known, noise, sound)
    return refine(relaxed) if method == "crown" else relaxed


def _best(vae: VAE, budget: int) -> tuple[Method, int]:
    # Costs in evaluations of the ELBO: "ibp" 2, "crown-ibp" 4, each form pulled back for "crown" one; a step of the
    # search takes a bound and its gradient.
    linear, step = 4, 4
    refined = linear + 4 * vae.latent_dim
    if budget < linear:
        return "ibp", 0
    return ("crown", (budget - refined) // step) if budget >= refined else ("crown-ibp", (budget - linear) // step)


def _slack(linear: Tensor) -> Tensor:
    # Lowered by a few units of rounding, a linear bound never passes the interval's by rounding alone.
    return 64 * torch.finfo(linear.dtype).eps * (1 + linear.detach().abs())


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
