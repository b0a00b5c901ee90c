"""The committed rows of notebook 10 keep what it claims, and what was asked of them."""

from pathlib import Path

import pandas as pd
import pytest

from paperlib.paper import branching, ladder, ladder_claims, semidefinite_rows
from paperlib.runtime.rows import read_rows

DATA = Path(__file__).resolve().parents[1] / "figures" / "data"


@pytest.fixture(scope="module")
def means() -> pd.DataFrame:
    return ladder.ladder_means(read_rows(DATA / "10_ladder.csv", ladder.ladder_config("mnist", "paper")))


@pytest.fixture(scope="module")
def searched() -> pd.DataFrame:
    return read_rows(DATA / "10_branching.csv", branching.branching_config("mnist", "paper"))


@pytest.fixture(scope="module")
def decoders() -> pd.DataFrame:
    return read_rows(DATA / "10_decoders.csv", semidefinite_rows.semidefinite_config("paper"))


def test_no_bound_is_above_the_attack(means: pd.DataFrame) -> None:
    assert (means.loc[means["confidence"] == 1, "gap"] >= 0).all()


def test_the_claim_of_the_ladder_holds(means: pd.DataFrame, searched: pd.DataFrame, decoders: pd.DataFrame) -> None:
    assert all(ladder_claims.ladder(means, searched, decoders).values())


def test_branch_and_bound_comes_within_two_nats_of_the_attack_in_ten_seconds(searched: pd.DataFrame) -> None:
    last = searched[searched["seconds"] == searched["seconds"].max()]
    assert (last["images"] == 100).all() and len(last) == len(branching.SEARCHED)
    assert (last["used"] <= 10).all() and (last["gap"] <= 2).all()


def test_semidefinite_bounds_are_between_linear_and_exact_ones(decoders: pd.DataFrame) -> None:
    assert all(ladder_claims.decoders(decoders).values())
