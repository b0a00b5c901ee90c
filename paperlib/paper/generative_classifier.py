"""A generative classifier of digits with certified margins, for notebook 9: a VAE for each class, whose encoders share
their convolutions.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.certificates.api import elbo_bounds
from paperlib.data.arrays import Dataset
from paperlib.data.datasets import load_dataset
from paperlib.detection import GenerativeClassifier
from paperlib.detection.conformal import threshold
from paperlib.models.elbo import elbo_terms
from paperlib.runtime.parallel import in_parallel

RADII = (0.05, 0.1, 0.2)
EPS = 0.1  # the radius that is spoken of; training is at 10 % more
CLASSES = 10
PARAMETERS: dict[str, Any] = {
    **{"eps": 0.11, "likelihood": "bernoulli", "low": 0.0, "high": 1.0, "random_state": 0},
    # Of a few that were compared on every twelfth training digit, so on some of the thresholds' digits, too: weights
    # have never seen those, but these two numbers have.
    **{"temperature": 50.0, "likelihood_weight": 0.05},
}
CHANNELS = {"paper": (16, 32), "smoke": (2, 4)}  # of the shared convolutions
SIZES: dict[str, dict[str, Any]] = {
    "paper": {"hidden": 64, "latent_dim": 8, "steps": 6_000},
    "smoke": {"hidden": 8, "latent_dim": 2, "steps": 60},
}
CALIBRATION = {"paper": 5_000, "smoke": 500}  # training digits, the last, that thresholds are from: at most as many,
CALIBRATION_SHARE = 10  # and at most one in so many
IMAGES = {"paper": 10_000, "smoke": 20}  # of the test set, the first: at most as many
PART = {"paper": 500, "smoke": 20}  # of them in one process
ATTACK_STEPS = {"paper": 10, "smoke": 2}
ALPHA = 0.05  # share of a class's own digits that its threshold may reject
PICTURES = 6  # digits whose reconstructions are shown
METHOD = "crown-ibp"


def classifier_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `classifier_rows` depend on."""
    return {
        "dataset": dataset,
        **PARAMETERS,
        **SIZES[profile],
        "channels": list(CHANNELS[profile]),
        "radii": list(RADII),
        "calibration": [CALIBRATION[profile], CALIBRATION_SHARE],
        "images": IMAGES[profile],
        "attack_steps": ATTACK_STEPS[profile],
        "alpha": ALPHA,
        "pictures": PICTURES,
        "method": METHOD,
    }


def shared_layers(profile: str) -> nn.Sequential:
    """Two convolutions that halve the sides of an image."""
    first, second = CHANNELS[profile]
    image = nn.Unflatten(1, (1, 28, 28))
    convolutions = nn.Conv2d(1, first, 4, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 4, 2, 1), nn.ReLU()
    return nn.Sequential(image, *convolutions, nn.Flatten())


def calibration_count(data: Dataset, profile: str) -> int:
    """How many of the training digits, the last, no weight sees: the thresholds are from them."""
    return min(CALIBRATION[profile], len(data.x) // CALIBRATION_SHARE)


def trained(dataset: str, profile: str, folder: Path) -> tuple[GenerativeClassifier, float]:
    """The classifier and the seconds of its training; what an earlier call has trained is read from the folder."""
    config = classifier_config(dataset, profile)
    path = folder / f"classifier-{hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]}.safetensors"
    timing = path.with_suffix(".seconds")
    if not timing.is_file():
        data = load_dataset(dataset)
        assert data.y is not None
        kept = len(data.x) - calibration_count(data, profile)
        start = perf_counter()
        classifier = GenerativeClassifier(shared=shared_layers(profile), **PARAMETERS, **SIZES[profile])
        classifier.fit(data.x[:kept].double().numpy(), data.y[:kept].numpy())
        classifier.save(path)
        timing.write_text(repr(perf_counter() - start))
    return GenerativeClassifier.load(path, shared_layers(profile)), float(timing.read_text())


def classifier_rows(dataset: str, profile: str, folder: Path) -> list[pd.DataFrame]:
    """Two tables of the first test digits.

    Margins, a row for each of RADII: eps, images, and the accuracies clean, attacked, certified (by joint bounds) and
    separate (by bounds of each ELBO on its own); accepted, the share of right predictions whose class accepts the
    digit, and certified_accepted, of digits that keep both at every point; broken, the certified digits that an attack
    broke; met, the inputs that attacks evaluated, and met_certified, those of them around certified digits; kl, the
    mean of the own class, in nats; seconds of training.

    Errors, one row: wrong (predictions), wrong_accepted (of them those that their class accepts).
    """
    classifier, seconds = trained(dataset, profile, folder)
    thresholds = _thresholds(classifier, dataset, profile)
    images = min(IMAGES[profile], len(load_dataset(dataset, "test").x))
    works = [(eps, start) for eps in RADII for start in range(0, images, PART[profile])]
    task = partial(_certified, dataset=dataset, profile=profile, folder=folder, thresholds=thresholds)
    rows = pd.concat(in_parallel(task, works, name="digits"), ignore_index=True)
    rows["right"] = rows["prediction"] == rows["digit"]
    kept = {name: rows[name] > 0 for name in ("margin", "attacked", "certified", "separate")}
    shares = pd.DataFrame(
        {
            "eps": rows["eps"],
            "clean": kept["margin"],
            "attacked": kept["attacked"],
            "certified": kept["certified"],
            "separate": kept["separate"],
            "broken": kept["certified"] & ~kept["attacked"],
            "met": rows["met"],
            "met_certified": rows["met"].where(kept["certified"], 0),
            "accepted": rows["right"] & rows["accepted"],
            "certified_accepted": kept["certified"] & rows["certified_accepted"],
        }
    )
    counts = ["broken", "met", "met_certified"]
    means = shares.drop(columns=counts).groupby("eps").mean()
    means[counts] = shares.groupby("eps")[counts].sum()
    first = rows[rows["eps"] == RADII[0]]
    wrong = first[~first["right"]]
    about = {"images": len(first), "kl": first["kl"].mean(), "seconds": seconds}
    errors = pd.DataFrame([{"wrong": len(wrong), "wrong_accepted": int(wrong["accepted"].sum())}])
    return [means.reset_index().assign(**about), errors]


def pictures(dataset: str, profile: str, folder: Path) -> dict[str, Tensor]:
    """Digits [count, 784], what each class makes of them [classes, count, 784], and the scores [count, classes]."""
    classifier, _ = trained(dataset, profile, folder)
    x = load_dataset(dataset, "test").x[:PICTURES].double()
    rebuilt = torch.stack([vae.reconstruct(x) for vae in classifier.vaes_])
    scores = torch.from_numpy(classifier.decision_function(x.numpy()))
    return {"digits": x.float(), "rebuilt": rebuilt.float(), "scores": scores}


def _thresholds(classifier: GenerativeClassifier, dataset: str, profile: str) -> list[float]:
    """Of each class: a new digit of it scores less with a probability of at most ALPHA, were the two PARAMETERS chosen
    without the calibration digits.
    """
    data = load_dataset(dataset)
    assert data.y is not None
    first = len(data.x) - calibration_count(data, profile)
    x, y = data.x[first:], data.y[first:]
    scores = torch.from_numpy(classifier.decision_function(x.double().numpy()))
    return [threshold(scores[y == number, number], ALPHA) for number in range(CLASSES)]


def _certified(
    work: tuple[float, int], dataset: str, profile: str, folder: Path, thresholds: list[float]
) -> pd.DataFrame:
    eps, start = work
    classifier, _ = trained(dataset, profile, folder)
    test = load_dataset(dataset, "test")
    assert test.y is not None
    images = slice(start, min(start + PART[profile], IMAGES[profile]))
    x, digit = test.x[images].double(), test.y[images]
    ball = classifier.ball(eps)
    rows = classifier.certify(x.numpy(), ball, digit.numpy(), method=METHOD, attack=ATTACK_STEPS[profile])
    scores = torch.from_numpy(classifier.decision_function(x.numpy()))
    predicted = torch.from_numpy(rows["prediction"].to_numpy(copy=True))
    limit = torch.tensor(thresholds, dtype=torch.float64)
    rows["accepted"] = (scores.gather(1, predicted[:, None])[:, 0] >= limit[predicted]).numpy()
    lower, kl = torch.full((len(x),), -torch.inf, dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    noise = torch.zeros(len(x), classifier.latent_dim, dtype=torch.float64)
    for number in digit.unique().tolist():
        own = digit == number
        vae = classifier.vaes_[number]
        bounds = elbo_bounds(vae, x[own], ball, noise[own], METHOD)
        lower[own] = bounds.lower.detach() + classifier.log_prior_[number]
        kl[own] = elbo_terms(vae, x[own], noise[own], x[own])[1].detach()
    rows["certified_accepted"] = (lower >= limit[digit]).numpy()
    return rows.assign(eps=eps, digit=digit.numpy(), kl=kl.numpy())
