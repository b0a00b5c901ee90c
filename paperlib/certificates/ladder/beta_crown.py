"""beta-CROWN as a method of certification: branch and bound for inputs of any size (Wang et al. 2021, arXiv 2103.06624;
over units of any layer: Shi et al. 2024, arXiv 2405.21063).

It begins with the bound of `Crown` and splits single units of the network: inputs of its activations, means and
log-variances. The constraints of a part enter the backward pass that bounds the whole ELBO. Unlike the splits of
`BranchAndBound`, theirs do not multiply with the number of inputs, but with that of latents and unstable units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.crown import Crown
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.ladder.search import NUMBERS, Search
from paperlib.certificates.method import METHODS, MemoryUse, Method, Problem
from paperlib.models.elbo import Target, elbo, explain_misfit
from paperlib.models.vae import VAE
from paperlib.threats.attacks import pgd
from paperlib.threats.perturbation import PerturbationSet

IMAGES = 16  # searched at a time


@dataclass(frozen=True)
class BetaCrown(Method):
    """Bounds that tighten as long as time is given, and close at last on the exact range; never looser than `Crown`
    with its initial slopes. No gradients.

    Args:
        time_limit: seconds for each image of a batch on average, positive. `lower` has all of it, `bounds` half for
            each end. The round of splits in which it passes is finished.
        tol: in nats, positive: an end that is this near to an ELBO that was evaluated is not improved further.

    Raises ValueError for options that are not positive and finite.
    """

    time_limit: float = 1.0
    tol: float = 1e-3

    def __post_init__(self) -> None:
        for name, unit in (("time_limit", "seconds"), ("tol", "nats")):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, in {unit}, got {value}")

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        ends = [self._end(vae, x, ball, noise, target, sound, sign, self.time_limit / 2) for sign in (1.0, -1.0)]
        return Interval(*ends)

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        return self._end(vae, x, ball, noise, target, sound, 1.0, self.time_limit)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        crown = Crown().memory(vae, layer_sizes)
        return MemoryUse(crown.per_image, crown.fixed + 16 * NUMBERS, largest_batch=IMAGES)

    def _end(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target,
        sound: bool,
        sign: float,
        seconds: float,
    ) -> Tensor:
        """The lower end for sign = 1, the upper end for sign = -1, [batch]."""
        if sound:
            raise ValueError("beta-CROWN holds in real arithmetic: with sound=True use another method")
        ends = []
        for start in range(0, len(x), IMAGES):
            rows = slice(start, start + IMAGES)
            begin, own = perf_counter(), (vae, x[rows], ball.rows(rows, x), noise[rows])
            problem = Problem.checked(*own, target, sound)
            x_adv = pgd(*own, target=target, maximize=sign < 0)
            reached = sign * elbo(vae, x_adv, noise[rows], x_adv if target == "perturbed" else x[rows])
            with explain_misfit(x), torch.no_grad():
                ends.append(sign * self._search(problem, sign, reached, begin + seconds * len(x[rows])))
        return torch.cat(ends)

    def _search(self, problem: Problem, sign: float, reached: Tensor, deadline: float) -> Tensor:
        root = Crown().relax(problem)
        refined = Interval(elbo_lower(root.vae, root.bounds), elbo_upper(root.vae, root.bounds))
        lower, upper = refined.intersect(problem.interval_elbo)
        interval = lower if sign > 0 else -upper
        end = interval
        for bound in Search(root, sign, interval.abs(), reached).bounds(self.tol):
            end = torch.fmax(interval, bound)
            if perf_counter() > deadline:
                break
        return end


METHODS["beta-crown"] = BetaCrown()
