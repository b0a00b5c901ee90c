"""Figures of notebook 10: tightness against time for every bound, small decoders, and depth."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from paperlib.paper.plots.style import COLORS, HOLLOW, finish, legend_above, panels
from paperlib.paper.words import Axis

_BLIND = sns.color_palette("colorblind")
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")


def looks(names: list[str]) -> dict[str, dict[str, Any]]:
    """A mark for each bound by its name; colours recur, shapes do not."""
    colors = (_BLIND[place] for place in (0, 1, 2, 3, 4, 9, 7, 5, 2, 0, 3, 1))
    return {
        name: {"color": color, "marker": shape, "label": name, "ls": "none", "markersize": 5}
        for name, color, shape in zip(names, colors, _SHAPES, strict=False)
    }


def hollow(marks: dict[str, dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The marks, with those of these names hollow: they may lie on another bound's."""
    return {name: {**mark, **HOLLOW} if name in names else mark for name, mark in marks.items()}


def ladder(means: pd.DataFrame, caption: str) -> Figure:
    """A panel for each model: how far each bound stays below the attack, against its time for an image. Hollow: a bound
    that holds with a probability alone.
    """
    models = list(means["model"].unique())
    probable = list(means.loc[means["confidence"] < 1, "rung"])
    marks = hollow(looks(list(means["rung"].unique())), probable)
    figure, axes = panels((len(models) + 1) // 2, 2, height=2.0 * ((len(models) + 1) // 2) + 0.9)
    for axis, model in zip(axes, models, strict=False):
        part = means[means["model"] == model]
        for row in part.to_dict("records"):
            axis.plot([row["ms"]], [row["gap"]], **marks[row["rung"]])
        axis.set(xscale="log", yscale="log", xlabel=Axis.MILLISECONDS, ylabel=Axis.GAP)
        axis.set_title(f"{model}, $\\epsilon={part['eps'].iloc[0]:g}$")
        axis.margins(0.12)
    for axis in axes[len(models) :]:
        axis.remove()
    legend_above(figure, axes[0], columns=4)
    return finish(figure, caption)


def decoders(rows: pd.DataFrame, least: float, caption: str) -> Figure:
    """A panel for each decoder and quantity: how far the bounds of each method are from the exact value, against the
    radius of the box of latents. Distances below `least`, to which exact values are exact, are drawn there.
    """
    quantities = {"squared distance": Axis.OVER_DISTANCE, "log-likelihood": Axis.UNDER_LIKELIHOOD}
    names = [name for name in rows["method"].unique() if name != "exact"]
    marks = hollow(looks(names), ("linear", "semidefinite, products"))
    sizes = list(rows["decoder"].unique())
    figure, axes = panels(2, len(sizes), height=4.2)
    for axis, (quantity, size) in zip(axes, product(quantities, sizes), strict=True):
        part = rows[(rows["decoder"] == size) & (rows["quantity"] == quantity)]
        for name in names:
            of_method = part[part["method"] == name]
            if len(of_method):
                gaps = (of_method["bound"] - of_method["exact"]).abs().groupby(of_method["radius"]).mean()
                axis.plot(gaps.index, gaps.clip(lower=least), **{**marks[name], "ls": "-"})
        axis.set_title(f"{size}, {quantity}")
        axis.set_xticks(sorted(part["radius"].unique()))
        axis.set(yscale="log", xlabel=Axis.LATENT_RADIUS, ylabel=quantities[quantity])
    legend_above(figure, max(axes, key=lambda axis: len(axis.lines)), columns=3)
    return finish(figure, caption)


def branching(rows: pd.DataFrame, caption: str) -> Figure:
    """For each model the distance between attack and beta-CROWN against time, and the barrier of all bounds that relax
    one unit at a time.
    """
    figure, axes = panels(1, 2, height=2.4, sharey=True)
    for axis, (model, part) in zip(axes, rows.groupby("model", sort=False), strict=True):
        axis.axhline(part["barrier"].iloc[0], color="0.4", linestyle=":", label="the best of one unit at a time")
        axis.plot(part["used"], part["gap"], color=COLORS["certified"], marker="^", label="beta-CROWN")
        axis.set(xscale="log", xlabel=Axis.SECONDS, ylabel=Axis.GAP, title=model)
        axis.set_xticks(part["used"], [f"{seconds:.2g}" for seconds in part["used"]], minor=False)
        axis.minorticks_off()
        axis.set_ylim(0, 1.15 * max(rows["gap"].max(), rows["barrier"].max()))
        axis.margins(x=0.15)
    legend_above(figure, axes[0])
    return finish(figure, caption)


DEPTH_LABELS = {"ibp": "intervals", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "crown, alpha": "alpha-CROWN"}


def depth(rows: pd.DataFrame, caption: str) -> Figure:
    """How far the bounds of plain networks stay below the attack; then distance and time against the number of hidden
    layers, and time against their width.
    """
    rows = rows.assign(gap=rows["attacked"] - rows["certified"], method=rows["method"].map(DEPTH_LABELS))
    marks = hollow(looks(list(rows["method"].unique())), ("CROWN-IBP", "alpha-CROWN"))
    grid, cost = (rows[rows["part"] == part] for part in ("grid", "cost"))
    depths, widths = (cost["network"].str.split("x").str[place].astype(int) for place in (0, 1))
    deep, wide = (
        cost[fixed == fixed.mode()[0]].assign(size=free) for fixed, free in ((widths, depths), (depths, widths))
    )
    figure, axes = panels(2, 2, height=4.6)
    cells = [f"{network}, {eps:g}" for network, eps in dict.fromkeys(zip(grid["network"], grid["eps"], strict=True))]
    for number, (method, part) in enumerate(grid.groupby("method", sort=False)):
        beside = 0.2 * (number - 1.5)  # or equal values would hide each other
        axes[0].plot([place + beside for place in range(len(cells))], part["gap"], **marks[str(method)])
    axes[0].set_xticks(range(len(cells)), cells, rotation=35, ha="right")
    axes[0].set(yscale="log", ylabel=Axis.GAP, title="hidden layers of each half, radius")
    panels_of_cost = (
        (deep, "gap", Axis.DEPTH, Axis.GAP),
        (deep, "ms", Axis.DEPTH, Axis.MILLISECONDS),
        (wide, "ms", Axis.UNITS, Axis.MILLISECONDS),
    )
    for axis, (part, column, across, up) in zip(axes[1:], panels_of_cost, strict=True):
        for method, line in part.groupby("method", sort=False):
            axis.plot(line["size"], line[column], **{**marks[str(method)], "ls": "-"})
        axis.set(yscale="log", xlabel=across, ylabel=up)
    axes[3].set_xscale("log")
    for axis, part in zip(axes[1:], (deep, deep, wide), strict=True):
        sizes = sorted(part["size"].unique())
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    legend_above(figure, axes[0])
    return finish(figure, caption)
