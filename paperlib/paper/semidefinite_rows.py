"""Bounds of small decoders over boxes of latents, for notebook 10: by intervals, linear, by the gradient, semidefinite,
and the exact value.

The decoders are of plain VAEs on digits of 7 x 7 pixels, each the mean of 4 x 4. Their boxes are around the posterior
means of test digits. The decoder of a Gaussian VAE gives images, whose largest squared distance to the digit is
bounded; that of a Bernoulli VAE gives logits, under which the digit's least log-likelihood is.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import pandas as pd
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.bounds.box import Interval
from paperlib.certificates.ladder.gradient_bound import gradient_upper
from paperlib.certificates.ladder.latent_range import exact_upper, interval_upper, linear_upper
from paperlib.certificates.ladder.moment_problem import load_solver
from paperlib.certificates.ladder.output_cost import NegativeLogLikelihood, OutputCost, SquaredDistance
from paperlib.certificates.ladder.semidefinite import semidefinite_upper
from paperlib.data.arrays import Dataset
from paperlib.data.datasets import Split, load_dataset
from paperlib.models.vae import VAE
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train

DATASET = "mnist5k"
SIDE = 7  # pixels of a digit's side
POOLED = 4  # pixels of the original along the side of one
SCALE = 0.25  # of the Gaussian likelihood
BETA = 0.1  # weight of the KL: at 1 the posteriors of so small images collapse
DECODERS = {"paper": ((2, 32), (2, 16, 16), (3, 8, 8)), "smoke": ((2, 4), (2, 3, 3))}  # latents and hidden units
STEPS = {"paper": 3_000, "smoke": 30}  # of training
BATCH = 128
DIGITS = {"paper": 3, "smoke": 1}  # of the test set, evenly spread
RADII = {"paper": (0.25, 0.5, 1.0), "smoke": (0.5,)}  # of the boxes, in units of the latents
TOL = 1e-4  # of exact values, in the quantity's own unit
METHODS: dict[str, Callable[[nn.Module, Interval, OutputCost], Tensor]] = {
    "intervals": interval_upper,
    "gradient": gradient_upper,
    "linear": linear_upper,
    "semidefinite": semidefinite_upper,
    "semidefinite, products": partial(semidefinite_upper, products=True),
    "exact": partial(exact_upper, tol=TOL),
}
ONE_HIDDEN_LAYER = ("gradient",)  # methods for no other decoders


def semidefinite_models(profile: str) -> list[TrainConfig]:
    """The training of each decoder's VAE."""
    plain = TrainConfig(
        dataset=DATASET,
        data_shape=(SIDE * SIDE,),
        eps=0.0,
        kappa=1.0,
        beta=BETA,
        steps=STEPS[profile],
        batch_size=BATCH,
    )
    sizes = [replace(plain, latent_dim=latents, hidden=tuple(hidden[::-1])) for latents, *hidden in DECODERS[profile]]
    return [
        of_likelihood
        for size in sizes
        for of_likelihood in (replace(size, likelihood="gaussian", scale=SCALE), replace(size, likelihood="bernoulli"))
    ]


def semidefinite_config(profile: str) -> dict[str, Any]:
    """What the rows of `semidefinite_rows` depend on."""
    return {
        "models": [config.as_dict() for config in semidefinite_models(profile)],
        "digits": DIGITS[profile],
        "radii": list(RADII[profile]),
        "tol": TOL,
        "methods": list(METHODS),
    }


def semidefinite_rows(profile: str) -> pd.DataFrame:
    """A row for each decoder, digit, radius and method: decoder (its widths), latents, quantity, index and digit (in
    the test set), radius, method, bound, exact, seconds.

    Over the box a "squared distance" is at most `bound`, a "log-likelihood" at least `bound`, in nats. `exact` is such
    a bound, too, and at most `TOL` from the truth.
    """
    load_solver()  # before training, and not within the seconds of the first bound
    digits, test = small_digits("train"), small_digits("test")
    rows = [
        row
        for config in semidefinite_models(profile)
        for row in _rows(config, train(config, data=digits, device="cpu").vae.in_float64(), test, profile)
    ]
    return pd.DataFrame(rows)


def small_digits(split: Split) -> Dataset:
    """The digits of this split with fewer pixels, [count, SIDE * SIDE]."""
    data = load_dataset(DATASET, split)
    x = F.avg_pool2d(data.x.view(-1, 1, SIDE * POOLED, SIDE * POOLED), POOLED).flatten(1)
    return Dataset(f"{data.name}, {SIDE} x {SIDE}", x, data.y)


def _rows(config: TrainConfig, vae: VAE, test: Dataset, profile: str) -> Iterator[dict[str, Any]]:
    assert test.y is not None
    widths = (vae.latent_dim, *reversed(config.hidden), SIDE * SIDE)
    about = {"decoder": "-".join(map(str, widths)), "latents": vae.latent_dim}
    methods = {
        name: upper for name, upper in METHODS.items() if len(config.hidden) == 1 or name not in ONE_HIDDEN_LAYER
    }
    for index in range(0, len(test.x), len(test.x) // DIGITS[profile])[: DIGITS[profile]]:
        x = test.x[index : index + 1].double()
        mean = vae.encode(x)[0].detach()
        digit = {"index": index, "digit": int(test.y[index])}
        cost: OutputCost = SquaredDistance(x)
        quantity, sign = "squared distance", 1
        if config.likelihood == "bernoulli":
            cost, quantity, sign = NegativeLogLikelihood(x, vae.likelihood), "log-likelihood", -1
        for radius in RADII[profile]:
            box = Interval(mean - radius, mean + radius)
            bounds, seconds = {}, {}
            for name, upper in methods.items():
                start = perf_counter()
                bounds[name] = sign * upper(vae.decoder, box, cost).item()
                seconds[name] = perf_counter() - start
            for name in methods:
                measured = {"method": name, "bound": bounds[name], "exact": bounds["exact"], "seconds": seconds[name]}
                yield {**about, "quantity": quantity, **digit, "radius": radius, **measured}
