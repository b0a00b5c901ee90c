"""The experiments on methods of certification, on the models and images of `experiments`."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.boxes import boxes
from paperlib.certify import certify
from paperlib.data import Dataset
from paperlib.elbo import Method, elbo, elbo_bounds
from paperlib.expected import certify_expected
from paperlib.experiments import EPS, NOISE_SEED, SIZES, Cell, cells, models_config, test_noise
from paperlib.interval import Interval, LinfBall, layers
from paperlib.parallel import in_parallel
from paperlib.sound import sound_boxes
from paperlib.vae import VAE

RADII = (0.01, 0.05, EPS, 0.2)
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")
SEARCH = 10  # steps for the free slopes of "crown"
VACUOUS = 0.01  # a radius at which intervals say nothing about the plain VAE
TINY = (1e-6, 1e-5, 1e-4)  # radii at which rounding is as large as the ball
ROUNDED = 16  # images whose rounding is hunted
POINTS = 64  # corners of each tiny ball
EXPECTED = 10  # images whose expected ELBO is certified
SAMPLES = {"paper": (1_000, 4_000, 16_000), "smoke": (100, 400)}  # noise draws of each
CONFIDENCE = 0.999


def methods_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `method_rows` depend on."""
    return {
        **models_config(dataset, profile),
        "eps": list(RADII),
        "images": SIZES[profile].attacked,
        "search": SEARCH,
    }


def method_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """One row for each model, radius and image that the attack's rows hold, at their noise draw: a column a method."""
    every = cells(models, test, SIZES[profile].attacked, RADII)
    found = zip(every, in_parallel(_by_method, every, name="radii"), strict=True)
    return pd.concat([rows.assign(model=cell.model, eps=cell.ball.eps) for cell, rows in found], ignore_index=True)


def linear_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `linear_rows` depend on."""
    return {
        **models_config(dataset, profile),
        "eps": [EPS, VACUOUS],
        "images": SIZES[profile].certified,
        "search": SEARCH,
    }


def linear_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """Means over all certified images at one noise draw, with standard errors: a row for each model and radius."""
    every = [
        cell
        for cell in cells(models, test, SIZES[profile].certified, [EPS, VACUOUS])
        if cell.ball.eps == EPS or cell.model == "VAE"
    ]
    rows = []
    for cell, frame in zip(every, in_parallel(_by_method, every, name="models"), strict=True):
        found = frame.drop(columns="index")
        errors = found.sem().add_suffix("_se")
        rows.append({"model": cell.model, "eps": cell.ball.eps, "images": len(found), **found.mean(), **errors})
    return pd.DataFrame(rows)


def _by_method(cell: Cell) -> pd.DataFrame:
    found: dict[str, pd.Series] = {}
    for method in METHODS:
        steps = SEARCH if method == "crown" else 0
        rows = certify(cell.vae, cell.x, cell.ball, cell.noise(), method=method, steps=steps)
        found[method] = rows["certified"]
    return pd.DataFrame({"index": rows["index"], "clean": rows["clean"], **found})


def rounding_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `rounding_rows` depend on."""
    return {**models_config(dataset, profile), "eps": [EPS, *TINY], "images": ROUNDED, "points": POINTS}


def rounding_rows(models: Mapping[str, VAE], test: Dataset) -> pd.DataFrame:
    """How often the float32 network leaves its certificate: bounds computed in float32, and those with `sound`.

    Layers: each unit at the corner of its float32 box that attains its upper bound, at radius EPS. ELBO: the image and
    random corners of tiny balls. One row for each model and place: checked, and for both kinds of bound the share of
    values outside it and the largest excess.
    """
    x = test.x[:ROUNDED]
    rows = []
    for name, vae in models.items():
        noise = test_noise(len(x), vae.latent_dim, draws=1)[0]
        found = [*_layer_excess(vae, x, test.ball(EPS), noise), *_elbo_excess(vae, x, test, noise)]
        rows += [{"model": name, **row} for row in found]
    return pd.DataFrame(rows)


@torch.no_grad()
def _layer_excess(vae: VAE, x: Tensor, ball: LinfBall, noise: Tensor) -> Iterator[dict[str, Any]]:
    plain = boxes(vae, ball.box(x), noise, ball.box(x))
    sound = sound_boxes(vae, x, ball, noise, "perturbed").known
    for half, network, found, safe in (
        ("encoder", vae.encoder, plain.encoder, sound.encoder),
        ("decoder", vae.decoder, plain.decoder, sound.decoder),
    ):
        for number, (_, layer) in enumerate(layers(network)):
            if isinstance(layer, nn.Linear):
                entering = found[number]
                corners = torch.where(layer.weight > 0, entering.upper.unsqueeze(1), entering.lower.unsqueeze(1))
                value = torch.stack([layer(corner).diagonal() for corner in corners])
                yield {
                    "place": f"{half} {number // 2 + 1}",
                    "eps": ball.eps,
                    **_excess(value, found[number + 1], safe[number + 1]),
                }


@torch.no_grad()
def _elbo_excess(vae: VAE, x: Tensor, test: Dataset, noise: Tensor) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(NOISE_SEED)
    for eps in TINY:
        ball = test.ball(eps)
        lower, upper = ball.box(x)
        corners = [torch.where(torch.rand(x.shape, generator=generator) < 0.5, lower, upper) for _ in range(POINTS)]
        value = torch.stack([elbo(vae, corner, noise) for corner in (x, *corners)], 1)
        plain, sound = (
            elbo_bounds(vae, x, ball, noise, sound=kind).map(lambda end: end[:, None]) for kind in (False, True)
        )
        yield {"place": "ELBO", "eps": eps, **_excess(value, plain, sound)}


def _excess(value: Tensor, plain: Interval, sound: Interval) -> dict[str, Any]:
    found: dict[str, Any] = {"checked": value.numel()}
    for name, box in (("plain", plain), ("sound", sound)):
        beyond = torch.maximum(box.lower.double() - value.double(), value.double() - box.upper.double())
        found |= {
            f"{name}_broken": (beyond > 0).double().mean().item(),
            f"{name}_excess": beyond.clamp(min=0).max().item(),
        }
    return found


def expected_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `expected_rows` depend on."""
    return {
        **models_config(dataset, profile),
        "eps": EPS,
        "images": EXPECTED,
        "samples": list(SAMPLES[profile]),
        "confidence": CONFIDENCE,
    }


def expected_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """The worst expected ELBO of the first test images at EPS: rows of `certify_expected` for each proVAE and count."""
    # at this radius the certificates of the plain VAE say nothing
    robust = {name: vae for name, vae in models.items() if name != "VAE"}
    works = [(cell, samples) for cell in cells(robust, test, EXPECTED, [EPS]) for samples in SAMPLES[profile]]
    return pd.concat(in_parallel(_expected, works, name="expectations"), ignore_index=True)


def _expected(work: tuple[Cell, int]) -> pd.DataFrame:
    cell, samples = work
    generator = torch.Generator().manual_seed(NOISE_SEED)
    rows = certify_expected(cell.vae, cell.x, cell.ball, confidence=CONFIDENCE, samples=samples, generator=generator)
    return rows.assign(model=cell.model)
