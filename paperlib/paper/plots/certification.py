"""Figures of notebook 4: certified, attacked and clean ELBO, and where intervals lose."""

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from paperlib.paper.claims import LOST
from paperlib.paper.plots.style import (
    CEILING_LOOK,
    COLORS,
    COLUMN,
    LABELS,
    MARKERS,
    by_model,
    finish,
    legend_above,
    panels,
)
from paperlib.paper.words import LOG, Axis

SPREAD = 0.2  # between the marks of two models at one stage, in stages


def sandwich(certified: pd.DataFrame, attacked: pd.DataFrame, ceiling: pd.DataFrame, caption: str) -> Figure:
    """Certified, attacked and clean ELBO against the radius, a panel for each model, on one vertical axis.

    Means over the images, whose standard errors belong in the caption: on this axis they are smaller than a mark. The
    shading from certificate to attack holds the worst case. The axis is linear down to the lowest attack and to the
    lowest certificate of the models whose certificates are not lost. What lies lower is in a strip below a marked
    break, from where on the axis is logarithmic. The ceiling bounds the worst case of any model whatever.
    """
    names = list(certified["model"].unique())
    least = certified.groupby("model")["certified"].min()
    mean_attacked = attacked.groupby(["model", "eps"])["attacked"].mean()
    floor = 1.05 * min(*least[least > LOST], mean_attacked.min(), -1.0)
    strip = bool(least.min() < floor)
    figure, axes = panels(
        1 + strip, len(names), height=3.2, sharex=True, sharey="row", height_ratios=[4, 1][: 1 + strip]
    )
    grid = axes.reshape(1 + strip, len(names))
    for column, name in zip(grid.T, names, strict=True):
        bound = certified[certified["model"] == name].sort_values("eps")
        reached = attacked[attacked["model"] == name].groupby("eps")["attacked"]
        series = {
            "clean": (bound["eps"], bound["clean"]),
            "attacked": (reached.mean().index, reached.mean()),
            "certified": (bound["eps"], bound["certified"]),
        }
        for axis in column:
            for label, (eps, mean) in series.items():
                if axis is column[0] or label == "certified":  # of the rest nothing lies in the strip
                    size = 5 if label == "attacked" else None  # to be seen under the mark of a close certificate
                    axis.plot(eps, mean, color=COLORS[label], marker=MARKERS[label], ms=size, label=label)
            axis.fill_between(
                bound["eps"], bound["certified"], reached.mean(), color=COLORS["certified"], alpha=0.15, lw=0,
                label="the worst case lies here",
            )  # fmt: skip
        column[0].plot(ceiling["eps"], ceiling["ceiling"], **CEILING_LOOK)
        column[0].set_ylim(floor, 0)
        column[0].set_title(LABELS.get(name, name))
        column[-1].set_xlabel(Axis.RADIUS)
    if strip:
        _break(grid, top=floor, lowest=least.min())
        grid[1, 0].set_ylabel(LOG)
    grid[0, 0].set_ylabel(Axis.ELBO)
    legend_above(figure, grid[0, 0], columns=5)
    return finish(figure, caption)


def _break(grid: np.ndarray, top: float, lowest: float) -> None:
    """The lower row of panels as a logarithmic strip that begins where the upper row ends; marks where they meet."""
    powers = range(math.ceil(math.log10(-top)), math.floor(math.log10(-3 * lowest)) + 1)
    for upper, lower in grid.T:
        lower.set_yscale("symlog", linthresh=-top)
        lower.set_ylim(3 * lowest, top)
        lower.set_yticks([-(10.0**power) for power in powers[::2]], [f"$-10^{{{power}}}$" for power in powers[::2]])
        lower.minorticks_off()
        upper.spines["bottom"].set_visible(False)
        upper.tick_params(axis="x", length=0, labelbottom=False)
        mark = {"marker": [(-1, -0.5), (1, 0.5)], "ms": 7, "mew": 1, "color": "black", "ls": "none", "clip_on": False}
        upper.plot([0], [0], transform=upper.transAxes, **mark)
        lower.plot([0], [1], transform=lower.transAxes, **mark)


def gap_distribution(rows: pd.DataFrame, caption: str) -> Figure:
    """Cumulative share of images against the gap between attacked and certified ELBO, at one radius and noise draw."""
    figure, axes = panels(1, 1, height=2.3, width=COLUMN)
    for _, part, look in by_model(rows):
        gap = part["attacked"] - part["certified"]
        sns.ecdfplot(x=gap, ax=axes[0], markevery=max(1, len(gap) // 5), **look)
    axes[0].set_xscale("log")
    axes[0].set_xlabel(Axis.GAP)
    axes[0].set_ylabel(Axis.SHARE)
    axes[0].set_ylim(0, 1.03)
    axes[0].legend(loc="upper center")
    return finish(figure, caption)


def looseness(rows: pd.DataFrame, caption: str) -> Figure:
    """How many times wider than anything an attack reaches the box of each stage is, for each model, side by side."""
    figure, axes = panels(1, 1, height=2.6, width=COLUMN)
    models = by_model(rows)
    stages = list(rows["stage"].unique())
    axes[0].axhline(1, color="0.4", linewidth=0.8, linestyle=":", label="an exact box")
    for number, (_, part, look) in enumerate(models):
        beside = SPREAD * (number - (len(models) - 1) / 2)  # or equal values would hide each other
        places = [stages.index(stage) + beside for stage in part["stage"]]
        axes[0].plot(places, part["box"] / part["reached"], **look)
    axes[0].set_yscale("log")
    axes[0].set_xticks(range(len(stages)), stages, rotation=35)
    axes[0].set_ylabel(Axis.LOOSENESS)
    axes[0].legend()
    return finish(figure, caption)
