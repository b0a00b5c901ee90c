"""The detector: verdicts that hold within their set, thresholds, tables as they come, and one file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from paperlib.detection import CertifiedDetector


def table(rows: int = 120) -> pd.DataFrame:
    """Three features of different size, two of them dependent."""
    random = np.random.default_rng(0)
    first = random.normal(size=rows)
    columns = {
        "volts": first,
        "watts": 100 * first + random.normal(size=rows),
        "pressure": 1e4 + random.normal(size=rows),
    }
    return pd.DataFrame(columns)


def fitted(X: Any, **parameters: Any) -> CertifiedDetector:
    """A detector that is trained for a few steps only."""
    small: dict[str, Any] = {"hidden": (8,), "latent_dim": 2, "steps": 20, "batch_size": 16}
    return CertifiedDetector(**(small | parameters)).fit(X)


@pytest.mark.parametrize("draws", [0, 3])
@pytest.mark.parametrize("sound", [False, True])
def test_no_point_of_the_set_has_another_verdict(draws: int, sound: bool) -> None:
    X = table()
    detector = fitted(X, draws=draws)
    new = pd.concat([X[:10], X[:10] + np.array([2.0, 0.0, 0.0])], ignore_index=True)
    eps = [0.02, 0.5, 0.05]
    rows = detector.certify(new, detector.ball(eps), sound=sound)
    assert [*rows] == ["score", "lower", "upper", "verdict"]
    assert {"alarm", "calm"} <= set(rows["verdict"])
    assert (rows["score"] == detector.score_samples(new)).all()
    random = np.random.default_rng(0)
    for _ in range(50):
        moved = new + np.array(eps) * random.choice([-1.0, 0.3, 1.0], new.shape)
        score, alarm = detector.score_samples(moved), detector.predict(moved) == -1
        assert (rows["lower"] <= score + 1e-9).all() and (score - 1e-9 <= rows["upper"]).all()
        assert alarm[rows["verdict"] == "alarm"].all() and not alarm[rows["verdict"] == "calm"].any()


def test_a_detector_on_disk_is_the_same(tmp_path: Path) -> None:
    X = table()
    detector = fitted(X, draws=2, eps=[0.1, 10.0, 0.1])
    detector.save(tmp_path / "pump.detector")
    loaded = CertifiedDetector.load(tmp_path / "pump.detector")
    pd.testing.assert_frame_equal(loaded.certify(X, 0.01), detector.certify(X, 0.01), check_exact=True)
    assert loaded.get_params() == detector.get_params() and [*loaded.feature_names_in_] == [*X]
    assert torch.equal(loaded.noise_, detector.noise_) and loaded.offset_ == detector.offset_
