"""A file is either whole or absent, whatever happens while it is written."""

import stat
from pathlib import Path

import pytest

from paperlib.runtime.files import atomic


def test_the_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "rows.csv"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
        assert temporary.suffix == ".csv", "writers choose the format by the suffix"
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_without_an_old_file_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic(tmp_path / "rows.csv") as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_the_file(tmp_path: Path) -> None:
    with atomic(tmp_path / "figure.png") as temporary:
        temporary.write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "figure.png").stat().st_mode) == 0o644


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.csv") as first, atomic(tmp_path / "a.csv") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a.csv").read_text() == "1"
