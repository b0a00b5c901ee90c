"""Figures of notebook 3: attacked digits, and how far attacks lower the ELBO."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.mnist_training import digit_grid
from paperlib.paper.plots.style import (
    CEILING_LOOK,
    COLORS,
    EPS_LABEL,
    LABELS,
    MARKERS,
    finish,
    legend_above,
    model_look,
    panels,
)


def attacked_digits(x: Tensor, attacked: Mapping[str, Tensor], rebuilt: Mapping[str, Tensor], caption: str) -> Figure:
    """For each model the attacked digits, what was added to them, and their reconstruction; x is [count, 784]."""
    rows = [("clean", x)]
    for name, x_adv in attacked.items():
        added = x_adv - x
        rows += [
            (f"{LABELS.get(name, name)}\nattacked", x_adv),
            ("perturbation", 0.5 + added / (2 * added.abs().max())),
            ("reconstruction", rebuilt[name]),
        ]
    return digit_grid(rows, caption)


def elbo_against_eps(rows: pd.DataFrame, ceiling: pd.DataFrame, caption: str) -> Figure:
    """Mean attacked ELBO against the radius for each model (bars: one standard error), and the KL part beside it.

    The ceiling is that of any model whatever on the attacked images: how far the likelihood alone must fall.
    """
    figure, axes = panels(1, 2, height=2.4)
    for name, part in rows.groupby("model", sort=False):
        by_eps = part.groupby("eps")
        for axis, column in ((axes[0], "attacked"), (axes[1], "attacked_kl")):
            mean, error = by_eps[column].mean(), by_eps[column].sem()
            axis.errorbar(mean.index, mean, error, **model_look(str(name)))
    axes[0].plot(ceiling["eps"], ceiling["attacked_ceiling"], **CEILING_LOOK)
    axes[0].set_ylabel("attacked ELBO (nats)")
    axes[1].set_ylabel("KL when attacked (nats)")
    axes[1].set_ylim(0, None)
    for axis in axes:
        axis.set_xlabel(EPS_LABEL)
        axis.set_xticks([0, 0.05, 0.1, 0.15, 0.2])
    legend_above(figure, axes[0])
    return finish(figure, caption)


def attack_strength(rows: pd.DataFrame, caption: str) -> Figure:
    """Mean attacked ELBO against PGD steps, for each number of restarts, with the simpler attacks as levels."""
    names = list(rows["model"].unique())
    figure, axes = panels(1, len(names), height=2.3)
    for axis, name in zip(axes, names, strict=True):
        part = rows[rows["model"] == name]
        searched = part[part["attack"] == "pgd"]
        for (restarts, line), linestyle in zip(searched.groupby("restarts"), ("-", "--", ":"), strict=False):
            label = f"PGD, {restarts} start" + ("s" if restarts != 1 else "")
            axis.plot(line["steps"], line["elbo"], marker=MARKERS[name], color=COLORS[name], ls=linestyle, label=label)
        for attack, label, linestyle in (("shift", "$+\\epsilon$ on all pixels", ":"), ("fgsm", "FGSM", "-.")):
            level = part.loc[part["attack"] == attack, "elbo"].item()
            axis.axhline(level, color="0.4", linewidth=1, linestyle=linestyle, label=label)
        axis.set_xscale("log")
        ticks = sorted(searched["steps"].unique())
        axis.set_xticks(ticks, [str(step) for step in ticks], minor=False)
        axis.minorticks_off()
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel("PGD steps")
    axes[0].set_ylabel("attacked ELBO (nats)")
    axes[-1].legend()
    return finish(figure, caption)
