"""Figures of notebook 1: landscapes, one ball, and boxes in the plane."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.style import COLORS, PAGE, finish, panels
from paperlib.runtime.numbers import rounded_down

LOW, HIGH = -4.0, 4.0


def landscapes(fields: Mapping[str, Mapping[str, Tensor]], points: Mapping[str, Tensor], caption: str) -> Figure:
    """A row for each kind of field, a column for each data set; the data as dots. Fields are [side, side] in nats."""
    kinds = list(next(iter(fields.values())))
    figure, axes = panels(len(kinds), len(fields), height=1.95 * len(kinds) + 0.3, sharex=True, sharey=True)
    grid = axes.reshape(len(kinds), len(fields))
    norm = SymLogNorm(linthresh=10, vmin=-1000, vmax=0)
    for column, (toy, parts) in zip(grid.T, fields.items(), strict=True):
        for axis, (kind, field) in zip(column, parts.items(), strict=True):
            image = axis.imshow(field.numpy(), origin="lower", extent=(LOW, HIGH, LOW, HIGH), cmap="viridis", norm=norm)
            axis.plot(*points[toy].T, ".", color="white", markersize=0.9, alpha=0.7)
            axis.set(xlim=(LOW, HIGH), ylim=(LOW, HIGH), xticks=[-4, 0, 4], yticks=[-4, 0, 4])
            axis.set_title(toy if axis is column[0] else "")
            if axis in grid[:, 0]:
                axis.set_ylabel(kind)
    bar = figure.colorbar(image, ax=list(axes), label="nats", shrink=0.6, extend="min")
    bar.set_ticks([-1000, -100, -10, 0])
    bar.minorticks_off()
    return finish(figure, caption)


def ball(truths: Mapping[str, Mapping[str, Tensor]], caption: str) -> Figure:
    """The ELBO inside one point's ball, a panel for each model: its lowest point, where PGD ends, the certificate."""
    figure, axes = panels(1, len(truths), height=2.9)
    for axis, (name, truth) in zip(axes, truths.items(), strict=True):
        side = round(len(truth["points"]) ** 0.5)
        (left, bottom), (right, top) = truth["points"][0].tolist(), truth["points"][-1].tolist()
        image = axis.imshow(
            truth["values"].view(side, side).numpy(), origin="lower", extent=(left, right, bottom, top), cmap="viridis"
        )
        axis.plot(
            *truth["worst"],
            "o",
            markersize=9,
            markerfacecolor="none",
            color="black",
            label="exact worst",
            clip_on=False,
        )
        axis.plot(*truth["pgd"], "x", markersize=6, color="black", label="PGD", clip_on=False)
        exact, attacked, certified = (truth[key].item() for key in ("exact", "attacked", "certified"))
        axis.set_title(f"{name}: PGD {attacked:.2f}, exact {exact:.2f},\ncertified {rounded_down(certified, 2)}")
        axis.set(xlabel="$x_1$", ylabel="$x_2$")
        figure.colorbar(image, ax=axis, label="ELBO (nats)", shrink=0.8)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2)
    return finish(figure, caption)


def box_growth(rows: pd.DataFrame, caption: str) -> Figure:
    """Mean width after each layer: of the certificate's box (solid) and of what the ball really reaches (dashed)."""
    figure, axes = panels(1, 1, height=2.4, width=PAGE * 0.62)
    for name, part in rows.groupby("model", sort=False):
        axes[0].plot(part["stage"], part["box"], marker="s", color=COLORS[str(name)], label=f"{name}, box")
        axes[0].plot(part["stage"], part["exact"], marker="o", ls="--", color=COLORS[str(name)], label=f"{name}, exact")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[0].set_ylabel("mean width (units of the layer)")
    axes[0].tick_params(axis="x", rotation=25)
    axes[0].legend()
    return finish(figure, caption)
