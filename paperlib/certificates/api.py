"""Certified bounds of the ELBO over a perturbation set, by any method.

Shapes: x is [batch, *data_shape], noise is [batch, latent_dim], results are [batch], in nats.
"""

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.method import Method, find_method
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet


@outside_inference_mode
def elbo_bounds(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    method: str | Method = "ibp",
    target: Target = "perturbed",
    *,
    sound: bool = False,
) -> Interval:
    """Certified: every x' in the ball around x has lower <= ELBO(x'; noise) <= upper, [batch], in nats.

    Holds for this noise draw and in real arithmetic; in float32 rounding can exceed it by about 1e-6 of its size. With
    `sound` it holds for the numbers that `elbo` returns in the precision of its arguments, whatever the order of its
    sums; the bounds are then float64. No method is ever looser than "ibp".

    Bounds by methods without a gradient are constants for autograd: "crown", "exact", "best", "lagrangian",
    "beta-crown", and any with steps for alpha.

    Args:
        vae: in evaluation mode if it has dropout or batch normalisation.
        method: a method's object, which carries its options, or the word for it with its defaults. "ibp" (`IBP`) is
            the fastest, "crown-ibp" (`CrownIBP`) and "crown" (`Crown`) are tighter, "exact" (`BranchAndBound`) is for
            at most three inputs, "best" (`Auto`) is the tightest within a budget. From the literature, beside these
            (`paperlib.certificates.ladder`): "zonotope" (`DeepZ`), "hybrid-zonotope" (`HybridZonotope`), "dual-network"
            (`DualNetwork`), "lagrangian" (`Lagrangian`) and, tightest and slowest, "beta-crown" (`BetaCrown`).
        target: "perturbed": the likelihood of x' itself, whose box is the input's; "clean": the likelihood of x.

    Raises:
        ArithmeticError: two bounds of one quantity contradict each other, as the precision is too low for the model.
        ValueError: x outside the data range or not finite, misfitting shapes or dtypes, an unknown method or target, a
            ball with targets that the likelihood does not explain (Bernoulli: those in [0, 1]);
            with `sound`, arithmetic that rounds in ways without a bound (TF32, bfloat16), "exact", or a method of
            the ladder.
        UnsupportedLayerError: a layer or a likelihood without the rules that the method needs.
        NotImplementedError: a likelihood whose bounds lack a part that the method needs.
    """
    chosen = find_method(method)
    with torch.set_grad_enabled(torch.is_grad_enabled() and chosen.differentiable):
        return chosen.bounds(vae, x, ball, noise, target, sound)


@outside_inference_mode
def certificate(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    method: str | Method = "ibp",
    target: Target = "perturbed",
    *,
    sound: bool = False,
) -> Tensor:
    """The lower end of `elbo_bounds` alone, [batch], in nats: what proVAE trains on. Arguments and errors as there."""
    chosen = find_method(method)
    with torch.set_grad_enabled(torch.is_grad_enabled() and chosen.differentiable):
        return chosen.lower(vae, x, ball, noise, target, sound)
