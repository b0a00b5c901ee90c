"""How near certificate and attack come on Fashion-MNIST, for notebook 7: proVAEs that are trained longer than those of
the comparison, each at a radius slightly above the one that it is measured at. A subset of MNIST stands for itself.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.certificates.crown import Crown
from paperlib.certificates.evaluation import NOISE_SEED, evaluation_noise
from paperlib.data.datasets import load_dataset
from paperlib.paper.rival_recipes import Run, datasets, recipe
from paperlib.paper.rivals import ATTACK_STEPS, IMAGES, at_radius, trained
from paperlib.runtime.parallel import in_parallel, training_jobs

RADII = (0.05, 0.1)  # l-infinity


def fashion_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `fashion_rows` depend on."""
    runs = [run.as_dict() for run in longer_runs(dataset, profile)]
    return {
        "runs": runs,
        "eps": list(RADII),
        "images": IMAGES[profile],
        "attack_steps": ATTACK_STEPS[profile],
        "noise_seed": NOISE_SEED,
    }


def longer_runs(dataset: str, profile: str) -> list[Run]:
    """One training for each of RADII, twice as long as those of the comparison and at a radius larger by 5 %."""
    place = [trial["kappa"] for trial in recipe("proVAE, linear bound").trials].index(0.5)
    run = Run.of("proVAE, linear bound", place, datasets(dataset)[-1], 0, profile)
    longer = replace(run.config, steps=2 * run.config.steps)
    return [replace(run, config=replace(longer, eps=round(1.05 * eps, 6))) for eps in RADII]


def fashion_rows(dataset: str, profile: str, folder: Path) -> pd.DataFrame:
    """A row for each of RADII: a proVAE with kappa = 0.5 trained on the linear bound for that radius, attacked and
    certified there: dataset, eps, images, clean, kl, attacked, certified, met, broken.
    """
    works = list(zip(longer_runs(dataset, profile), RADII, strict=True))
    return pd.DataFrame(in_parallel(partial(_fashion, folder=folder), works, jobs=training_jobs(), name="models"))


def _fashion(work: tuple[Run, float], folder: Path) -> dict[str, Any]:
    run, eps = work
    vae, test = trained(run, folder).vae, load_dataset(run.config.dataset, "test")
    x = test.x[: IMAGES[run.profile]]
    noise = evaluation_noise(len(x), vae.latent_dim)[0]
    return {"dataset": run.config.dataset, **at_radius(vae, x, test.ball(eps), noise, Crown(10), run.profile)}
