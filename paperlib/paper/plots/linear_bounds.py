"""Figures of notebook 5: relaxations, backward substitution stage by stage, and linear bounds beside intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.paper.linear_bounds import mean_gaps
from paperlib.paper.plots.style import (
    COLORS,
    HOLLOW,
    LABELS,
    PAGE,
    PALER,
    SIGNED,
    finish,
    legend_above,
    panels,
    with_minus,
)
from paperlib.paper.relaxation_curves import RelaxedCurve
from paperlib.paper.words import LOG, Axis
from paperlib.runtime.numbers import rounded_down

METHOD_LABELS = {"ibp": "intervals", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
METHOD_LOOK: dict[str, dict[str, Any]] = {
    "ibp": {"color": COLORS["VAE"], "marker": "s"},
    "crown-ibp": {"color": COLORS["attacked"], "marker": "X"},
    "crown": {"color": COLORS["certified"], "marker": "o", **HOLLOW},  # often where CROWN-IBP is
}
BELOW, ABOVE = COLORS["certified"], COLORS["attacked"]  # of lines on either side of a curve
DASHES = {BELOW: ("-", "--", ":"), ABOVE: ("-.",)}


def relaxations(curves: Sequence[RelaxedCurve], product: RelaxedCurve, caption: str) -> Figure:
    """Above: curves with the lines on both sides. Below: how far either plane is from the product, and a section."""
    figure, axes = panels(2, 3, height=4.2)
    for axis, curve in zip(axes[:3], curves, strict=True):
        _curve(axis, curve.axes[0], curve.exact, curve.below, curve.above)
        axis.set(title=curve.title, xlabel=curve.labels[0], ylabel=curve.labels[1])
        axis.margins(y=0.08)
    axes[0].set_ylim(-2.1, None)  # room for the legend
    axes[0].legend(loc="lower right", ncols=2, columnspacing=1)

    target, logit = product.axes
    for axis, name in zip(axes[3:5], product.below, strict=False):
        gap = product.exact - product.below[name]
        levels = np.linspace(0, gap.max().item(), 6)
        axis.contourf(logit, target, gap.clamp(min=0), levels=levels, cmap="Blues", vmax=1.6 * levels[-1])
        lines = axis.contour(logit, target, gap, levels=levels[1:-1], colors="black", linewidths=0.6)
        crossings = [
            (gap.diagonal() - level).abs().argmin() for level in lines.levels
        ]  # of each line with the diagonal
        axis.clabel(lines, fontsize=7, manual=[(logit[i].item(), target[i].item()) for i in crossings])
        axis.set(title=f"{product.title} − {name} (nats)", xlabel=product.labels[1], ylabel=product.labels[0])

    exact, *planes = (field.diagonal() for field in (product.exact, *product.below.values()))
    _curve(axes[5], logit, exact, dict(zip(product.below, planes, strict=True)), {})
    axes[5].set(title="section along the diagonal", xlabel=Axis.DIAGONAL, ylabel=Axis.PRODUCT)
    return finish(figure, caption)


def _curve(axis: Axes, v: Tensor, exact: Tensor, below: Mapping[str, Tensor], above: Mapping[str, Tensor]) -> None:
    axis.plot(v, exact, color="black", linewidth=2.2)
    for lines, color in ((below, BELOW), (above, ABOVE)):
        for (name, line), dashes in zip(lines.items(), DASHES[color], strict=False):
            axis.plot(v, line, color=color, linestyle=dashes, label=name)
    axis.legend()


def stages(rows: pd.DataFrame, caption: str) -> Figure:
    """Attacked minus certified ELBO if backward substitution ended at each stage: a panel for each model."""
    names = list(rows["model"].unique())
    figure, axes = panels(1, len(names), height=2.7, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        part = rows[rows["model"] == name]
        for method, line in part.groupby("method", sort=False):
            axis.plot(line["gap"], line["stage"], label=METHOD_LABELS[str(method)], **METHOD_LOOK[str(method)])
        axis.set_title(f"{LABELS.get(name, name)}, radius {part['eps'].iloc[0]:g}")
        far = part["gap"].max() >= 1000
        axis.set_xlabel(f"{Axis.GAP}\n{LOG}" if far else Axis.GAP)
        if far:
            axis.set_xscale("log")
        else:
            axis.set_xlim(0, None)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("linear function of the …")
    legend_above(figure, axes[0])
    return finish(figure, caption)


def coefficients(pictures: Mapping[str, Tensor], rows: Sequence[tuple[str, float]], caption: str) -> Figure:
    """For each model and radius: the digit, both parts of its pixels' coefficients, and the way from it to two points:
    where the linear bound is lowest, and where PGD ends.
    """
    figure, axes = panels(len(rows), 5, height=1.3 * len(rows) + 0.55, width=PAGE)
    grid = axes.reshape(len(rows), 5)
    for row, (name, eps), line in zip(range(len(rows)), rows, grid, strict=True):
        x, as_input, as_target = (pictures[key][row].view(28, 28).numpy() for key in ("x", "as_input", "as_target"))
        moved = [(pictures[key][row].view(28, 28).numpy() - x) / eps for key in ("worst", "attacked")]
        largest = max(abs(part).max() for part in (as_input, as_target))
        line[0].imshow(x, cmap="gray", vmin=0, vmax=1)
        for axis, part in zip(line[1:3], (as_input, as_target), strict=True):
            slopes = axis.imshow(part, cmap=SIGNED, vmin=-largest, vmax=largest)
        for axis, part in zip(line[3:], moved, strict=True):
            steps = axis.imshow(part, cmap=SIGNED, vmin=-PALER, vmax=PALER)
        figure.colorbar(slopes, ax=line[2], label=Axis.SLOPE, shrink=0.7)
        figure.colorbar(steps, ax=line[4], label=Axis.MOVED, ticks=[-1, 0, 1], shrink=0.7).ax.set_ylim(-1, 1)
        bound, *elbos = (pictures[key][row].item() for key in ("bound", "elbo_x", "elbo_worst", "elbo_attacked"))
        line[0].set_ylabel(f"{LABELS.get(name, name)}\nradius {eps:g}")
        texts = (
            f"ELBO {elbos[0]:.1f}",
            f"bound {rounded_down(bound)}",
            "",
            *(f"ELBO {value:.1f}" for value in elbos[1:]),
        )
        for axis, text in zip(line, texts, strict=True):
            axis.set(xlabel=with_minus(text), xticks=[], yticks=[])
    titles = (
        "digit $x$",
        "coefficients:\nas input",
        "coefficients:\nas target",
        "lowest point\nof the bound",
        "where PGD\nends",
    )
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title)
    return finish(figure, caption)


def gaps(rows: pd.DataFrame, attacked: pd.DataFrame, caption: str) -> Figure:
    """Attacked minus certified ELBO against the radius, a line for each method and a panel for each model."""
    means = mean_gaps(rows, attacked)
    names = list(rows["model"].unique())
    figure, axes = panels(1, len(names), height=2.5, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for method, label in METHOD_LABELS.items():
            mean = means.loc[name, method]
            axis.plot(mean.index, mean, label=label, **METHOD_LOOK[method])
        axis.set_yscale("log")
        axis.set_title(LABELS.get(name, name))
        axis.set_xlabel(Axis.RADIUS)
    axes[0].set_ylabel(Axis.GAP)
    legend_above(figure, axes[0])
    return finish(figure, caption)
