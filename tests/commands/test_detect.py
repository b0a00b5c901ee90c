"""`detect fit` and `detect score`: a table in, a detector or verdicts out; or one line, status 2 and nothing."""

import json
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paperlib import mlp_vae, save
from paperlib.__main__ import main
from paperlib.certificates.evaluation import SandwichViolationError
from paperlib.commands import verdict_totals
from paperlib.commands.detect import Fit
from paperlib.commands.verdict_picture import LOOKS, write_verdict_picture
from paperlib.commands.verdict_totals import VerdictTotals
from paperlib.commands.verdict_words import verdict_lines
from paperlib.data import tables
from paperlib.detection import CertifiedDetector
from paperlib.training.config import TrainConfig

SMALL = ["--hidden", "8", "--latent-dim", "2", "--steps", "30"]


def normal_rows(count: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    volts = random.normal(size=count)
    return pd.DataFrame({"volts": volts, "watts, net": 100 * volts + random.normal(size=count), "bar": volts**2 + 5})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables and a detector that the command line has fitted."""
    folder = tmp_path_factory.mktemp("detect")
    rows = normal_rows(120)
    rows.to_csv(folder / "normal.csv", index=False)
    new = pd.concat([rows[:4], rows[:4] + np.array([0.0, 0.0, 20.0])])
    new[["bar", "volts", "watts, net"]].to_csv(folder / "new.csv", index=False)  # in another order
    with pytest.raises(SystemExit) as ended:
        main(["detect", "fit", str(folder / "normal.csv"), "--out", str(folder / "pump.detector"), *SMALL])
    assert ended.value.code == 0
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which commands run."""
    for file in ("normal.csv", "new.csv", "pump.detector"):
        (tmp_path / file).write_bytes((made / file).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status(*args: object) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["detect", *map(str, args)])
    return ended.value.code


def test_fit_writes_the_detector_that_the_class_fits(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("fit", "normal.csv", "--out", "own.detector", *SMALL, "--eps", 0.1, 10, 0.2, "--alpha", 0.1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 7 <= len(lines) <= 12 and lines[0] == "reading     120 rows of 3 columns in normal.csv"
    own = CertifiedDetector.load("own.detector")
    same = CertifiedDetector([0.1, 10, 0.2], alpha=0.1, hidden=(8,), latent_dim=2, steps=30).fit(normal_rows(120))
    assert own.get_params() | {"eps": None} == same.get_params() | {"eps": None}
    assert own.eps_ is not None and own.eps_.tolist() == [0.1, 10, 0.2] and own.offset_ == same.offset_
    assert [*own.feature_names_in_] == ["volts", "watts, net", "bar"]
    held_out = same.certify(normal_rows(120).iloc[same.calibration_rows_], same.ball(own.eps_), attack=False)
    calm = (held_out["verdict"] == "calm").sum()
    words = [
        "trained     VAE 3-8-2 for eps 0.1 to 10 by column, on 96 rows",
        f"threshold   {own.offset_:.4g} nats",
        "probability of at most 0.1,",
        f"certified   calm for eps 0.1 to 10 by column: {calm} (",
        " of 24 rows held out,\n            which the threshold was set on",
    ]
    assert [word for word in words if word not in "\n".join(lines)] == []


def test_the_defaults_of_the_flags_are_those_of_the_class() -> None:
    defaults = {each.name: each.default for each in fields(Fit)} | {"eps": None, "random_state": Fit.seed}
    shared = {name: value for name, value in CertifiedDetector().get_params().items() if name in defaults}
    assert len(shared) == len(defaults) - 3 and shared == {name: defaults[name] for name in shared}


@pytest.mark.parametrize("flags", [[], ["--attack", "--sound", "--method", "crown", "--no-radius"], ["--no-radius"]])
def test_score_writes_what_the_class_certifies(
    flags: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "PART", 3)  # rows, so that the table comes in several parts
    assert status("score", "new.csv", "pump.detector", "--eps", 0.05, "--out", "verdicts.csv", *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 9 <= len(lines) <= 11 and lines[0] == "rows        8 in new.csv"
    verdicts = pd.read_csv("verdicts.csv")
    new, detector = pd.read_csv("new.csv"), CertifiedDetector.load("pump.detector")
    expected = detector.certify(
        new[[*detector.feature_names_in_]],
        0.05,
        method="crown" if "crown" in flags else "crown-ibp",
        sound="--sound" in flags,
        radius="--no-radius" not in flags,
        attack="--attack" in flags,
    ).dropna(axis="columns", how="all")
    assert verdicts.pop("line").tolist() == [*range(2, 10)]
    pd.testing.assert_frame_equal(verdicts, expected, rtol=1e-9)
    assert set(verdicts["verdict"][4:]) == {"alarm"}, "what is tested below is not empty"
    alarms = int((verdicts["verdict"] == "alarm").sum())
    assert any(line.startswith("alarms") and f"; {alarms:,} (" in line for line in lines)
    assert (here / "verdicts.png").read_bytes().startswith(b"\x89PNG") and lines[-1] == "picture     verdicts.png"


def test_without_a_radius_it_is_that_of_training(here: Path) -> None:
    detector = CertifiedDetector.load("pump.detector")
    assert status("score", "new.csv", "pump.detector", "--out", "verdicts.csv", "--no-radius") == 0
    rows = detector.certify(
        pd.read_csv("new.csv")[[*detector.feature_names_in_]], detector.ball(detector.eps_), radius=False, attack=False
    )
    assert pd.read_csv("verdicts.csv")["lower"].to_numpy() == pytest.approx(rows["lower"].to_numpy(), rel=1e-12)


def test_a_detector_that_was_fitted_without_names_takes_columns_by_their_place(here: Path) -> None:
    rows = normal_rows(60)
    CertifiedDetector(alpha=0.1, hidden=(4,), latent_dim=2, steps=5).fit(rows.to_numpy()).save("nameless.detector")
    rows[:3].to_csv("three.csv", index=False)
    assert status("score", "three.csv", "nameless.detector", "--out", "verdicts.csv", "--no-radius") == 0
    expected = CertifiedDetector.load("nameless.detector").score_samples(rows[:3].to_numpy())
    assert pd.read_csv("verdicts.csv")["score"].to_numpy() == pytest.approx(expected, rel=1e-12)


def test_blanks_around_the_names_of_columns_do_not_matter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = normal_rows(60).rename(columns={"bar": " bar"})
    CertifiedDetector(alpha=0.1, hidden=(4,), latent_dim=2, steps=5).fit(rows).save("blanks.detector")
    rows[:3].to_csv("three.csv", index=False)
    assert status("score", "three.csv", "blanks.detector", "--out", "verdicts.csv", "--no-radius") == 0
    expected = CertifiedDetector.load("blanks.detector").score_samples(rows[:3])
    assert pd.read_csv("verdicts.csv")["score"].to_numpy() == pytest.approx(expected, rel=1e-12)

    same = rows.rename(columns={"volts": "bar"})
    CertifiedDetector(alpha=0.1, hidden=(4,), latent_dim=2, steps=5).fit(same).save("same.detector")
    capsys.readouterr()
    assert status("score", "three.csv", "same.detector", "--out", "same.csv") == 2
    assert "same.detector has columns whose names differ by blanks alone" in capsys.readouterr().err


def test_of_a_long_table_a_sample_is_kept_and_the_counts_are_exact(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "PART", 3)
    assert status("score", "new.csv", "pump.detector", "--eps", 0.05, "--out", "verdicts.csv") == 0
    whole, picture = capsys.readouterr().out.splitlines(), (here / "verdicts.png").read_bytes()
    monkeypatch.setattr(verdict_totals, "SAMPLE", 4)
    assert status("score", "new.csv", "pump.detector", "--eps", 0.05, "--out", "verdicts.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    radii = pd.read_csv("verdicts.csv")["certified_radius"]
    assert len(radii) == 8 and radii.nunique() > 4, "a median of some differs from that of all"
    changed = {line.split()[0]: (line, former) for line, former in zip(lines, whole, strict=True) if line != former}
    assert {*changed} - {"speed"} == {"radius"}
    line, former = changed["radius"]
    assert " certified in the median of a sample of 4 rows; " in line and line.split("; ")[1] == former.split("; ")[1]
    assert float(line.split()[1]) == pytest.approx(radii[::2].median(), rel=1e-2)
    assert (here / "verdicts.png").read_bytes() != picture


@pytest.mark.parametrize("count", [1, 9, 10, 11, 25, 1_000])
def test_the_rows_kept_are_evenly_spaced_and_do_not_grow(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict_totals, "SAMPLE", 10)
    totals = VerdictTotals(count, threshold=4.5)
    rows = pd.DataFrame({"score": np.arange(float(count)), "verdict": "undecided"})
    for start in range(0, count, 7):
        totals.add(rows[start : start + 7])
    kept = totals.sample["score"]
    assert len(kept) == min(count, 10) and kept[0] == 0
    assert kept.diff().dropna().between(count // 10 if count > 10 else 1, -(-count // 10)).all()
    assert (totals.rows, totals.alarms, totals.verdicts) == (count, min(count, 5), {"undecided": count})


def test_without_matplotlib_there_is_no_picture_and_a_line_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paperlib.commands.detect.find_spec", lambda name: None)
    assert status("score", "new.csv", "pump.detector", "--out", "verdicts.csv", "--no-radius") == 0
    assert capsys.readouterr().out.endswith("picture     none, it needs matplotlib: pip install matplotlib\n")
    assert (here / "verdicts.csv").is_file() and not (here / "verdicts.png").exists()


HEAD = 'volts,"watts, net",bar\n'


@pytest.mark.parametrize(
    ("command", "table", "words"),
    [
        ("fit", "", "normal.csv is empty"),
        ("fit", HEAD, "normal.csv has a header and no rows"),
        ("fit", HEAD + "1,2,3\n1,two,3\n", "normal.csv, line 3, column 'watts, net' holds 'two', which is no number"),
        ("fit", HEAD + "1,2,nan\n", "normal.csv, line 2, column 'bar' holds 'nan', which is not finite"),
        ("fit", HEAD + "1,2,3\n" * 40, "n_samples=40 is too few"),
        ("fit", HEAD + "".join(f"{i},{i * i},7\n" for i in range(100)), "column 'bar' is constant"),
        ("fit --eps=-0.1", None, "eps must be finite and not negative"),
        ("fit --eps 1 2", None, "eps must be one number or 3"),
        ("fit --alpha 2", None, "alpha must be between 0 and 1"),
        ("fit --steps 0", None, "steps"),
        ("fit --low 0", None, "outside of the data range [0, inf]"),
        ("fit --low 1 --high 1", None, "the data range needs low < high"),
        ("fit --likelihood bernoulli", None, "normal.csv, line 2, column "),
        ("score", "", "new.csv is empty"),
        ("score", HEAD, "new.csv has a header and no rows"),
        ("score", HEAD + "1,2,\n", "new.csv, line 2, column 'bar' has no value"),
        ("score", HEAD + "1,2,3\n" * 9 + "1,2,inf\n", "new.csv, line 11, column 'bar' holds 'inf'"),
        ("score", "volts,bar\n1,2\n", "new.csv lacks the column 'watts, net'"),
        (
            "score",
            'id,volts,"watts, net",bar\n1,1,2,3\n',
            "new.csv has an additional column, which is to be left out: 'id'",
        ),
        ("score --eps=-0.1", None, "eps must be finite and not negative"),
        ("score --eps 1 2", None, "eps must be one number or 3"),
        ("score --out new.csv", None, "new.csv would overwrite what is read"),
        ("score --out verdicts", None, "--out is NAME.csv"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(
    command: str, table: str | None, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *flags = command.split()
    source = here / ("normal.csv" if name == "fit" else "new.csv")
    if table is not None:
        source.write_text(table)
    before = {path: path.read_bytes() for path in here.iterdir()}
    out = [] if "--out" in flags else ["--out", "out.csv"]
    first = [source.name] if name == "fit" else [source.name, "pump.detector"]
    assert status(name, *first, *flags, *out) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and words in printed.err
    assert {path: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize("kind", ["text", "model", "header", "missing", "folder"])
def test_a_file_that_is_no_detector_is_one_line(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "other"
    if kind == "text":
        path.write_text("volts,bar\n1,2\n")
    elif kind == "model":
        config = TrainConfig("wdbc", (3,), (4,), latent_dim=2, likelihood="gaussian")
        save(path, mlp_vae((3,), (4,), 2, config.build().likelihood), config)
    elif kind == "header":  # a safetensors file of somebody else
        content = json.dumps({"__metadata__": {"made": "elsewhere"}}).encode()
        path.write_bytes(struct.pack("<Q", len(content)) + content)
    elif kind == "folder":
        path.mkdir()
    assert status("score", "new.csv", "other", "--out", "verdicts.csv") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "other" in error
    assert not (here / "verdicts.csv").exists() and not (here / "verdicts.png").exists()


def test_a_broken_sandwich_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise SandwichViolationError("the score 1 is outside of its certified bounds [2, 3] in 1 of 8 rows")

    monkeypatch.setattr(CertifiedDetector, "certify", fails)
    said = status("score", "new.csv", "pump.detector", "--out", "verdicts.csv")
    assert said == "error: the score 1 is outside of its certified bounds [2, 3] in 1 of 8 rows"


def test_an_error_in_the_middle_leaves_the_former_verdicts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PART", 3)
    (here / "verdicts.csv").write_text("former")
    certify, calls = CertifiedDetector.certify, []

    def fails(*args: Any, **how: Any) -> pd.DataFrame:
        calls.append(args)
        if len(calls) == 3:
            raise OSError("no space left")
        return certify(*args, **how)

    monkeypatch.setattr(CertifiedDetector, "certify", fails)
    assert "no space left" in status("score", "new.csv", "pump.detector", "--out", "verdicts.csv", "--no-radius")
    assert (here / "verdicts.csv").read_text() == "former"
    assert sorted(path.name for path in here.iterdir()) == ["new.csv", "normal.csv", "pump.detector", "verdicts.csv"]


def test_the_picture_shows_each_row_of_a_short_table_and_the_whole_order_of_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    scores = np.random.default_rng(0).normal(size=3_000) * 10
    verdicts = pd.DataFrame({"score": scores, "lower": scores - 4, "upper": scores + 4})
    verdicts["verdict"] = np.select([scores < -4, scores >= 4], ["alarm", "calm"], "undecided")
    for rows in (verdicts[:10], verdicts):
        totals = VerdictTotals(len(rows), threshold=0.0)
        totals.add(rows)
        write_verdict_picture(tmp_path / "p.png", totals, "eps 1")
        axes = drawn[-1].axes[0]
        points = [line.get_xydata() for line in axes.get_lines()[: len(LOOKS)]]
        shown = np.concatenate(points)
        shown = shown[shown[:, 0].argsort()]
        assert len(shown) == min(len(rows), 1_000) and (np.diff(shown[:, 1]) >= 0).all()
        assert (shown[[0, -1], 1] == [rows["score"].min(), rows["score"].max()]).all()
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels[0] == f"alarm, certified: {(rows['verdict'] == 'alarm').sum():,}"


def test_infinite_scores_and_bounds_are_drawn_at_the_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    totals = VerdictTotals(4, threshold=-10.0)
    infinite, one = float("inf"), {"score": -8.0, "lower": -9.0, "upper": -7.0, "verdict": "calm"}
    totals.add(pd.DataFrame([one, {"score": -infinite, "lower": -infinite, "upper": infinite, "verdict": "undecided"}]))
    totals.add(pd.DataFrame([{"score": -infinite, "lower": -infinite, "upper": -infinite, "verdict": "alarm"}] * 2))
    write_verdict_picture(tmp_path / "p.png", totals, "eps 1")
    axes = drawn[0].axes[0]
    points = {name: line.get_ydata() for name, line in zip(LOOKS, axes.get_lines(), strict=False)}
    assert {name: [*place] for name, place in points.items()} == {"alarm": [0, 0], "undecided": [0], "calm": [2]}
    assert all(np.isfinite(segment).all() for lines in axes.collections for segment in lines.get_segments())


@pytest.mark.parametrize(
    ("radii", "largest", "words"),
    [
        ([2.0, 2.0], 8.0, "6.00 certified in the median; the largest is 8.00"),
        ([0.5, 2.0], 8.0, "3.00 times that certified in the median; the largest is 4.00 times that"),
        ([2.0, 2.0], 2_047.0, "1025 certified in the median; the largest is 2047"),
        ([2.0, 2.0], 2_048.0, "1026 certified in the median; the largest is at least 2048"),
        ([0.5, 2.0], 2_048.0, "513 times that certified in the median; the largest is at least 1024 times that"),
    ],
)
def test_certified_radii_are_multiples_where_each_column_has_its_own_radius_and_end_at_the_largest_tried(
    radii: list[float], largest: float, words: str
) -> None:
    totals = VerdictTotals(2, threshold=0.0)
    totals.add(pd.DataFrame({"score": [1.0, 2.0], "verdict": ["calm", "calm"], "certified_radius": [4.0, largest]}))
    assert verdict_lines(totals, 20, 0.05, np.array(radii))[-1] == f"radius      {words}"
