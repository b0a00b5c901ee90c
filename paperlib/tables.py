"""Rows to the tables that notebooks and README show. Certificates are rounded down, never to nearest."""

from decimal import ROUND_FLOOR, Decimal

import pandas as pd


def rounded_down(value: float, digits: int = 1) -> str:
    """The largest decimal of so many digits that is not above the value: what may be printed of a lower bound."""
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR))


def rounded(rows: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """The rows as shown: the column `certified` rounded down, all other numbers to nearest."""
    shown = rows.round(digits)
    return shown.assign(certified=[float(rounded_down(value, digits)) for value in rows["certified"]])


def with_error(value: float, error: float, digits: int = 1) -> str:
    """`value ± standard error`, rounded to nearest; not for certificates."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def headline(certified: pd.DataFrame, attacked: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The headline table at one radius: a row for each model, in nats, with standard errors over the images."""
    table = []
    for _, row in certified[certified["eps"] == eps].iterrows():
        found = attacked.loc[(attacked["model"] == row["model"]) & (attacked["eps"] == eps), "attacked"]
        table.append(
            {
                "model": row["model"],
                "clean": with_error(row["clean"], row["clean_se"]),
                "log-likelihood": f"{row['log_likelihood']:.1f}",
                "KL": f"{row['kl']:.1f}",
                "attacked": with_error(found.mean(), found.sem()),
                "certified": f"{rounded_down(row['certified'])} ± {row['certified_se']:.1f}",
            }
        )
    return pd.DataFrame(table)


def markdown(table: pd.DataFrame) -> str:
    """A table of strings in Markdown, its first column to the left and numbers to the right."""
    align = ("left", *("right",) * (table.shape[1] - 1))
    return str(table.to_markdown(index=False, disable_numparse=True, colalign=align))
