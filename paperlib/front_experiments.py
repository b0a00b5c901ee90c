"""The experiment on tighter training: clean against certified ELBO by bound, kappa, training radius and seed."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from paperlib.certify import certify
from paperlib.config import TrainConfig
from paperlib.data import Dataset
from paperlib.experiments import EPS, NOISE_SEED, SIZES, test_noise
from paperlib.parallel import in_parallel, training_jobs
from paperlib.train import train
from paperlib.vae import VAE

BOUNDS: tuple[Literal["ibp", "crown-ibp"], ...] = ("ibp", "crown-ibp")  # what a model is trained on
# kappa, training radius: the more the clean ELBO counts, the wider the ball that keeps the certificate up; the less it
# counts, the more steps of training it takes
POINTS = ((0.0, 0.095), (0.5, 0.103), (0.75, 0.12))
STEPS = {"paper": (4_000, 2_300, 1_600), "smoke": (120, 100, 80)}
SEEDS = (0, 1, 2)
SEARCH = 10  # steps for the free slopes of the linear bound
IMAGES = {"paper": 10_000, "smoke": 50}  # certified by crown-ibp, the first of the test set
ATTACKED = {"paper": 200, "smoke": 20}  # attacked and certified by crown, the first of the test set


def front_models(dataset: str, profile: str) -> list[TrainConfig]:
    """One configuration for each bound, point of the front and seed; for both bounds with the same number of steps.

    At equal cost more steps on smaller batches give a higher ELBO than those of `digit_models`.
    """
    base = TrainConfig(dataset=dataset, hidden=(SIZES[profile].hidden,), batch_size=64, lr=1.5e-3)
    return [
        replace(base, bound=bound, kappa=kappa, eps=eps, seed=seed, steps=steps)
        for bound in BOUNDS
        for (kappa, eps), steps in zip(POINTS, STEPS[profile], strict=True)
        for seed in SEEDS
    ]


def released_models(dataset: str, profile: str) -> dict[str, TrainConfig]:
    """The models trained on the linear bound whose weights are kept, by file name; both are part of the front."""
    front = front_models(dataset, profile)
    return {
        f"05_provae_kappa_{config.kappa:g}": config
        for config in front
        if config.bound == "crown-ibp" and config.kappa <= 0.5 and config.seed == 0
    }


def front_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `front_rows` depend on."""
    return {
        "models": [config.as_dict() for config in front_models(dataset, profile)],
        "noise_seed": NOISE_SEED,
        "eps": EPS,
        "images": IMAGES[profile],
        "attacked": ATTACKED[profile],
        "attack_steps": SIZES[profile].attack_steps,
        "search": SEARCH,
    }


def front_rows(test: Dataset, profile: str, runs: Path) -> pd.DataFrame:
    """Train each model, in its folder of `runs`, and measure it at EPS on the first test images at one noise draw.

    Columns: bound, kappa, train_eps, steps, seed; over IMAGES the means clean, kl, ibp and crown_ibp (certificates);
    over ATTACKED few_clean, few_crown (the certificate with SEARCH steps) and few_attacked; in nats.
    """
    task = partial(_row, test=test, profile=profile, runs=runs)
    # the longest first, so that no core is left with one of them in the end
    models = sorted(front_models(test.name, profile), key=lambda c: (c.steps, c.bound == "crown-ibp"), reverse=True)
    found = dict(zip(models, in_parallel(task, models, jobs=training_jobs(), name="models"), strict=True))
    return pd.DataFrame([found[config] for config in front_models(test.name, profile)])


def _row(config: TrainConfig, test: Dataset, profile: str, runs: Path) -> dict[str, Any]:
    vae = train(config, folder=runs / config.digest).vae
    about = {"bound": config.bound, "kappa": config.kappa, "train_eps": config.eps, "steps": config.steps}
    return about | {"seed": config.seed} | _measured(vae, test, profile)


def _measured(vae: VAE, test: Dataset, profile: str) -> dict[str, float]:
    x, ball = test.x[: IMAGES[profile]], test.ball(EPS)
    noise = test_noise(len(x), vae.latent_dim, draws=1)[0]
    few, few_noise = x[: ATTACKED[profile]], noise[: ATTACKED[profile]]
    ibp = certify(vae, x, ball, noise)
    linear = certify(vae, x, ball, noise, method="crown-ibp")
    attack = {"steps": SIZES[profile].attack_steps}
    refined = certify(vae, few, ball, few_noise, attack=attack, method="crown", steps=SEARCH)
    return {
        "clean": ibp["clean"].mean(),
        "kl": ibp["kl"].mean(),
        "ibp": ibp["certified"].mean(),
        "crown_ibp": linear["certified"].mean(),
        "few_clean": refined["clean"].mean(),
        "few_crown": refined["certified"].mean(),
        "few_attacked": refined["attacked"].mean(),
    }
