"""Progress: plain lines in the log when headless, a bar otherwise, and never anything in the way of the work."""

import re
from pathlib import Path

import pytest

from paperlib.runtime.progress import Progress


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log.txt"
    monkeypatch.setenv("PAPERLIB_LOG", str(path))
    monkeypatch.setattr(Progress, "short", -1.0)  # no work is too short to show
    return path


def test_headless_the_end_is_one_plain_line(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("certify eps=0.1", 30) as progress:
        progress.step(10, note="clean -100.0")
        progress.step(20)
    line = re.fullmatch(r"(.*): (\d+)/(\d+), \d+ s, 0 s left  (.*)\n", log.read_text())
    assert line is not None and line.groups() == ("certify eps=0.1", "30", "30", "clean -100.0")
    assert capfd.readouterr() == ("", "")


def test_headless_a_line_is_written_every_few_seconds_and_not_more(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Progress("train", 100) as progress:
        for _ in range(100):
            clock[0] += 0.5
            progress.step()
    lines = log.read_text().splitlines()
    assert len(lines) == 5  # 50 seconds, one line after each ten, the last one at the end
    assert lines[0] == "train: 21/100, 10 s, 40 s left  "
    assert lines[-1] == "train: 100/100, 50 s, 0 s left  "


def test_headless_lines_of_several_tasks_follow_each_other(log: Path) -> None:
    for name in ("first", "second"):
        with Progress(name, 1) as progress:
            progress.step()
    assert [line.split(":")[0] for line in log.read_text().splitlines()] == ["first", "second"]


def test_an_error_passes_through_without_a_line_that_says_done(log: Path) -> None:
    def fail() -> None:
        with Progress("train", 3) as progress:
            progress.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not log.exists()


def test_short_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PAPERLIB_LOG", raising=False)
    with Progress("quick", 5) as progress:
        for _ in range(5):
            progress.step(note="clean -1.0")
    out, err = capfd.readouterr()
    assert out == "" and "quick" not in err


def test_short_work_writes_no_line(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Progress, "short", 60.0)
    with Progress("quick", 5) as progress:
        progress.step(5)
    assert not log.exists()


def test_no_work_at_all_is_no_error(log: Path) -> None:
    with Progress("nothing", 0):
        pass
    assert log.read_text().startswith("nothing: 0/0, 0 s, 0 s left")
