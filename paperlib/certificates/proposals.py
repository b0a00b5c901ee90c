"""Densities q(z) that importance weights are drawn from, and what is certified of the weights over a set of inputs.

    log p(x')  =  log E over z ~ q of  w(x', z),    w(x', z) = p(x'|z) p(z) / q(z),    for every q

The weights of `paperlib.iwae` have the encoder's q(z|x'), which moves with x': the whole network has to be bounded. But
no law says that it must move. With one q for all x' of the set the latents are numbers, the decoder's outputs are
numbers, and of all that was bounded there remains log p(x'|z) at a fixed output: in closed form.

Nothing is lost by that, where log p(x'|z) is linear in x' as for a Bernoulli likelihood. The ELBO of a q is concave in
q and then linear in x', so that the maximum over q of the minimum over x' is the minimum over x' of the maximum over q,
which is log p(x') (Sion 1958). The best q is the model's posterior at the worst x'; `FittedProposal` looks for a
Gaussian near it. However badly it fits, the certificate holds.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import initial_alpha
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.log_weights import iwae_bounds
from paperlib.certificates.method import Method
from paperlib.models import gaussian
from paperlib.models.gaussian import Posterior
from paperlib.models.iwae import log_mean_exp, log_ratio
from paperlib.models.likelihood import Likelihood, sum_per_example
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import ChangeRegion, PerturbationSet, Region

WeightBound = Callable[[Tensor], Tensor]  # noise [K, batch, latent_dim] -> [batch], nats
TURNS = 8  # of the search for weights of the draws
FIT_DRAWS = 8  # of noise, at each step of a fit
LEARNING_RATE = 0.05  # of means and log-variances, falling to 0


class Proposal(ABC):
    """A way to draw latents for the inputs of a perturbation set."""

    @abstractmethod
    def bound(self, vae: VAE, x: Tensor, ball: PerturbationSet, generator: torch.Generator | None) -> WeightBound:
        """A function of K standard normal draws that returns a lower bound of the log of the mean of their weights,
        for every x' in the ball around x at once. It depends on no draw but those that it is given later.
        """


@dataclass(frozen=True)
class EncoderProposal(Proposal):
    """The encoder's own q(z|x'), which moves with x': the weights of `paperlib.iwae`, bounded as by `iwae_bounds`.

    Args:
        method: as there.
    """

    method: str | Method = "crown-ibp"

    def bound(self, vae: VAE, x: Tensor, ball: PerturbationSet, generator: torch.Generator | None) -> WeightBound:
        return lambda noise: iwae_bounds(vae, x, ball, noise, self.method).lower


@dataclass(frozen=True)
class FittedProposal(Proposal):
    """One Gaussian for all x' of the set, fitted to the worst of them.

    Args:
        steps: of Adam on a lower bound of its ELBO over the set, see `fit_posterior`. With none it is the encoder's
            posterior at x or at a point of the set, whichever has the higher bound.

    Raises ValueError for a negative number of steps.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")

    def bound(self, vae: VAE, x: Tensor, ball: PerturbationSet, generator: torch.Generator | None) -> WeightBound:
        posterior = fit_posterior(vae, x, ball, self.steps, generator)
        return lambda noise: mean_weight_lower(vae, x, ball, posterior, noise)


def mean_weight_lower(vae: VAE, x: Tensor, ball: PerturbationSet, posterior: Posterior, noise: Tensor) -> Tensor:
    """Certified: every x' in the ball around x has a log of the mean over K draws of p(x'|z) p(z) / q(z) of at least
    this, [batch], nats.

    It is the larger of two bounds. The first has each draw at its own worst x'. The second is a tangent of
    log-mean-exp,  sum over k of p_k log w_k(x') + entropy(p) - log K,  for likelihoods of a `NaturalForm`:
    log p(t | l) = c t l - A(l) + h(t). The sum is then the log-likelihood of the mean output
    sum p_k l_k, less what the convex A adds, so that it is bounded in closed form, too. The weights p are those of the
    draws at points of a Frank-Wolfe search for the worst x': each of them gives a bound, the best p the exact minimum
    for a Bernoulli likelihood.

    Args:
        posterior: mean and log-variance of q, each [batch, latent_dim].
        noise: [K, batch, latent_dim].
    """
    mean, log_var = posterior
    z = gaussian.reparametrize(mean, log_var, noise)
    ratio = log_ratio(z, log_var, noise)
    output, likelihood = vae.decoder(z.flatten(0, 1)), vae.likelihood
    targets, region = _copies(x, ball, len(noise))
    best = log_mean_exp(fit_lower_at(likelihood, output, region).view(ratio.shape) + ratio)
    if len(noise) == 1 or bounds_of(likelihood).natural_form() is None:
        return best

    with torch.enable_grad():
        leaf = targets.detach().clone().requires_grad_()
        fit = likelihood.log_prob(output.detach(), leaf)
        (slope,) = torch.autograd.grad(fit.sum(), leaf)
    fit, slope, output = (part.detach().unflatten(0, ratio.shape) for part in (fit, slope, output))
    region, point = ball.region(x), x
    for turn in range(TURNS):
        # but for terms that all draws share, log w is linear in x'
        moved = (slope * (point - x)).flatten(2).sum(2)
        log_share = torch.log_softmax(fit + ratio + moved, 0)
        share = log_share.exp()
        average = _weighted(share, output)
        excess = (share * fit).sum(0) - likelihood.log_prob(average, x)
        entropy = -torch.where(share > 0, share * log_share, 0.0).sum(0)
        bound = fit_lower_at(likelihood, average, region) + excess + (share * ratio).sum(0) + entropy
        best = torch.fmax(best, bound - math.log(len(noise)))
        corner = region.project(x - ball.steepest(_weighted(share, slope), x))
        point = point + 2 / (turn + 2) * (corner - point)
    return best


def fit_lower_at(likelihood: Likelihood, output: Tensor, region: Region) -> Tensor:
    """A lower bound of log p(x' | output) over the region of x' at outputs that are given, [batch], nats."""
    bounds, at = bounds_of(likelihood), Interval(output, output)
    lower = bounds.lower(at, region.box)
    if not isinstance(region, ChangeRegion):
        return lower
    # the region is smaller than its box, which a linear function of x' can tell
    try:
        function = initial_alpha(bounds.linear_below(at, region.box))
    except NotImplementedError:
        return lower
    linear = sum_per_example(function.output_slope * output + function.offset)
    return torch.fmax(lower, linear + region.concretize(function.target_slope))


def fit_posterior(
    vae: VAE, x: Tensor, ball: PerturbationSet, steps: int, generator: torch.Generator | None = None
) -> Posterior:
    """Mean and log-variance of a Gaussian q whose ELBO is high for every x' in the ball: by Adam on a lower bound of

    min over x' of  E over q of log p(x'|z)  -  KL( q || N(0, I) )

    from the better of the encoder's posteriors at x and at one step from it against its own likelihood.
    """
    targets, region = _copies(x, ball, FIT_DRAWS)

    def bound(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        z = gaussian.reparametrize(mean, log_var, noise)
        fit = fit_lower_at(vae.likelihood, vae.decoder(z.flatten(0, 1)), region)
        return fit.view(FIT_DRAWS, -1).mean(0) - gaussian.kl(mean, log_var)

    def draw() -> Tensor:
        return torch.randn(
            FIT_DRAWS, len(x), vae.latent_dim, generator=generator, dtype=targets.dtype, device=targets.device
        )

    with torch.enable_grad():
        mean, log_var = vae.encode(x)
        leaf = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(vae.likelihood.log_prob(vae.decoder(mean.detach()), leaf).sum(), leaf)
    start = mean.detach(), log_var.detach()
    with torch.no_grad():
        moved = vae.encode(ball.project(x - ball.steepest(slope, x), x))
        start = _better(start, moved, bound, draw())
    mean, log_var = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.Adam([mean, log_var], lr=LEARNING_RATE, maximize=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        with torch.enable_grad():
            mean.grad, log_var.grad = torch.autograd.grad(bound(mean, log_var, draw()).sum(), (mean, log_var))
        optimizer.step()
    with torch.no_grad():
        return _better(start, (mean.detach(), log_var.detach()), bound, draw())


def _better(first: Posterior, second: Posterior, bound: Callable[..., Tensor], noise: Tensor) -> Posterior:
    """For each example the one of higher bound; the first where the second has none."""
    better = (bound(*second, noise) > bound(*first, noise)).unsqueeze(1)
    return torch.where(better, second[0], first[0]), torch.where(better, second[1], first[1])


def _weighted(share: Tensor, values: Tensor) -> Tensor:
    """The sum over draws of share [K, batch] times values [K, batch, *shape]."""
    return torch.einsum("kb,kbd->bd", share, values.flatten(2)).view(values.shape[1:])


def _copies(x: Tensor, ball: PerturbationSet, count: int) -> tuple[Tensor, Region]:
    """Each input `count` times, [count * batch, *data_shape], and the region around them."""
    copies = x.expand(count, *x.shape).flatten(0, 1)
    repeated = ball.rows(torch.arange(len(x), device=x.device).repeat(count), x)
    return copies, repeated.region(copies)
