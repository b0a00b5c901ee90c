"""A picture of what an attack does: inputs, perturbations and reconstructions, with the numbers under each."""

from typing import Any

import torch
from torch import Tensor

from paperlib.models.elbo import Target, elbo
from paperlib.models.vae import VAE
from paperlib.threats.images import image_shape

SHOWN = 8  # examples, at most
FACTOR = 10  # by which a perturbation is enlarged


def attack_picture(
    vae: VAE,
    x: Tensor,
    x_adv: Tensor,
    noise: Tensor,
    target: Target = "perturbed",
    low: float = 0.0,
    high: float = 1.0,
) -> Any:
    """The first examples: input, perturbation times ten, perturbed input, and what the VAE rebuilds of both, at the
    posterior mean, as a matplotlib Figure. Computed in float64.

    Under an input stands its ELBO in nats, under a perturbation d its largest change and its length, under a
    reconstruction r the error ||r - x|| to the unperturbed input, all in data units.

    Args:
        x, x_adv: images of a shape that `picture_shape` takes, [count, *data_shape].
        noise: [count, latent_dim], of the ELBOs.
        target: which image's likelihood the ELBO is, see `elbo`.
        low, high: data range; black and white.

    Raises:
        ValueError: examples that are no images, and as `elbo`.
        ModuleNotFoundError: without matplotlib, which the library does not need otherwise.
    """
    shape = picture_shape(tuple(x.shape[1:]))
    try:
        from matplotlib.figure import Figure  # here, as the library works without it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a picture needs matplotlib: pip install matplotlib") from error
    vae = vae.in_float64()
    x, x_adv, noise = (part[:SHOWN].double() for part in (x, x_adv, noise))
    with torch.no_grad():
        clean, attacked = elbo(vae, x, noise), elbo(vae, x_adv, noise, x if target == "clean" else x_adv)
    change = x_adv - x
    rebuilt, rebuilt_adv = (vae.reconstruct(images) for images in (x, x_adv))

    def nats(values: Tensor) -> list[str]:
        return [f"{value:.1f} nats".replace("-", "−") for value in values.tolist()]

    def length(values: Tensor) -> Tensor:
        return values.flatten(1).norm(dim=1)

    largest = change.flatten(1).abs().amax(1).tolist()
    sizes = [f"max {most:.3g}, ‖d‖ {far:.3g}" for most, far in zip(largest, length(change).tolist(), strict=True)]
    errors = [[f"error {far:.3g}" for far in length(images - x).tolist()] for images in (rebuilt, rebuilt_adv)]
    middle = (low + high) / 2
    rows = (
        ("input", x, nats(clean)),
        (f"perturbation\n× {FACTOR}", middle + FACTOR / 2 * change, sizes),  # grey is none
        ("perturbed", x_adv, nats(attacked)),
        ("rebuilt\nfrom input", rebuilt, errors[0]),
        ("rebuilt from\nperturbed", rebuilt_adv, errors[1]),
    )
    figure = Figure(figsize=(1.15 * max(3, len(x)) + 0.9, 7.4), layout="constrained")
    axes = figure.subplots(len(rows), len(x), squeeze=False)
    for line, (name, images, labels) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axis, image, label in zip(line, images.cpu(), labels, strict=True):
            pixels = ((image - low) / (high - low)).clamp(0, 1)
            pixels = pixels.movedim(0, -1) if len(shape) == 3 else pixels
            axis.imshow(pixels.reshape(shape).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xlabel(label, fontsize=7)
            axis.set(xticks=[], yticks=[])
    return figure


def picture_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width, and 3 channels if there are any, of an example of this shape.

    Raises ValueError unless it is [height, width], [1, height, width], [3, height, width] or a flat square.
    """
    try:
        channels, height, width = image_shape(shape)
    except ValueError:
        channels, height, width = 0, 0, 0
    if channels not in (1, 3) or height * width == 1:
        raise ValueError(f"examples of shape {shape} are no images, so there is no picture of them")
    return (height, width) if channels == 1 else (height, width, 3)
