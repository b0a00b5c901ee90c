"""CROWN-IBP and CROWN as methods of certification: linear bounds of the whole ELBO by backward substitution.

The bounds themselves are in `paperlib.certificates.backward`. The methods differ in the boxes over which layers are
relaxed: those of interval propagation (CROWN-IBP: Zhang et al. 2020, arXiv 1906.06316), or tighter ones from linear
bounds of every quantity (CROWN: Zhang et al. 2018, arXiv 1811.00866).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.certificates.backward import RelaxedVAE, linear_lower, linear_upper
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.method import METHODS, MemoryUse, Problem, TrainableMethod
from paperlib.certificates.refinement import refine, refine_by_zonotope
from paperlib.certificates.unit_bounds import BYTES, BYTES_ON_GPU, has_unit_passes, refine_by_unit
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet

IN_CACHE = 1_500_000  # numbers in the coefficients of all latents up to which a larger batch is faster on a CPU


@dataclass(frozen=True)
class CrownIBP(TrainableMethod):
    """Linear bounds over the boxes of interval propagation; in addition to `IBP` one backward pass for each end.

    Never looser than `IBP`. Differentiable in the parameters unless `alpha_steps` is positive.

    Args:
        alpha_steps: of the optimisation of the free slopes alpha; no number of steps is looser than none.

    Raises ValueError for a negative number of steps.
    """

    alpha_steps: int = 0

    def __post_init__(self) -> None:
        if self.alpha_steps < 0:
            raise ValueError(f"alpha_steps must not be negative, got {self.alpha_steps}")

    @property
    def differentiable(self) -> bool:
        return self.alpha_steps == 0

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        problem = Problem.checked(vae, x, ball, noise, target, sound)
        return self.bounds_over(problem, self.relax(problem))

    def bounds_over(self, problem: Problem, relaxed: RelaxedVAE) -> Interval:
        """`bounds` of a problem from the layers that `relax` has relaxed, [batch], nats."""
        lower, upper = linear_lower(relaxed, self.alpha_steps), linear_upper(relaxed, self.alpha_steps)
        interval = Interval(elbo_lower(relaxed.vae, relaxed.bounds), elbo_upper(relaxed.vae, relaxed.bounds))
        linear = Interval(lower - slack(lower, interval.lower), upper + slack(upper, interval.upper))
        bounds = linear.intersect(interval)
        if relaxed.bounds is problem.bounds:
            return bounds if problem.sound is None else bounds.widen(problem.sound.value_rounding)
        if relaxed.deployed is not None:
            bounds = bounds.widen(relaxed.value_rounding)
        return bounds.intersect(problem.interval_elbo)

    def lower_over(self, problem: Problem) -> Tensor:
        return self.lower_from(problem, self.relax(problem))

    def lower_from(self, problem: Problem, relaxed: RelaxedVAE) -> Tensor:
        """`lower_over` from the layers that `relax` has relaxed, [batch], nats."""
        beta = problem.beta
        interval, linear = elbo_lower(relaxed.vae, relaxed.bounds, beta), linear_lower(relaxed, self.alpha_steps, beta)
        lower = torch.fmax(interval, linear - slack(linear, interval))  # a NaN bounds nothing
        if relaxed.bounds is problem.bounds:
            return lower if problem.sound is None else lower - problem.sound.value_rounding
        if relaxed.deployed is not None:
            lower = lower - relaxed.value_rounding
        return torch.fmax(lower, problem.interval_elbo_lower)

    def relax(self, problem: Problem) -> RelaxedVAE:
        """The layers relaxed over the boxes of this method."""
        return RelaxedVAE.of(problem.vae, problem.bounds, problem.noise, problem.sound)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        return MemoryUse(per_image=32 * sum(layer_sizes))


@dataclass(frozen=True)
class Crown(CrownIBP):
    """Linear bounds over boxes that linear bounds have tightened: in addition to `CrownIBP` one backward pass for each
    latent, and the products of the latents' coefficients with each layer of the decoder. Where encoder or decoder have
    several nonlinear layers and these bounds are loose, two backward passes to the input for each unit as well.

    Never looser than `IBP`. Without a gradient through the tightened boxes.

    Args:
        alpha_steps: of the optimisation of the free slopes alpha, those of the units' own passes included; no number of
            steps is looser than none.
    """

    @property
    def differentiable(self) -> bool:
        return False

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        (lower,) = self._apart(lambda of, *own: [of.lower_from(*own)], vae, x, ball, noise, target, sound)
        return lower

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        return Interval(*self._apart(lambda of, *own: [*of.bounds_over(*own)], vae, x, ball, noise, target, sound))

    def _apart(
        self,
        bound: Callable[[CrownIBP, Problem, RelaxedVAE], list[Tensor]],
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target,
        sound: bool,
    ) -> list[Tensor]:
        """The bounds of all examples. Those whose units have passes of their own are bounded apart from the others,
        which would pay for these passes, too.
        """
        problem = Problem.checked(vae, x, ball, noise, target, sound)
        refined, loose = refine_by_zonotope(super().relax(problem))
        if loose.any() and loose.all():
            return bound(self, problem, refine_by_unit(refined, self.alpha_steps, loose))
        ends = bound(CrownIBP(self.alpha_steps), problem, refined)
        if not loose.any():
            return ends
        rows = loose.nonzero()[:, 0]
        own = self._apart(bound, vae, x[rows], ball.rows(rows, x), noise[rows], target, sound)
        return [end.index_copy(0, rows, part) for end, part in zip(ends, own, strict=True)]

    def relax(self, problem: Problem) -> RelaxedVAE:
        return refine(super().relax(problem), self.alpha_steps)

    def bounds_over(self, problem: Problem, relaxed: RelaxedVAE) -> Interval:
        bounds = super().bounds_over(problem, relaxed)
        if self.alpha_steps and has_unit_passes(relaxed):
            # over tighter boxes other slopes are the initial ones, which may be worse for the ELBO
            initial = Crown()
            bounds = bounds.intersect(initial.bounds_over(problem, initial.relax(problem)))
        return bounds

    def lower_from(self, problem: Problem, relaxed: RelaxedVAE) -> Tensor:
        lower = super().lower_from(problem, relaxed)
        if self.alpha_steps and has_unit_passes(relaxed):
            lower = torch.fmax(lower, Crown().lower_over(problem))
        return lower

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        of_units, largest_batch = 0, 100
        if _is_deep(vae):
            on_gpu = any(parameter.is_cuda for parameter in vae.parameters())
            # a few tensors of as many units' passes as fit; with alphas those of all layers
            of_units = 3 * (BYTES_ON_GPU if on_gpu else BYTES) // 8 * (len(layer_sizes) if self.alpha_steps else 1)
            if not on_gpu:
                largest_batch = max(1, min(100, IN_CACHE // (2 * vae.latent_dim * max(layer_sizes))))
        return MemoryUse(
            per_image=max(64, 2 * vae.latent_dim) * sum(layer_sizes),
            fixed=max(layer_sizes) * sum(layer_sizes) // 2 + of_units,
            largest_batch=largest_batch,
        )


def _is_deep(vae: VAE) -> bool:
    """Whether a half has several layers that may not be affine: units may then have passes of their own."""
    affine = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Flatten, nn.Unflatten, nn.Identity)
    leaves = ([m for m in half.modules() if not list(m.children())] for half in (vae.encoder, vae.decoder))
    return any(sum(not isinstance(layer, affine) for layer in layers) > 1 for layers in leaves)


METHODS["crown-ibp"] = CrownIBP()
METHODS["crown"] = Crown()


def slack(linear: Tensor, interval: Tensor) -> Tensor:
    """What a linear bound of the ELBO gives up for the rounding of its own sums, [batch], nats.

    Their terms are together about as large as the interval bound over the same boxes, and in the sum they cancel.
    """
    return 64 * torch.finfo(linear.dtype).eps * (1 + torch.maximum(linear.detach().abs(), interval.detach().abs()))
