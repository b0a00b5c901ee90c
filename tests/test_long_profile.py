"""Notebooks of the long profile: computed when it is asked for, small in the smoke profile, else drawn from rows."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_headless import DRAW, PARAMETERS, site, snapshot, write  # noqa: F401

from scripts import figures as command
from scripts.figures import FigureOptions, figures
from scripts.nbfile import NotebookError
from scripts.plan import discover, plan
from scripts.publish import RUNS, Site, read_json


@pytest.fixture
def long(site: Site) -> Site:  # noqa: F811
    """The two notebooks of the paper profile, and a third of the long profile that needs the second."""
    path = site.root / "notebooks" / "12_long.ipynb"
    parameters = PARAMETERS.replace("paper", "long")
    write(path, DRAW.replace("NAME", "12_c"), parameters=parameters, promise="12_c", needs=("02",))
    set_profile(path, "long")
    return replace(site, profile="long")


def set_profile(path: Path, profile: str) -> None:
    nb = nbformat.read(path, as_version=4)
    nb.metadata.paperlib["profile"] = profile
    nbformat.write(nb, path)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """Replaces the child process: number, profile and recompute of each notebook that ran."""
    ran: list[tuple[str, str, bool]] = []

    def in_child(job: dict[str, Any], name: str) -> dict[str, Any]:
        staging, parameters = Path(job["env"]["PAPERLIB_STAGING"]), job["parameters"]
        ran.append((name[:2], parameters["profile"], parameters["recompute"]))
        figure = {"01": "01_a", "02": "02_b", "12": "12_c"}[name[:2]]
        for kind in ("png", "pdf"):
            (staging / "figures" / f"{figure}.{kind}").write_bytes(b"drawn")
        if parameters["recompute"]:
            (staging / "figures" / "data" / f"{figure}.csv").write_text("value\n1\n")
        Path(job["target"]).parent.mkdir(exist_ok=True)
        shutil.copyfile(job["source"], job["target"])
        return {"seconds": 1.0, "peak_gib": 0.5}

    monkeypatch.setattr(command, "in_child", in_child)
    return ran


def test_the_long_profile_runs_its_notebooks_and_what_they_need(
    long: Site, ran: list[tuple[str, str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = long.work / "runs" / "digest"
    kept.mkdir(parents=True)
    figures(long, FigureOptions(profile="long"))
    assert ran == [("01", "paper", True), ("02", "paper", True), ("12", "long", True)]
    assert "12 needs 01, 02, not yet made" in capsys.readouterr().out
    assert kept.exists(), "hours of training are kept"
    assert read_json(long.home / RUNS).keys() == {"01", "02"}, "what goes on with finished trainings is no measure"
    figures(long, FigureOptions(profile="long", only="12"))
    assert len(ran) == 3 and "nothing to do: 12_long" in capsys.readouterr().out


def test_the_paper_profile_draws_it_from_its_rows_once(
    long: Site, ran: list[tuple[str, str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    figures(long, FigureOptions(profile="long"))
    assert read_json(long.home / RUNS).keys() == {"01", "02", "12"}
    made, paper = snapshot(long.root), replace(long, profile="paper")
    ran.clear()
    figures(paper, FigureOptions())
    assert ran == [("01", "paper", True), ("02", "paper", True), ("12", "long", False)]
    assert snapshot(long.root) == made
    figures(paper, FigureOptions())
    assert len(ran) == 3 and "nothing to do: 01_one, 02_two, 12_long up to date" in capsys.readouterr().out
    (long.root / "paperlib" / "models" / "elbo.py").write_text("two = 2\n")
    figures(paper, FigureOptions(only="12"))
    assert ran[3:] == [("12", "long", False)]


def test_without_rows_the_paper_profile_leaves_it_out_and_says_what_makes_them(
    long: Site, ran: list[tuple[str, str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    paper = replace(long, profile="paper")
    figures(paper, FigureOptions())
    assert [number for number, *_ in ran] == ["01", "02"]
    assert "make figures PROFILE=long NB=12 DATASET=mnist" in capsys.readouterr().out
    with pytest.raises(NotebookError, match="no rows for mnist yet"):
        figures(paper, FigureOptions(only="12"))


def test_the_smoke_profile_computes_it_small(long: Site, ran: list[tuple[str, str, bool]]) -> None:
    smoke = Site(long.root, "smoke", "mnist5k", long.root / "build" / "smoke-mnist5k")
    figures(smoke, FigureOptions(profile="smoke"))
    assert ran[-1] == ("12", "smoke", True)


def test_a_notebook_of_another_profile_is_an_error(long: Site) -> None:
    with pytest.raises(NotebookError, match="02 is not of the long profile: leave out PROFILE=long"):
        plan(long, discover(long.root), "02")
    set_profile(long.root / "notebooks" / "12_long.ipynb", "endless")
    with pytest.raises(NotebookError, match=r"12_long\.ipynb is of the profile 'endless'"):
        discover(long.root)
