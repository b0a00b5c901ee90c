"""Which features make a row's score fall, and a picture of it."""

from typing import Any

import pandas as pd

SHOWN = 15  # features with a bar of their own, at most


def falls_picture(falls: pd.Series) -> Any:
    """The largest terms of `CertifiedDetector.explain` as bars, in nats, and the rest as one: a matplotlib Figure.

    Raises ModuleNotFoundError without matplotlib, which the library does not need otherwise.
    """
    from matplotlib.figure import Figure  # here, as no verdict needs it

    order = falls.abs().sort_values(ascending=False).index
    shown, rest = falls[order[:SHOWN]], falls[order[SHOWN:]]
    if len(rest):
        shown = pd.concat([shown, pd.Series({f"{len(rest)} others": rest.sum()})])
    figure = Figure(figsize=(5, 0.8 + 0.28 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh([str(name) for name in shown.index], shown.to_numpy(), color=["C3" if v > 0 else "C0" for v in shown])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("fall of the score below that of normal rows (nats)")
    return figure
