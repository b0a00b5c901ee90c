"""Is the suite of notebook 7 strong, and is no certificate ever passed? On the released models, without training."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch

from paperlib.certificates.crown import Crown
from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.certificates.worst_point import linear_bound_point
from paperlib.data.arrays import Dataset
from paperlib.models.vae import VAE
from paperlib.paper.mnist_training import EPS, ModelAtRadius, models_config
from paperlib.paper.rivals import ATTACK_STEPS, RADII
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.attacks import pgd
from paperlib.threats.directions import lighting
from paperlib.threats.patch import PatchSet
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.sanity import loss_along_attack, sanity_checks
from paperlib.threats.suite import run_suite

IMAGES = {"paper": 200, "smoke": 5}  # attacked, the first of the test set
SANITY = {"paper": (50, (1, 2, 5, 10, 20, 40, 80), 2_000), "smoke": (5, (1, 2, 5), 20)}  # images, steps, queries
PATCH = 5  # pixels, the side of a square patch
LIGHTING = 0.2  # radius of brightness and of contrast


def threats(test: Dataset) -> dict[str, PerturbationSet]:
    """The sets by the name that tables show."""
    sets: dict[str, PerturbationSet] = {f"{norm} {eps:g}": test.ball(eps, norm) for norm, eps in RADII}
    sets[f"patch {PATCH} x {PATCH}"] = PatchSet(PATCH, PATCH)
    sets[f"lighting {LIGHTING:g}"] = lighting(LIGHTING, LIGHTING)
    return sets


def checks_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `suite_rows` and `sanity_rows` depend on."""
    images, steps, queries = SANITY[profile]
    return {
        **models_config(dataset, profile),
        "radii": [list(radius) for radius in RADII],
        "patch": PATCH,
        "lighting": LIGHTING,
        "images": IMAGES[profile],
        "steps": ATTACK_STEPS[profile],
        "sanity_images": images,
        "sanity_steps": list(steps),
        "queries": queries,
        "eps": EPS,
    }


def suite_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """A row for each model and set: means over the images in nats: clean, pgd, apgd (from x), suite, certified (CROWN);
    won: how often an attack other than PGD reached the lowest ELBO; met and broken as in the comparison.
    """
    works = [(name, vae, threat) for name, vae in models.items() for threat in threats(test)]
    return pd.DataFrame(in_parallel(partial(_suite, test=test, profile=profile), works, name="attacks"))


def _suite(work: tuple[str, VAE, str], test: Dataset, profile: str) -> dict[str, Any]:
    name, vae, threat = work
    ball, steps = threats(test)[threat], ATTACK_STEPS[profile]
    # The bound of a patch looks at all its places, for every unit: fewer images.
    x = test.x[: IMAGES[profile] // (5 if threat.startswith("patch") else 1) or 1]
    noise = evaluation_noise(len(x), vae.latent_dim)[0]
    exact, x64, noise64 = vae.in_float64(), x.double(), noise.double()
    start = linear_bound_point(exact, x64, ball, noise64)
    result = run_suite(exact, x64, ball, noise64, steps, torch.Generator().manual_seed(NOISE_SEED), starts=[start])
    rows = certify(vae, x, ball, noise, method=Crown())
    lowest = torch.from_numpy(rows["certified"].to_numpy(copy=True))
    return {
        "model": name,
        "threat": threat,
        "images": len(x),
        "clean": rows["clean"].mean(),
        "pgd": result.elbos["pgd"].mean().item(),
        "apgd": result.elbos["apgd from x"].mean().item(),
        "suite": result.elbo.mean().item(),
        "certified": lowest.mean().item(),
        "won": sum(each != "pgd" for each in result.attack),
        "met": result.evaluated,
        "broken": int((result.elbo < lowest).sum()),
    }


def sanity_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`sanity_checks` and `loss_along_attack` for each model at EPS, with the model's name in front."""
    works = [ModelAtRadius(name, test.ball(EPS), vae, test.x) for name, vae in models.items()]
    frames = in_parallel(partial(_sanity, profile=profile), works, name="checks")
    checks, along = zip(*frames, strict=True)
    return pd.concat(checks, ignore_index=True), pd.concat(along, ignore_index=True)


def _sanity(one: ModelAtRadius, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    images, steps, queries = SANITY[profile]
    vae, x = one.vae.in_float64(), one.x[:images].double()
    noise = evaluation_noise(images, vae.latent_dim)[0].double()
    generator = torch.Generator().manual_seed(NOISE_SEED)
    checks = sanity_checks(vae, x, one.ball, noise, steps, queries, generator)
    along = loss_along_attack(
        vae, x, pgd(vae, x, one.ball, noise, steps=max(steps)), one.ball, noise, generator=generator
    )
    return checks.assign(model=one.name), along.assign(model=one.name)
