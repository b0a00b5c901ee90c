"""Zonotopes as methods of certification: DeepZ (Singh et al. 2018, "Fast and effective robustness certification") and
DiffAI's hybrid zonotope (Mirman et al. 2018).

The input's features are symbols. All that the network computes from them is an affine form of these symbols, and so is
a bound of the ELBO: each of its terms is replaced by a linear function on its side, of forms whose symbols are the
same. The perturbed target is the input's own form. So pixels, latents and targets are bounded together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import concretize, initial_alpha, parallel
from paperlib.certificates import posterior_bounds
from paperlib.certificates.backward import ElboTerms, RelaxedVAE, terms_above, terms_below
from paperlib.certificates.backward_rounding import cancellation
from paperlib.certificates.crown import slack
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.ladder.affine_form import AffineForm, total
from paperlib.certificates.ladder.zonotope_layers import ReluRule, Transformers
from paperlib.certificates.method import METHODS, MemoryUse, Problem, TrainableMethod
from paperlib.models.elbo import Target
from paperlib.models.likelihood import sum_per_example
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


@dataclass(frozen=True)
class DeepZ(TrainableMethod):
    """Zonotopes with a symbol for each feature of the input, and a new one for each unit whose layer is not linear on
    its box: one forward pass. Each symbol costs about as much as an example does up to the latents. From there on they
    are the symbols, few as they are, and the products of their coefficients bound each layer, as in `Crown`.

    Never looser than `IBP`. It is the bound of a backward pass whose lines are parallel, over its own boxes. The lower
    lines of `Crown` need not be parallel, its boxes are others, and neither of the two is always the tighter one.
    Differentiable in the parameters, but that the point where a tangent of a sigmoid or tanh touches counts as a
    constant. Real arithmetic only: raises ValueError for `sound`. Regions with a zonotope of their own, such as boxes
    and those of a `LinearSet`, begin with it; the inputs of others are their own symbols.
    """

    @property
    def differentiable(self) -> bool:
        return True

    @property
    def transformers(self) -> Transformers:
        """What each layer does to affine forms."""
        return Transformers(shared=True)

    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        problem = self._checked(vae, x, ball, noise, target, sound)
        forms = ElboForms.of(problem, self.transformers)
        tighter = Interval(elbo_lower(vae, forms.bounds), elbo_upper(vae, forms.bounds))
        lower, upper = forms.lower(), forms.upper()
        linear = Interval(lower - slack(lower, tighter.lower), upper + slack(upper, tighter.upper))
        return linear.intersect(tighter).intersect(problem.interval_elbo)

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        return self.lower_over(self._checked(vae, x, ball, noise, target, sound))

    def lower_over(self, problem: Problem) -> Tensor:
        forms = ElboForms.of(problem, self.transformers)
        tighter, linear = elbo_lower(problem.vae, forms.bounds, problem.beta), forms.lower(problem.beta)
        lower = torch.fmax(tighter, linear - slack(linear, tighter))  # a NaN bounds nothing
        return torch.fmax(lower, problem.interval_elbo_lower)

    def _checked(
        self, vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target, sound: bool
    ) -> Problem:
        if sound:
            raise ValueError("zonotopes hold in real arithmetic: with sound=True use another method")
        return Problem.checked(vae, x, ball, noise, target, sound)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        numbers = sum(layer_sizes) * max(layer_sizes)  # each layer counts before and after its activation
        return MemoryUse(per_image=numbers, fixed=numbers, largest_batch=100)


@dataclass(frozen=True)
class HybridZonotope(DeepZ):
    """Zonotopes whose symbols stay those of the input: what a nonlinear layer adds is an independent error of each
    unit. A little cheaper than `DeepZ`, and looser.

    Never looser than `IBP`. Differentiable, in real arithmetic only, and for the same regions as `DeepZ`.

    Args:
        relu: the rule for ReLU layers, see `relu_lines`; other layers have DeepZ's.
    """

    relu: ReluRule = "parallel"

    @property
    def transformers(self) -> Transformers:
        return Transformers(shared=False, relu=self.relu)

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        numbers = layer_sizes[0] * max(layer_sizes)
        return MemoryUse(per_image=6 * numbers, fixed=numbers, largest_batch=100)


METHODS["zonotope"] = DeepZ()
METHODS["hybrid-zonotope"] = HybridZonotope()


@dataclass(frozen=True)
class ElboForms:
    """Affine forms of all that the terms of the ELBO depend on, over a region of inputs."""

    vae: VAE
    bounds: IntervalBounds  # with the forms' boxes, which are within those of the problem
    noise: Tensor
    input: AffineForm
    mean: AffineForm
    log_var: AffineForm
    output: AffineForm

    @classmethod
    def of(cls, problem: Problem, transformers: Transformers) -> Self:
        vae, bounds, noise = problem.vae, problem.bounds, problem.noise
        inputs = AffineForm.of_region(bounds.region)
        posterior, encoder = transformers.propagate(vae.encoder, inputs, "encoder", bounds.encoder)
        if transformers.shared:
            posterior = posterior.share_errors()
        mean, log_var = posterior.halves()
        mean_box, log_var_box = encoder[-1].chunk(2, -1)

        # latent = mean + noise * exp(log_var / 2)
        scale = parallel(posterior_bounds.scale_relaxation(log_var_box), log_var_box)
        curved = AffineForm(noise * scale.middle, (), noise.abs() * scale.radius)
        latent = total([mean, log_var.scaled(noise * scale.slope), curved])
        if transformers.shared:
            latent = latent.share_errors()
        latent_box = posterior_bounds.reparametrize_bounds(mean_box, log_var_box, noise).intersect(latent.box)
        boxes = [latent_box.intersect(bounds.latent), *bounds.decoder[1:]]
        output, decoder = transformers.propagate(vae.decoder, latent.as_symbols(), "decoder", boxes)
        tighter = replace(
            bounds, encoder=[bounds.input, *encoder[1:]], mean=mean_box, log_var=log_var_box, decoder=decoder
        )
        return cls(vae, tighter, noise, inputs, mean, log_var, output)

    def lower(self, beta: float = 1.0) -> Tensor:
        """A lower bound of  log p - beta * KL,  [batch], in nats, for any beta >= 0."""
        relaxed = RelaxedVAE.of(self.vae, self.bounds, self.noise)
        return self._minimum(1.0, terms_below(relaxed, beta))

    def upper(self) -> Tensor:
        """An upper bound of the ELBO, [batch], in nats."""
        return -self._minimum(-1.0, terms_above(RelaxedVAE.of(self.vae, self.bounds, self.noise)))

    def _minimum(self, sign: float, terms: ElboTerms) -> Tensor:
        """The least  sign * (sum of the terms),  which are below those of the ELBO for sign = 1 and above for -1."""
        fit = initial_alpha(terms.fit)
        parts = [
            self.output.dot(sign * fit.output_slope),
            self.mean.dot(sign * terms.mean.slope),
            self.log_var.dot(sign * terms.log_var.slope),
        ]
        constant = sign * sum_per_example(fit.offset)
        constant = constant + sign * (terms.mean.offset + terms.log_var.offset).sum(1)
        target_slope = sign * fit.target_slope
        if (term := terms.target) is not None:
            target_slope = sign * term.coefficients
            constant = constant + sign * term.offset - term.error
            constant = constant + concretize(sign * fit.target_slope, term.point)
            parts.append(self.input.dot(target_slope))
        elif self.bounds.target is self.bounds.input:  # the same x' is input and target: its coefficients add up
            parts.append(self.input.dot(target_slope))
        else:
            constant = constant + concretize(target_slope, self.bounds.target)
        return total(parts).minimum + constant - cancellation(target_slope, self.bounds.input)
