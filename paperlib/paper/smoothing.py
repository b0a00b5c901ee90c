"""What percentile smoothing promises, for notebook 7: at each deviation of the noise that a VAE was trained with."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from paperlib.certificates.evaluation import NOISE_SEED
from paperlib.data.datasets import load_dataset
from paperlib.paper.rival_recipes import Run, recipe, rivals_config
from paperlib.paper.rivals import CONFIDENCE, RADII, SAMPLES, SMOOTHED, trained
from paperlib.rivals.percentile_smoothing import percentile_smoothing
from paperlib.runtime.parallel import in_parallel, training_jobs

NAME = "noise-trained VAE"


def smoothing_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `smoothing_rows` depend on."""
    return {
        **rivals_config(dataset, profile),
        "radii": [eps for norm, eps in RADII if norm == "l2"],
        "images": SMOOTHED[profile],
        "samples": SAMPLES,
        "confidence": CONFIDENCE,
        "noise_seed": NOISE_SEED,
    }


def smoothing_rows(dataset: str, profile: str, folder: Path) -> pd.DataFrame:
    """A row for each trial of the noise-trained VAE and each l2 radius, means over the first test images, nats: sigma,
    eps, images, estimate (the smoothed ELBO, unproven) and lower (what no change of that length can push it below).
    """
    runs = [Run.of(NAME, trial, dataset, 0, profile) for trial in range(len(recipe(NAME).trials))]
    frames = in_parallel(partial(_smoothed, folder=folder), runs, jobs=training_jobs(), name="models")
    return pd.concat(frames, ignore_index=True)


def _smoothed(run: Run, folder: Path) -> pd.DataFrame:
    vae, sigma = trained(run, folder).vae, run.config.eps
    x = load_dataset(run.config.dataset, "test").x[: SMOOTHED[run.profile]]
    rows = []
    for norm, eps in RADII:
        if norm != "l2":
            continue
        generator = torch.Generator().manual_seed(NOISE_SEED)
        each = percentile_smoothing(vae, x, sigma, eps, generator=generator, samples=SAMPLES, confidence=CONFIDENCE)
        means = {"estimate": each["estimate"].mean(), "lower": each["lower"].mean()}
        rows.append({"sigma": sigma, "eps": eps, "images": len(x), **means})
    return pd.DataFrame(rows)
