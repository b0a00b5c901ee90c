"""The experiments of notebook 4: certificates by intervals, in floating point, and in expectation."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.rules import named_layers
from paperlib.certificates.api import elbo_bounds
from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.certificates.expected import certify_expected
from paperlib.certificates.float_sound import SoundBounds
from paperlib.certificates.intervals import IntervalBounds
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.paper.looseness import looseness
from paperlib.paper.mnist_training import EPS, EPS_GRID, SIZES, ModelAtRadius, models_at_radii, models_config
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.balls import LinfBall

TINY_RADII = (1e-6, 1e-5, 1e-4)  # radii at which rounding is as large as the ball
ROUNDED_IMAGES = 16  # images whose rounding is hunted
CORNERS = 64  # corners of each tiny ball
EXPECTED_IMAGES = 10  # images whose expected ELBO is certified
EXPECTED_DRAWS = {"paper": (1_000, 4_000, 16_000), "smoke": (100, 400)}  # noise draws of each
CONFIDENCE = 0.999


def certified_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `certified_rows` depend on."""
    size = SIZES[profile]
    return {
        **models_config(dataset, profile),
        "eps": list(EPS_GRID),
        "images": size.certified,
        "draws": size.draws,
    }


def certified_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clean and certified ELBO of the test images, at EPS for several noise draws.

    Returns one row per model and eps (means over images of each image's mean over draws, with their standard errors;
    `draw_sd` is the deviation of the certified mean from draw to draw), and one row per model and image at EPS.
    """
    size = SIZES[profile]
    every = models_at_radii(models, test, size.certified, EPS_GRID)
    summary, images = [], []
    for one, rows in zip(every, in_parallel(partial(_certified, draws=size.draws), every, name="radii"), strict=True):
        by_image = rows.groupby("index")[["clean", "log_likelihood", "kl", "certified"]].mean()
        row = {"model": one.name, "eps": one.ball.size, "images": len(by_image), "draws": rows["draw"].nunique()}
        row |= dict(by_image.mean())
        row |= {f"{column}_se": by_image[column].sem() for column in ("clean", "certified")}
        row["draw_sd"] = rows.groupby("draw")["certified"].mean().std()
        summary.append(row)
        if one.ball.size == EPS:
            images.append(by_image.reset_index().assign(model=one.name))
    return pd.DataFrame(summary), pd.concat(images, ignore_index=True)


def _certified(one: ModelAtRadius, draws: int) -> pd.DataFrame:
    return certify(one.vae, one.x, one.ball, one.noise(draws if one.ball.size == EPS else 1))


def looseness_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `looseness_rows` depend on."""
    return {**models_config(dataset, profile), "eps": EPS, "images": SIZES[profile].looseness}


def looseness_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """The stages of `looseness` at EPS for each model, in float64."""
    x = test.x[: SIZES[profile].looseness].double()
    frames = []
    for name, vae in models.items():
        noise = evaluation_noise(len(x), vae.latent_dim)[0].double()
        frames.append(looseness(vae.in_float64(), x, test.ball(EPS), noise).assign(model=name))
    return pd.concat(frames, ignore_index=True)


def rounding_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `rounding_rows` depend on."""
    radii = {"layer_eps": [EPS, TINY_RADII[0]], "eps": list(TINY_RADII)}
    return {**models_config(dataset, profile), **radii, "images": ROUNDED_IMAGES, "points": CORNERS}


def rounding_rows(models: Mapping[str, VAE], test: Dataset) -> pd.DataFrame:
    """How often the float32 network leaves its certificate: bounds computed in float32, and those with `sound`.

    Layers: each unit at the corner of its float32 box that attains its upper bound, at radius EPS and at a tiny one,
    beside which the rounding of the layer is large. ELBO: the image and random corners of tiny balls. One row for each
    model, place and radius: checked, and for both kinds of bound the share of values outside it and the largest excess.
    """
    x = test.x[:ROUNDED_IMAGES]
    rows = []
    for name, vae in models.items():
        noise = evaluation_noise(len(x), vae.latent_dim)[0]
        layers = [row for eps in (EPS, TINY_RADII[0]) for row in _layer_excess(vae, x, test.ball(eps), noise)]
        rows += [{"model": name, **row} for row in (*layers, *_elbo_excess(vae, x, test, noise))]
    return pd.DataFrame(rows)


@torch.no_grad()
def _layer_excess(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor) -> Iterator[dict[str, Any]]:
    plain = IntervalBounds.of(vae, ball.box(x), noise, ball.box(x))
    sound = SoundBounds.of(vae, x, ball, noise, "perturbed").bounds
    for half, network, plain_boxes, sound_boxes in (
        ("encoder", vae.encoder, plain.encoder, sound.encoder),
        ("decoder", vae.decoder, plain.decoder, sound.decoder),
    ):
        for number, (_, layer) in enumerate(named_layers(network)):
            if isinstance(layer, nn.Linear):
                lower, upper = (end.unsqueeze(1) for end in plain_boxes[number])
                corners = torch.where(layer.weight > 0, upper, lower)
                value = torch.stack([layer(corner).diagonal() for corner in corners])
                yield {
                    "place": f"{half} {number // 2 + 1}",
                    "eps": ball.size,
                    **_excess(value, plain_boxes[number + 1], sound_boxes[number + 1]),
                }


@torch.no_grad()
def _elbo_excess(vae: VAE, x: Tensor, test: Dataset, noise: Tensor) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(NOISE_SEED)
    for eps in TINY_RADII:
        ball = test.ball(eps)
        lower, upper = ball.box(x)
        corners = [torch.where(torch.rand(x.shape, generator=generator) < 0.5, lower, upper) for _ in range(CORNERS)]
        value = torch.stack([elbo(vae, corner, noise) for corner in (x, *corners)], 1)
        plain, sound = (
            elbo_bounds(vae, x, ball, noise, sound=kind).map(lambda end: end[:, None]) for kind in (False, True)
        )
        yield {"place": "ELBO", "eps": eps, **_excess(value, plain, sound)}


def _excess(value: Tensor, plain: Interval, sound: Interval) -> dict[str, Any]:
    row: dict[str, Any] = {"checked": value.numel()}
    for name, box in (("plain", plain), ("sound", sound)):
        beyond = torch.maximum(box.lower.double() - value.double(), value.double() - box.upper.double())
        row |= {
            f"{name}_broken": (beyond > 0).double().mean().item(),
            f"{name}_excess": beyond.clamp(min=0).max().item(),
        }
    return row


def expected_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `expected_rows` depend on."""
    return {
        **models_config(dataset, profile),
        "eps": EPS,
        "images": EXPECTED_IMAGES,
        "samples": list(EXPECTED_DRAWS[profile]),
        "confidence": CONFIDENCE,
    }


def expected_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """The worst expected ELBO of the first test images at EPS: rows of `certify_expected` for each proVAE and count."""
    # at this radius the certificates of the plain VAE say nothing
    robust = {name: vae for name, vae in models.items() if name != "VAE"}
    works = [
        (one, samples)
        for one in models_at_radii(robust, test, EXPECTED_IMAGES, [EPS])
        for samples in EXPECTED_DRAWS[profile]
    ]
    return pd.concat(in_parallel(_expected, works, name="expectations"), ignore_index=True)


def _expected(work: tuple[ModelAtRadius, int]) -> pd.DataFrame:
    one, samples = work
    generator = torch.Generator().manual_seed(NOISE_SEED)
    rows = certify_expected(one.vae, one.x, one.ball, confidence=CONFIDENCE, samples=samples, generator=generator)
    return rows.assign(model=one.name)
