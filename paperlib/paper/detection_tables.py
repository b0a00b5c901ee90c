"""Rows of notebook 8 to tables, in per cent; what is certified is rounded down."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from paperlib.runtime.numbers import rounded_down

# Guaranteed AUC of digits against Fashion-MNIST at radius 0.3 in Bitterwolf, Meinke & Hein (NeurIPS 2020, arXiv
# 2007.08473), in per cent: two of their detectors, trained with 80 million images of other things.
GOOD = {"GOOD, one of two models": 55.5, "GOOD, the other of them": 78.0}
GOOD_EPS = 0.3


def nearest(share: float) -> str:
    """A share of 1 in per cent, to one decimal."""
    return f"{100 * share:.1f}"


def proven(share: float) -> str:
    """A certified share of 1 in per cent, rounded down; empty where nothing is certified."""
    return "" if pd.isna(share) else rounded_down(100 * share)


def verdicts(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Rows of `detection_rows` or `measurement_rows` under these columns: detection and calm, each clean, attacked and
    certified.
    """
    table = []
    for row in rows.to_dict("records"):
        line = {name: f"{row[name]:g}" if isinstance(row[name], float) else row[name] for name in names}
        line["KL"] = f"{row['kl']:.1f}"
        line |= {
            "detection": nearest(row["detection"]),
            "detection: attacked / certified": _pair(row, "detection"),
            "calm": nearest(row["calm"]),
            "calm: attacked / certified": _pair(row, "calm"),
        }
        table.append(line)
    return pd.DataFrame(table)


def separation(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `detection_rows`: KL, AUC, guaranteed AUC and the two-sided one, at each radius."""
    return pd.DataFrame(
        {
            "model": row["model"],
            "radius": f"{row['eps']:g}",
            "KL": f"{row['kl']:.1f}",
            "AUC": nearest(row["auc"]),
            "guaranteed AUC": proven(row["guaranteed_auc"]),
            "two-sided": proven(row["two_sided_auc"]),
        }
        for row in rows.to_dict("records")
    )


def odd_images(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """Rows of `image_rows` at one radius: guaranteed AUC by model and set of outliers; published ones beside them."""
    table = []
    at = rows[rows["eps"] == eps]
    for model, part in at.groupby("model", sort=False):
        values = part.set_index("outliers")["guaranteed_auc"]
        table.append({"model": model, "KL": f"{part['kl'].iloc[0]:.1f}", **values.map(proven)})
    if eps == GOOD_EPS and "fashion-mnist" in set(at["outliers"]):
        table += [{"model": name, "fashion-mnist": f"{value:.1f}"} for name, value in GOOD.items()]
    return pd.DataFrame(table).fillna("")


def rivals(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `rival_rows`: numbers of beats, KL where there is one, detection and calm, each clean, attacked /
    certified, and what is promised.
    """
    return pd.DataFrame(
        {
            "detector": row["detector"],
            "change": f"{'l-infinity' if row['threat'] == 'linf' else 'l2'} {row['eps']:g}",
            "abnormal / normal": f"{row['outliers']:,} / {row['normals']:,}",
            "KL": "" if pd.isna(row["kl"]) else f"{row['kl']:.1f}",
            "detection": nearest(row["detection"]),
            "detection: attacked / certified": _pair(row, "detection"),
            "calm": nearest(row["calm"]),
            "calm: attacked / certified": _pair(row, "calm"),
            "promise": row["promise"],
        }
        for row in rows.to_dict("records")
    )


def _pair(row: Mapping[Any, Any], kind: str) -> str:
    return f"{nearest(row[f'attacked_{kind}'])} / {proven(row[f'certified_{kind}']) or 'none'}"
