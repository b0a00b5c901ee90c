"""What robustness costs under each likelihood: a plain VAE and a proVAE of each, trained and measured alike."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.api import certificate
from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.data.datasets import load_dataset
from paperlib.models.elbo import elbo
from paperlib.models.exponential import Poisson
from paperlib.models.likelihood import Likelihood
from paperlib.paper.mnist_training import EPS
from paperlib.runtime.numbers import rounded_down, rounded_up
from paperlib.runtime.parallel import in_parallel, training_jobs
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.suite import greyest_point, strongest
from paperlib.training.config import LikelihoodName, TrainConfig
from paperlib.training.loop import train

DIGITS = {"paper": "mnist", "smoke": "mnist5k"}
COUNTS, COUNTS_EPS = "digit-counts", 1.0  # one count more or less in each block
STEPS = {"paper": 1_500, "smoke": 30}
HIDDEN = {"paper": 256, "smoke": 16}
IMAGES = {"paper": 200, "smoke": 6}  # the first of the test set
ATTACK_STEPS = {"paper": 20, "smoke": 3}
# Of likelihoods with a scale: a standard deviation near a fifth of the range for both, chosen before anything was run.
SCALES = {"gaussian": 0.2, "discretized-logistic": 0.1}
PIXELS: tuple[LikelihoodName, ...] = ("bernoulli", "continuous-bernoulli", "gaussian", "discretized-logistic")
MODELS = {"VAE": 1.0, "proVAE": 0.5}  # kappa


def likelihood_models(profile: str) -> dict[tuple[str, str], TrainConfig]:
    """The configuration of each model, by likelihood and name: all of them with as many steps of the same kind."""
    base = TrainConfig(
        dataset=DIGITS[profile], hidden=(HIDDEN[profile],), bound="crown-ibp", steps=STEPS[profile], batch_size=64
    )
    kinds = {name: replace(base, likelihood=name, scale=SCALES.get(name, 1.0), eps=EPS) for name in PIXELS}
    kinds["poisson"] = replace(base, likelihood="poisson", dataset=COUNTS, data_shape=(64,), eps=COUNTS_EPS)
    return {
        (kind, name): replace(config, kappa=kappa, eps=0.0 if kappa == 1 else config.eps)
        for kind, config in kinds.items()
        for name, kappa in MODELS.items()
    }


def likelihood_config(profile: str) -> dict[str, Any]:
    """What the rows of `likelihood_rows` depend on."""
    return {
        "models": [config.as_dict() for config in likelihood_models(profile).values()],
        "noise_seed": NOISE_SEED,
        "eps": [EPS, COUNTS_EPS],
        "images": IMAGES[profile],
        "attack_steps": ATTACK_STEPS[profile],
    }


def likelihood_rows(profile: str, runs: Path) -> pd.DataFrame:
    """Train each model, in its folder of `runs`, and measure it on the first test rows at one noise draw.

    Columns: likelihood, model, dataset, eps, dimensions; means in nats of ceiling (`likelihood_ceiling`), clean, kl,
    attacked (the strongest of the suite), and the certificates crown_ibp and crown.
    """
    models = likelihood_models(profile)
    for dataset in {config.dataset for config in models.values()}:
        load_dataset(dataset)  # here, as each process would look for it
    task = partial(_row, profile=profile, runs=runs)
    return pd.DataFrame(in_parallel(task, [*models.items()], jobs=training_jobs(), name="models"))


def _row(item: tuple[tuple[str, str], TrainConfig], profile: str, runs: Path) -> dict[str, Any]:
    (kind, name), config = item
    vae = train(config, folder=runs / config.digest).vae.in_float64()
    test = load_dataset(config.dataset, "test")
    eps = COUNTS_EPS if config.dataset == COUNTS else EPS
    x, ball = test.x[: IMAGES[profile]].double(), test.ball(eps)
    noise = evaluation_noise(len(x), vae.latent_dim)[0].double()
    rows = certify(vae, x, ball, noise, method="crown-ibp")
    generator = torch.Generator().manual_seed(NOISE_SEED)
    point = strongest(vae, x, ball, noise, ATTACK_STEPS[profile], generator)
    with torch.no_grad():
        attacked = elbo(vae, point, noise).mean().item()
        crown = certificate(vae, x, ball, noise, "crown").mean().item()
    return {
        "likelihood": kind,
        "model": name,
        "dataset": config.dataset,
        "eps": eps,
        "dimensions": math.prod(config.data_shape),
        "ceiling": likelihood_ceiling(vae.likelihood, x, ball).mean().item(),
        "clean": rows["clean"].mean(),
        "kl": rows["kl"].mean(),
        "attacked": attacked,
        "crown_ibp": rows["certified"].mean(),
        "crown": crown,
    }


def likelihood_ceiling(likelihood: Likelihood, x: Tensor, ball: PerturbationSet) -> Tensor:
    """No model with this likelihood has a robust ELBO above this: [batch], nats.

    Whatever encoder, decoder and noise, and as the KL is not negative:

        min over x' of ELBO(x')  <=  min over x' of  sum of s(x'_i),        s(t) = max over outputs of log p(t | output)

    - Bernoulli: s(t) = -H(t) <= 0, H the binary entropy, which a grey pixel cannot escape.
    - Continuous Bernoulli: s(t) = A*(t), the convex conjugate of A. As A(0) = 0 it is at least 0, with s(1/2) = 0, and
      it grows like -log t - 1 towards t = 0 and without end. So there is no ceiling at radius 0 for black or white
      pixels, and a finite one, above 0, as soon as they can be moved.
    - Gaussian: s is -log(scale * sqrt(2 pi)) for every target: a ceiling that no perturbation lowers.
    - Discretised logistic: s(t) = log(F(w) - F(-w)) for a closed bin and 0 for an open one: it falls once, by moving a
      black or white pixel by half a level, and no farther with the radius.
    - Poisson: s(t) = t log t - t - log Gamma(t + 1), which falls with the count.

    The minimum over B(x) is at the greyest point, for counts at the largest ones. Holds for the perturbed target, in a
    box.
    """
    counts = isinstance(likelihood, Poisson)
    point = ball.project(x + ball.steepest(torch.ones_like(x), x), x) if counts else greyest_point(x, ball)
    anything = Interval(torch.full_like(x, -1e6), torch.full_like(x, 1e6))
    return bounds_of(likelihood).upper(anything, Interval(point, point))


def bits_per_dimension(nats: float, likelihood: str, dimensions: int) -> float:
    """What coding one dimension of an 8-bit image, or one count, takes at most by this lower bound of log p, in bits.

    -nats / (dimensions * log 2), and 8 more for a density on [0, 1], whose value is that of 256 bins' probabilities
    times 256. NaN for a Bernoulli, which is no density of grey values. For a density it is a nominal figure: pixels of
    exactly 0 and 1 are no draws of a continuous variable, and it may fall below 0.
    """
    if likelihood == "bernoulli":
        return math.nan
    return -nats / (dimensions * math.log(2)) + (8 if likelihood in ("continuous-bernoulli", "gaussian") else 0)


def likelihood_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each likelihood and model, as shown: nats, certificates rounded down and ceilings up, and bits a
    dimension of the clean ELBO and of the best certificate (rounded up: more bits are a weaker promise).
    """
    shown = []
    for row in rows.to_dict("records"):
        best = max(row["crown_ibp"], row["crown"])
        bits = [bits_per_dimension(nats, row["likelihood"], row["dimensions"]) for nats in (row["clean"], best)]
        proper = not math.isnan(bits[0])
        shown.append(
            {
                "likelihood": row["likelihood"],
                "model": row["model"],
                "ceiling": rounded_up(row["ceiling"]),
                "clean": f"{row['clean']:.1f}",
                "KL": f"{row['kl']:.1f}",
                "attacked": f"{row['attacked']:.1f}",
                "certified: crown-ibp": _certified(row["crown_ibp"]),
                "crown": _certified(row["crown"]),
                "cost": f"{row['clean'] - row['attacked']:.1f}",
                "bits: clean": f"{bits[0]:.3f}" if proper else "",
                "bits: certified": rounded_up(bits[1], 3) if proper else "",
            }
        )
    return pd.DataFrame(shown)


def _certified(value: float) -> str:
    """Rounded down; to a power of ten where exp(output) of a Poisson has made it astronomical."""
    return rounded_down(value) if value > -1e6 else f"-1e{math.ceil(math.log10(-value)):02d}"
