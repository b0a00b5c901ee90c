"""Real digits under the worst lighting, patch and l2 change: the second figure of notebook 7, and its exact numbers."""

from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.branch_and_bound import BranchAndBound
from paperlib.certificates.crown import Crown
from paperlib.certificates.evaluation import NOISE_SEED, evaluation_noise
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.paper.attack_checks import LIGHTING, PATCH
from paperlib.paper.mnist_training import models_config
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.directions import lighting
from paperlib.threats.patch import PatchSet
from paperlib.threats.suite import strongest

LIT = {"paper": 100, "smoke": 2}  # images whose worst lighting is computed, the first of the test set
PICTURED = 4  # images of the figure
TOLERANCE = 0.1  # nats, of branch and bound
SECONDS = {"paper": 120.0, "smoke": 6.0}  # for CHUNK images and one end
CHUNK = 10  # images of one process at a time
L2_EPS = 1.0


def worst_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `lighting_rows` and the tensors of `pictures` depend on."""
    return {
        **models_config(dataset, profile),
        "lighting": LIGHTING,
        "patch": PATCH,
        "l2": L2_EPS,
        "images": LIT[profile],
        "tolerance": TOLERANCE,
        "seconds": SECONDS[profile],
    }


def lighting_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """A row for each model and image: clean, exact (the worst lighting's ELBO, from below, within TOLERANCE nats unless
    time ran out), attacked, in nats, and seconds of one core.
    """
    count = LIT[profile]
    works = [(name, vae, start) for name, vae in models.items() for start in range(0, count, CHUNK)]
    frames = in_parallel(partial(_lighting, test=test, profile=profile), works, name="lightings")
    return pd.concat(frames, ignore_index=True)


def _lighting(work: tuple[str, VAE, int], test: Dataset, profile: str) -> pd.DataFrame:
    name, vae, start = work
    part = slice(start, min(start + CHUNK, LIT[profile]))
    x, ball, vae = test.x[part].double(), lighting(LIGHTING, LIGHTING), vae.in_float64()
    noise = evaluation_noise(LIT[profile], vae.latent_dim)[0][part].double()
    begin = perf_counter()
    exact = BranchAndBound(TOLERANCE, SECONDS[profile]).lower(vae, x, ball, noise)
    seconds = (perf_counter() - begin) / len(x)
    with torch.no_grad():
        point = strongest(vae, x, ball, noise, generator=torch.Generator().manual_seed(NOISE_SEED))
        columns = {"clean": elbo(vae, x, noise), "exact": exact, "attacked": elbo(vae, point, noise)}
    rows = {key: value.numpy() for key, value in columns.items()}
    return pd.DataFrame({"model": name, "index": range(part.start, part.stop), **rows, "seconds": seconds})


def pictures(models: Mapping[str, VAE], test: Dataset, profile: str) -> dict[str, Tensor]:
    """The first images and what attacks make of them: "x"; and for each model and threat "MODEL THREAT", its ELBO
    "MODEL THREAT attacked" and the certificate "MODEL THREAT certified", which for lighting is exact; in nats.
    """
    x = test.x[: min(PICTURED, LIT[profile])].double()
    sets = {"lighting": lighting(LIGHTING, LIGHTING), "patch": PatchSet(PATCH, PATCH), "l2": test.ball(L2_EPS, "l2")}
    drawn = {"x": x.float()}
    for name, trained in models.items():
        vae = trained.in_float64()
        noise = evaluation_noise(LIT[profile], vae.latent_dim)[0][: len(x)].double()
        with torch.no_grad():
            drawn[f"{name} clean"] = elbo(vae, x, noise)
        for threat, ball in sets.items():
            point = strongest(vae, x, ball, noise, generator=torch.Generator().manual_seed(NOISE_SEED))
            method = BranchAndBound(TOLERANCE, SECONDS[profile]) if threat == "lighting" else Crown(10)
            with torch.no_grad():
                drawn[f"{name} {threat}"] = point.float()
                drawn[f"{name} {threat} attacked"] = elbo(vae, point, noise)
                drawn[f"{name} {threat} certified"] = method.lower(vae, x, ball, noise)
    return drawn
