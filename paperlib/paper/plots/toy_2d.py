"""Figures of notebook 1: landscapes, one ball, and boxes in the plane."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.style import HOLLOW, PAGE, by_model, finish, legend_above, panels, with_minus
from paperlib.paper.words import Axis
from paperlib.runtime.numbers import rounded_down

LOW, HIGH = -4.0, 4.0


def landscapes(fields: Mapping[str, Mapping[str, Tensor]], points: Mapping[str, Tensor], caption: str) -> Figure:
    """A row for each data set: its points, and beside them a column for each kind of field [side, side], in nats."""
    kinds = list(next(iter(fields.values())))
    figure, axes = panels(len(fields), 1 + len(kinds), height=1.14 * len(fields) + 0.75, sharex=True, sharey=True)
    grid = axes.reshape(len(fields), 1 + len(kinds))
    norm = SymLogNorm(linthresh=10, vmin=-1000, vmax=0)
    for line, (toy, parts) in zip(grid, fields.items(), strict=True):
        line[0].plot(*points[toy].T, ".", color="black", markersize=0.9)
        line[0].set_aspect("equal")
        line[0].set_ylabel(f"{toy}\n{Axis.SECOND}")
        for axis, field in zip(line[1:], parts.values(), strict=True):
            image = axis.imshow(field.numpy(), origin="lower", extent=(LOW, HIGH, LOW, HIGH), cmap="viridis", norm=norm)
        for axis in line:
            axis.set(xlim=(LOW, HIGH), ylim=(LOW, HIGH), xticks=[-4, 0, 4], yticks=[-4, 0, 4])
    for axis, title in zip(grid[0], ("training\npoints", *(kind.replace(", ", ",\n") for kind in kinds)), strict=True):
        axis.set_title(title)
    for axis in grid[-1]:
        axis.set_xlabel(Axis.FIRST)
    bar = figure.colorbar(image, ax=list(axes), label=Axis.ELBO, shrink=0.8, extend="min", aspect=30)
    bar.set_ticks([-1000, -100, -10, 0])
    bar.minorticks_off()
    return finish(figure, caption)


def ball(truths: Mapping[str, Mapping[str, Tensor]], caption: str) -> Figure:
    """The ELBO inside one point's ball, a panel for each model: its lowest point, where PGD ends, the certificate.

    All panels have one colour scale.
    """
    figure, axes = panels(1, len(truths), height=2.9)
    values = [value for truth in truths.values() for value in (truth["values"].min(), truth["values"].max())]
    for axis, (name, truth) in zip(axes, truths.items(), strict=True):
        side = round(len(truth["points"]) ** 0.5)
        (left, bottom), (right, top) = truth["points"][0].tolist(), truth["points"][-1].tolist()
        image = axis.imshow(
            truth["values"].view(side, side).numpy(),
            origin="lower",
            extent=(left, right, bottom, top),
            cmap="viridis",
            vmin=min(values).item(),
            vmax=max(values).item(),
        )
        circle = {"markersize": 9, "markerfacecolor": "none", "color": "black", "clip_on": False, "linestyle": "none"}
        axis.plot(*truth["worst"], "o", **circle, label="exact worst")
        axis.plot(*truth["pgd"], "x", markersize=6, color="black", label="PGD", clip_on=False, linestyle="none")
        exact, attacked, certified = (truth[key].item() for key in ("exact", "attacked", "certified"))
        numbers = f"PGD {attacked:.2f}, exact {exact:.2f},\ncertified {rounded_down(certified, 2)}"
        axis.set_title(with_minus(f"{name}: {numbers}"))
        axis.set(xlabel=Axis.FIRST, ylabel=Axis.SECOND)
    figure.colorbar(image, ax=list(axes), label=Axis.ELBO, shrink=0.8)
    legend_above(figure, axes[0])
    return finish(figure, caption)


def box_growth(rows: pd.DataFrame, caption: str) -> Figure:
    """Mean width after each layer: of the certificate's box (solid) and of what the ball really reaches (dashed)."""
    figure, axes = panels(1, 1, height=2.4, width=PAGE * 0.62)
    for name, part, look in by_model(rows):
        axes[0].plot(part["stage"], part["box"], **{**look, "label": f"{name}, box"})
        axes[0].plot(part["stage"], part["exact"], ls="--", **HOLLOW, **{**look, "label": f"{name}, exact"})
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[0].set_ylabel(Axis.WIDTH)
    axes[0].tick_params(axis="x", rotation=25)
    axes[0].legend(handlelength=2.8)
    return finish(figure, caption)
