"""Branch and bound for notebook 10: how near beta-CROWN comes to the strongest attack as it is given more time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.api import certificate
from paperlib.certificates.evaluation import NOISE_SEED, evaluation_noise
from paperlib.certificates.ladder.beta_crown import BetaCrown
from paperlib.certificates.ladder.lagrangian import Lagrangian
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.paper.ladder import compared_models
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.balls import LinfBall
from paperlib.threats.suite import strongest

SEARCHED = ("proVAE, trained on intervals", "proVAE, trained on CROWN-IBP")
IMAGES = {"paper": 100, "smoke": 2}  # the first of the test set
SECONDS = {"paper": (0.2, 0.6, 2.0), "smoke": (0.1, 0.2)}  # for each image, on one thread
PART = {"paper": 25, "smoke": 2}  # images of one process
BARRIER_STEPS = 100  # of the Lagrangian dual: the limit of bounds that relax one unit at a time, over CROWN's boxes


@dataclass(frozen=True)
class _Part:
    """Some images of one model."""

    name: str
    start: int
    seconds: tuple[float, ...]
    vae: VAE = field(repr=False)
    x: Tensor = field(repr=False)
    noise: Tensor = field(repr=False)
    ball: LinfBall


def branching_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `branching_rows` depend on."""
    models = {name: compared_models(dataset, profile)[name] for name in SEARCHED}
    return {
        "models": {name: config.as_dict() for name, (_, config, _) in models.items()},
        "radii": {name: eps for name, (_, _, eps) in models.items()},
        "images": IMAGES[profile],
        "seconds": list(SECONDS[profile]),
        "barrier_steps": BARRIER_STEPS,
        "noise_seed": NOISE_SEED,
    }


def branching_rows(models: Mapping[str, tuple[VAE, float]], test: Dataset, profile: str) -> pd.DataFrame:
    """One row for each model and time limit (`seconds` an image): means over the images of the ELBO under the strongest
    attack, of `barrier` (attacked less the Lagrangian dual), of `gap` (attacked less beta-CROWN), its standard error,
    and of the seconds that were used.

    Args:
        models: and the radius of each, by name.
    """
    count, size = IMAGES[profile], PART[profile]
    parts = []
    for name, (vae, eps) in models.items():
        noise = evaluation_noise(count, vae.latent_dim)[0]
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            part = vae, test.x[:count][rows], noise[rows], test.ball(eps)
            parts.append(_Part(name, start, SECONDS[profile], *part))
    images = pd.concat(in_parallel(_searched, parts, name="parts"), ignore_index=True)
    grouped = images.groupby(["model", "seconds"], sort=False)
    means = grouped[["attacked", "barrier", "gap", "used"]].mean()
    return means.assign(gap_se=grouped["gap"].sem(), images=grouped.size()).reset_index()


def _searched(part: _Part) -> pd.DataFrame:
    vae, x, noise = part.vae.in_float64(), part.x.double(), part.noise.double()
    x_adv = strongest(vae, x, part.ball, noise)
    with torch.no_grad():
        attacked = elbo(vae, x_adv, noise)
    barrier = attacked - certificate(vae, x, part.ball, noise, Lagrangian(BARRIER_STEPS))
    frames = []
    for seconds in part.seconds:
        start = perf_counter()
        bound = certificate(vae, x, part.ball, noise, BetaCrown(time_limit=seconds))
        used = (perf_counter() - start) / len(x)
        numbers = {"attacked": attacked, "barrier": barrier, "gap": attacked - bound}
        columns = {name: values.numpy() for name, values in numbers.items()}
        frames.append(pd.DataFrame({"model": part.name, "seconds": seconds, "used": used, **columns}))
    return pd.concat(frames, ignore_index=True)
