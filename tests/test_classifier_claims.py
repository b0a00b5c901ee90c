"""The committed rows of notebook 9 keep what it claims, and what they mean."""

from pathlib import Path

import pandas as pd
import pytest

from paperlib.paper import generative_classifier, manifold, manifold_defence, manifold_tables
from paperlib.paper.classifier_tables import FLOOR_CERTIFIED, FLOOR_CLEAN, statements
from paperlib.runtime.rows import read_rows

DATA = Path(__file__).resolve().parents[1] / "figures" / "data"

pytestmark = pytest.mark.skipif(
    not (DATA / "09_margins.csv").exists(), reason="the results of notebook 9 are not committed yet: no rows"
)


@pytest.fixture(scope="module")
def margins() -> pd.DataFrame:
    return read_rows(DATA / "09_margins.csv", generative_classifier.classifier_config("mnist", "paper"))


def test_all_that_is_claimed_of_the_classifier_holds(margins: pd.DataFrame) -> None:
    errors = read_rows(DATA / "09_errors.csv", generative_classifier.classifier_config("mnist", "paper"))
    assert all(statements(margins, errors, generative_classifier.EPS).values())


def test_the_floors_of_clean_and_certified_accuracy_hold(margins: pd.DataFrame) -> None:
    at = margins.set_index("eps").loc[generative_classifier.EPS]
    assert at["images"] == 10_000
    assert at["clean"] >= FLOOR_CLEAN and at["certified"] >= FLOOR_CERTIFIED


def test_separate_is_below_joint_is_below_attacked_is_below_clean(margins: pd.DataFrame) -> None:
    columns = ["separate", "certified", "attacked", "clean"]
    assert (margins[columns].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert (margins["certified_accepted"] <= margins["accepted"]).all()
    assert (margins["met_certified"] <= margins["met"]).all()


def test_certified_l2_radii_are_below_what_attacks_reach() -> None:
    rows = read_rows(DATA / "09_manifold.csv", manifold.manifold_config("mnist", "paper"))
    assert len(rows) == 100 and rows["right"].mean() >= 0.85
    assert all(manifold_tables.manifold_statements(rows).values())
    assert (rows["published"] <= rows["radius"] + manifold.TOL["paper"]).all()


def test_all_that_is_claimed_of_the_manifold_defence_holds() -> None:
    rows = read_rows(DATA / "09_defence.csv", manifold_defence.defence_config("mnist", "paper"))
    assert all(manifold_tables.defence_statements(rows, generative_classifier.EPS).values())
    assert (rows["attacked"] <= rows["clean"]).all()
