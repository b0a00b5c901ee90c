"""Row files: every bit comes back, with the configuration and provenance that made it, or one clear error."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paperlib.runtime import rows as rows_module
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError
from paperlib.runtime.rows import header_path, provenance, read_header, read_rows, same_result, write_rows

CONFIG: dict[str, Any] = {"eps": 0.1, "models": {"VAE": {"hidden": [512]}}, "images": 3}
ORIGIN = {"dataset": "mnist5k", "checksum": "0" * 64}
ROWS = pd.DataFrame(
    {
        "index": [0, 1, 2],
        "clean": [-1 / 3, -100.1, -1e-300],
        "attacked": [np.nan, np.nan, np.nan],
        "model": ["VAE", "proVAE kappa=0.5", "none"],
    }
)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    write_rows(path, ROWS, CONFIG, ORIGIN, seconds=1.53)
    return path


@given(values=arrays.arrays(np.float64, st.integers(1, 20), elements=st.floats()))
def test_every_float_comes_back_bit_for_bit(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "floats.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "provenance", dict)  # it asks git each time
        write_rows(path, pd.DataFrame({"index": range(len(values)), "value": values}), {}, {}, 0.0)
    back = read_rows(path)["value"].to_numpy()
    assert back.dtype == np.float64
    assert np.array_equal(np.isnan(back), np.isnan(values))
    numbers = ~np.isnan(values)
    assert back[numbers].tobytes() == values[numbers].tobytes()


def test_types_names_and_empty_columns_come_back(stored: Path) -> None:
    back = read_rows(stored, CONFIG)
    pd.testing.assert_frame_equal(back, ROWS, check_exact=True)


def test_the_header_says_what_made_the_rows(stored: Path) -> None:
    header = read_header(stored)
    assert header["config"] == CONFIG and header["seconds"] == 1.5, "to a tenth of a second"
    assert (header["dataset"], header["checksum"]) == ("mnist5k", "0" * 64)
    assert {"commit", "python", "packages", "processor", "threads"} <= header.keys()
    assert stored.with_suffix(".json").read_text().startswith('{\n "checksum": "'), "a line for each field, in order"


def test_the_table_is_what_plain_pandas_reads(stored: Path) -> None:
    pd.testing.assert_frame_equal(pd.read_csv(stored), ROWS, check_exact=True)


@pytest.mark.parametrize("name", ["rows", "rows.json", "rows.txt", "rows.csv.gz"])
def test_only_a_table_has_a_header_beside_it(tmp_path: Path, name: str) -> None:
    for use in (header_path, read_header, read_rows, lambda path: write_rows(path, ROWS, {}, {}, 0.0)):
        with pytest.raises(ValueError, match=r"NAME\.csv.*" + re.escape(name)):
            use(tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert header_path("02_provae_kappa_0.5.csv") == Path("02_provae_kappa_0.5.json")


def test_provenance_is_json_and_names_versions_and_processor() -> None:
    fields = provenance()
    assert json.loads(json.dumps(fields)) == fields
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", fields["commit"])
    assert all(re.match(r"\d+\.\d+", number) for number in [fields["python"], *fields["packages"].values()])
    assert {"torch", "numpy"} <= fields["packages"].keys() and fields["processor"] and fields["threads"] >= 1


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "__file__", str(tmp_path / "rows.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["commit"] == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["commit"] == "unknown", "git itself may be missing"


def git(folder: Path, *args: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *who, *args], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_that_tracks_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, other = tmp_path / "library", tmp_path / "other"
    for folder in (library, other):
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "rows.py").write_text(folder.name)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", folder.name)
    monkeypatch.setattr(rows_module, "__file__", str(library / "rows.py"))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook of another repository
    assert provenance()["commit"] == git_head(library)
    copy = other / "unpacked" / "rows.py"  # an archive unpacked inside the checkout of something else
    copy.parent.mkdir()
    copy.write_text("library")
    monkeypatch.setattr(rows_module, "__file__", str(copy))
    assert provenance()["commit"] == "unknown"


def git_head(folder: Path) -> str:
    return (folder / ".git" / (folder / ".git" / "HEAD").read_text().split()[1]).read_text().strip()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.2}, "eps: found 0.1, wanted 0.2"),
        ({"models": {"VAE": {"hidden": [64]}}}, "models: found"),
        ({"seed": 1}, "seed: found None, wanted 1"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_shown(
    stored: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigMismatchError, match=re.escape(message)) as caught:
        read_rows(stored, {**CONFIG, **change})
    assert str(stored) in str(caught.value) and "images" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{not json}", b'{"config"', b'{"dataset": "mnist"}', b"5", b"[1, 2]", b"null", b"\x89PNG\r\n\x1a\n\xff\xfe"],
    ids=["empty", "no JSON", "cut", "no config", "number", "list", "null", "binary"],
)
def test_a_damaged_header_is_one_clear_error(stored: Path, content: bytes) -> None:
    header_path(stored).write_bytes(content)
    for read in (read_rows, read_header):
        with pytest.raises(DamagedFileError, match=r"rows\.json is no header of rows.*make the rows again"):
            read(stored)


def test_a_table_without_its_header_is_refused_and_says_what_to_do(stored: Path) -> None:
    header_path(stored).unlink()
    for read in (read_rows, read_header):
        with pytest.raises(DamagedFileError, match=r"rows\.csv has no header rows\.json.*copy both, or make the rows"):
            read(stored)


def test_a_table_beside_the_header_of_another_is_refused_whatever_the_configuration(stored: Path) -> None:
    other = stored.with_name("other.csv")
    write_rows(other, ROWS.iloc[:1], {**CONFIG, "eps": 0.2}, ORIGIN, seconds=1.0)
    header_path(other).replace(header_path(stored))
    for config in (None, CONFIG, {**CONFIG, "eps": 0.2}):
        with pytest.raises(DamagedFileError, match=r"rows\.csv is damaged, or not the table that rows\.json is for"):
            read_rows(stored, config)


def test_a_header_without_a_table_is_a_missing_file(stored: Path) -> None:
    stored.unlink()
    for read in (read_rows, read_header):
        with pytest.raises(FileNotFoundError, match=r"rows\.csv"):
            read(stored)


def test_a_ragged_table_is_an_error(stored: Path) -> None:
    stored.write_bytes(stored.read_bytes() + b"1,2,3,4,5,6\n")
    with pytest.raises(DamagedFileError, match=r"rows\.csv"):
        read_rows(stored)


@pytest.mark.parametrize("cut", [1, 3, 10, 14, "last row"])
def test_a_truncated_table_is_never_taken_for_the_whole(stored: Path, cut: int | str) -> None:
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-cut] if isinstance(cut, int) else whole[: whole[:-1].rindex(b"\n") + 1])
    with pytest.raises(DamagedFileError, match=r"rows\.csv"):
        read_rows(stored)


def test_an_interrupted_write_leaves_the_old_rows(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_rows(stored, ROWS.iloc[:1], CONFIG, ORIGIN, seconds=1.5)
    pd.testing.assert_frame_equal(read_rows(stored), ROWS)
    assert sorted(path.name for path in stored.parent.iterdir()) == ["rows.csv", "rows.json"]


CALLS = ("fsync", "unlink", "chmod", "replace")  # of the system, with which files are put in their places


def test_wherever_a_write_is_interrupted_no_header_stands_beside_another_table(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each call of the system that changes files, in turn, the write ends there, as by Ctrl-C."""
    monkeypatch.setattr(rows_module, "provenance", dict)
    new, config = ROWS.iloc[:1], {**CONFIG, "eps": 0.2}
    old = {path.name: path.read_bytes() for path in stored.parent.iterdir()}
    seen = set()
    for stop in range(100):
        for name, content in old.items():
            (stored.parent / name).write_bytes(content)
        left = iter([None] * stop)
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, interrupted_after(left, getattr(os, name)))
            try:
                write_rows(stored, new, config, ORIGIN, seconds=1.0)
                whole = True
            except KeyboardInterrupt:
                whole = False
        if header_path(stored).exists():
            eps = read_header(stored)["config"]["eps"]
            pd.testing.assert_frame_equal(read_rows(stored), {0.1: ROWS, 0.2: new}[eps])
            seen.add(eps)
        else:
            with pytest.raises(DamagedFileError, match="make the rows again"):
                read_rows(stored)
            seen.add("no header")
        write_rows(stored, new, config, ORIGIN, seconds=1.0)  # the same again replaces both
        pd.testing.assert_frame_equal(read_rows(stored, config), new)
        if whole:
            break
    assert seen == {0.1, "no header", 0.2} and stop > 4


def interrupted_after(left: Iterator[None], call: Callable[..., Any]) -> Callable[..., Any]:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(left, False) is False:
            raise KeyboardInterrupt
        return call(*args, **kwargs)

    return interrupted


def copy_with(path: Path, **fields: Any) -> Path:
    """A copy of a header with other fields."""
    other = path.with_name("other.json")
    other.write_text(json.dumps({**read_header(path), **fields}, indent=1, sort_keys=True) + "\n")
    return other


@pytest.mark.parametrize("header", [{}, {"commit": "0" * 40}, {"seconds": 99.0}, {"commit": "x", "seconds": 0}])
def test_commit_and_wall_time_make_no_other_result(stored: Path, header: dict[str, Any]) -> None:
    assert same_result(header_path(stored), copy_with(stored, **header))
    assert same_result(copy_with(stored, **header), header_path(stored))


@pytest.mark.parametrize(
    "header",
    [{"config": {}}, {"dataset": "mnist"}, {"processor": "abacus"}, {"threads": 99}, {"packages": {}}, {"new": 1}],
)
def test_any_other_header_field_makes_another_result(stored: Path, header: dict[str, Any]) -> None:
    assert not same_result(header_path(stored), copy_with(stored, **header))


def test_one_changed_digit_makes_another_result(stored: Path) -> None:
    other = stored.with_name("other.csv")
    write_rows(other, ROWS.replace(-100.1, -100.2), CONFIG, ORIGIN, seconds=1.53)
    assert not same_result(stored, other), "neither the table"
    assert not same_result(header_path(stored), header_path(other)), "nor its header, which holds the checksum"


def test_files_other_than_rows_are_compared_byte_for_byte(tmp_path: Path, stored: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(b"same")
    second.write_bytes(b"same")
    assert same_result(first, second)
    second.write_bytes(b"other")
    assert not same_result(first, second)
    header, other = header_path(stored), tmp_path / "other.json"
    for content in ("no JSON", "[1]", '{"commit": "x"}'):
        other.write_text(content)
        assert not same_result(header, other) and not same_result(other, header)
