"""A certified lower bound of the model's likelihood:  log p(x')  for every x' of a set, with confidence over draws.

    p(x') = E[ mean over K draws of w(x') ]  >=  E[ min over x' of the mean over K draws of w(x') ]  >=  E[exp(C)]

with w the importance weights of a proposal, and C a certificate at the K draws (`paperlib.certificates.proposals`).
exp(C) is not negative, so that a confidence bound of its mean needs no floor: no noise is out of reach, unlike in
`certify_expected`. The larger K, the less is lost between the first two, where each group of draws has its own worst
x'; the more groups, the less is lost to chance.
"""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.confidence import lower_confidence_bound
from paperlib.certificates.proposals import FittedProposal, Proposal
from paperlib.models.elbo import check_inputs, check_targets, explain_misfit
from paperlib.models.iwae import log_mean_exp
from paperlib.models.vae import VAE
from paperlib.runtime.inference import outside_inference_mode
from paperlib.runtime.progress import Progress
from paperlib.threats.perturbation import PerturbationSet

FITTED = FittedProposal()


@outside_inference_mode
def certify_likelihood(
    vae: VAE,
    x: Tensor,
    ball: PerturbationSet,
    *,
    draws: int = 50,
    samples: int = 50,
    confidence: float = 0.999,
    proposal: Proposal = FITTED,
    batch_size: int = 2000,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Certified: with probability at least `confidence` over the draws, no x' in the ball around x has log p(x') below
    `bound`, with p(x') = E over the prior of p(x'|z) the likelihood of the model itself. Holds for each row by itself
    and for every number of draws and samples.

    For all of N rows at once with probability 1 - d, ask for confidence 1 - d / N (union bound). Computed in float64 on
    a copy of the model in evaluation mode; holds in real arithmetic, float64 rounding is about 1e-12 of a value.

    Args:
        x: [count, *data_shape] in the data range.
        draws: K, whose mean weight is certified together.
        samples: groups of K draws; `draws * samples` latents are decoded for each example.
        proposal: of the latents. `FittedProposal` needs bounds of the likelihood alone and any decoder;
            `EncoderProposal` bounds the whole network by a method.
        batch_size: draws at a time; bounds the memory.
        generator: of the draws, on the device of the model; torch's default if not given.

    Returns:
        One row per example: index, eps, draws, samples, confidence, bound, mean (of all groups: what averaging without
        rigour would say) and width (mean - bound: the price of rigour). In nats, float64.

    Raises:
        ValueError: confidence outside (0, 1), fewer than 2 samples, fewer than 1 draw, a batch_size below 1; and as
            `elbo_bounds`.
        UnsupportedLayerError: a likelihood without bounds, or with `EncoderProposal` as `elbo_bounds`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if draws < 1 or samples < 2 or batch_size < 1:
        given = f"draws={draws}, samples={samples}, batch_size={batch_size}"
        raise ValueError(f"needs draws >= 1, samples >= 2 and batch_size >= 1, got {given}")
    network, x = vae.in_float64(), x.double()
    check_inputs(network, x, x.new_zeros(len(x), vae.latent_dim))
    check_targets(network, *ball.box(x))
    run = _Run(network, draws, samples, confidence, proposal, generator)
    size = max(1, batch_size // draws)
    parts = [slice(start, start + size) for start in range(0, len(x), size)]
    with Progress(f"certify the likelihood {ball.label}", samples * len(x)) as progress, torch.no_grad():
        columns = [run.bound_and_mean(x[part], ball.rows(part, x), progress) for part in parts]
    bound, mean = torch.cat([x.new_zeros(2, 0), *columns], 1).cpu()
    width = torch.where(bound > -math.inf, mean - bound, math.inf)  # also where the mean is -inf
    settings = {"eps": ball.size, "draws": draws, "samples": samples, "confidence": confidence}
    values = {"bound": bound.numpy(), "mean": mean.numpy(), "width": width.numpy()}
    rows = pd.DataFrame(settings | values, index=range(len(x)))
    rows.insert(0, "index", range(len(x)))
    return rows


@dataclass(frozen=True)
class _Run:
    vae: VAE
    draws: int
    samples: int
    confidence: float
    proposal: Proposal
    generator: torch.Generator | None

    def bound_and_mean(self, x: Tensor, ball: PerturbationSet, progress: Progress) -> Tensor:
        """The columns of these names, [2, batch]."""
        shape = (self.draws, len(x), self.vae.latent_dim)
        groups = []
        with explain_misfit(x):
            bound = self.proposal.bound(self.vae, x, ball, self.generator)
            for _ in range(self.samples):
                groups.append(bound(torch.randn(shape, generator=self.generator, dtype=x.dtype, device=x.device)))
                progress.step(len(x))
        logs = torch.stack(groups)
        return torch.stack([log_confidence_bound(logs, self.confidence), log_mean_exp(logs)])


def log_confidence_bound(logs: Tensor, confidence: float) -> Tensor:
    """With probability at least `confidence` at most  log E[exp(log)]  of the distribution that made the independent
    logs [samples, batch], for each column; of which nothing else is assumed.
    """
    # What overflowed to a NaN may have no weight at all. The bound of a mean scales with its draws, so that the
    # largest may be taken out of all.
    logs = logs.nan_to_num(-math.inf, math.inf, -math.inf)
    largest = logs.amax(0)
    scaled = (logs - largest).exp()
    return largest + lower_confidence_bound(scaled, torch.zeros_like(largest), confidence).log()
