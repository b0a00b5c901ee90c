"""The figure of the benchmark: what training steps and certificates cost."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from paperlib.paper.plots.linear_bounds import METHOD_LABELS
from paperlib.paper.plots.style import COLORS, LABELS, MARKERS, finish, panels
from paperlib.paper.words import Axis

STEP_LABELS = {
    "VAE": "plain VAE",
    "proVAE kappa=0": LABELS["proVAE kappa=0"],
    "proVAE kappa=0.5": LABELS["proVAE kappa=0.5"],
    "linear kappa=0": "linear bound $\\kappa=0$",
    "linear kappa=0.5": "linear bound $\\kappa=0.5$",
    "conv VAE": "conv., plain VAE",
    "conv proVAE kappa=0": "conv., proVAE $\\kappa=0$",
}
IMAGE_LABELS = {"clean ELBO": "clean ELBO", "attack step": "attack, one step", **METHOD_LABELS}
KIND = {"clean ELBO": "clean", "attack step": "attacked", **dict.fromkeys(METHOD_LABELS, "certified")}


def by_round(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds, with a row for each round and a column for each case: (kind, name)."""
    return rows.pivot_table("seconds", index="round", columns=["kind", "name"])


def plain(name: str) -> tuple[str, str]:
    """The case of which a step's time is shown as a multiple: the plain VAE of the same architecture."""
    return "step", "conv VAE" if name.startswith("conv") else "VAE"


def cost(rows: pd.DataFrame, ratios: pd.DataFrame, caption: str) -> Figure:
    """Time of each training step in plain steps, its bare matrix products inside; and milliseconds for an image.

    Medians over the rounds, with lines between the quartiles. Each target of `ratios` (of, against, most) is a mark on
    what should not pass it, and a short one where it is a multiple of the bare products.
    """
    seconds, targets = by_round(rows), ratios.to_dict("records")
    figure, (steps, images) = panels(1, 2, height=2.6)
    heights = [place + 0.4 * name.startswith("conv") for place, name in enumerate(STEP_LABELS)]
    for height, name in zip(heights, STEP_LABELS, strict=True):
        in_plain = seconds.div(seconds[plain(name)], axis=0)
        total = in_plain["step", name]
        steps.barh(height, total.median(), color=COLORS["certified"], alpha=0.35, lw=0, label="all of the step")
        if ("products", name) in seconds:
            bare = in_plain["products", name].median()
            steps.barh(height, bare, 0.45, color=COLORS["certified"], lw=0, label="its bare matrix products")
        _quartiles(steps, height, total)
        for target in (target for target in targets if target["of"] == ("step", name)):
            short = target["against"][0] == "products"
            _mark(steps, height, target["most"] * in_plain[target["against"]].median(), size=6 if short else 11)
    for height, name in enumerate(IMAGE_LABELS):
        milliseconds = 1e3 * seconds["image", name]
        middle = milliseconds.median()
        images.plot(middle, height, MARKERS[KIND[name]], color=COLORS[KIND[name]], ms=5)
        beside = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center", "fontsize": 7}
        images.annotate(f"{middle:#.2g}", (1.1, height), annotation_clip=False, **beside)
        _quartiles(images, height, milliseconds)
        for target in (target for target in targets if target["of"] == ("image", name)):
            unit = 1e3 * seconds[target["against"]].median() if target["against"] else 1.0
            _mark(images, height, target["most"] * unit, size=11)
    steps.set_yticks(heights, list(STEP_LABELS.values()))
    steps.set_title("a training step")
    steps.set_xlabel(Axis.MULTIPLES)
    images.set_yticks(range(len(IMAGE_LABELS)), list(IMAGE_LABELS.values()))
    images.set_xscale("log")
    images.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    images.set_title("an image")
    images.set_xlabel(Axis.MILLISECONDS)
    images.margins(0.1, 0.15)
    for axis in (steps, images):
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
    handles = {text: handle for handle, text in zip(*steps.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3)
    return finish(figure, caption)


def _quartiles(axis: Axes, height: float, values: pd.Series) -> None:
    axis.plot(values.quantile([0.25, 0.75]), [height, height], color="0.25", lw=0.8)


def _mark(axis: Axes, height: float, value: float, size: float) -> None:
    axis.plot(value, height, "|", color="black", ms=size, mew=1.5, label="target")
