"""Figures of notebook 7: all defences on one page, digits at their worst, and whether the attacks are weak."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.style import (
    COLORS,
    HOLLOW,
    LABELS,
    MARKERS,
    by_model,
    finish,
    legend_above,
    panels,
    with_minus,
)
from paperlib.paper.words import Axis

FLOOR = -700.0  # nats: certificates below are marked at the edge, as their distance says nothing
KINDS = ("clean", "attacked", "certified")
SETS = {"linf": "$\\ell_\\infty$", "l2": "$\\ell_2$"}


def defences(rows: pd.DataFrame, shown: Sequence[tuple[str, float]], caption: str) -> Figure:
    """A row of panels for each data set, a panel for each (norm, eps) that is shown, a line for each recipe: means over
    the seeds of clean, attacked and certified ELBO, with the range of the seeds.
    """
    names, recipes = list(rows["dataset"].unique()), list(rows["recipe"].unique())[::-1]
    height = 0.6 + len(names) * (0.55 + 0.16 * len(recipes))
    figure, axes = panels(len(names), len(shown), height=height, sharex=True)
    for place, axis in enumerate(axes):
        dataset, (norm, eps) = names[place // len(shown)], shown[place % len(shown)]
        part = rows[(rows["dataset"] == dataset) & (rows["norm"] == norm) & (rows["eps"] == eps)]
        for kind in KINDS:
            values = part.groupby("recipe")[kind].agg(["mean", "min", "max"]).reindex(recipes)
            lines = [line for line, mean in enumerate(values["mean"]) if mean >= FLOOR]
            mean = values["mean"].iloc[lines]
            ends = [mean - values["min"].iloc[lines], values["max"].iloc[lines] - mean]
            look = {"color": COLORS[kind], "marker": MARKERS[kind], "linestyle": "none", "label": kind}
            axis.errorbar(mean, lines, xerr=ends, elinewidth=1, **look)
            beyond = [line for line, value in enumerate(values["mean"]) if value < FLOOR]
            if beyond:
                hollow = {"marker": MARKERS[kind], "linestyle": "none", **HOLLOW}
                axis.plot([FLOOR] * len(beyond), beyond, color=COLORS[kind], **hollow)
        axis.set_xlim(FLOOR - 15, -50)
        axis.set_ylim(-0.6, len(recipes) - 0.4)
        axis.set_yticks(range(len(recipes)), recipes)
        axis.tick_params(axis="y", length=0, labelleft=place % len(shown) == 0)
        axis.grid(axis="y", color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_title(f"{dataset}, {SETS[norm]} $\\epsilon={eps:g}$")
        if place >= len(axes) - len(shown):
            axis.set_xlabel(Axis.ELBO)
    legend_above(figure, axes[0])
    return finish(figure, caption)


def worst_cases(stored: Mapping[str, Tensor], models: Sequence[str], caption: str) -> Figure:
    """For each model a line of digits for each threat, with the attacked and the certified (for lighting: exact) ELBO
    in nats under each; and the clean digits in the first line.
    """
    x = stored["x"]
    side = math.isqrt(x.shape[1])
    titles = {"lighting": "worst\nlighting", "patch": "patch", "l2": "$\\ell_2$"}
    lines = [("clean", x, {name: stored[f"{name} clean"] for name in models})]
    for name in models:
        for threat, title in titles.items():
            reached, proven = (stored[f"{name} {threat} {kind}"] for kind in ("attacked", "certified"))
            key = "exact" if threat == "lighting" else "certified"
            lines.append(
                (f"{LABELS.get(name, name)}\n{title}", stored[f"{name} {threat}"], {"attacked": reached, key: proven})
            )
    figure, axes = panels(len(lines), len(x), height=1.02 * len(lines) + 0.3, width=1.25 * len(x) + 1.0)
    for number, axis in enumerate(axes):
        title, images, numbers = lines[number // len(x)]
        place = number % len(x)
        axis.imshow(images[place].view(side, side).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        texts = [
            f"{LABELS.get(key, key)} {with_minus(f'{math.floor(value[place].item())}')}"
            for key, value in numbers.items()
        ]
        axis.set_xlabel("\n".join(texts), fontsize=6, labelpad=2)
        axis.spines[["left", "bottom"]].set_visible(False)
        if place == 0:
            axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    return finish(figure, caption)


def attack_sanity(checks: pd.DataFrame, along: pd.DataFrame, caption: str) -> Figure:
    """For each model the mean ELBO against the number of steps, with the random search as a level; and the mean ELBO on
    the straight way to the attacked input and to a random extreme of the ball.
    """
    models = list(checks["model"].unique())
    figure, axes = panels(2, len(models), height=4.0)
    above, below = axes[: len(models)], axes[len(models) :]
    for axis, (name, part, _) in zip(above, by_model(checks), strict=True):
        steps = part[part["check"] == "steps"]
        for attack, look in (("pgd", {"marker": "X", "ls": "-"}), ("apgd", {"marker": "o", "ls": "--", **HOLLOW})):
            line = steps[steps["attack"] == attack]
            axis.plot(line["steps"], line["elbo"], color=COLORS["attacked"], label=attack.upper(), **look)
        searched = part.loc[part["check"] == "gradient-free", "bar"].iloc[0]
        axis.axhline(searched, color="0.4", linewidth=1, linestyle=":", label="random search")
        axis.set_xscale("log")
        ticks = sorted(steps["steps"].unique())
        axis.set_xticks(ticks, [str(step) for step in ticks], minor=False)
        axis.minorticks_off()
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel(Axis.ATTACK_STEPS)
        axis.set_ylabel(Axis.ATTACKED)
    for axis, (_, part, _) in zip(below, by_model(along), strict=True):
        axis.plot(part["share"], part["attack"], color=COLORS["attacked"], label="towards the attacked input")
        axis.plot(part["share"], part["random"], color=COLORS["clean"], ls="--", label="towards a random extreme")
        axis.set_xlabel(Axis.WAY)
        axis.set_ylabel(Axis.ELBO)
    below[0].legend(loc="lower left", fontsize=6)
    legend_above(figure, above[0])
    return finish(figure, caption)
