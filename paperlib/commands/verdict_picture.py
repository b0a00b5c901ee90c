"""The picture of `python -m paperlib detect score`: all scores with their certified intervals, beside the threshold."""

from pathlib import Path

import numpy as np

from paperlib.commands.verdict_totals import VerdictTotals
from paperlib.runtime.files import atomic

SHOWN = 1_000  # rows, at most
LOOKS = {  # colours that the colour-blind tell apart, and that differ in grey
    "alarm": ("#D55E00", "v"),
    "undecided": ("#8C8C8C", "o"),
    "calm": ("#0072B2", "^"),
}
WORDS = {"alarm": "alarm, certified", "undecided": "undecided", "calm": "calm, certified"}


def write_verdict_picture(path: Path, totals: VerdictTotals, caption: str) -> None:
    """Draw rows in the order of their scores: score less threshold and its certified interval, in nats.

    Of many rows evenly spaced ones are drawn. The legend counts all rows. An infinite score or bound is drawn at the
    least or the largest value that is finite.

    Args:
        caption: what the certificates are for.
    """
    import matplotlib
    from matplotlib.figure import Figure

    order = totals.sample.sort_values("score", ignore_index=True)
    places = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
    shown = order.iloc[places]
    margin = shown[["score", "lower", "upper"]] - totals.threshold
    finite = np.append(margin.to_numpy()[np.isfinite(margin)], 0.0)
    margin = margin.clip(finite.min(), finite.max()).assign(verdict=shown["verdict"])
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # whatever the user's own settings are
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for verdict, (color, marker) in LOOKS.items():
            rows = margin[margin["verdict"] == verdict]
            label = f"{WORDS[verdict]}: {totals.verdicts[verdict]:,}"
            axes.vlines(rows.index + 1, rows["lower"], rows["upper"], color=color, linewidth=1, alpha=0.5)
            axes.plot(rows.index + 1, rows["score"], marker, color=color, markersize=3, label=label)
        axes.axhline(0, color="black", linewidth=1, linestyle="--", label="threshold")
        # linear around the threshold, as far as half of the scores are from it
        axes.set_yscale("symlog", linthresh=max(1.0, margin["score"].abs().median()))
        axes.set_xlabel("rows, by their score" if len(order) == totals.rows else "rows of a sample, by their score")
        axes.set_ylabel("score above the threshold (nats)")
        every = "" if len(shown) == totals.rows else f"; {len(shown):,} of {totals.rows:,} rows drawn"
        axes.set_title(f"scores and certified intervals, {caption}{every}", fontsize="medium")
        axes.legend(fontsize="small")
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=150, metadata={"Software": None})
