"""Percentile smoothing of the ELBO (Chiang et al. 2020, "Detection as regression: certified object detection with
median smoothing", arXiv 2007.03730): a certificate by random draws alone, which needs no bound of any layer.
"""

import copy
import math
from functools import partial
from statistics import NormalDist

import pandas as pd
import torch
from torch import Tensor

from paperlib.models.elbo import check_inputs, check_targets, explain_misfit, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.runtime.progress import Progress
from paperlib.threats.perturbation import check_range


@torch.no_grad()
def percentile_smoothing(
    vae: VAE,
    x: Tensor,
    sigma: float,
    eps: float,
    *,
    quantile: float = 0.5,
    samples: int = 1000,
    confidence: float = 0.999,
    low: float = 0.0,
    high: float = 1.0,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Certified: with probability at least `confidence` over the draws, no x' with ||x' - x||_2 <= eps has a *smoothed*
    ELBO below `lower`; and with the same probability none has one above `upper`.

    The smoothed ELBO is the p-quantile h_p of the random score  ELBO(clamp(x + G, low, high); xi),  with
    G ~ N(0, sigma^2 I) and fresh noise xi ~ N(0, I) in each draw:  h_p(x) = inf{ t : P(score <= t) >= p }.
    So nothing is certified of the ELBO of x' itself, nor of another norm than l2 (an l-infinity ball lies in an l2 ball
    of a radius sqrt(n) times as large).

    With Phi the normal distribution function, for any measurable score of any x' within eps of x

        h_{Phi(Phi^-1(p) - eps/sigma)}(x)  <=  h_p(x')  <=  h_{Phi(Phi^-1(p) + eps/sigma)}(x),

    because  Phi^-1 P(score <= t)  changes by at most  ||x' - x|| / sigma,  whatever t is. Both outer quantiles are
    bounded by order statistics of the draws at x, whose ranks follow from exact binomial tails, see `lower_rank`.
    The clamp keeps targets where a Bernoulli likelihood is defined. It is part of the score; x' may leave the range.

    Each end of each row holds by itself; for N of them at once with probability 1 - d ask for confidence 1 - d / N
    (union bound). The score is what the network computes, in its precision and in evaluation mode.

    Args:
        x: [count, *data_shape] in [low, high].
        sigma, eps: in the units of the data.
        quantile: p, in (0, 1).
        samples: draws for each example.
        batch_size: draws that are evaluated at a time.
        generator: of G and xi, on the device of the model; torch's default if not given.

    Returns:
        One row per example: index, eps, sigma, quantile, samples, confidence, lower, estimate (the p-quantile of the
        draws at x, of which nothing is promised) and upper. In nats, float64; an end is infinite where too few draws
        allow no rank: 1,000 of them do at the median, with confidence 0.999, up to eps = 2.46 sigma.

    Raises:
        ValueError: an argument out of its range; x not finite, outside [low, high], or not fitting the model.
    """
    ranges = {
        "sigma must be positive and finite": 0 < sigma < math.inf,
        "eps must be finite and not negative": 0 <= eps < math.inf,
        "quantile must be between 0 and 1": 0 < quantile < 1,
        "confidence must be between 0 and 1": 0 < confidence < 1,
        "samples and batch_size must be at least 1": samples >= 1 and batch_size >= 1,
    }
    for rule, holds in ranges.items():
        if not holds:
            raise ValueError(
                f"{rule}, got sigma={sigma}, eps={eps}, quantile={quantile}, confidence={confidence}, "
                f"samples={samples}, batch_size={batch_size}"
            )
    check_range(low, high)
    check_inputs(vae, x, x.new_zeros(len(x), vae.latent_dim))
    if x.numel() and not (x.min() >= low and x.max() <= high):
        raise ValueError(f"x must be in [{low}, {high}], got values in [{x.min()}, {x.max()}]")
    check_targets(vae, x.new_tensor([low, high]))
    model = copy.deepcopy(vae).eval()

    center, shift, risk = NormalDist().inv_cdf(quantile), eps / sigma, 1 - confidence
    below, above = center - shift, center + shift
    lower = lower_rank(samples, _phi(below), _phi(-below), risk)
    upper = samples + 1 - lower_rank(samples, _phi(-above), _phi(above), risk)  # of -score, from its other end
    ranks = torch.tensor([lower, max(1, math.ceil(quantile * samples)), upper])
    rows = torch.empty(len(x), 3, dtype=torch.float64)
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    with Progress(f"smooth sigma={sigma:g}", samples * len(x)) as progress, explain_misfit(x):
        for row, example in zip(rows, x, strict=True):
            copies = example.expand(samples, *example.shape)
            parts = [_scores(model, part, sigma, (low, high), generator) for part in copies.split(batch_size)]
            ordered, _ = torch.cat(parts).cpu().sort()
            row.copy_(torch.cat([ends[:1], ordered, ends[1:]])[ranks])
            progress.step(samples)
    settings = {"eps": eps, "sigma": sigma, "quantile": quantile, "samples": samples, "confidence": confidence}
    columns = dict(zip(("lower", "estimate", "upper"), rows.T.numpy(), strict=True))
    return pd.DataFrame({"index": range(len(x))} | settings | columns, index=range(len(x)))


def lower_rank(samples: int, probability: float, complement: float, risk: float) -> int:
    """The largest rank k, from 1, such that the k-th smallest of the draws is above the quantile of this probability
    with probability at most `risk`, whatever the distribution is; 0 where there is none.

    With q the probability and h_q = inf{ t : P(draw <= t) >= q }, each draw is at most h_q with probability at least q.
    The k-th smallest is above h_q if and only if fewer than k draws are at most h_q, so with probability at most

        P( Binomial(samples, q) <= k - 1 ).

    Args:
        complement: 1 - q, which q itself cannot tell where it is tiny.
    """
    draws = torch.arange(samples, dtype=torch.float64)
    odds = torch.tensor(probability, dtype=torch.float64) / complement
    ratios = (samples - draws) / (draws + 1) * odds  # P(k + 1) / P(k), which falls with k and is 1 near the mode
    mode = min(samples, int((samples + 1) * probability))
    # P(k) / P(mode), by products of factors below 1, so that nothing overflows
    weights = torch.cat([(1 / ratios[:mode]).flip(0).cumprod(0).flip(0), torch.ones(1), ratios[mode:].cumprod(0)])
    at_most = weights.cumsum(0) / weights.sum()
    rounding = 8 * (samples + 1) * torch.finfo(torch.float64).eps  # of products and sums
    return int((at_most[:samples] * (1 + rounding) <= risk).sum())


def _phi(z: float) -> float:
    """The normal distribution function, with small values to full relative precision."""
    return math.erfc(-z / math.sqrt(2)) / 2


def _scores(
    vae: VAE, x: Tensor, sigma: float, limits: tuple[float, float], generator: torch.Generator | None
) -> Tensor:
    """One draw of the score for each row of x, in float64; one that is not a number counts as minus infinity."""
    normal = partial(torch.randn, generator=generator, dtype=x.dtype, device=x.device)
    noisy = (x + sigma * normal(x.shape)).clamp(*limits)
    score = unchecked_elbo(vae, noisy, normal((len(x), vae.latent_dim)), noisy)
    return score.double().nan_to_num(-math.inf, math.inf, -math.inf)
