"""Digits against the rest, for notebook 8: the AUC that is left whatever an adversary does to the outliers.

Training sees digits alone, and outliers made of them and of noise. Which outliers to make was chosen on held-out digits
and on training images of Fashion-MNIST; what is measured here are test sets.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.data.datasets import data_origin, load_dataset
from paperlib.data.outliers import inverted, rotated, shuffled, uniform
from paperlib.detection import CertifiedDetector
from paperlib.detection.ranking import auc, guaranteed_auc
from paperlib.models.likelihood import Bernoulli
from paperlib.models.vae import VAE
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.threats.suite import run_suite
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

RADII = (0.1, 0.3)
MEANS = "pixel means"  # the constant decoder
SHARED: dict[str, Any] = {"hidden": (64,), "latent_dim": 4, "bound": "crown-ibp", "eps": 0.3, "batch_size": 128}
DETECTOR = "detector outlier_weight=1.0"  # pushes the certified upper bounds of made-up outliers down
RECIPES: dict[str, dict[str, Any]] = {
    "VAE": {"kappa": 1.0},
    "proVAE": {"kappa": 0.5},
    "detector": {"kappa": 0.5, "objective": DETECTOR},
}
STEPS = {"paper": 4_000, "smoke": 30}
IMAGES = {"paper": 10_000, "smoke": 50}  # of each set, the first
ATTACKED = {"paper": 200, "smoke": 5}  # of them
ATTACK_STEPS = {"paper": 40, "smoke": 3}
SEED = 0  # of shuffled pixels and uniform noise
METHOD = "crown-ibp"


def configs(dataset: str, profile: str) -> dict[str, TrainConfig]:
    """The models that are trained, by name."""
    return {name: TrainConfig(dataset, steps=STEPS[profile], **SHARED | recipe) for name, recipe in RECIPES.items()}


def outlier_names(dataset: str) -> tuple[str, ...]:
    """What digits are told from: other images where the full sets are, and digits made abnormal."""
    made = ("uniform noise", "inverted digits", "rotated digits", "shuffled digits")
    return ("fashion-mnist", "notmnist", *made) if dataset == "mnist" else made


def images_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `image_rows` depend on."""
    return {
        "configs": {name: config.as_dict() for name, config in configs(dataset, profile).items()},
        "data": {name: data_origin(name) for name in outlier_names(dataset) if " " not in name},
        "radii": list(RADII),
        "images": IMAGES[profile],
        "attacked": ATTACKED[profile],
        "attack_steps": ATTACK_STEPS[profile],
        "outliers": list(outlier_names(dataset)),
        "method": METHOD,
        "seed": SEED,
    }


def outliers(dataset: str, name: str, count: int) -> Tensor:
    """The first images of an outlier set, [count, 784], float64 in [0, 1]."""
    if " " not in name:
        return load_dataset(name, "test").x[:count].double()
    generator = torch.Generator().manual_seed(SEED)
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "uniform noise": partial(uniform, generator=generator),
        "inverted digits": inverted,
        "rotated digits": rotated,
        "shuffled digits": partial(shuffled, generator=generator),
    }
    return made[name](load_dataset(dataset, "test").x[:count].double())


def pixel_means(x: Tensor) -> VAE:
    """A constant decoder: each pixel has its mean over x [count, pixels] as its probability, and the KL is 0."""
    encoder, decoder = nn.Linear(x.shape[1], 2), nn.Linear(1, x.shape[1])
    with torch.no_grad():
        for parameter in (*encoder.parameters(), decoder.weight):
            parameter.zero_()
        # where no image has ink, a mean of one in ten thousand images stands for none
        decoder.bias.copy_(torch.logit(x.mean(0).clamp(1e-4, 1 - 1e-4)))
    return VAE(nn.Sequential(encoder), nn.Sequential(decoder), Bernoulli(), latent_dim=1).eval()


def image_rows(dataset: str, profile: str, folder: Path) -> pd.DataFrame:
    """A row for each model, set of outliers and radius (0: clean), shares in [0, 1]:

    model, kl (mean over held-out digits, nats), outliers, eps, digits, images (numbers); auc; guaranteed_auc (outliers
    at their certified upper bounds); attacked (number of images, the first, that the suite of attacks raises; none at
    radius 0), met (inputs that it evaluated), broken (certified alarms, at 5 % false alarms, that it silenced).

    Args:
        folder: that the trained models are kept in.
    """
    load_dataset(dataset)  # here, as each process would look for it
    names = [*reversed(RECIPES), MEANS]  # the longest first, so that no core is left with one
    measure = partial(_measured, dataset=dataset, profile=profile, folder=folder)
    frames = dict(zip(names, in_parallel(measure, names, jobs=training_jobs(), name="models"), strict=True))
    return pd.concat([frames[name] for name in (*RECIPES, MEANS)], ignore_index=True)


def _measured(name: str, dataset: str, profile: str, folder: Path) -> pd.DataFrame:
    if name == MEANS:
        vae = pixel_means(_split(dataset)[0])
    else:
        config = configs(dataset, profile)[name]
        vae = train(config, device="cpu", folder=folder / config.digest).vae
    return measured(name, vae, dataset, profile)


def _split(dataset: str) -> tuple[Tensor, Tensor]:
    """The digits that models are made of, and those that `train` holds out: thresholds are calibrated on these."""
    x = load_dataset(dataset).x
    held_out = min(1_000, len(x) // 10)
    return x[:-held_out], x[-held_out:]


def measured(name: str, vae: VAE, dataset: str, profile: str) -> pd.DataFrame:
    """The rows of one model, see `image_rows`."""
    count = IMAGES[profile]
    detector = CertifiedDetector(vae=vae).fit(_split(dataset)[1].double().numpy())
    digits = load_dataset(dataset, "test").x[:count].double()
    images = {kind: outliers(dataset, kind, count) for kind in outlier_names(dataset)}
    clean, threshold = torch.from_numpy(detector.score_samples(digits.numpy())), detector.offset_
    rows = []
    for eps in (0.0, *RADII):
        for kind, x in images.items():
            score, upper = _score_and_upper(detector, x, eps)
            about = {"model": name, "kl": detector.kl_, "outliers": kind, "eps": eps}
            about |= {"digits": len(digits), "images": len(x)}
            ranked = {"auc": auc(clean, score), "guaranteed_auc": guaranteed_auc(clean, upper)}
            first = x[: ATTACKED[profile] if eps > 0 else 0]
            tried = {"attacked": len(first), "met": 0, "broken": 0}
            if len(first):
                ball, noise = detector.ball(eps), detector.noise_.expand(len(first), -1)
                generator = torch.Generator().manual_seed(SEED)
                attack = run_suite(detector.vae_, first, ball, noise, ATTACK_STEPS[profile], generator, maximize=True)
                silenced = (upper[: len(first)] < threshold) & (attack.elbo >= threshold)
                tried |= {"met": attack.evaluated, "broken": int(silenced.sum())}
            rows.append(about | ranked | tried)
    return pd.DataFrame(rows)


def _score_and_upper(detector: CertifiedDetector, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Score and certified upper bound of each image, [count] each, nats; at radius 0 they are one."""
    if eps == 0:
        score = torch.from_numpy(detector.score_samples(x.numpy()))
        return score, score
    frame = detector.certify(x.numpy(), eps, method=METHOD, radius=False, attack=False)
    score, upper = (torch.from_numpy(frame[end].to_numpy(copy=True)) for end in ("score", "upper"))
    return score, upper


def examples(dataset: str) -> dict[str, Tensor]:
    """The third image of each set of outliers, [sets, 784]."""
    return {"images": torch.cat([outliers(dataset, name, 3)[2:] for name in outlier_names(dataset)]).float()}
