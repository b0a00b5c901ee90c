"""One image's box on its way through a VAE: what the README draws, made by notebook 4."""

from typing import Any

import torch
from torch import Tensor

from paperlib.certificates.api import certificate
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.certificates.intervals import IntervalBounds
from paperlib.data.arrays import Dataset
from paperlib.models import gaussian
from paperlib.models.elbo import elbo
from paperlib.models.vae import VAE
from paperlib.paper.mnist_training import EPS, models_config
from paperlib.threats.attacks import pgd

MODEL = "proVAE kappa=0.5"
IMAGE = 0  # of the test set


def box_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the arrays of `box_through_vae` depend on."""
    return {**models_config(dataset, profile), "model": MODEL, "image": IMAGE, "eps": EPS}


@torch.no_grad()
def box_through_vae(vae: VAE, test: Dataset) -> dict[str, Tensor]:
    """The interval bounds of one test image at EPS and one noise draw, in float64.

    Returns:
        input_lower, input, input_upper [784]; latent_lower, latent, latent_upper [latent_dim] (the latent of the image
        itself in the middle); output_lower, output, output_upper [784], as probabilities of ink; and in nats certified
        (by intervals), attacked (PGD) and clean.
    """
    vae, x, ball = vae.in_float64(), test.x[IMAGE : IMAGE + 1].double(), test.ball(EPS)
    noise = evaluation_noise(IMAGE + 1, vae.latent_dim)[0, IMAGE:].double()
    box = ball.box(x)
    bounds = IntervalBounds.of(vae, box, noise, box)
    latent = gaussian.reparametrize(*vae.encode(x), noise)
    ink = bounds.output.map(vae.likelihood.mean)
    arrays = {
        "input_lower": box.lower,
        "input": x,
        "input_upper": box.upper,
        "latent_lower": bounds.latent.lower,
        "latent": latent,
        "latent_upper": bounds.latent.upper,
        "output_lower": ink.lower,
        "output": vae.likelihood.mean(vae.decoder(latent)),
        "output_upper": ink.upper,
        "certified": certificate(vae, x, ball, noise),
        "attacked": elbo(vae, pgd(vae, x, ball, noise), noise),
        "clean": elbo(vae, x, noise),
    }
    return {name: array[0] for name, array in arrays.items()}
