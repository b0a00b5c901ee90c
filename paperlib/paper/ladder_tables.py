"""Tables and sentences of notebook 10. Distances are upper bounds, so they are rounded up."""

import pandas as pd

from paperlib.paper.tables import span
from paperlib.runtime.numbers import rounded_down, rounded_up


def ladder_table(means: pd.DataFrame) -> pd.DataFrame:
    """A row for each rung, and for each model its distance from the attack and its time: `12.3 (4.5 ms)`."""
    table: dict[str, dict[str, str]] = {}
    for row in means.to_dict("records"):
        held = "" if row["confidence"] == 1 else ", no certificate"
        cell = f"{rounded_up(row['gap'])} ({_milliseconds(row['ms'])}{held})"
        table.setdefault(row["rung"], {})[f"{row['model']}, radius {row['eps']:g}"] = cell
    return pd.DataFrame({"bound": rung, **cells} for rung, cells in table.items())


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


def branching_sentence(rows: pd.DataFrame) -> str:
    """What the search reaches at its longest time, by model."""
    last = rows[rows["seconds"] == rows["seconds"].max()]
    parts = [
        f"{row['model']}: {rounded_up(row['gap'])} nats at {row['seconds']:g} s an image"
        for row in last.to_dict("records")
    ]
    return f"Distance that is left: {'; '.join(parts)}."


def decoders_sentence(rows: pd.DataFrame) -> str:
    """How much of the linear bound's distance from the exact value the semidefinite bound removes, and its seconds."""
    wide = rows.pivot_table(index=["decoder", "quantity", "index", "radius"], columns="method", values="bound")
    linear, tight = ((wide[name] - wide["exact"]).abs() for name in ("linear", "semidefinite"))
    share = (100 * (1 - tight / linear)).groupby(level="decoder").median()
    seconds = rows[rows["method"] == "semidefinite"].groupby("decoder")["seconds"].mean()
    return (
        f"In the median it removes {span(share, '{:.0f}'.format)} per cent of the distance that the linear bound "
        f"leaves, in {span(seconds, '{:.1g}'.format)} seconds a bound."
    )


def training_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each bound that was trained on; certificates are rounded down."""
    return pd.DataFrame(
        {
            "trained on": row["bound"],
            "clean": f"{row['clean']:.1f}",
            "KL": f"{row['kl']:.1f}",
            "certified by that bound": rounded_down(row["own"]),
            "certified by CROWN": rounded_down(row["crown"]),
        }
        for row in rows.to_dict("records")
    )


def depth_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each network of the grid; of each method the certificate, rounded down, and its time."""
    table: dict[tuple[str, float], dict[str, str]] = {}
    for row in rows[rows["part"] == "grid"].to_dict("records"):
        line = table.setdefault((row["network"], row["eps"]), {"attacked": f"{row['attacked']:.1f}"})
        line[row["method"]] = f"{rounded_down(row['certified'])} ({_milliseconds(row['ms'])})"
    return pd.DataFrame({"network": network, "radius": f"{eps:g}", **cells} for (network, eps), cells in table.items())
