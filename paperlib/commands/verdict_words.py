"""What `python -m paperlib detect` prints of verdicts."""

import math

import numpy as np
from numpy.typing import NDArray

from paperlib.commands.verdict_totals import VerdictTotals
from paperlib.runtime.numbers import rounded_down


def verdict_lines(totals: VerdictTotals, calibration_size: int, alpha: float, radii: NDArray[np.float64]) -> list[str]:
    """How many rows have which verdict, and how far it holds.

    Args:
        totals: of all rows.
        calibration_size, alpha: the rows that the threshold was set on, and the rate of false alarms.
        radii: that the verdicts are for, [columns].
    """
    rows, alarms = totals.rows, totals.alarms
    alarm, calm, undecided = (share(totals.verdicts[name], rows) for name in ("alarm", "calm", "undecided"))
    lines = [
        f"threshold   {totals.threshold:.4g} nats, set on {calibration_size:,} normal rows for alpha {alpha:g}",
        f"alarms      {share(alarms, rows)} by their score; {alarm} that no perturbation can silence",
        f"calm        {share(rows - alarms, rows)} by their score; {calm} that no perturbation can raise",
        f"undecided   {undecided}",
    ]
    if totals.largest_radius is not None:
        sample = totals.sample["certified_radius"]
        of = "" if len(sample) == rows else f" of a sample of {len(sample):,} rows"
        median, largest = (_radius(radius, radii) for radius in (sample.median(), totals.largest_radius))
        lines.append(f"radius      {median} certified in the median{of}; the largest is {largest}")
    return lines


def share(count: int, rows: int) -> str:
    """How many rows, and how many of a hundred, rounded down."""
    return f"{count:,} ({1_000 * count // rows / 10}%)"


def radius_words(radii: NDArray[np.float64]) -> str:
    """A radius for all columns, or the least and the largest of several, [columns]."""
    least, most = radii.min(), radii.max()
    return f"eps {most:.4g}" if least == most else f"eps {least:.3g} to {most:.3g} by column"


def _radius(radius: float, radii: NDArray[np.float64]) -> str:
    """A certified radius, rounded down. It is a multiple of the radii if each column has its own, as they have no one
    size; and a lower bound where larger ones are not tried.
    """
    from paperlib.detection.radius import LARGEST  # scikit-learn takes a second to load

    size = float(radii.max())
    at_least = "at least " if 0 < LARGEST * size <= radius else ""
    return at_least + (_down(radius) if radii.min() == size else f"{_down(radius / size)} times that")


def _down(radius: float) -> str:
    """Three significant digits, rounded down."""
    if radius == 0 or not math.isfinite(radius):
        return f"{radius:g}"
    return rounded_down(radius, max(0, 2 - math.floor(math.log10(radius))))
