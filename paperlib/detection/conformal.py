"""Split conformal calibration: a threshold whose false alarms are bounded for a finite number of rows (Vovk, Gammerman
& Shafer 2005; Bates et al. 2023, arXiv 2104.08279, for outlier detection).
"""

import math
from fractions import Fraction

from torch import Tensor


def threshold(scores: Tensor, alpha: float) -> float:
    """The threshold t with  P(score of a new normal row < t) <= alpha,  over the draw of the calibration rows and the
    new one together, whatever their distribution.

    It needs the rows to be exchangeable (such as independent draws from one population), and none of them used in
    training. t is the k-th smallest of the n scores, k = floor(alpha (n + 1)): among n + 1 exchangeable scores at most
    k - 1 of the others are below the new one when it is below t, and each of the ranks is equally likely.

    Args:
        scores: of the calibration rows, [n]; higher is more normal.
        alpha: in (0, 1).

    Raises ValueError for an alpha out of range, scores that are NaN, or fewer of them than `rows_needed`.
    """
    needed = rows_needed(alpha)
    if len(scores) < needed:
        raise ValueError(
            f"a rate of false alarms of at most {alpha:g} needs at least {needed} normal rows to calibrate the "
            f"threshold, got {len(scores)}: bring more rows, or allow a larger alpha"
        )
    if scores.isnan().any():
        raise ValueError("a score to calibrate the threshold is NaN")
    rank = math.floor(_fraction(alpha) * (len(scores) + 1))
    return scores.sort().values[rank - 1].item()


def rows_needed(alpha: float) -> int:
    """The least number of calibration rows that `threshold` can do with:  ceil(1 / alpha) - 1,  and at least 1."""
    return max(1, math.ceil(1 / _fraction(alpha)) - 1)


def calibration_count(rows: int, share: float, alpha: float) -> int:
    """How many of the rows are held out for the threshold: the share of them.

    Raises ValueError where they are fewer than `rows_needed`, or leave fewer than two to train on.
    """
    if not 0 < share < 1:
        raise ValueError(f"calibration must be between 0 and 1, a share of the rows, got {share}")
    held_out, needed = round(share * rows), rows_needed(alpha)
    if held_out < needed:
        raise ValueError(
            f"n_samples={rows} is too few: a rate of false alarms of at most {alpha:g} needs {needed} normal rows to "
            f"calibrate the threshold, so {math.ceil(needed / share)} in all with calibration={share:g}: "
            "bring more rows, or allow a larger alpha"
        )
    if rows - held_out < 2:
        raise ValueError(
            f"n_samples={rows} is too few: at least 2 rows are to be trained on, beside {held_out} held out"
        )
    return held_out


def _fraction(alpha: float) -> Fraction:
    """alpha as its decimal digits say, so that 0.29 of 100 rows is 29. Raises ValueError unless it is in (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    return Fraction(repr(float(alpha)))
