"""Figures of notebook 2: learning curves, and rows of digits."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from paperlib.paper.plots.style import COLORS, LABELS, PAGE, finish, legend_above, panels


def learning_curves(histories: Mapping[str, pd.DataFrame], caption: str) -> Figure:
    """Clean and certified ELBO, the KL part and the training radius against the step, on held-out training images."""
    figure, axes = panels(1, 3, height=2.3, sharex=True)
    for name, history in histories.items():
        look = {"color": COLORS[name], "label": LABELS.get(name, name)}
        axes[0].plot(history["step"], history["clean"], **look)
        if history["eps"].max() > 0:  # the plain VAE trains on no ball: its certificate at eps 0 is its ELBO
            axes[0].plot(history["step"], history["certified"], color=COLORS[name], linestyle="--")
        axes[1].plot(history["step"], history["kl"], **look)
        axes[2].plot(history["step"], history["eps"], **look)
    everything = pd.concat(histories.values())
    axes[0].set_ylim(max(everything[["clean", "certified"]].min().min(), -420), None)
    axes[0].set_ylabel("ELBO (nats)")
    axes[0].set_title("clean (solid), certified at the\ncurrent radius (dashed)")
    axes[1].set_ylabel("KL (nats)")
    axes[1].set_title("KL part of the clean ELBO")
    axes[1].set_ylim(0, None)
    axes[2].set_ylabel("radius $\\epsilon$ (pixels)")
    axes[2].set_title("ramp")
    for axis in axes:
        axis.set_xlabel("training step")
    legend_above(figure, axes[0])
    return finish(figure, caption)


def digit_grid(rows: Sequence[tuple[str, Tensor]], caption: str) -> Figure:
    """One row of digits for each pair of a label and images [count, 784], pixels in [0, 1]; one grey scale."""
    # one picture of all digits, with a white frame of a pixel around each: far faster than an axis for each digit
    tiles = torch.stack([F.pad(digits.reshape(-1, 28, 28), (1, 1, 1, 1)) for _, digits in rows])
    lines, count = tiles.shape[:2]
    sheet = tiles.permute(0, 2, 1, 3).reshape(lines * 30, count * 30)
    width = min(PAGE, 1.2 + 0.46 * count)
    figure, axes = panels(1, 1, height=(width - 1.2) * lines / count + 0.25, width=width)
    axes[0].imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set_xticks([])
    axes[0].set_yticks([30 * line + 15 for line in range(lines)], [name for name, _ in rows])
    axes[0].tick_params(length=0)
    sns.despine(ax=axes[0], left=True, bottom=True)
    return finish(figure, caption)
