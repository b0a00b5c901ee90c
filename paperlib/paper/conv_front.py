"""The convolutional networks of notebook 12: proVAEs on digits and on clothes, beside fully connected ones of the same
latents, objective and number of steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import pandas as pd
import torch

from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.data.arrays import Dataset
from paperlib.data.datasets import load_dataset
from paperlib.models.vae import VAE, conv_vae
from paperlib.paper.front import BASE, RECIPES, front_models
from paperlib.paper.mnist_training import EPS, SIZES
from paperlib.paper.rival_recipes import datasets
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.training.config import TrainConfig
from paperlib.training.init import interval_aware_
from paperlib.training.loop import TrainResult, train

MLP, CONV = "MLP", "convolutional"  # the networks
CHANNELS = {"paper": (16, 32), "smoke": (2, 4)}  # of the convolutional encoder, which the decoder mirrors
RECIPE: Mapping[str, Any] = {"init": "interval", "lr": 3e-3}  # what all of these models change in front.BASE
IMAGES = {"paper": 2_000, "smoke": 20}  # certified by CROWN-IBP, the first of the test set
SUBSET = {"paper": 100, "smoke": 4}  # attacked and certified by CROWN, the first of the test set


@dataclass(frozen=True)
class ConvModel:
    """A model of the comparison. Of a convolutional one, `hidden` of the configuration are the channels."""

    network: str
    config: TrainConfig

    def build(self) -> VAE | None:
        """The untrained model, its weights determined by the seed alone; None where the configuration builds it."""
        if self.network == MLP:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return interval_aware_(conv_vae(self.config.data_shape, self.config.hidden, self.config.latent_dim))

    def images(self, data: Dataset) -> Dataset:
        """The data in the shape that the network takes."""
        return Dataset(data.name, data.x.view(-1, *self.config.data_shape), data.y, data.low, data.high)


def conv_models(dataset: str, profile: str) -> list[ConvModel]:
    """For each data set a fully connected and a convolutional network, trained by RECIPE for as many steps."""
    base = next(m.config for m in front_models(dataset, profile) if (m.group, m.recipe) == (RECIPES, BASE))
    models = []
    for name in datasets(dataset):
        config = replace(base, dataset=name, **RECIPE)
        conv = replace(config, data_shape=(1, 28, 28), hidden=CHANNELS[_size(profile)])
        models += [ConvModel(MLP, config), ConvModel(CONV, conv)]
    return models


def conv_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `conv_rows` depend on."""
    size = _size(profile)
    return {
        "models": [[model.network, model.config.as_dict()] for model in conv_models(dataset, profile)],
        "noise_seed": NOISE_SEED,
        "eps": EPS,
        "images": IMAGES[size],
        "subset": SUBSET[size],
        "attack_steps": SIZES[size].attack_steps,
    }


def conv_rows(dataset: str, profile: str, runs: Path) -> pd.DataFrame:
    """Train each model, in its folder of `runs`, and measure it at EPS on the first test images at one noise draw.

    Columns: dataset, network, kappa, train_eps, steps, seed, seconds (of training, on one core that may do other work),
    weights (their number); over IMAGES the means clean, kl and crown_ibp (certificate); over SUBSET subset_clean, crown
    and attacked (PGD), all in nats; crown_ibp_ms and crown_ms, what the two certificates take an image of the
    subset, in milliseconds of one core.
    """
    models = conv_models(dataset, profile)
    longest = sorted(models, key=lambda model: (model.network == CONV, model.config.steps), reverse=True)
    task = partial(_row, size=_size(profile), runs=runs)
    rows = dict(zip(longest, in_parallel(task, longest, jobs=training_jobs(), name="models"), strict=True))
    return pd.DataFrame([rows[model] for model in models])


def trained(model: ConvModel, folder: Path) -> TrainResult:
    """The model, trained in the folder, with the seconds that it took."""
    config = model.config
    data = model.images(load_dataset(config.dataset))
    return train(config, vae=model.build(), data=data, device="cpu", folder=folder)


def _row(model: ConvModel, size: str, runs: Path) -> dict[str, Any]:
    config = model.config
    done = trained(model, runs / config.digest)
    vae = done.vae
    return {
        "dataset": config.dataset,
        "network": model.network,
        "kappa": config.kappa,
        "train_eps": config.eps,
        "steps": config.steps,
        "seed": config.seed,
        "seconds": done.seconds,
        "weights": sum(parameter.numel() for parameter in vae.parameters()),
        **_measured(vae, model.images(load_dataset(config.dataset, "test")), size),
    }


def _measured(vae: VAE, test: Dataset, size: str) -> dict[str, float]:
    x, ball = test.x[: IMAGES[size]], test.ball(EPS)
    noise = evaluation_noise(len(x), vae.latent_dim)[0]
    subset, subset_noise = x[: SUBSET[size]], noise[: SUBSET[size]]

    def timed(method: str) -> tuple[pd.DataFrame, float]:
        # time of the processor, in which other work does not count
        start = process_time()
        rows = certify(vae, subset, ball, subset_noise, method=method)
        return rows, 1e3 * (process_time() - start) / len(subset)

    linear = certify(vae, x, ball, noise, method="crown-ibp")
    attacked = certify(vae, subset, ball, subset_noise, attack={"steps": SIZES[size].attack_steps}, method="crown-ibp")
    _, linear_ms = timed("crown-ibp")
    refined, refined_ms = timed("crown")
    return {
        "clean": linear["clean"].mean(),
        "kl": linear["kl"].mean(),
        "crown_ibp": linear["certified"].mean(),
        "subset_clean": attacked["clean"].mean(),
        "crown": refined["certified"].mean(),
        "attacked": attacked["attacked"].mean(),
        "crown_ibp_ms": linear_ms,
        "crown_ms": refined_ms,
    }


def _size(profile: str) -> str:
    """The size of an experiment of the paper that the long profile has, too."""
    return "smoke" if profile == "smoke" else "paper"
