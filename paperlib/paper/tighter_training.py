"""The experiment of notebook 6: clean against certified ELBO by training bound, kappa, training radius and seed."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from paperlib.certificates.crown import Crown
from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.data.arrays import Dataset
from paperlib.models.vae import VAE
from paperlib.paper.mnist_training import EPS, SIZES
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

BOUNDS: tuple[Literal["ibp", "crown-ibp"], ...] = ("ibp", "crown-ibp")  # what a model is trained on
# Pairs of kappa and training radius. The more the clean ELBO counts, the larger the radius that keeps the certificate
# up; the less it counts, the more steps training takes.
TRADEOFF = ((0.0, 0.095), (0.5, 0.103), (0.75, 0.12))
TRAINING_STEPS = {"paper": (4_000, 2_300, 1_600), "smoke": (120, 100, 80)}
SEEDS = (0, 1, 2)
ALPHA_STEPS = 10  # of CROWN
IMAGES = {"paper": 10_000, "smoke": 50}  # certified by crown-ibp, the first of the test set
SUBSET = {"paper": 200, "smoke": 20}  # attacked and certified by crown, the first of the test set


def tradeoff_models(dataset: str, profile: str) -> list[TrainConfig]:
    """One configuration for each bound, pair of kappa and radius, and seed; with the same steps for both bounds.

    At equal cost more steps on smaller batches give a higher ELBO than those of `digit_models`.
    """
    base = TrainConfig(dataset=dataset, hidden=(SIZES[profile].hidden,), batch_size=64, lr=1.5e-3)
    return [
        replace(base, bound=bound, kappa=kappa, eps=eps, seed=seed, steps=steps)
        for bound in BOUNDS
        for (kappa, eps), steps in zip(TRADEOFF, TRAINING_STEPS[profile], strict=True)
        for seed in SEEDS
    ]


def released_models(dataset: str, profile: str) -> dict[str, TrainConfig]:
    """The models trained on the linear bound whose weights are kept, by file name; both are part of the comparison."""
    return {
        f"06_provae_kappa_{config.kappa:g}": config
        for config in tradeoff_models(dataset, profile)
        if config.bound == "crown-ibp" and config.kappa <= 0.5 and config.seed == 0
    }


def tradeoff_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `tradeoff_rows` depend on."""
    return {
        "models": [config.as_dict() for config in tradeoff_models(dataset, profile)],
        "noise_seed": NOISE_SEED,
        "eps": EPS,
        "images": IMAGES[profile],
        "subset": SUBSET[profile],
        "attack_steps": SIZES[profile].attack_steps,
        "alpha_steps": ALPHA_STEPS,
    }


def tradeoff_rows(test: Dataset, profile: str, runs: Path) -> pd.DataFrame:
    """Train each model, in its folder of `runs`, and measure it at EPS on the first test images at one noise draw.

    Columns: bound, kappa, train_eps, steps, seed; over IMAGES the means clean, kl, ibp and crown_ibp (certificates);
    over SUBSET subset_clean, subset_crown (the certificate with ALPHA_STEPS steps) and subset_attacked; in nats.
    """
    task = partial(_row, test=test, profile=profile, runs=runs)
    # the longest first, so that no core is left with one of them in the end
    models = sorted(tradeoff_models(test.name, profile), key=lambda c: (c.steps, c.bound == "crown-ibp"), reverse=True)
    rows = dict(zip(models, in_parallel(task, models, jobs=training_jobs(), name="models"), strict=True))
    return pd.DataFrame([rows[config] for config in tradeoff_models(test.name, profile)])


def _row(config: TrainConfig, test: Dataset, profile: str, runs: Path) -> dict[str, Any]:
    vae = train(config, folder=runs / config.digest).vae
    about = {"bound": config.bound, "kappa": config.kappa, "train_eps": config.eps, "steps": config.steps}
    return about | {"seed": config.seed} | measured(vae, test, profile)


def measured(vae: VAE, test: Dataset, profile: str) -> dict[str, float]:
    """Means at EPS and one noise draw, in nats.

    Over IMAGES clean, kl, ibp and crown_ibp (certificates); over SUBSET subset_clean, subset_crown (with ALPHA_STEPS
    steps) and subset_attacked.
    """
    x, ball = test.x[: IMAGES[profile]], test.ball(EPS)
    noise = evaluation_noise(len(x), vae.latent_dim)[0]
    subset, subset_noise = x[: SUBSET[profile]], noise[: SUBSET[profile]]
    ibp = certify(vae, x, ball, noise)
    linear = certify(vae, x, ball, noise, method="crown-ibp")
    attack = {"steps": SIZES[profile].attack_steps}
    refined = certify(vae, subset, ball, subset_noise, attack=attack, method=Crown(ALPHA_STEPS))
    return {
        "clean": ibp["clean"].mean(),
        "kl": ibp["kl"].mean(),
        "ibp": ibp["certified"].mean(),
        "crown_ibp": linear["certified"].mean(),
        "subset_clean": refined["clean"].mean(),
        "subset_crown": refined["certified"].mean(),
        "subset_attacked": refined["attacked"].mean(),
    }
