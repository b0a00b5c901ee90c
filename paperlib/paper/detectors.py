"""What the experiments on certified detectors share: the shares in their rows, and what a detector's rows depend on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from paperlib.detection import CertifiedDetector

KINDS = ("", "attacked_", "certified_")


def shares(
    normal: Sequence[Tensor | pd.Series], outlier: Sequence[Tensor | pd.Series], limit: float
) -> dict[str, float]:
    """Of normal rows the shares without an alarm, `calm`, `attacked_calm` and `certified_calm`; of outliers those with
    one, `detection`, `attacked_detection` and `certified_detection`; in [0, 1].

    Args:
        normal: the scores of the rows, the lowest ones that attacks reach, and certified lower bounds, [rows] each; two
            of them where nothing is certified, which leaves out its shares.
        outlier: the same, with the highest scores reached and upper bounds.
        limit: the threshold; a score below it raises an alarm.
    """
    calm = {f"{kind}calm": float((np.asarray(x) >= limit).mean()) for kind, x in zip(KINDS, normal, strict=False)}
    return calm | {
        f"{kind}detection": float((np.asarray(x) < limit).mean()) for kind, x in zip(KINDS, outlier, strict=False)
    }


def parameters(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of `CertifiedDetector` by this recipe, the defaults as well, as a file in JSON has them."""
    every = CertifiedDetector(**recipe).get_params()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in every.items()}
