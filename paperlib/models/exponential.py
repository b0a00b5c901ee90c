"""More likelihoods of one natural parameter: grey pixels as a density on [0, 1], and counts."""

import math
from typing import Any

import torch
from torch import Tensor

from paperlib.models.likelihood import ExponentialFamily

# A'(l) - 1/2 = sum over k of  B_2k / (2k)! * l^(2k - 1),  B the Bernoulli numbers; ten terms for |l| < 1
SERIES = (
    *(1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600),
    *(-3617 / 10670622842880000, 43867 / 5109094217170944000, -174611 / 802857662698291200000),
)


class ContinuousBernoulli(ExponentialFamily):
    """Independent pixels with a density on [0, 1], with the output as natural parameter l (Loaiza-Ganem & Cunningham
    2019, arXiv 1907.06845):

        log p(t | l)  =  t * l - log((exp(l) - 1) / l)        in nats of a density, uniform at l = 0

    The proper likelihood of grey values: that of `Bernoulli` with its missing normaliser. For a target of exactly 0 or
    1 it grows with |l| without end, as a density may.
    """

    support = (0.0, 1.0)

    def log_normalizer(self, output: Tensor) -> Tensor:
        return _LogNormalizer.apply(output)

    def mean_parameter(self, output: Tensor) -> Tensor:
        size = output.abs()
        near = size < 1
        square, x = torch.where(near, output, 0).square(), torch.where(near, 1, size)
        series = torch.full_like(square, SERIES[-1])
        for coefficient in SERIES[-2::-1]:
            series = series * square + coefficient
        # A'(-x) = 1/x - 1 / (exp(x) - 1)  without overflow, and A'(x) = 1 - A'(-x)
        below = 1 / x + torch.exp(-x) / torch.expm1(-x)
        return torch.where(near, 0.5 + output * series, torch.where(output < 0, below, 1 - below))

    @torch.no_grad()
    def natural_parameter(self, mean: Tensor) -> Tensor:
        # For the mean m <= 1/2 the root is -x. With y = 1 - 2m it is x = 2 L^-1(y), the inverse of Langevin's function
        # L(v) = coth(v) - 1/v, which  y (3 - y^2) / (1 - y^2)  meets to 5 % (Cohen 1991). Newton's steps square that.
        m = mean.double()
        upper = m > 0.5
        m = torch.where(upper, 1 - m, m).clamp(min=1e-100)
        y = 1 - 2 * m
        x = 2 * y * (3 - y.square()) / (4 * m * (1 - m))
        for _ in range(5):
            # A''(x) = 1/x^2 - 1 / (4 sinh(x/2)^2), by its series where both terms are large
            curvature = torch.where(
                x < 1e-2, 1 / 12 - x.square() / 240, 1 / x.square() - (1 / (2 * torch.sinh(x / 2))).square()
            )
            x = (x + (self.mean_parameter(-x) - m) / curvature).clamp(min=0)
        return torch.where(upper, x, -x).to(mean.dtype)


class _LogNormalizer(torch.autograd.Function):
    """log((exp(l) - 1) / l),  within 12 unit roundoffs of 1 + |l| for any l."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        # max(l, 0) + log((1 - exp(-|l|)) / |l|), whose quotient is 1 at 0
        size = output.abs().clamp_(min=torch.finfo(output.dtype).tiny)
        return torch.expm1(-size).neg_().div_(size).log_().add_(output.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradient * ContinuousBernoulli().mean_parameter(output)


class Poisson(ExponentialFamily):
    """Independent counts with the output as logarithm l of the rate:  log p(t | l) = t * l - exp(l) - log Gamma(t + 1).

    For whole t it is the probability of that count. A perturbed count is any real number t >= 0: there the same formula
    goes on, concave in t. Targets below 0 are refused wherever data come in.
    """

    support = (0.0, math.inf)

    def log_normalizer(self, output: Tensor) -> Tensor:
        return torch.exp(output)

    def mean_parameter(self, output: Tensor) -> Tensor:
        return torch.exp(output)

    def natural_parameter(self, mean: Tensor) -> Tensor:
        return torch.log(mean.clamp(min=0))

    def log_base_measure(self, target: Tensor) -> Tensor:
        return -torch.lgamma(target + 1)
