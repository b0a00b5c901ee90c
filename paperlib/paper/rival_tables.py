"""Rows of notebook 7 to tables: means over the seeds [lowest, highest]; certificates are rounded down."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from paperlib.runtime.numbers import rounded_down

Text = Callable[[float], str]


def nearest(value: float) -> str:
    """To one decimal."""
    return f"{value:.1f}"


def trials(rows: pd.DataFrame) -> pd.DataFrame:
    """All trials of tuning, with the chosen ones marked."""
    return pd.DataFrame(
        {
            "recipe": row["recipe"],
            "tuned": row["tuned"],
            "clean": nearest(row["clean"]),
            "KL": nearest(row["kl"]),
            "attacked": nearest(row["attacked"]),
            "chosen": "yes" if row["chosen"] else "",
        }
        for row in rows.to_dict("records")
    )


def defences(rows: pd.DataFrame, norm: str) -> pd.DataFrame:
    """Table of a data set: clean ELBO, KL, and attacked and certified ELBO at each radius of this norm, in nats; for
    l2 also what the rival's own method certifies.
    """
    table = []
    for recipe, part in rows[rows["norm"] == norm].groupby("recipe", sort=False):
        line = {"recipe": recipe, "clean": _over_seeds(part["clean"]), "KL": _over_seeds(part["kl"])}
        for eps, at in part.groupby("eps"):
            line[f"attacked {eps:g}"] = _over_seeds(at["attacked"])
            line[f"certified {eps:g}"] = _over_seeds(at["certified"], rounded_down)
            if norm == "l2" and rows["theirs"].notna().any():
                line[f"theirs {eps:g}"] = _over_seeds(at["theirs"], rounded_down)
        table.append(line)
    return pd.DataFrame(table)


def summary(rows: pd.DataFrame, dataset: str, shown: Sequence[tuple[str, float]]) -> pd.DataFrame:
    """Of one data set: a row for each recipe, and attacked and certified ELBO at each (norm, eps) that is shown."""
    names = {"linf": "l∞", "l2": "l2"}
    table = []
    for recipe, part in rows[rows["dataset"] == dataset].groupby("recipe", sort=False):
        line = {"recipe": recipe, "clean": _over_seeds(part["clean"]), "KL": _over_seeds(part["kl"])}
        for norm, eps in shown:
            at = part[(part["norm"] == norm) & (part["eps"] == eps)]
            line[f"{names[norm]} {eps:g}: attacked"] = _over_seeds(at["attacked"])
            line[f"{names[norm]} {eps:g}: certified"] = _over_seeds(at["certified"], rounded_down)
        table.append(line)
    return pd.DataFrame(table)


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Squared errors of the reconstruction, and the seconds of one core that training took."""
    table = []
    for recipe, part in rows.groupby("recipe", sort=False):
        one = part.groupby("seed").first()  # the same at every radius
        table.append(
            {
                "recipe": recipe,
                "tuned": one["tuned"].iloc[0],
                "error, clean": _over_seeds(one["error_clean"]),
                "attacked": _over_seeds(one["error_attacked"]),
                "certified": _over_seeds(one["error_certified"], lambda value: f"{math.ceil(10 * value) / 10:.1f}"),
                "training (s)": f"{one['seconds'].mean():.0f}",
            }
        )
    return pd.DataFrame(table)


def smoothing(rows: pd.DataFrame) -> pd.DataFrame:
    """What percentile smoothing promises of the smoothed ELBO, in nats: a row for each deviation of the noise."""
    table = []
    for sigma, part in rows.groupby("sigma"):
        line = {"deviation of the noise": f"{sigma:g}", "smoothed ELBO (estimate)": nearest(part["estimate"].iloc[0])}
        for row in part.to_dict("records"):
            line[f"certified {row['eps']:g}"] = rounded_down(row["lower"]) if math.isfinite(row["lower"]) else "none"
        table.append(line)
    return pd.DataFrame(table)


def suite(rows: pd.DataFrame) -> pd.DataFrame:
    """What each attack reaches against the released models, and the certificate below it."""
    return pd.DataFrame(
        {
            "model": row["model"],
            "set": row["threat"],
            "images": f"{row['images']}",
            "clean": nearest(row["clean"]),
            "PGD": nearest(row["pgd"]),
            "APGD": nearest(row["apgd"]),
            "suite": nearest(row["suite"]),
            "certified": rounded_down(row["certified"]),
            "not PGD": f"{row['won'] / row['images']:.0%}",
        }
        for row in rows.to_dict("records")
    )


def _over_seeds(values: pd.Series, text: Text = nearest) -> str:
    if values.isna().any():
        return ""
    ends = (values.mean(), values.min(), values.max())
    mean, least, most = (text(value) if math.isfinite(value) else "none" for value in ends)
    return mean if len(values) == 1 else f"{mean} [{least}, {most}]"
