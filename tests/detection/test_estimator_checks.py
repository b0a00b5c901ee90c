"""scikit-learn's own checks of estimators: all but one, and one that skips itself where SciPy has no array API."""

from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from paperlib.detection import CertifiedDetector

# The checks have few rows: at this alpha one of them is enough to calibrate the threshold.
SMALL = CertifiedDetector(alpha=0.5, hidden=(4,), latent_dim=2, steps=2, batch_size=8)
FAILS = {
    "check_do_not_raise_errors_in_init_or_set_params": "the tests check type hints, and it passes numbers for all "
    "parameters; without that check __init__ only stores them",
}


@parametrize_with_checks([SMALL], expected_failed_checks=lambda _: FAILS)
def test_it_is_an_estimator(estimator: Any, check: Any) -> None:
    check(estimator)
