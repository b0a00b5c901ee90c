"""Tasks in processes: one that fails or dies harms no other, order is kept, no process runs on after its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from children import alive

from paperlib.runtime.parallel import (
    Outcome,
    TaskError,
    TasksFailedError,
    cluster_outcomes,
    cores,
    in_parallel,
    outcomes,
)
from paperlib.runtime.progress import Progress, Report, Reporter, TaskProgress


class TwoWordsError(Exception):
    """An error that cannot be rebuilt from its message, like some of the library's own."""

    def __init__(self, one: str, two: str):
        super().__init__(f"{one} and {two}")


def task(item: str) -> Any:
    if item == "raises":
        raise TwoWordsError("this", "that")
    if item == "exits":
        sys.exit(5)
    if item == "ends":
        os._exit(3)
    if item == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return item, torch.get_num_threads(), Progress("work", 1)._bar.disable


def test_a_task_that_fails_or_dies_is_one_outcome_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERLIB_LOG", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    items = ["ends", "one", "is killed", "two", "raises", "exits", "three"]
    by_item = {outcome.item: outcome for outcome in outcomes(task, items, jobs=2)}
    assert sorted(by_item) == sorted(items)
    for item in ("one", "two", "three"):
        assert by_item[item] == Outcome(item, (item, 1, True)), "one torch thread and no progress bar in each"
    errors = {item: str(by_item[item].error) for item in items if by_item[item].error is not None}
    assert errors == {
        "ends": "its process ended with status 3",
        "is killed": "its process was killed by SIGKILL, as for want of memory",
        "raises": "TwoWordsError: this and that",
        "exits": "SystemExit: 5",
    }
    raised = by_item["raises"].error
    assert isinstance(raised, TaskError)
    assert any('raise TwoWordsError("this", "that")' in note for note in raised.__notes__), "where it was raised"


def late(item: float) -> float:
    time.sleep(item)
    return item


def test_values_are_in_the_order_of_the_items() -> None:
    items = [1.0, 0.0, 0.1]
    assert in_parallel(late, items, jobs=2) == items


def in_steps(item: int) -> int:
    """Two pieces of work of a few steps, each long enough for a report of its own."""
    for name in ("train", "certify"):
        with Progress(name, item) as progress:
            for _ in range(item):
                time.sleep(1.2 * Reporter.every)
                progress.step(note="clean -1.0")
    return item


def test_the_bar_moves_with_the_steps_of_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERLIB_LOG", raising=False)
    heard: list[Report] = []
    reached: list[float] = []
    hear = TaskProgress.hear

    def listen(bar: TaskProgress, reports: list[Report]) -> None:
        hear(bar, reports)
        heard.extend(reports)
        reached.append(bar._bar.n)

    monkeypatch.setattr(TaskProgress, "hear", listen)
    assert in_parallel(in_steps, [3, 2, 2], jobs=2) == [3, 2, 2]
    assert {report.task for report in heard} == {0, 1, 2}
    assert {report.text for report in heard} == {"train: clean -1.0", "certify: clean -1.0"}
    assert any(0 < number < 1 for number in reached), "before the first task was done"
    assert reached == sorted(reached) and reached[-1] <= 3


def test_headless_processes_write_their_own_lines_and_report_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_LOG", str(tmp_path / "log.txt"))
    monkeypatch.setattr(TaskProgress, "short", -1.0)  # no work of this process is too short
    heard: list[Report] = []
    monkeypatch.setattr(TaskProgress, "hear", lambda _, reports: heard.extend(reports))
    assert in_parallel(in_steps, [1], name="naps") == [1]
    assert heard == []
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].startswith("naps: 1/1, ")


UNGUARDED = """
import os
from paperlib.runtime.parallel import in_parallel
in_parallel(os.path.basename, ["a", "b"], jobs=2)
"""


def test_a_script_without_a_main_guard_is_told_so_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("ChildProcessError: ") and 'if __name__ == "__main__":' in last and str(script) in last
    assert (
        ended.stderr.count("Traceback") == 1 and "expired" not in ended.stderr and "bootstrapping" not in ended.stderr
    )


def test_all_failures_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {2: TaskError("ValueError: two"), 3: TaskError("ValueError: three")}

    def in_reverse(_: object, items: list[int], *__: object) -> Iterator[Outcome[int, int]]:
        return (Outcome(item, -item, errors.get(item)) for item in reversed(items))

    monkeypatch.setattr("paperlib.runtime.parallel.outcomes", in_reverse)
    assert in_parallel(late, [4, 1]) == [-4, -1]
    with pytest.raises(TasksFailedError) as caught:
        in_parallel(late, [3, 1, 2], name="naps")
    assert str(caught.value) == "2 of 3 naps failed\n2: ValueError: two\n3: ValueError: three"


def test_fewer_than_one_job_is_refused_and_no_task_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        next(outcomes(late, [0.0], jobs=0))
    monkeypatch.setitem(sys.modules, "pebble", None)
    assert list(outcomes(late, [])) == in_parallel(late, []) == []
    assert 1 <= cores() <= (os.cpu_count() or 1)


def beside(folder: str) -> None:
    """Leaves its process number in a folder, and stays."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def started(folder: Path, count: int) -> list[int]:
    wait_until(lambda: len(list(folder.iterdir())) == count, seconds=300)
    return [int(path.name) for path in folder.iterdir()]


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.05)


def first_or_stay(item: str) -> None:
    if item != "first":
        beside(item)


def test_leaving_early_ends_the_processes(tmp_path: Path) -> None:
    running = outcomes(first_or_stay, ["first", str(tmp_path), str(tmp_path)], jobs=2)
    assert next(running) == Outcome("first")
    processes = started(tmp_path, 2)
    assert all(alive(process) for process in processes)
    running.close()
    assert not any(alive(process) for process in processes)


PARENT = """
import sys
from paperlib.runtime.parallel import in_parallel
from test_parallel import beside
if __name__ == "__main__":
    in_parallel(beside, [sys.argv[1]] * 2, jobs=2)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script, marks = tmp_path / "parent.py", tmp_path / "marks"
    script.write_text(PARENT)
    marks.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script, marks], env=environment, stderr=subprocess.DEVNULL) as parent:
        processes = started(marks, 2)
        parent.kill()
    wait_until(lambda: not any(alive(process) for process in processes), seconds=60)


def test_a_cluster_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"a cluster needs Ray: pip install -e '\.\[cluster\]'"):
        next(cluster_outcomes(late, [0.0]))


def test_processes_without_pebble_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pebble", None)
    with pytest.raises(ModuleNotFoundError, match="work in several processes needs pebble: pip install"):
        next(outcomes(late, [0.0]))
