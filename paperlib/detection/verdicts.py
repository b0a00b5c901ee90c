"""The rows of a certified detector: score, certified bounds and verdict of each."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.evaluation import ALLOWANCE, SandwichViolationError, chunk_size
from paperlib.certificates.method import Method
from paperlib.detection.score import score, score_bounds
from paperlib.models.vae import VAE
from paperlib.runtime.progress import Progress
from paperlib.threats.perturbation import PerturbationSet

MEMORY = 1.0  # GiB for intermediate results


@torch.no_grad()
def certified_rows(
    vae: VAE,
    x: Tensor,
    perturbation: PerturbationSet,
    noise: Tensor,
    threshold: float,
    method: str | Method,
    sound: bool,
) -> pd.DataFrame:
    """See `CertifiedDetector.certify`. Rows pass through in chunks, so that memory does not grow with their number.

    Args:
        x: [rows, features], float64.
        noise: of the score, [draws, latent_dim].
    """
    perturbation.check(x)
    size = chunk_size(vae, x[:1], noise[:1], method, MEMORY)
    frames = []
    with Progress(f"certify {perturbation.label}", len(x)) as progress:
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            frames.append(_chunk(vae, x[rows], perturbation.rows(rows, x), noise, threshold, method, sound))
            progress.step(len(frames[-1]))
    return pd.concat(frames, ignore_index=True)


def _chunk(
    vae: VAE,
    x: Tensor,
    perturbation: PerturbationSet,
    noise: Tensor,
    threshold: float,
    method: str | Method,
    sound: bool,
) -> pd.DataFrame:
    value = score(vae, x, noise)
    bounds = around(value, score_bounds(vae, x, perturbation, noise, method, sound))
    columns = {"score": value, "lower": bounds.lower, "upper": bounds.upper}
    frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    alarm, calm = bounds.upper < threshold, bounds.lower >= threshold
    return frame.assign(verdict=np.select([alarm.numpy(), calm.numpy()], ["alarm", "calm"], "undecided"))


def around(value: Tensor, bounds: Interval) -> Interval:
    """The bounds, enlarged to hold the score itself, which rounding may have put outside of them.

    Raises SandwichViolationError where more than rounding did.
    """
    allowed = ALLOWANCE * (1 + value.abs())
    holds = (bounds.lower <= value + allowed) & (value <= bounds.upper + allowed)
    if not holds.all():
        row = int((~holds).nonzero()[0])
        raise SandwichViolationError(
            f"the score {value[row]:g} is outside of its certified bounds [{bounds.lower[row]:g}, "
            f"{bounds.upper[row]:g}] in {int((~holds).sum())} of {len(holds)} rows"
        )
    return Interval(torch.minimum(bounds.lower, value), torch.maximum(bounds.upper, value))
