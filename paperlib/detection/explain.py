"""Which features make a row's score fall, and a picture of it."""

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from paperlib.detection.score import score_terms
from paperlib.models.vae import VAE

SHOWN = 15  # features with a bar of their own, at most


def mean_terms(vae: VAE, rows: Tensor, noise: Tensor) -> Tensor | None:
    """The mean of `score_terms` over the rows, [features + 1]; None for a likelihood of the user's own without them."""
    try:
        return score_terms(vae, rows, noise).mean(0)
    except NotImplementedError:
        return None


def falls_of(vae: VAE, row: Tensor, noise: Tensor, normal_terms: Tensor | None) -> Tensor:
    """By how much each summand of the score of a row [1, features] is below its mean, [features + 1], nats.

    Raises ValueError for a row whose score overflows, and NotImplementedError where there are no terms.
    """
    if normal_terms is None:
        raise NotImplementedError(f"{type(vae.likelihood).__name__} has no `terms`, which explanations need")
    falls = normal_terms - score_terms(vae, row, noise)[0]
    if not falls.isfinite().all():
        raise ValueError("the row is so far out that the model overflows: its score is minus infinity")
    return falls


def falls_picture(falls: pd.Series) -> Any:
    """The largest terms of `CertifiedDetector.explain` as bars, in nats, and the rest as one: a matplotlib Figure.

    Raises ModuleNotFoundError without matplotlib, which the library does not need otherwise.
    """
    from matplotlib.figure import Figure  # here, as no verdict needs it

    order = np.argsort(-falls.abs().to_numpy(), stable=True)  # by place: two features may have one name
    shown, rest = falls.iloc[order[:SHOWN]], falls.iloc[order[SHOWN:]]
    if len(rest):
        shown = pd.concat([shown, pd.Series({f"{len(rest)} others": rest.sum()})])
    figure = Figure(figsize=(5, 0.8 + 0.28 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh([str(name) for name in shown.index], shown.to_numpy(), color=["C3" if v > 0 else "C0" for v in shown])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("fall of the score below that of normal rows (nats)")
    return figure
