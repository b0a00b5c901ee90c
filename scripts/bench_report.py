"""What the rows of `scripts.bench` say: each ratio beside its target, and where the time of a step goes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from paperlib.paper.plots.cost import by_round, cost, plain


@dataclass(frozen=True)
class CostTarget:
    """The most that `of` should cost, in units of `against`; without it in milliseconds."""

    label: str
    of: tuple[str, str]  # kind and name of a case
    against: tuple[str, str] | None
    most: float


TARGETS = (
    CostTarget("step, κ = 0 / plain", ("step", "proVAE kappa=0"), ("step", "VAE"), 2.3),
    CostTarget("step, κ = 0 / its products", ("step", "proVAE kappa=0"), ("products", "proVAE kappa=0"), 1.6),
    CostTarget("step, κ = 0.5 / plain", ("step", "proVAE kappa=0.5"), ("step", "VAE"), 3.0),
    CostTarget("step, κ = 0, linear bound / intervals", ("step", "linear kappa=0"), ("step", "proVAE kappa=0"), 2.0),
    CostTarget(
        "step, κ = 0.5, linear bound / intervals", ("step", "linear kappa=0.5"), ("step", "proVAE kappa=0.5"), 2.0
    ),
    CostTarget("convolutional step, κ = 0 / plain", ("step", "conv proVAE kappa=0"), ("step", "conv VAE"), 3.0),
    CostTarget("certificate, CROWN-IBP / intervals", ("image", "crown-ibp"), ("image", "ibp"), 2.5),
    CostTarget("certificate, CROWN (ms an image)", ("image", "crown"), None, 10.0),
)


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each target: median and quartiles over the rounds, and whether the median meets it."""
    seconds, table = by_round(rows), []
    for target in TARGETS:
        values = seconds[target.of] / (seconds[target.against] if target.against else 1e-3)
        low, median, high = values.quantile([0.25, 0.5, 0.75])
        table.append({**asdict(target), "low": low, "median": median, "high": high, "met": median <= target.most})
    return pd.DataFrame(table)


def ratio_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`ratios` as shown."""
    return pd.DataFrame(
        {
            "ratio": row["label"],
            "median [quartiles]": f"{row['median']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            "target": f"{row['most']:g}",
            "outcome": "met" if row["met"] else "missed",
        }
        for _, row in ratios(rows).iterrows()
    )


def cost_figure(rows: pd.DataFrame, about: Mapping[str, Any]) -> Figure:
    """The figure of the rows; `about` is their header."""
    sizes = about["config"]
    caption = (
        f"MLP 784-{sizes['hidden']}-20-{sizes['hidden']}-784 on {sizes['batch']} and a convolutional VAE on "
        f"{sizes['conv_batch']} digits of {about['dataset']}. Medians and quartiles of {rows['round'].nunique()} "
        f"rounds on {about['processor']} (torch threads: {about['threads']}). "
        "A short mark is a target in bare products."
    )
    return cost(rows, ratios(rows), caption)


def step_table(rows: pd.DataFrame, profiled: pd.DataFrame) -> pd.DataFrame:
    """A row for each step: its time, also in plain steps, its bare products, and the shares that the profiler saw."""
    seconds, table = by_round(rows), []
    for _, shares in profiled.iterrows():
        name = shares["name"]
        step = seconds["step", name]
        bare = f"{1e3 * seconds['products', name].median():.1f}" if ("products", name) in seconds else ""
        table.append(
            {
                "step": name,
                "ms": f"{1e3 * step.median():.1f}",
                "plain steps": f"{(step / seconds[plain(name)]).median():.2f}",
                "bare products, ms": bare,
                "matrix products": f"{shares['products']:.0%}",
                "elementwise": f"{shares['elementwise']:.0%}",
                "other": f"{shares['other']:.0%}",
            }
        )
    return pd.DataFrame(table)


def device_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each training step and for each work on an image: milliseconds, medians over the rounds."""
    seconds = by_round(rows)
    table = [
        {"what": f"training step, {name}", "ms": f"{1e3 * seconds['step', name].median():.2f}"}
        for name in seconds["step"].columns
    ]
    table += [
        {"what": f"an image, {name} (float64)", "ms": f"{1e3 * seconds['image', name].median():.3f}"}
        for name in seconds["image"].columns
    ]
    return pd.DataFrame(table)
