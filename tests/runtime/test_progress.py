"""Progress: plain lines in the log when headless, a bar otherwise, and never anything in the way of the work."""

import re
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from paperlib.runtime.progress import Progress, Report, Reporter, TaskProgress, announce, received


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


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """The end that is read; this process is a worker that reports each step into the other."""
    reader, writer = Pipe(duplex=False)
    monkeypatch.delenv("PAPERLIB_LOG", raising=False)
    monkeypatch.setattr(Reporter, "every", 0.0)
    monkeypatch.setattr(Progress, "reporter", Reporter(writer))
    with reader, writer:
        yield reader


def begin(task: int) -> None:
    assert Progress.reporter is not None
    Progress.reporter.begin(task)


def test_a_worker_reports_the_share_of_its_task_and_draws_nothing(
    pipe: Connection, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Progress, "short", 0.0)
    begin(3)
    with Progress("train", 2) as progress:
        progress.step()
        progress.step(note="clean -1.0")
    with Progress("certify", 2) as progress:
        progress.step(2)
    begin(4)
    with Progress("train", 4) as progress:
        progress.step(0)
        progress.step(3)
    announce("a line")
    assert received(pipe) == [
        Report(3, 0.5, "train"),
        Report(3, 1.0, "train: clean -1.0"),
        Report(3, 1.0, "certify"),
        Report(4, 0.0, "train"),
        Report(4, 0.75, "train"),
    ]
    assert received(pipe) == [] and capfd.readouterr() == ("", "")


def test_reports_are_a_few_a_second_however_many_steps(pipe: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(Reporter, "every", 0.25)
    with monkeypatch.context() as patch, Progress("train", 1_000) as progress:
        patch.setattr("time.monotonic", lambda: clock[0])
        for _ in range(1_000):
            clock[0] += 1 / 512
            progress.step()
    assert len(received(pipe)) == 8, "in about two seconds"


def test_work_never_waits_for_a_pipe_that_nobody_reads(pipe: Connection) -> None:
    with Progress("x" * 1_000, 5_000) as progress:
        for _ in range(5_000):
            progress.step(note="\N{GREEK SMALL LETTER KAPPA}" * 1_000)
        reports = received(pipe)
        assert 10 < len(reports) < 5_000, "what found no room is lost"
        assert {report.text for report in reports} == {"x" * 100}
        pipe.close()
        progress.step()


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> TaskProgress:
    monkeypatch.delenv("PAPERLIB_LOG", raising=False)
    return TaskProgress("models", 3, jobs=2)


def test_the_bar_of_tasks_never_moves_backwards_and_ends_whole(bar: TaskProgress) -> None:
    for share, expected in ((0.3, 0.3), (0.7, 0.7), (0.4, 0.7)):  # the task went on to more work: its share fell
        bar.hear([Report(1, share, "train")])
        assert bar._bar.n == pytest.approx(expected)
    bar.finish(1)
    bar.hear([Report(1, 0.1, "of a task that is done"), Report(0, 0.1, "train"), Report(2, 0.2, "train")])
    assert bar._bar.n == pytest.approx(1.3)
    bar.finish(0)
    bar.finish(2)
    assert bar._bar.n == 3


def test_the_bar_of_tasks_says_on_how_many_processes_and_what_they_do(bar: TaskProgress) -> None:
    bar.hear([Report(0, 0.5, "train"), Report(1, 0.25, "train mnist: clean -1.0")])
    shown = str(bar._bar)
    assert re.fullmatch(r"models on 2 processes:  25%\|.*\| 0\.8/3 \[00:00<00:0\d, train mnist: clean -1\.0\]", shown)
    assert str(TaskProgress("models", 1, jobs=1)._bar).startswith("models on 1 process:   0%|")


@pytest.mark.parametrize("log", [None, "log.txt"])
def test_a_line_is_announced_unless_headless(
    log: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if log is None:
        monkeypatch.delenv("PAPERLIB_LOG", raising=False)
    else:
        monkeypatch.setenv("PAPERLIB_LOG", log)
    announce("training 3 models")
    assert capsys.readouterr().out == ("training 3 models\n" if log is None else "")
