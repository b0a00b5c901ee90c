"""The comparison of notebook 7: every recipe trained, attacked by the suite and certified, on equal terms."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.crown import Crown, CrownIBP
from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.certificates.method import Method
from paperlib.data.arrays import Dataset, Norm
from paperlib.data.datasets import load_dataset
from paperlib.models.elbo import elbo, elbo_terms
from paperlib.models.vae import VAE
from paperlib.paper.rival_recipes import CONVOLUTIONAL, L2_EPS, RECIPES, SEEDS, Run, datasets, rivals_config
from paperlib.rivals.civet import civet_error, reconstruction_error
from paperlib.rivals.lipschitz import lipschitz_constants, materialize, r_robustness_margin
from paperlib.rivals.lipschitz_certificate import lipschitz_certificate
from paperlib.rivals.lipschitz_layers import LogVariance
from paperlib.rivals.percentile_smoothing import percentile_smoothing
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.threats.attacks import descend, pgd
from paperlib.threats.balls import LinfBall
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.suite import run_suite
from paperlib.training.loop import train

RADII: tuple[tuple[Norm, float], ...] = (("linf", 0.05), ("linf", 0.1), ("l2", 0.5), ("l2", 1.0), ("l2", 1.5))
ERROR_RADIUS = 0.1  # l-infinity, of the reconstruction errors
DELTA = 0.05  # of CIVET's error: it holds with probability 1 - DELTA over the draw of the latents
DAMAGE = 6.0  # l2 distance of two reconstructions that the margin of a Lipschitz VAE allows, in pixels
SAMPLES, CONFIDENCE = 1_000, 0.999  # of percentile smoothing
IMAGES = {"paper": 100, "smoke": 4}  # of each test set, the first
SMOOTHED = {"paper": 20, "smoke": 2}  # of them by percentile smoothing
HELD_OUT = {"paper": 200, "smoke": 10}  # training images that no model was trained on, on which trials are compared
ATTACK_STEPS = {"paper": 40, "smoke": 3}


@dataclass(frozen=True)
class Trained:
    """A finished run: its model in float32, and how long its training took, in seconds of one core."""

    vae: VAE
    seconds: float


def trained(run: Run, folder: Path) -> Trained:
    """The training of this run; what an earlier call has finished is read from the folder, with its time."""
    data, model = load_dataset(run.config.dataset), run.model()
    if "convolutional" in run.recipe:
        data = _as_images(data)
    place = folder / f"{run.config.digest}-{run.recipe}-{run.trial}"
    done = train(run.config, vae=model, data=data, device="cpu", folder=place)
    return Trained(materialize(done.vae), done.seconds)


def _as_images(data: Dataset) -> Dataset:
    return Dataset(data.name, data.x.view(-1, 1, 28, 28), data.y, data.low, data.high)


def compared(dataset: str, profile: str, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of all trials and those of the comparison. The models are kept in folders of `folder`.

    Trials: recipe, tuned; held-out means clean, kl and attacked (PGD at the radius that the recipe is tuned for), and
    chosen: the trial of highest attacked mean. Comparison: see `_measured`.
    """
    runs = [Run.of(one.name, trial, dataset, 0, profile) for one in RECIPES for trial in range(len(one.trials))]
    task = partial(_trial, folder=folder)
    trials = pd.DataFrame(in_parallel(task, runs, jobs=training_jobs(), name="trials"))
    best = trials.loc[trials.groupby("recipe", sort=False)["attacked"].idxmax()].set_index("recipe")["trial"]
    trials["chosen"] = trials["trial"] == trials["recipe"].map(best)
    finals = [
        Run.of(one.name, int(best[one.name]), name, seed, profile)
        for name in datasets(dataset)
        for one in RECIPES
        for seed in SEEDS[profile]
    ]
    finals += [Run.of(one.name, 0, dataset, 0, profile) for one in CONVOLUTIONAL]
    finals.sort(key=lambda run: run.recipe != "Lipschitz VAE")  # the longest first, so that no core is left with one
    frames = in_parallel(partial(_measured, folder=folder), finals, jobs=training_jobs(), name="models")
    order = [one.name for one in (*RECIPES, *CONVOLUTIONAL)]
    frames = sorted(frames, key=lambda frame: order.index(frame["recipe"].iloc[0]))
    return trials.drop(columns="trial"), pd.concat(frames, ignore_index=True)


def compared_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `compared` depend on."""
    return {
        **rivals_config(dataset, profile),
        "radii": [list(radius) for radius in RADII],
        "images": IMAGES[profile],
        "smoothed": SMOOTHED[profile],
        "held_out": HELD_OUT[profile],
        "attack_steps": ATTACK_STEPS[profile],
        "error_radius": ERROR_RADIUS,
        "delta": DELTA,
        "damage": DAMAGE,
        "samples": SAMPLES,
        "confidence": CONFIDENCE,
        "noise_seed": NOISE_SEED,
    }


def _trial(run: Run, folder: Path) -> dict[str, Any]:
    vae = trained(run, folder).vae
    data = load_dataset(run.config.dataset)
    x = data.x[-HELD_OUT[run.profile] :]
    noise = evaluation_noise(len(x), vae.latent_dim)[0]
    ball = data.ball(L2_EPS, "l2") if run.threat == "l2" else data.ball(ERROR_RADIUS)
    point = pgd(vae, x, ball, noise, steps=ATTACK_STEPS[run.profile] // 2)
    with torch.no_grad():
        log_likelihood, kl = elbo_terms(vae, x, noise, x)
        attacked = elbo(vae, point, noise).mean().item()
    clean = (log_likelihood - kl).mean().item()
    about = {"recipe": run.recipe, "trial": run.trial, "tuned": run.tuned}
    return {**about, "clean": clean, "kl": kl.mean().item(), "attacked": attacked}


def _measured(run: Run, folder: Path) -> pd.DataFrame:
    """A row for each of RADII, means over the first test images at one noise draw, in nats: clean, kl, attacked (by the
    suite), certified (by linear bounds), met (points that the suite evaluated) and broken (images whose attacked ELBO
    is below their certificate).

    error_clean, error_attacked and error_certified are squared errors of the reconstruction at l-infinity ERROR_RADIUS;
    theirs is what the rival's own method certifies, in its own unit: the smoothed ELBO of the noise-trained VAE (nats,
    for l2), the margin of the Lipschitz VAE (an l2 radius).
    """
    done = trained(run, folder)
    vae, test = done.vae, load_dataset(run.config.dataset, "test")
    convolutional = "convolutional" in run.recipe
    test = _as_images(test) if convolutional else test
    x = test.x[: IMAGES[run.profile]]
    noise = evaluation_noise(len(x), vae.latent_dim)[0]
    # CROWN's boxes cost a backward pass for each unit of a convolution
    method: Method = CrownIBP() if convolutional or run.recipe == "Lipschitz VAE" else Crown()
    about = {
        "dataset": run.config.dataset,
        "recipe": run.recipe,
        "tuned": run.tuned,
        "seed": run.config.seed,
        "seconds": done.seconds,
        **_errors(vae, x, test.ball(ERROR_RADIUS), noise, ATTACK_STEPS[run.profile]),
    }
    rows = []
    for norm, eps in RADII:
        at = at_radius(vae, x, test.ball(eps, norm), noise, method, run.profile)
        rows.append({**about, "norm": norm, **at, "theirs": _theirs(run, vae, x, norm, eps)})
    return pd.DataFrame(rows)


def at_radius(
    vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, method: Method, profile: str
) -> dict[str, Any]:
    """eps, images, and the means clean, kl, attacked and certified; met and broken, see `_measured`."""
    point, met = attack(vae, x, ball, noise, ATTACK_STEPS[profile])
    point = ball.project(point.double(), x.double())  # float32 may have rounded it out of the set
    with torch.no_grad():
        attacked = elbo(vae.in_float64(), point, noise.double())
    certified = certify(vae, x, ball, noise, method=method)
    lowest = torch.from_numpy(certified["certified"].to_numpy(copy=True))
    # layer by layer, bounds of sorted pairs are far looser
    if any(isinstance(layer, LogVariance) for layer in vae.encoder.children()):
        length = ball.size * (x[0].numel() ** 0.5 if isinstance(ball, LinfBall) else 1.0)
        lowest = lowest.maximum(lipschitz_certificate(vae.in_float64(), x.double(), length, noise.double()))
    return {
        "eps": ball.size,
        "images": len(x),
        "clean": certified["clean"].mean(),
        "kl": certified["kl"].mean(),
        "attacked": attacked.mean().item(),
        "certified": lowest.mean().item(),
        "met": met,
        "broken": int((attacked < lowest).sum()),
    }


def attack(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, steps: int) -> tuple[Tensor, int]:
    """Where the suite ends, in the precision of x, and how many inputs it evaluated."""
    result = run_suite(vae, x, ball, noise, steps, torch.Generator().manual_seed(NOISE_SEED))
    return result.x_adv, result.evaluated


def _errors(vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, steps: int) -> dict[str, float]:
    start = ball.sample(x, torch.Generator().manual_seed(NOISE_SEED))
    _, lowest = descend(lambda point: -reconstruction_error(vae, point, noise, x), x, ball, start, steps)
    with torch.no_grad():
        exact = vae.in_float64()
        return {
            "error_clean": reconstruction_error(vae, x, noise, x).mean().item(),
            "error_attacked": -lowest.mean().item(),
            "error_certified": civet_error(exact, x.double(), ball, DELTA).mean().item(),
        }


def _theirs(run: Run, vae: VAE, x: Tensor, norm: Norm, eps: float) -> float:
    if run.recipe == "noise-trained VAE" and norm == "l2":
        generator = torch.Generator().manual_seed(NOISE_SEED)
        images = x[: SMOOTHED[run.profile]]
        rows = percentile_smoothing(
            vae, images, run.config.eps, eps, generator=generator, samples=SAMPLES, confidence=CONFIDENCE
        )
        return float(rows["lower"].mean())
    if run.recipe == "Lipschitz VAE":
        with torch.no_grad():
            scale = torch.exp(vae.encode(x)[1] / 2).norm(dim=1)
        a, b, c = lipschitz_constants(vae)
        # of the pixels' means and of sigma, which are sigmoids and so have a quarter of the slope
        return r_robustness_margin(a / 4, b, c / 4, scale, DAMAGE).mean().item()
    return float("nan")
