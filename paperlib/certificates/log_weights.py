"""Certified bounds of the importance weights and of their mean, the K-sample bound of log p(x) (`paperlib.iwae`).

    log w(x')  =  log p(target | z) - |z|^2 / 2 + |noise|^2 / 2 + sum(log_var) / 2

with z = mean + exp(log_var / 2) * noise. In the place of the ELBO's -KL stands log p(z) - log q(z|x'). It is linear in
log_var and concave in the latents, whose chord bounds it from below and whose tangent from above: the rest of the
backward substitution is that of the ELBO.

log-mean-exp is convex. So for all weights p that sum to 1, and with equality where p is the softmax of log w,

    iwae_K(x')  >=  sum over k of p_k log w_k(x')  +  entropy(p)  -  log K

The linear bounds of all draws are added at the encoder's output, and one backward pass bounds their sum: what a
perturbation does to one draw and undoes in another cancels before it is concretized.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import chord_below, tangent
from paperlib.bounds.linear import LinearFunction, initial_alpha
from paperlib.certificates.alpha import optimize_alpha
from paperlib.certificates.backward import (
    ElboTerms,
    RelaxedVAE,
    backward_elbo_bound,
    backward_pass,
    backward_posterior,
    terms_above,
    terms_below,
)
from paperlib.certificates.backward_rounding import cancellation
from paperlib.certificates.crown import CrownIBP, slack
from paperlib.certificates.ibp import IBP
from paperlib.certificates.interval_elbo import fit_lower, fit_upper
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.method import Method, Problem, find_method
from paperlib.certificates.posterior_bounds import log_ratio_bounds
from paperlib.models.elbo import Target
from paperlib.models.iwae import check_draws, log_mean_exp
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.threats.perturbation import PerturbationSet

INF = float("inf")


@outside_inference_mode
def iwae_bounds(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    method: str | Method = "crown-ibp",
    target: Target = "perturbed",
) -> Interval:
    """Certified: every x' in the ball around x has lower <= iwae(vae, x', noise) <= upper, [batch], in nats.

    Holds for these noise draws and in real arithmetic; in float32 rounding can exceed it by about 1e-6 of its size. No
    method is looser than "ibp". The lower end is that of one joint bound of all draws, never below what the bounds of
    each draw by itself give. Differentiable by "ibp" and "crown-ibp".

    Args:
        noise: [K, batch, latent_dim]; memory and time grow with K.
        method: "ibp", "crown-ibp" or "crown", or such a method's object; steps for alpha serve each draw by itself.
        target: "perturbed": the likelihood of x' itself; "clean": that of x.

    Raises ValueError for another method, and as `elbo_bounds` and `log_weights`.
    """
    chosen = _weights_method(method)
    check_draws(vae, x, noise)
    with torch.set_grad_enabled(torch.is_grad_enabled() and chosen.differentiable):
        problem = draws_problem(vae, x, ball, noise, target)
        relaxed = None if isinstance(chosen, IBP) else chosen.relax(problem)
        each = _bounds_of_each(problem, relaxed, chosen).map(lambda end: end.view(noise.shape[:2]))
        lower, upper = each.map(log_mean_exp)
        if relaxed is not None:
            assert isinstance(chosen, CrownIBP)
            single = chosen.relax(Problem.checked(vae, x, ball, noise[0], target, sound=False))
            lower = torch.fmax(lower, _joint_lower(relaxed, single, each.lower))
        return Interval(lower, upper)


@outside_inference_mode
def log_weight_bounds(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    noise: Tensor,
    method: str | Method = "crown-ibp",
    target: Target = "perturbed",
) -> Interval:
    """Certified: every x' in the ball around x has lower <= log_weights(vae, x', noise) <= upper, [K, batch], in nats.

    Each draw by itself; arguments and errors as for `iwae_bounds`.
    """
    chosen = _weights_method(method)
    check_draws(vae, x, noise)
    with torch.set_grad_enabled(torch.is_grad_enabled() and chosen.differentiable):
        problem = draws_problem(vae, x, ball, noise, target)
        relaxed = None if isinstance(chosen, IBP) else chosen.relax(problem)
        return _bounds_of_each(problem, relaxed, chosen).map(lambda end: end.view(noise.shape[:2]))


def _weights_method(method: str | Method) -> IBP | CrownIBP:
    """The method of a word or an object; raises ValueError for one that bounds the ELBO alone."""
    chosen = find_method(method)
    if not isinstance(chosen, IBP | CrownIBP):
        raise ValueError(
            f'{chosen} bounds the ELBO and no importance weights: use "ibp", "crown-ibp" or "crown", or their objects'
        )
    return chosen


def draws_problem(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target) -> Problem:
    """The problem whose batch has each input once for each draw of noise [K, batch, latent_dim], draws first."""
    copies = x.expand(len(noise), *x.shape).flatten(0, 1)
    repeated = ball.rows(torch.arange(len(x), device=x.device).repeat(len(noise)), x)
    return Problem.checked(vae, copies, repeated, noise.flatten(0, 1), target, sound=False)


def _bounds_of_each(problem: Problem, relaxed: RelaxedVAE | None, method: IBP | CrownIBP) -> Interval:
    interval = interval_log_weight(problem.vae, problem.bounds, problem.noise)
    if relaxed is None:
        return interval
    assert isinstance(method, CrownIBP)
    tighter = interval_log_weight(relaxed.vae, relaxed.bounds, relaxed.noise)
    bound = partial(backward_elbo_bound, relaxed)
    lower = optimize_alpha(partial(bound, 1.0, weight_terms_below(relaxed)), method.alpha_steps)
    upper = -optimize_alpha(partial(bound, -1.0, weight_terms_above(relaxed)), method.alpha_steps)
    linear = Interval(lower - slack(lower, tighter.lower), upper + slack(upper, tighter.upper))
    return linear.intersect(tighter).intersect(interval)


def interval_log_weight(vae: VAE, bounds: IntervalBounds, noise: Tensor) -> Interval:
    """Interval bounds of log w from the boxes of its terms, [batch], nats."""
    ratio = log_ratio_bounds(bounds.mean, bounds.log_var, noise)
    lower = (fit_lower(vae, bounds) + ratio.lower).nan_to_num(-INF, INF, -INF)
    upper = (fit_upper(vae, bounds) + ratio.upper).nan_to_num(INF, INF, -INF)
    return Interval(lower, upper)


def weight_terms_below(relaxed: RelaxedVAE) -> ElboTerms:
    """Linear functions below the terms of log w: log p(x'|z), and log p(z) - log q(z|x') in the place of -KL."""
    latent = chord_below(_log_prior, torch.neg, relaxed.bounds.latent)
    return _with_ratio(terms_below(relaxed), latent, relaxed)


def weight_terms_above(relaxed: RelaxedVAE) -> ElboTerms:
    """Linear functions above the terms of log w, likewise."""
    latent = tangent(_log_prior, torch.neg, relaxed.bounds.latent.center)
    return _with_ratio(terms_above(relaxed), latent, relaxed)


def _log_prior(z: Tensor) -> Tensor:
    return -z.square() / 2


def _with_ratio(terms: ElboTerms, latent: LinearFunction, relaxed: RelaxedVAE) -> ElboTerms:
    zero = torch.zeros_like(relaxed.noise)
    return replace(
        terms,
        mean=LinearFunction(zero, zero),
        log_var=LinearFunction(zero + 0.5, zero),
        latent=LinearFunction(latent.slope, latent.offset + relaxed.noise.square() / 2),
    )


def _joint_lower(relaxed: RelaxedVAE, single: RelaxedVAE, each: Tensor) -> Tensor:
    """The joint bound of the module's docstring, [batch], nats, at the softmax of the lower bounds of each draw.

    Args:
        relaxed: of all draws, whose batch has the draws first.
        single: of one draw: its encoder is that of all draws.
        each: lower bounds of log w, [K, batch].
    """
    log_share = torch.log_softmax(each.detach(), 0)
    share = log_share.exp()

    def average(of_draws: Tensor) -> Tensor:
        """The sum over draws of p_k times [K * batch, *shape]."""
        values = of_draws.unflatten(0, share.shape)
        return (share.view(*share.shape, *[1] * (values.ndim - 2)) * values).sum(0)

    posterior = backward_posterior(relaxed, 1.0, weight_terms_below(relaxed))
    nothing = torch.zeros_like(relaxed.bounds.input.lower)
    target_coefficients, constant = map(average, posterior.with_target(nothing, posterior.constant))
    x_coefficients, constant = backward_pass(single.encoder, average(posterior.coefficients), constant, initial_alpha)
    region = single.bounds.region
    joint = (
        constant + region.concretize(x_coefficients + target_coefficients) - cancellation(x_coefficients, region.box)
    )
    terms = interval_log_weight(relaxed.vae, relaxed.bounds, relaxed.noise).lower.abs()
    joint = joint - slack(joint, average(terms))
    # 0 log 0 = 0, for a draw without any weight
    entropy = -torch.where(share > 0, share * log_share, 0.0).sum(0)
    return joint + entropy - math.log(len(share))
