"""Rows to the tables that notebooks and README show. Certificates are rounded down, a ceiling is rounded up."""

import math
from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from paperlib.runtime.numbers import rounded_down, rounded_up, with_error
from paperlib.training.config import TrainConfig


def span(values: Iterable[float], text: Callable[[float], str] = "{:.1f}".format) -> str:
    """The smallest and the largest value as prose has them: `12.4 to 17.0`; one number if both print alike."""
    numbers = list(values)
    low, high = text(min(numbers)), text(max(numbers))
    return low if low == high else f"{low} to {high}"


def holds_from(condition: pd.Series) -> float | None:
    """The first index from which on the condition holds to the end; None if it fails at the last."""
    first: float | None = None
    for index, holds in condition.items():
        first = (float(str(index)) if first is None else first) if holds else None
    return first


def architecture(config: TrainConfig) -> str:
    """The widths of the layers from the data through the latent and back: `784-512-20-512-784`."""
    half = [math.prod(config.data_shape), *config.hidden]
    return "-".join(map(str, [*half, config.latent_dim, *reversed(half)]))


def objectives(configs: Mapping[str, TrainConfig]) -> pd.DataFrame:
    """What each model maximises, at which radius and for how many steps."""
    mixed = r"${kappa:g}\,\mathrm{{ELBO}} + {rest:g}\,C$ once the ramp is over"
    texts = {1.0: r"$\mathrm{ELBO}$", 0.0: "$C$ once the ramp is over"}
    return pd.DataFrame(
        {
            "model": name,
            "maximises": texts.get(config.kappa, mixed.format(kappa=config.kappa, rest=1 - config.kappa)),
            "radius": f"{config.eps:g}" if config.eps else "none",
            "steps": f"{config.steps:,}",
        }
        for name, config in configs.items()
    )


def rounded(rows: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """The rows as shown: `certified`, `crown` and `exact` rounded down, ceilings up, all other numbers to nearest."""
    lower, upper = ("certified", "crown", "exact"), ("ceiling", "attacked_ceiling")
    directed: dict[str, list[float]] = {}
    for names, printed in ((lower, rounded_down), (upper, rounded_up)):
        for name in rows.columns.intersection(list(names)):
            directed[name] = [float(printed(value, digits)) for value in rows[name]]
    return rows.round(digits).assign(**directed)


def headline(
    certified: pd.DataFrame,
    attacked: pd.DataFrame,
    ceiling: pd.DataFrame,
    eps: float,
    linear: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The headline table at one radius: a row for each model, in nats, with standard errors over the images.

    The ceiling is that of any model, over all test images; the last column stands there if there are `linear` rows.
    """
    top = rounded_up(ceiling.loc[ceiling["eps"] == eps, "ceiling"].item())
    table = []
    for _, row in certified[certified["eps"] == eps].iterrows():
        values = attacked.loc[(attacked["model"] == row["model"]) & (attacked["eps"] == eps), "attacked"]
        line = {
            "model": row["model"],
            "clean": with_error(row["clean"], row["clean_se"]),
            "log-likelihood": f"{row['log_likelihood']:.1f}",
            "KL": f"{row['kl']:.1f}",
            "ceiling": top,
            "attacked": with_error(values.mean(), values.sem()),
            "certified: intervals": _certified(row["certified"], row["certified_se"]),
        }
        if linear is not None:
            tight = linear[(linear["model"] == row["model"]) & (linear["eps"] == eps)].iloc[0]
            line["linear bound"] = _certified(tight["crown"], tight["crown_se"])
        table.append(line)
    return pd.DataFrame(table)


def ceiling(rows: pd.DataFrame) -> pd.DataFrame:
    """The ceiling of any model at each radius, over all test images and over the attacked ones, in nats, rounded up."""
    return pd.DataFrame(
        {
            "radius": f"{row['eps']:g}",
            f"all {row['images']:,.0f} test images": rounded_up(row["ceiling"]),
            f"the first {row['attacked_images']:,.0f}": rounded_up(row["attacked_ceiling"]),
        }
        for row in rows.to_dict("records")
    )


def by_method(linear: pd.DataFrame, attacked: pd.DataFrame) -> pd.DataFrame:
    """Certificates by each method beside the attack, a row for each model and radius, in nats."""
    table = []
    for _, row in linear.iterrows():
        values = attacked.loc[(attacked["model"] == row["model"]) & (attacked["eps"] == row["eps"]), "attacked"]
        table.append(
            {
                "model": row["model"],
                "radius": f"{row['eps']:g}",
                "intervals": _certified(row["ibp"], row["ibp_se"]),
                "CROWN-IBP": _certified(row["crown-ibp"], row["crown-ibp_se"]),
                "CROWN": _certified(row["crown"], row["crown_se"]),
                "attacked": with_error(values.mean(), values.sem()),
                "clean": with_error(row["clean"], row["clean_se"]),
            }
        )
    return pd.DataFrame(table)


def rounding(rows: pd.DataFrame) -> pd.DataFrame:
    """How often and how far float32 values leave their bounds: computed in float32, and sound ones."""
    return pd.DataFrame(
        {
            "model": row["model"],
            "where": row["place"],
            "radius": f"{row['eps']:g}",
            "checked": f"{row['checked']:,}",
            "broken": f"{row['plain_broken']:.1%}",
            "excess": f"{row['plain_excess']:.1e}",
            "broken, sound": f"{100 * row['sound_broken']:.2g}%",  # never 0% but for 0
        }
        for _, row in rows.iterrows()
    )


def expected(rows: pd.DataFrame) -> pd.DataFrame:
    """Certified expected ELBO, means over the images: a row for each model and number of draws, in nats."""
    table = []
    for (model, samples), part in rows.groupby(["model", "samples"], sort=False):
        table.append(
            {
                "model": model,
                "draws": f"{samples:,}",
                "confidence": f"{part['confidence'].iloc[0]:g}",
                "mean of the draws": f"{part['mean'].mean():.1f}",
                "width": f"{part['width'].mean():.2f}",
                "certified expectation": rounded_down(part["bound"].mean()),
            }
        )
    return pd.DataFrame(table)


def tradeoff(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds with the lowest and highest seed in brackets, a row for each bound, radius and kappa."""
    table = []
    for (bound, kappa, eps), part in rows.groupby(["bound", "kappa", "train_eps"], sort=False):
        table.append(
            {
                "trained on": bound,
                "training radius": f"{eps:g}",
                "kappa": f"{kappa:g}",
                "steps": f"{part['steps'].iloc[0]:,}",
                "clean": over_seeds(part["clean"], "{:.1f}".format),
                "certified: intervals": over_seeds(part["ibp"], rounded_down),
                "CROWN-IBP": over_seeds(part["crown_ibp"], rounded_down),
                "KL": over_seeds(part["kl"], "{:.1f}".format),
            }
        )
    return pd.DataFrame(table)


def over_seeds(values: pd.Series, text: Callable[[float], str]) -> str:
    """The mean over the seeds, with the lowest and the highest of them in brackets."""
    return f"{text(values.mean())} [{text(values.min())}, {text(values.max())}]"


def _certified(value: float, error: float) -> str:
    return f"{rounded_down(value)} ± {error:.1f}"


def markdown(table: pd.DataFrame) -> str:
    """A table of strings in Markdown, its first column to the left and numbers to the right."""
    align = ("left", *("right",) * (table.shape[1] - 1))
    return str(table.to_markdown(index=False, disable_numparse=True, colalign=align))
