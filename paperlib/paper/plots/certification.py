"""Figures of notebook 4: certified, attacked and clean ELBO, and where intervals lose."""

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from paperlib.paper.plots.style import (
    CEILING_LOOK,
    COLORS,
    COLUMN,
    LABELS,
    finish,
    legend_above,
    model_look,
    panels,
)

LOST = -5_000  # nats: a mean certificate below this says nothing about a digit


def sandwich(certified: pd.DataFrame, attacked: pd.DataFrame, ceiling: pd.DataFrame, caption: str) -> Figure:
    """Certified, attacked and clean ELBO against the radius, a panel for each model, on one vertical axis.

    Means over the images, bars of one standard error; the shading from certificate to attack holds the worst case. The
    axis is linear down to the lowest attack and to the lowest certificate of the models whose certificates are not
    lost. What lies lower is in a strip below a marked break, from where on the axis is logarithmic. The ceiling bounds
    the worst case of any model whatever.
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
            "clean": (bound["eps"], bound["clean"], bound["clean_se"], "o"),
            "attacked": (reached.mean().index, reached.mean(), reached.sem(), "X"),
            "certified": (bound["eps"], bound["certified"], bound["certified_se"], "^"),
        }
        for axis in column:
            for label, (eps, mean, error, marker) in series.items():
                if axis is column[0] or label == "certified":  # of the rest nothing lies in the strip
                    axis.errorbar(eps, mean, error, color=COLORS[label], marker=marker, label=label)
            axis.fill_between(
                bound["eps"], bound["certified"], reached.mean(), color=COLORS["certified"], alpha=0.15, lw=0,
                label="the worst case lies here",
            )  # fmt: skip
        column[0].plot(ceiling["eps"], ceiling["ceiling"], **CEILING_LOOK)
        column[0].set_ylim(floor, 0)
        column[0].set_title(LABELS.get(name, name))
        column[-1].set_xlabel("radius $\\epsilon$ (pixels)")
    if strip:
        _break(grid, top=floor, lowest=least.min())
    grid[0, 0].set_ylabel("ELBO (nats)")
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
    gaps = rows.assign(gap=rows["attacked"] - rows["certified"])
    for name, part in gaps.groupby("model", sort=False):
        sns.ecdfplot(x=part["gap"], ax=axes[0], color=COLORS[str(name)], label=LABELS.get(str(name), str(name)))
    axes[0].set_xscale("log")
    axes[0].set_xlabel("attacked minus certified ELBO (nats)")
    axes[0].set_ylabel("share of images")
    axes[0].legend(loc="upper center")
    return finish(figure, caption)


def looseness(rows: pd.DataFrame, caption: str) -> Figure:
    """How many times wider than anything an attack reaches the box of each stage is, for each model."""
    figure, axes = panels(1, 1, height=2.5, width=COLUMN)
    for name, part in rows.groupby("model", sort=False):
        axes[0].plot(part["stage"], part["box"] / part["reached"], **model_look(str(name)))
    axes[0].set_yscale("log")
    axes[0].axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("box width / width reached")
    axes[0].tick_params(axis="x", rotation=35)
    axes[0].legend()
    return finish(figure, caption)
