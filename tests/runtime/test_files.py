"""A file is either whole or absent, whatever happens while it is written."""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paperlib.runtime.files import UnwritableFolderError, atomic, check_folder, locked


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


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def anew(path: Path) -> None:
    """As a writer does that has temporary files of its own."""
    path.unlink()
    path.write_bytes(b"x")
    path.chmod(0o600)


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b"x"), anew], ids=["into it", "anew"])
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002], indirect=True, ids=oct)
def test_a_new_file_has_the_permissions_that_the_umask_leaves(
    tmp_path: Path, umask: int, write: Callable[[Path], None]
) -> None:
    with atomic(tmp_path / "figure.png") as temporary:
        write(temporary)
    assert mode(tmp_path / "figure.png") == 0o666 & ~umask


@pytest.mark.parametrize("old", [0o600, 0o640, 0o664], ids=oct)
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, old: int) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")
    path.chmod(old)
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), mode(path)) == ("new", old)


def test_a_file_system_that_refuses_permissions_takes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = tmp_path / "rows.csv"
    path.write_text("old")
    path.chmod(0o600)
    monkeypatch.setattr(os, "chmod", refused)
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_a_folder_that_cannot_be_written_is_named_with_the_cause_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_folder(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableFolderError, match=r"cannot write into .*/file \(File exists\)"):
        check_folder(tmp_path / "file")

    def refused(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)  # not by permissions, which say nothing to root
    with pytest.raises(UnwritableFolderError) as caught:
        check_folder(tmp_path / "new")
    words = f"cannot write into {tmp_path / 'new'} (Permission denied): it must be a folder that user {os.getuid()} may"
    assert str(caught.value).startswith(words) and "docker run --user" in str(caught.value)


def test_a_lock_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock"):
        pass
    with locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_told_once_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    fail_flock(monkeypatch, number)
    with locked(tmp_path / "lock"):
        pass
    said = capsys.readouterr()
    assert said.err == f"note: the file system of {tmp_path} has no locks: start no second run there\n"
    assert said.out == ""


def test_another_error_of_a_lock_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_flock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught, locked(tmp_path / "lock"):
        pass
    assert not isinstance(caught.value, BlockingIOError)


def fail_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.csv") as first, atomic(tmp_path / "a.csv") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a.csv").read_text() == "1"
