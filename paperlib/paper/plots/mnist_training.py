"""Figures of notebook 2: learning curves, and rows of digits."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from paperlib.paper.plots.style import PAGE, finish, legend_above, model_looks, panels, with_minus
from paperlib.paper.words import LOG, Axis


def learning_curves(histories: Mapping[str, pd.DataFrame], caption: str) -> Figure:
    """Clean and certified ELBO, the KL part and the training radius against the step, on held-out training images.

    No value leaves its axis: where a certificate falls far below the clean ELBO, the axis goes on as a logarithmic one.
    """
    figure, axes = panels(1, 3, height=2.6, sharex=True)
    for number, (history, look) in enumerate(zip(histories.values(), model_looks(histories).values(), strict=True)):
        every = max(1, len(history) // 6)
        look["markevery"] = (min(2 * number, every - 1), every)  # no model's marks lie under another's where both begin
        axes[0].plot(history["step"], history["clean"], **look)
        if history["eps"].max() > 0:  # the plain VAE trains on no ball: its certificate at eps 0 is its ELBO
            axes[0].plot(history["step"], history["certified"], **{**look, "label": None}, linestyle="--")
        axes[1].plot(history["step"], history["kl"], **look)
        axes[2].plot(history["step"], history["eps"], **look)
    everything = pd.concat(histories.values())
    clean, certified = everything["clean"].min(), everything["certified"].min()
    far = certified < 5 * clean < 0
    if far:
        axes[0].set_yscale("symlog", linthresh=-2 * clean)
    axes[0].set_ylabel(with_minus(f"{Axis.ELBO}\n{LOG} below {2 * clean:.0f}") if far else Axis.ELBO)
    axes[0].set_title("clean (solid), certified at\nthe current radius (dashed)")
    axes[1].set_ylabel(Axis.CLEAN_KL)
    axes[1].set_ylim(0, None)
    axes[2].set_ylabel(Axis.RADIUS)
    for axis in axes:
        axis.set_xlabel(Axis.STEP)
    legend_above(figure, axes[0])
    return finish(figure, caption)


def digit_grid(rows: Sequence[tuple[str, Tensor]], caption: str) -> Figure:
    """One row of images for each pair of a label and images, as many in each row; one grey scale, or their colours.

    Args:
        rows: images [count, height, width], [count, channels, height, width] with one channel (0 is paper, 1 is ink)
            or three (red, green, blue), or [count, side * side]; values in [0, 1].

    Raises:
        ValueError: other shapes, rows that differ in shape, or no row.
    """
    return finish(tiled(rows), caption)


def tiled(rows: Sequence[tuple[str, Tensor]]) -> Figure:
    """The figure of `digit_grid` without its caption."""
    picture = sheet([images for _, images in rows])
    lines, count = len(rows), len(rows[0][1])
    high, wide = picture.shape[0] // lines, picture.shape[1] // count
    width = min(PAGE, 1.2 + 0.46 * count)
    height = (width - 1.2) / count * high / wide * lines + 0.25
    figure, axes = panels(1, 1, height=height, width=max(width, 2.0))
    axes[0].imshow(picture.squeeze(2).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set_xticks([])
    axes[0].set_yticks([high * (line + 0.5) for line in range(lines)], [name for name, _ in rows])
    axes[0].tick_params(length=0)
    sns.despine(ax=axes[0], left=True, bottom=True)
    return figure


def sheet(rows: Sequence[Tensor], frame: float | None = None) -> Tensor:
    """All images as one picture, [height, width, channels], with a frame of a pixel around each (white by default).

    It is far faster to draw one picture than an axis for each image. Raises ValueError as `digit_grid`.
    """
    if len({tuple(images.shape) for images in rows}) != 1:
        raise ValueError(f"rows of images of one shape are needed, got {[list(images.shape) for images in rows]}")
    grey = _pictures(rows[0]).shape[1] == 1
    white = 0.0 if grey else 1.0
    tiles = [F.pad(_pictures(images), (1, 1, 1, 1), value=white if frame is None else frame) for images in rows]
    count, channels, high, wide = tiles[0].shape
    return torch.stack(tiles).permute(0, 3, 1, 4, 2).reshape(len(rows) * high, count * wide, channels)


def _pictures(images: Tensor) -> Tensor:
    """[count, channels, height, width], channels 1 or 3."""
    shape = list(images.shape)
    side = math.isqrt(images[0].numel()) if len(images) else 0
    if images.ndim == 2 and side > 0 and side**2 == images.shape[1]:
        images = images.unflatten(1, (1, side, side))
    elif images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f"images are [count, height, width], [count, 1 or 3, height, width] or [count, side * side], got {shape}"
        )
    return images.detach().cpu().float()
