"""Decoder likelihoods log p(target | z) for a fixed latent z.

A likelihood sees the decoder's raw output [batch, *data_shape] (logits, or means) and the target of the same shape; its
values are [batch], in nats. A user's own likelihood subclasses `Likelihood` with two methods; for certificates its
bounds are registered beside it, see `paperlib.certificates.likelihood_bounds`.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Likelihood(nn.Module, ABC):
    """p(target | output), independent over the elements of an example."""

    support: tuple[float, float] = (-math.inf, math.inf)  # the least and the largest target that it explains

    @abstractmethod
    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """log p(target | output) summed over all but the batch dimension: [batch], in nats."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """The expected data under the likelihood, [batch, *data_shape]: what a reconstruction shows."""

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """The summands of `log_prob`, [batch, *data_shape], in nats: which elements of an example are unlikely.

        Only explanations need them; raises NotImplementedError where a likelihood does not tell them apart.
        """
        raise NotImplementedError(f"{type(self).__name__} has no terms, which explanations need")


def sum_per_example(terms: Tensor) -> Tensor:
    """The sum over all but the batch dimension: [batch, *shape] -> [batch]."""
    return terms.flatten(1).sum(1)


class ExponentialFamily(Likelihood):
    """Independent elements of one natural exponential family, with the output as natural parameter l:

        log p(t | l)  =  t * l - A(l) + h(t),        A convex, h concave or 0, and the mean is A'(l)

    A family of one's own is bounded by `ExponentialFamilyBounds` (`paperlib.certificates.exponential_bounds`), to be
    registered for it. All functions are elementwise.
    """

    @abstractmethod
    def log_normalizer(self, output: Tensor) -> Tensor:
        """A(l)."""

    @abstractmethod
    def mean_parameter(self, output: Tensor) -> Tensor:
        """A'(l), increasing in l."""

    @abstractmethod
    def natural_parameter(self, mean: Tensor) -> Tensor:
        """The l with A'(l) = mean, to rounding; infinite beyond the ends of what A' takes, or too large to matter."""

    def log_base_measure(self, target: Tensor) -> Tensor | None:
        """h(t), differentiable; None where it is 0."""
        return None

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return sum_per_example(self.log_density(output, target))

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        return self.log_density(output, target)

    def log_density(self, output: Tensor, target: Tensor) -> Tensor:
        """log p(t | l) of each element."""
        base = self.log_base_measure(target)
        fit = target * output if base is None else target * output + base
        return fit - self.log_normalizer(output)

    def mean(self, output: Tensor) -> Tensor:
        return self.mean_parameter(output)


class Bernoulli(ExponentialFamily):
    """Independent Bernoulli pixels with the output as logit l: log p(t | l) = t * l - softplus(l), for t in [0, 1].

    For grey values in between it is the usual unnormalised VAE objective; `ContinuousBernoulli` is the density that
    belongs to it. For targets outside [0, 1] log p grows with the logit without end, so they are refused wherever data
    come in, with no allowance.
    """

    support = (0.0, 1.0)

    def log_normalizer(self, output: Tensor) -> Tensor:
        return softplus(output)

    def mean_parameter(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    def natural_parameter(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(0, 1))


class _Softplus(torch.autograd.Function):
    """log(1 + exp(l)) in float32, within 8 unit roundoffs of 1 + its value.

    torch's own takes log1p, which for float32 is not vectorised on the CPU and then costs as much as a layer's product.
    """

    @staticmethod
    def forward(ctx: Any, logit: Tensor) -> Tensor:
        ctx.save_for_backward(logit)
        return logit.abs().neg_().exp_().add_(1).log_().add_(logit.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (logit,) = ctx.saved_tensors
        return gradient * torch.sigmoid(logit)


def softplus(logit: Tensor) -> Tensor:
    """log(1 + exp(l)), elementwise: the normaliser of a Bernoulli with logit l."""
    # torch steps from log(1 + exp(l)) down to l at its default threshold of 20, by 2e-9; at 50 by less than rounding.
    return _Softplus.apply(logit) if logit.dtype == torch.float32 else F.softplus(logit, threshold=50)


class Gaussian(Likelihood):
    """Independent Gaussian pixels around the output: log N(target; output, scale^2), in nats of a density.

    Args:
        scale: standard deviation in data units, one for all pixels or one for each, [*data_shape].
        learned: whether training adapts the scale (its logarithm is then a parameter).

    Raises:
        ValueError: a scale that is not positive and finite.
    """

    def __init__(self, scale: float | Tensor = 1.0, learned: bool = False):
        super().__init__()
        if isinstance(scale, Tensor):
            if not ((scale > 0) & scale.isfinite()).all():
                raise ValueError(f"each scale must be positive and finite, got {scale.min():g} to {scale.max():g}")
            log_scale = scale.log()
        else:
            if not 0 < scale < math.inf:
                raise ValueError(f"scale must be positive and finite, got {scale}")
            log_scale = torch.tensor(math.log(scale))
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return sum_per_example(normal_log_density((target - output).abs(), self.log_scale))

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        return normal_log_density((target - output).abs(), self.log_scale)

    def mean(self, output: Tensor) -> Tensor:
        return output


def normal_log_density(distance: Tensor, log_scale: Tensor) -> Tensor:
    """log N(target; mean, exp(log_scale)^2) of each element at the distance |target - mean|."""
    standardized = distance * torch.exp(-log_scale)
    return -standardized.square() / 2 - log_scale - math.log(2 * math.pi) / 2
