"""Rows to the tables that notebooks and README show. Certificates are rounded down, never to nearest."""

from collections.abc import Callable

import pandas as pd

from paperlib.runtime.numbers import rounded_down, with_error


def rounded(rows: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """The rows as shown: the columns `certified`, `crown` and `exact` rounded down, all other numbers to nearest."""
    certificates = rows.columns.intersection(["certified", "crown", "exact"])
    down = {name: [float(rounded_down(value, digits)) for value in rows[name]] for name in certificates}
    return rows.round(digits).assign(**down)


def headline(certified: pd.DataFrame, attacked: pd.DataFrame, linear: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The headline table at one radius: a row for each model, in nats, with standard errors over the images."""
    table = []
    for _, row in certified[certified["eps"] == eps].iterrows():
        values = attacked.loc[(attacked["model"] == row["model"]) & (attacked["eps"] == eps), "attacked"]
        tight = linear[(linear["model"] == row["model"]) & (linear["eps"] == eps)].iloc[0]
        table.append(
            {
                "model": row["model"],
                "clean": with_error(row["clean"], row["clean_se"]),
                "log-likelihood": f"{row['log_likelihood']:.1f}",
                "KL": f"{row['kl']:.1f}",
                "attacked": with_error(values.mean(), values.sem()),
                "certified: intervals": _certified(row["certified"], row["certified_se"]),
                "linear bound": _certified(tight["crown"], tight["crown_se"]),
            }
        )
    return pd.DataFrame(table)


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
                "clean": _over_seeds(part["clean"], "{:.1f}".format),
                "certified: intervals": _over_seeds(part["ibp"], rounded_down),
                "CROWN-IBP": _over_seeds(part["crown_ibp"], rounded_down),
                "KL": _over_seeds(part["kl"], "{:.1f}".format),
            }
        )
    return pd.DataFrame(table)


def _over_seeds(values: pd.Series, text: Callable[[float], str]) -> str:
    return f"{text(values.mean())} [{text(values.min())}, {text(values.max())}]"


def _certified(value: float, error: float) -> str:
    return f"{rounded_down(value)} ± {error:.1f}"


def markdown(table: pd.DataFrame) -> str:
    """A table of strings in Markdown, its first column to the left and numbers to the right."""
    align = ("left", *("right",) * (table.shape[1] - 1))
    return str(table.to_markdown(index=False, disable_numparse=True, colalign=align))
