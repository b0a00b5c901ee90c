"""One perturbation for a whole set of inputs, and how far it carries over to others."""

import math

import pandas as pd
import torch
from torch import Tensor

from paperlib.models.elbo import check_inputs, check_targets, explain_misfit, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.shifts import add, around_zero


@outside_inference_mode
def universal_attack(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    epochs: int = 10,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One perturbation v for all x, [*data_shape], that makes their mean ELBO low:

        min over v in the set around 0 of  mean over i of  ELBO( x_i + v, brought back into B(x_i) ),

    the best that stochastic gradient descent has at the end of an epoch. The mean is never above the clean one, and
    `add` of `threats.shifts` never leaves the set. The first step is of the set's size, later ones shrink as in `pgd`.

    Args:
        x: [count, *data_shape] in the data range.
        ball: of one size for all examples.
        noise: [count, latent_dim].
        epochs: passes over x in random order.
        batch_size: examples of each step.
        generator: draws the order.

    Raises:
        ValueError: fewer than one epoch or example, in a batch or at all, a set that has a size for each example, x
            outside the data range, shapes or dtypes that do not fit, targets that the likelihood does not explain.
    """
    if epochs < 1 or batch_size < 1 or len(x) < 1:
        raise ValueError(
            f"a universal attack needs at least one epoch and one example, in a batch and at all, got epochs={epochs}, "
            f"batch_size={batch_size}, {len(x)} examples"
        )
    check_inputs(vae, x, noise)
    if ball.rows(slice(0, 1), x) is not ball:
        raise ValueError("one perturbation for all examples needs a set of one size, this one has a size for each")
    check_targets(vae, *ball.box(x))
    shifts, zero = around_zero(ball, ball.high - ball.low), torch.zeros_like(x[:1])
    shift = best = zero[0]
    least, step, steps = _mean_elbo(vae, x, ball, noise, batch_size, shift), 0, epochs * math.ceil(len(x) / batch_size)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator, device=x.device)
        for rows in order.split(batch_size):
            scale = 1.0 if step == 0 else 0.5 - 0.475 * step / steps
            slope = _slope(vae, x[rows], ball, noise[rows], shift)
            shift = shifts.project(shift - shifts.steepest(slope[None], zero, scale), zero)[0]
            step += 1
        value = _mean_elbo(vae, x, ball, noise, batch_size, shift)
        if value < least:
            best, least = shift, value
    return best


@torch.no_grad()
def transfer(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, shift: Tensor) -> pd.DataFrame:
    """What a universal perturbation does to inputs that it was not made for: a row for each, with the columns index,
    clean and attacked (ELBOs in nats, at the same noise).

    The mean fall here beside that on the inputs of `universal_attack` says how far it carries over.

    Raises ValueError for a shift that is not of the shape of one example, and as `paperlib.elbo`.
    """
    check_inputs(vae, x, noise)
    x_adv = add(shift, x, ball)
    check_targets(vae, x, x_adv)
    with explain_misfit(x):
        columns = {"clean": unchecked_elbo(vae, x, noise, x), "attacked": unchecked_elbo(vae, x_adv, noise, x_adv)}
    table = {name: value.double().cpu().numpy() for name, value in columns.items()}
    return pd.DataFrame({"index": range(len(x)), **table})


@torch.enable_grad()
def _slope(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, shift: Tensor) -> Tensor:
    """The slope of the summed ELBO along each element of the shift, in the direction that lowers it; 0 if none does.

    Examples at an end of the data range do not follow the shift outwards, so there is one slope upwards and another
    downwards.
    """
    point = add(shift, x, ball).requires_grad_()
    (gradient,) = torch.autograd.grad(unchecked_elbo(vae, point, noise, point).sum(), point)
    upwards = (gradient * (point < ball.high)).sum(0)
    downwards = (gradient * (point > ball.low)).sum(0)
    return torch.where(downwards > -upwards, downwards.clamp(min=0), upwards.clamp(max=0))


@torch.no_grad()
def _mean_elbo(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, batch_size: int, shift: Tensor) -> float:
    total = 0.0
    for part, draw in zip(x.split(batch_size), noise.split(batch_size), strict=True):
        point = add(shift, part, ball)
        with explain_misfit(x):
            total += unchecked_elbo(vae, point, draw, point).sum().item()
    return total / len(x)
