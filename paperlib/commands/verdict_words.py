"""What `python -m paperlib detect` prints of verdicts."""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paperlib.runtime.numbers import rounded_down


def verdict_lines(
    verdicts: pd.DataFrame, threshold: float, calibration_size: int, alpha: float, radii: NDArray[np.float64]
) -> list[str]:
    """How many rows have which verdict, and how far it holds.

    Args:
        verdicts: of `CertifiedDetector.certify`, columns score, verdict and, if it was asked for, certified_radius.
        threshold: in nats.
        calibration_size, alpha: the rows that it was set on, and the rate of false alarms.
        radii: that the verdicts are for, [columns].
    """
    score, verdict = (verdicts[name].to_numpy() for name in ("score", "verdict"))
    alarm = score < threshold
    lines = [
        f"threshold   {threshold:.4g} nats, set on {calibration_size:,} normal rows for alpha {alpha:g}",
        f"alarms      {share(alarm)} by their score; {share(verdict == 'alarm')} that no perturbation can silence",
        f"calm        {share(~alarm)} by their score; {share(verdict == 'calm')} that no perturbation can raise",
        f"undecided   {share(verdict == 'undecided')}",
    ]
    if "certified_radius" in verdicts:
        # one radius a column has no one size: then the certified ones are multiples of it
        radius, unit = verdicts["certified_radius"], ""
        if radii.min() < radii.max():
            radius, unit = radius / radii.max(), " times that"
        typical, most = _down(radius.median()), _down(radius.max())
        lines.append(f"radius      {typical}{unit} certified in the median, {most}{unit} at most")
    return lines


def share(rows: NDArray[np.bool_]) -> str:
    """How many rows and how many of a hundred, rounded down."""
    return f"{rows.sum():,} ({math.floor(1_000 * rows.mean()) / 10}%)"


def radius_words(radii: NDArray[np.float64]) -> str:
    """A radius for all columns, or the least and the largest of several, [columns]."""
    least, most = radii.min(), radii.max()
    return f"eps {most:.4g}" if least == most else f"eps {least:.3g} to {most:.3g} by column"


def _down(radius: float) -> str:
    """Three significant digits, rounded down."""
    if radius == 0 or not math.isfinite(radius):
        return f"{radius:g}"
    return rounded_down(radius, max(0, 2 - math.floor(math.log10(radius))))
