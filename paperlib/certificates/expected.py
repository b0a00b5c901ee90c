"""A certified lower bound of the worst expected ELBO:  min over x' of  E over the noise of  ELBO(x'; noise).

With C(xi) a certificate at the noise xi, min over x' of E[ELBO]  >=  E[min over x' of ELBO]  >=  E[C], as a minimum of
averages is no less than the average of minima. E[C] is split at a box of the noise, |xi_k| <= c for all k:

    E[C]  >=  P(inside) * E[C | inside]  +  E[anchor - decrease(xi); outside]

Inside, C is bounded below by one certificate over all inputs and all noise of the box (the floor), so that draws give a
confidence bound of its mean that holds for every sample size. Outside, the ELBO falls from a certificate at zero noise
(the anchor) by at most a quadratic in |xi|, whose expectation over the outside has a closed form. The KL depends on no
noise: it is inside both certificates as it is.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.interval import interval_rule, propagate_all
from paperlib.bounds.linear import LinearFunction, LinearRelaxation
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rules import UnsupportedLayerError, apply_rule, named_layers
from paperlib.certificates.backward import RelaxedVAE, linear_lower
from paperlib.certificates.confidence import lower_confidence_bound
from paperlib.certificates.crown import slack
from paperlib.certificates.ibp import IBP
from paperlib.certificates.interval_elbo import elbo_lower
from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.method import Method, find_method
from paperlib.certificates.noise_box import Outside, noise_inside, outside
from paperlib.models.elbo import Target
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.runtime.progress import Progress
from paperlib.threats.perturbation import PerturbationSet

NOISE_BOXES = [2.5 + step / 4 for step in range(19)]  # candidates for c, up to 7


@outside_inference_mode
def certify_expected(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    *,
    confidence: float = 0.999,
    samples: int = 4000,
    method: str | Method = "crown-ibp",
    target: Target = "perturbed",
    batch_size: int = 500,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Certified: with probability at least `confidence` over the draws, no x' in the ball around x has an expected ELBO
    (over the noise of its posterior) below `bound`. Holds for each row by itself and for every number of samples.

    For all of N rows at once with probability 1 - d, ask for confidence 1 - d / N (union bound). Computed in float64 on
    a copy of the model in evaluation mode; holds in real arithmetic, float64 rounding is about 1e-12 of a value.

    Args:
        x: [count, *data_shape] in the data range.
        samples: noise draws for each example. The width falls with 1 / samples until the spread of the draws rules it.
        method, target: of the certificate at each draw, see `elbo_bounds`.
        batch_size: certificates at a time; bounds the memory beside one number for each draw.
        generator: of the draws, on the device of the model; torch's default if not given.

    Returns:
        One row per example: index, eps, samples, confidence, bound, mean (of the certificates at the draws: what
        averaging without rigour would say), width (mean - bound: the price of rigour), tail (the part of the bound from
        outside the box of noise, in closed form) and noise_box (c). In nats, float64.

    Raises:
        ValueError: confidence outside (0, 1), fewer than 2 samples, a batch_size below 1; and as `elbo_bounds`.
        UnsupportedLayerError: as `elbo_bounds`, or a decoder layer whose growth has no bound, see `decoder_gain`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if samples < 2 or batch_size < 1:
        raise ValueError(f"needs samples >= 2 and batch_size >= 1, got samples={samples}, batch_size={batch_size}")
    run = _Run(vae.in_float64(), ball, confidence, samples, find_method(method), target, batch_size, generator)
    with Progress(f"certify the expectation {ball.label}", samples * len(x)) as progress, torch.no_grad():
        parts = [slice(start, start + batch_size) for start in range(0, max(1, len(x)), batch_size)]
        frames = [replace(run, ball=ball.rows(part, x)).rows(x[part].double(), progress) for part in parts]
    rows = pd.concat(frames, ignore_index=True).assign(eps=ball.size)  # of the whole set, not of a batch's
    rows.insert(0, "index", range(len(rows)))
    return rows


@dataclass(frozen=True)
class _Run:
    vae: VAE
    ball: PerturbationSet
    confidence: float
    samples: int
    method: Method
    target: Target
    batch_size: int
    generator: torch.Generator | None

    def rows(self, x: Tensor, progress: Progress) -> pd.DataFrame:
        split = self.split(x)
        draws = torch.cat([*self.draws(x, split, progress)])
        bound = split.inside * lower_confidence_bound(draws, split.floor, self.confidence) + split.tail
        mean = draws.mean(0)
        columns = {"bound": bound, "mean": mean, "width": mean - bound, "tail": split.tail, "noise_box": split.box}
        numbers = {name: column.cpu().numpy() for name, column in columns.items()}
        settings = {"eps": self.ball.size, "samples": self.samples, "confidence": self.confidence}
        return pd.DataFrame(settings | numbers, index=range(len(x)))

    def split(self, x: Tensor) -> "NoiseSplit":
        """For each example the box of noise with the least predicted cost. The choice never sees a draw."""
        none = x.new_zeros(len(x), self.vae.latent_dim)
        anchor = self.method.lower(self.vae, x, self.ball, none, self.target)
        region = self.ball.region(x)
        bounds = IntervalBounds.of(self.vae, region, none, target_box(self.target, region.box, x))
        decrease = expected_decrease(self.vae, bounds)
        price = -math.log1p(-self.confidence) / self.samples  # of each nat between the draws and the floor
        candidates, costs = [], []
        for c in NOISE_BOXES:
            moments = outside(c, self.vae.latent_dim)
            fall = decrease(moments)
            floor = noise_box_floor(self.vae, bounds, c, self.method)
            inside = torch.full_like(floor, 1 - moments.chance)
            candidates.append(NoiseSplit(torch.full_like(floor, c), floor, anchor * moments.chance - fall, inside))
            costs.append((anchor - floor) * price + fall)
        best = torch.stack(costs).argmin(0, keepdim=True)
        return NoiseSplit(*(torch.stack(column).gather(0, best)[0] for column in zip(*candidates, strict=True)))

    def draws(self, x: Tensor, split: "NoiseSplit", progress: Progress) -> Iterator[Tensor]:
        """The certificates at `samples` draws of noise inside, some draws [count, batch] at a time."""
        size = max(1, self.batch_size // max(1, len(x)))
        for start in range(0, self.samples, size):
            count = min(size, self.samples - start)
            noise = noise_inside(split.box, count, self.vae.latent_dim, self.generator).flatten(0, 1)
            copies = x.expand(count, *x.shape).flatten(0, 1)
            repeated = self.ball.rows(torch.arange(len(x), device=x.device).repeat(count), x)
            values = self.method.lower(self.vae, copies, repeated, noise, self.target)
            progress.step(len(noise))
            yield torch.maximum(values.view(count, len(x)), split.floor)


class NoiseSplit(NamedTuple):
    """A box of noise and what is certified inside and outside of it, each [batch]."""

    box: Tensor  # c
    floor: Tensor  # below the ELBO for all inputs and all noise inside, nats
    tail: Tensor  # below E[ELBO; outside], nats
    inside: Tensor  # P(inside)


def noise_box_floor(vae: VAE, bounds: IntervalBounds, c: float, method: Method) -> Tensor:
    """A lower bound of the ELBO over the boxes of inputs and all noise with |noise_k| <= c, [batch], nats."""
    reach = c * torch.exp(bounds.log_var.upper / 2)
    latent = Interval(bounds.mean.lower - reach, bounds.mean.upper + reach)
    bounds = replace(bounds, decoder=propagate_all(vae.decoder, latent, "decoder"))
    floor = elbo_lower(vae, bounds)
    if isinstance(method, IBP):
        return floor
    # latent = mean + s with any s in [-reach, reach]: as if the noise were 1 and the scale anything between them
    flat = torch.zeros_like(reach)
    relaxed = RelaxedVAE.of(vae, bounds, torch.ones_like(reach))
    scale = LinearRelaxation(LinearFunction(flat, -reach), LinearFunction(flat, reach))
    linear = linear_lower(replace(relaxed, scale=scale))
    return torch.fmax(floor, linear - slack(linear, floor))


def expected_decrease(vae: VAE, bounds: IntervalBounds) -> Callable[[Outside], Tensor]:
    """Of the moments outside a box: E[decrease(noise); outside], [batch], nats, for a decrease that promises

        ELBO(x'; noise)  >=  ELBO(x'; 0) - decrease(noise)        for x' and all of `bounds` at zero noise.

    The outputs move by at most  sum_k |noise_k| * scale_k * gain_k,  and the likelihood says what that costs.
    """
    slope, curvature = (
        part.flatten(1) for part in bounds_of(vae.likelihood).decrease_bound(bounds.output, bounds.target)
    )
    gain = decoder_gain(vae).flatten(1)
    scale = torch.exp(bounds.log_var.upper / 2)
    linear = (scale @ gain * slope).sum(1)
    squares = (scale.square() @ gain.square() * curvature).sum(1) / 2  # in noise_k^2
    products = ((scale @ gain).square() * curvature).sum(1) / 2 - squares  # in |noise_j noise_k|, j != k
    return lambda moments: linear * moments.first + squares * moments.second + products * moments.cross


def decoder_gain(vae: VAE) -> Tensor:
    """|decoder(z) - decoder(z')|  <=  sum_k |z_k - z'_k| * gain_k  for all z and z': [latent_dim, *data_shape].

    The product of all |W|: activations that move no more than their input leave it as it is.

    Raises UnsupportedLayerError, with its place, for a layer that is neither affine (its relaxation rule says so) nor
    non-expansive. Softplus is not: torch's steps down at its threshold.
    """
    parameter = next(vae.parameters())
    gain = torch.eye(vae.latent_dim, dtype=parameter.dtype, device=parameter.device)
    for place, layer in named_layers(vae.decoder, "decoder"):
        if _is_non_expansive(layer):
            continue
        box = Interval(-gain, gain)
        if not isinstance(apply_rule(relaxation_rule, place, layer, box), Affine):
            raise UnsupportedLayerError(f"there is no bound of how far {place} can move its output outside its box")
        gain = apply_rule(interval_rule, place, layer, box).radius  # |W| gain, whatever the center
    return gain


def _is_non_expansive(layer: nn.Module) -> bool:
    slopes = {nn.LeakyReLU: "negative_slope", nn.ELU: "alpha"}
    if type(layer) in slopes:  # not isinstance: a subclass may compute something else
        return abs(getattr(layer, slopes[type(layer)])) <= 1
    return type(layer) in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh)
