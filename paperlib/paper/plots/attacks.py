"""Figures of notebook 3: attacked digits, and how far attacks lower the ELBO."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.mnist_training import sheet, tiled
from paperlib.paper.plots.style import (
    CEILING_LOOK,
    COLORS,
    HOLLOW,
    LABELS,
    PALER,
    SIGNED,
    by_model,
    finish,
    legend_above,
    panels,
    with_minus,
)
from paperlib.paper.words import Axis

STARTS: tuple[dict[str, Any], ...] = (  # for each number of restarts, the fewest first
    {"ls": "-", "marker": "X"},
    {"ls": "--", "marker": "o", **HOLLOW},
    {"ls": ":", "marker": "s", **HOLLOW},
)


def attacked_digits(x: Tensor, attacked: Mapping[str, Tensor], rebuilt: Mapping[str, Tensor], caption: str) -> Figure:
    """For each model the attacked digits, what was added to them, and their reconstruction; grey images, shaped as in
    `digit_grid`. What was added is coloured by its sign, on one scale for all models. Raises ValueError for others.
    """
    rows = [("clean", x)]
    for name, x_adv in attacked.items():
        rows += [
            (f"{LABELS.get(name, name)}\nattacked", x_adv),
            ("perturbation", torch.full_like(x, torch.nan)),
            ("reconstruction", rebuilt[name]),
        ]
    added = {name: x_adv - x for name, x_adv in attacked.items()}
    largest = max(float(change.abs().max()) for change in added.values()) or 1.0
    nothing = torch.full_like(x, torch.nan)
    signed = [nothing] + [part for change in added.values() for part in (nothing, change, nothing)]
    picture = sheet(signed, frame=torch.nan)
    if picture.shape[2] != 1:
        raise ValueError(f"what is added has a sign in each channel: grey images are needed, got {list(x.shape)}")
    figure = tiled(rows)
    (axis,) = figure.axes
    signs = axis.imshow(
        picture.squeeze(2).numpy(),
        cmap=SIGNED,
        vmin=-PALER * largest,
        vmax=PALER * largest,
        interpolation="nearest",
    )
    ticks = (-largest, 0, largest)
    figure.set_figheight(figure.get_figheight() + 0.55)
    bar = figure.colorbar(signs, ax=axis, label=Axis.CHANGE, location="bottom", shrink=0.4, aspect=24)
    bar.set_ticks(ticks, labels=[with_minus(f"{tick:.2g}") for tick in ticks])
    bar.ax.set_xlim(-largest, largest)
    return finish(figure, caption)


def elbo_against_eps(rows: pd.DataFrame, ceiling: pd.DataFrame, caption: str) -> Figure:
    """Mean attacked ELBO against the radius for each model, and the KL part beside it.

    Standard errors belong in the caption: on these axes they are smaller than a mark. The ceiling is that of any model
    whatever on the attacked images: how far the likelihood alone must fall.
    """
    figure, axes = panels(1, 2, height=2.4)
    for _, part, look in by_model(rows):
        means = part.groupby("eps")[["attacked", "attacked_kl"]].mean()
        for axis, column in zip(axes, means, strict=True):
            axis.plot(means.index, means[column], **look)
    axes[0].plot(ceiling["eps"], ceiling["attacked_ceiling"], **CEILING_LOOK)
    axes[0].set_ylabel(Axis.ATTACKED)
    axes[1].set_ylabel(Axis.ATTACKED_KL)
    axes[1].set_ylim(0, None)
    for axis in axes:
        axis.set_xlabel(Axis.RADIUS)
        axis.set_xticks([0, 0.05, 0.1, 0.15, 0.2])
    legend_above(figure, axes[0])
    return finish(figure, caption)


def attack_strength(rows: pd.DataFrame, caption: str) -> Figure:
    """Mean attacked ELBO against PGD steps, for each number of restarts, with the simpler attacks as levels.

    The panels' axes begin where their model needs it and have one scale: all span the same number of nats.
    """
    names = list(rows["model"].unique())
    figure, axes = panels(1, len(names), height=2.5)
    shown = rows[rows["attack"].isin(("pgd", "shift", "fgsm"))].groupby("model")["elbo"]
    span = 1.15 * (shown.max() - shown.min()).max()
    for axis, name in zip(axes, names, strict=True):
        part = rows[rows["model"] == name]
        searched = part[part["attack"] == "pgd"]
        for number, (restarts, line) in enumerate(searched.groupby("restarts")):
            look = STARTS[number % len(STARTS)]
            label = f"PGD, {restarts} start" + ("s" if restarts != 1 else "")
            axis.plot(line["steps"], line["elbo"], color=COLORS["attacked"], label=label, **look)
        for attack, label, linestyle in (("shift", "$+\\epsilon$ on all pixels", ":"), ("fgsm", "FGSM", "-.")):
            level = part.loc[part["attack"] == attack, "elbo"].item()
            axis.axhline(level, color="0.4", linewidth=1, linestyle=linestyle, label=label)
        axis.set_xscale("log")
        ticks = sorted(searched["steps"].unique())
        axis.set_xticks(ticks, [str(step) for step in ticks], minor=False)
        axis.minorticks_off()
        middle = (shown.max()[name] + shown.min()[name]) / 2
        axis.set_ylim(middle - span / 2, middle + span / 2)
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel(Axis.PGD_STEPS)
        axis.set_ylabel(Axis.ATTACKED)
    legend_above(figure, axes[0])
    return finish(figure, caption)
