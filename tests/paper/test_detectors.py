"""What the experiments on detectors share: the six shares, and configurations that say all."""

import json

import pandas as pd
import torch

from paperlib.detection import CertifiedDetector
from paperlib.paper import detectors


def test_shares_count_scores_at_the_threshold_as_calm() -> None:
    normal = [torch.tensor(scores) for scores in ([1.0, 2.0, 0.5, 3.0], [1.0, 0.9, 0.5, 3.0], [0.0, 0.0, 0.0, 1.0])]
    outlier = [pd.Series(scores) for scores in ([0.0, 0.5], [0.0, 1.0])]
    assert detectors.shares(normal, outlier, 1.0) == {
        **{"calm": 0.75, "attacked_calm": 0.5, "certified_calm": 0.25},
        **{"detection": 1.0, "attacked_detection": 0.5},
    }


def test_a_recipe_depends_on_the_defaults_as_well() -> None:
    config = detectors.parameters({"eps": 0.1})
    assert json.loads(json.dumps(config)) == config and config["eps"] == 0.1 and config["hidden"] == [64]
    assert config["calibration"] == CertifiedDetector().calibration
    assert config != detectors.parameters({"eps": 0.1, "alpha": 0.01})
