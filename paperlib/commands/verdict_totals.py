"""What `python -m paperlib detect score` keeps of its verdicts: no more for a million rows than for ten thousand."""

from collections import Counter

import numpy as np
import pandas as pd

SAMPLE = 10_000  # rows, at most


class VerdictTotals:
    """Counts over all rows, which are exact, and an evenly spaced sample of at most `SAMPLE` of the rows.

    Attributes:
        threshold: a score below it raises an alarm.
        rows, alarms: how many there are so far; alarms by their score.
        verdicts: how many rows have each.
        largest_radius: that is certified; None where no certified radii were asked for.
    """

    def __init__(self, expected: int, threshold: float):
        """Of so many rows that are to come, all of which are sampled up to `SAMPLE`."""
        size = min(SAMPLE, expected)
        self._places = np.arange(size) * expected // size
        self._sample: list[pd.DataFrame] = []
        self.threshold = threshold
        self.rows = self.alarms = 0
        self.verdicts: Counter[str] = Counter()
        self.largest_radius: float | None = None

    def add(self, rows: pd.DataFrame) -> None:
        """Count the next rows: columns score, lower, upper, verdict and, if it was asked for, certified_radius."""
        first, end = np.searchsorted(self._places, [self.rows, self.rows + len(rows)])
        if first < end:
            sampled = rows.iloc[self._places[first:end] - self.rows]
            self._sample.append(sampled.drop(columns=["line", "attacked_lower", "attacked_upper"], errors="ignore"))
        self.rows += len(rows)
        self.alarms += int((rows["score"] < self.threshold).sum())
        self.verdicts.update(rows["verdict"].tolist())
        if "certified_radius" in rows:
            self.largest_radius = max(self.largest_radius or 0.0, float(rows["certified_radius"].max()))

    @property
    def sample(self) -> pd.DataFrame:
        """The sampled rows, in their order."""
        return pd.concat(self._sample, ignore_index=True)
