"""Figures of notebook 8: a heartbeat and its verdicts, verdicts against the radius, certified radii, odd images."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.plots.style import (
    COLORS,
    HOLLOW,
    LABELS,
    MARKERS,
    PAGE,
    by_model,
    finish,
    legend_above,
    model_looks,
    panels,
)
from paperlib.paper.words import Axis

BEATS = {"detection": "abnormal beats with an alarm", "calm": "normal beats without"}
LOOKS = {
    "attacked": {"color": COLORS["attacked"], "marker": MARKERS["attacked"]},
    "certified": {"color": COLORS["certified"], "marker": MARKERS["certified"], **HOLLOW},
}


def heartbeat(stored: Mapping[str, Tensor], eps: float, caption: str) -> Figure:
    """The beat with its tube and what the attack on each model makes of it; the reconstructions; and each model's
    score, the highest that its own attack reaches and the certified range of it, as distances from the threshold.
    """
    figure, (signal, rebuilt, verdicts) = panels(1, 3, height=2.6)
    beat, models = stored["beat"], [name for name in ("VAE", "proVAE") if f"{name} scores" in stored]
    time = np.arange(len(beat))
    signal.fill_between(time, beat - eps, beat + eps, color="0.8", linewidth=0, label=f"$x \\pm {eps:g}$")
    signal.set_title("what an attack may change")
    rebuilt.plot(time, beat, color="0.75", linewidth=2.2, label="beat")
    for name, look in model_looks(models).items():
        style = {"color": look["color"], "linestyle": "--" if name == "VAE" else "-"}
        signal.plot(time, stored[f"{name} attacked"], linewidth=0.9, label=f"{look['label']} attacked", **style)
        rebuilt.plot(time, stored[f"{name} reconstruction"], label=look["label"], **style)
    rebuilt.set_title("reconstructions of the beat")
    for axis in (signal, rebuilt):
        axis.set(xlabel=Axis.SAMPLE, ylabel=Axis.SIGNAL)
        axis.legend(loc="lower center", fontsize=6)  # where a beat is flat
    for line, name in enumerate(models):
        clean, attacked, *certified = stored[f"{name} scores"].tolist()
        verdicts.plot(certified, [line] * 2, color=COLORS["certified"], marker="|", markersize=9, label="certified")
        for kind, value in (("clean", clean), ("attacked", attacked)):
            verdicts.plot([value], [line], color=COLORS[kind], marker=MARKERS[kind], linestyle="none", label=kind)
    verdicts.axvline(0, ymax=0.6, color="0.3", linewidth=1, linestyle=":")
    verdicts.set_yticks(range(len(models)), [LABELS.get(name, name) for name in models])
    verdicts.set_ylim(-0.5, 1.5 * len(models))
    verdicts.set_xlabel(Axis.SCORE)
    verdicts.set_title("alarm to the left of 0")
    handles, labels = verdicts.get_legend_handles_labels()
    verdicts.legend(handles[:3], labels[:3], loc="upper left", fontsize=6)
    return finish(figure, caption)


def against_radius(rows: pd.DataFrame, caption: str) -> Figure:
    """For each model the share of abnormal beats with an alarm and of normal ones without, against the radius."""
    models = by_model(rows)
    figure, axes = panels(len(models), 2, height=1.75 * len(models) + 0.6, sharex=True, sharey="row")
    for place, (_, part, look) in enumerate(models):
        for axis, (kind, title) in zip(axes[2 * place :], BEATS.items(), strict=False):
            clean = part[kind].iloc[0]
            axis.axhline(clean, color="0.4", linewidth=1, linestyle=":", label="clean")
            for name, style in LOOKS.items():
                axis.plot([0, *part["eps"]], [clean, *part[f"{name}_{kind}"]], label=name, **style)
            axis.set_title(f"{look['label']}: {title}")
            axis.set_ylabel(Axis.BEATS)
            axis.set_ylim(-0.04, 1.04)
            axis.set_xlim(left=-0.005)
    for axis in axes[-2:]:
        axis.set_xlabel(Axis.BEAT_RADIUS)
    legend_above(figure, axes[0])
    return finish(figure, caption)


def certified_radii(rows: pd.DataFrame, caption: str) -> Figure:
    """For each model the histograms of the largest radius at which the verdict of a beat is certified."""
    models = by_model(rows)
    figure, axes = panels(len(models), 2, height=1.5 * len(models) + 0.5, sharex=True, sharey="row")
    ends = np.linspace(0, max(0.05, math.ceil(20 * rows["radius"].quantile(0.98)) / 20), 31)
    kinds = (("normal beats, calm", False, 1), ("abnormal beats, alarm", True, -1))
    for place, (_, part, look) in enumerate(models):
        for axis, (title, abnormal, sign) in zip(axes[2 * place :], kinds, strict=False):
            beats = part[part["abnormal"] == abnormal]
            right = beats[sign * beats["score"] >= 0]["radius"].clip(upper=ends[-1])
            axis.hist(right, bins=ends, weights=np.full(len(right), 1 / len(beats)), color=COLORS["certified"])
            axis.set_title(f"{look['label']}: {title}")
            axis.set_ylabel(Axis.BEATS)
    for axis in axes[-2:]:
        axis.set_xlabel(Axis.CERTIFIED_RADIUS)
    return finish(figure, caption)


def odd_images(rows: pd.DataFrame, examples: Tensor, caption: str) -> Figure:
    """An example of each set of outliers, and the guaranteed AUC of each model at each radius, clean first."""
    names = list(rows["outliers"].unique())[::-1]
    radii = sorted(rows["eps"].unique())
    figure, axes = panels(1, 1 + len(radii), height=0.42 * len(names) + 1.1, width=PAGE, sharey=True)
    axes[0].get_gridspec().set_width_ratios([0.3, *[1] * len(radii)])
    side = math.isqrt(examples.shape[1])
    for line, image in enumerate(examples.flip(0).view(-1, side, side)):
        box = (-0.42, 0.42, line - 0.42, line + 0.42)
        axes[0].imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1, extent=box, aspect="equal")
    axes[0].set(xlim=(-0.5, 0.5), xticks=[])
    axes[0].spines[["left", "bottom"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].tick_params(axis="y", length=0)
    for axis, eps in zip(axes[1:], radii, strict=True):
        at = rows[rows["eps"] == eps]
        models = by_model(at)
        for number, (_, part, look) in enumerate(models):
            places = np.arange(len(names)) + 0.18 * ((len(models) - 1) / 2 - number)
            values = part.set_index("outliers")["guaranteed_auc"].reindex(names)
            axis.plot(values, places, linestyle="none", **look)
        axis.set_title("clean" if eps == 0 else f"$\\epsilon={eps:g}$")
        axis.set_xlabel(Axis.AUC)
        axis.set_xlim(-0.05, 1.05)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.grid(axis="y", color="0.92", linewidth=0.6)
        axis.tick_params(axis="y", length=0)
    legend_above(figure, axes[1])
    return finish(figure, caption)
