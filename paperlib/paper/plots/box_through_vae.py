"""The figure of notebook 4 and of the README that shows how a certificate is made."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.style import COLORS, PAGE, finish, with_minus
from paperlib.paper.words import Axis
from paperlib.runtime.numbers import rounded_down


def box_through_vae(arrays: Mapping[str, Tensor], caption: str) -> Figure:
    """From left to right: the box of inputs, of latents, of outputs, and the interval that holds the worst case."""
    figure = plt.figure(figsize=(PAGE, 2.35))
    outer = figure.add_gridspec(1, 4, width_ratios=[1, 2.1, 1, 1.5], wspace=0.28)
    for place, name, title in ((0, "input", "1. images in the ball"), (2, "output", "3. decoder: ink")):
        column = outer[place].subgridspec(3, 1, hspace=0.06)
        for row, (end, label) in enumerate((("_upper", "upper"), ("", "clean"), ("_lower", "lower"))):
            axis = figure.add_subplot(column[row])
            axis.imshow(arrays[name + end].reshape(28, 28).numpy(), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color="0.8", linewidth=0.6)
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
            if row == 0:
                axis.set_title(title)
    _latents(figure.add_subplot(outer[1]), arrays)
    _values(figure.add_subplot(outer[3]), arrays)
    return finish(figure, caption)


def _latents(axis: Axes, arrays: Mapping[str, Tensor]) -> None:
    low, middle, high = (arrays[name].numpy() for name in ("latent_lower", "latent", "latent_upper"))
    axis.vlines(range(len(low)), low, high, color=COLORS["certified"], lw=4, alpha=0.45, label="box")
    axis.plot(range(len(middle)), middle, ".", color="black", ms=4, label="clean")
    axis.set_title("2. encoder: latents $z = \\mu + \\sigma\\xi$")
    axis.set_xlabel(Axis.COORDINATE)
    axis.set_ylabel(Axis.LATENT, labelpad=1)
    axis.set_xticks([0, len(low) - 1], ["1", str(len(low))])
    axis.legend(loc="upper right", ncols=2, borderaxespad=0)
    axis.margins(y=0.18)


def _values(axis: Axes, arrays: Mapping[str, Tensor]) -> None:
    values = {name: arrays[name].item() for name in ("clean", "attacked", "certified")}
    axis.axhspan(values["certified"], values["clean"], color=COLORS["certified"], alpha=0.12, lw=0)
    for (name, value), linestyle in zip(values.items(), (":", "--", "-"), strict=True):
        text = rounded_down(value, 0) if name == "certified" else f"{value:.0f}"
        axis.axhline(value, color=COLORS[name], lw=1.6, ls=linestyle)
        above = name != "certified"
        axis.annotate(
            with_minus(f"{name} {text}"),
            (0.5, value),
            xytext=(0, 2 if above else -2),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=7,
        )
    axis.set_xticks([])
    axis.set_ylabel(Axis.ELBO, labelpad=1)
    axis.set_title("4. log-likelihood $-$ KL")
    axis.margins(y=0.25)
