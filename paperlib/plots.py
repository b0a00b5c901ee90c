"""Rows to figures, for the experiments on digits. Never runs a model, never reads or writes a file.

Every figure has its data set and sample size in the caption line below it, and one colour and marker for each model.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

COLUMN, PAGE = 3.3, 6.8  # inches: one column and both columns of a paper

_BLIND = sns.color_palette("colorblind")
COLORS = {
    "VAE": _BLIND[1],
    "proVAE": _BLIND[0],
    "proVAE kappa=0": _BLIND[2],
    "proVAE kappa=0.5": _BLIND[0],
    "clean": _BLIND[7],
    "attacked": _BLIND[3],
    "certified": _BLIND[0],
}
MARKERS = {"VAE": "o", "proVAE kappa=0": "s", "proVAE kappa=0.5": "D"}
LABELS = {"proVAE kappa=0": "proVAE $\\kappa=0$", "proVAE kappa=0.5": "proVAE $\\kappa=0.5$"}
LOST = -5_000  # nats: a mean certificate below this says nothing about a digit
EPS_LABEL = "radius $\\epsilon$ (pixels in [0, 1])"


def style() -> None:
    """Set the style of all figures: call once at the top of a notebook."""
    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "figure.dpi": 130,
            "savefig.dpi": 220,
            "figure.constrained_layout.use": True,
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "lines.linewidth": 1.3,
            "lines.markersize": 3.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "pdf.fonttype": 42,
        },
    )


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
    _legend_above(figure, axes[0])
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


def elbo_against_eps(rows: pd.DataFrame, caption: str) -> Figure:
    """Mean attacked ELBO against the radius for each model (bars: one standard error), and the KL part beside it."""
    figure, axes = panels(1, 2, height=2.4)
    for name, part in rows.groupby("model", sort=False):
        by_eps = part.groupby("eps")
        for axis, column in ((axes[0], "attacked"), (axes[1], "attacked_kl")):
            mean, error = by_eps[column].mean(), by_eps[column].sem()
            axis.errorbar(mean.index, mean, error, **_look(str(name)))
    axes[0].set_ylabel("attacked ELBO (nats)")
    axes[1].set_ylabel("KL when attacked (nats)")
    axes[1].set_ylim(0, None)
    for axis in axes:
        axis.set_xlabel(EPS_LABEL)
        axis.set_xticks([0, 0.05, 0.1, 0.15, 0.2])
    _legend_above(figure, axes[0])
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


def sandwich(certified: pd.DataFrame, attacked: pd.DataFrame, caption: str) -> Figure:
    """Certified, attacked and clean ELBO against the radius, a panel for each model; bars are standard errors.

    Panels share a linear scale, but for models whose certificates are lost: theirs is logarithmic below -400.
    """
    names = list(certified["model"].unique())
    figure, axes = panels(1, len(names), height=2.5)
    kept = certified.groupby("model")["certified"].min() > LOST
    lowest = certified[certified["model"].map(kept)]["certified"].min()
    for axis, name in zip(axes, names, strict=True):
        known = certified[certified["model"] == name].sort_values("eps")
        found = attacked[attacked["model"] == name].groupby("eps")["attacked"]
        series = {
            "clean": (known["eps"], known["clean"], known["clean_se"], "o"),
            "attacked": (found.mean().index, found.mean(), found.sem(), "X"),
            "certified": (known["eps"], known["certified"], known["certified_se"], "^"),
        }
        for label, (eps, mean, error, marker) in series.items():
            axis.errorbar(eps, mean, error, color=COLORS[label], marker=marker, label=label)
        axis.fill_between(known["eps"], known["certified"], found.mean(), color=COLORS["certified"], alpha=0.12, lw=0)
        if kept[name]:
            axis.set_ylim(1.05 * lowest, 0)
        else:
            axis.set_yscale("symlog", linthresh=400, linscale=2)
            powers = range(4, 10, 2)
            axis.set_yticks([0, -200, -400, *(-(10.0**n) for n in powers)])
            axis.set_yticklabels(["0", "−200", "−400", *(f"$-10^{n}$" for n in powers)])
            axis.set_ylim(min(-1e7, 2 * known["certified"].min()), 0)
            axis.minorticks_off()
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel("radius $\\epsilon$ (pixels)")
    axes[0].set_ylabel("ELBO (nats)")
    axes[-1].legend(loc="lower left")
    return finish(figure, caption)


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
        axes[0].plot(part["stage"], part["box"] / part["reached"], **_look(str(name)))
    axes[0].set_yscale("log")
    axes[0].axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("box width / width reached")
    axes[0].tick_params(axis="x", rotation=35)
    axes[0].legend()
    return finish(figure, caption)


def panels(
    rows: int, columns: int, height: float, width: float = PAGE, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure of the given size in inches and its axes as a flat array, row by row."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), sharex=sharex, sharey=sharey, squeeze=False)
    return figure, axes.ravel()


def _look(name: str) -> dict[str, object]:
    return {"color": COLORS[name], "marker": MARKERS[name], "label": LABELS.get(name, name)}


def finish(figure: Figure, caption: str) -> Figure:
    """The figure with its caption line below everything else."""
    characters = int(23 * figure.get_figwidth())  # that fit on a line at this font size
    figure.supxlabel("\n".join(textwrap.wrap(caption, characters)), fontsize=6, color="0.35")
    return figure


def _legend_above(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
