"""Progress for people: a bar in a terminal or notebook, plain lines in the file named by PAPERLIB_LOG when headless.

A worker process draws nothing. It reports its steps to the process that started it, and they move the bar there.
"""

import json
import os
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from tqdm.auto import tqdm


def announce(text: str) -> None:
    """Print a line at once for whoever looks on: not in a worker process, and not headless, where no one does."""
    if Progress.reporter is None and "PAPERLIB_LOG" not in os.environ:
        print(text, flush=True)


class Report(NamedTuple):
    """What a worker process says of its task: its number, the share of its steps that are done, and what it does."""

    task: int
    share: float
    text: str


class Reporter:
    """Sends reports of a worker process, a few times a second. Its work never waits for them: they are lost instead."""

    every = 0.25  # seconds between reports
    longest = 100  # characters, which are at most 400 bytes: all systems write 512 to a pipe at once or not at all

    def __init__(self, pipe: Connection):
        self._pipe, self._last = pipe, 0.0
        if os.name == "posix":
            os.set_blocking(pipe.fileno(), False)
        self.begin(0)

    def begin(self, task: int) -> None:
        """The steps from now on are those of this task."""
        self._task, self.done, self.total = task, 0, 0

    def tell(self, text: str) -> None:
        if time.monotonic() - self._last < self.every:
            return
        self._last = time.monotonic()
        report = Report(self._task, self.done / max(1, self.total), text[: self.longest])
        with suppress(OSError):  # the pipe is full, or nobody reads it any more
            self._pipe.send_bytes(json.dumps(report, ensure_ascii=False).encode())


def received(pipe: Connection) -> list[Report]:
    """The reports that wait in the pipe."""
    reports = []
    while pipe.poll():
        reports.append(Report(*json.loads(pipe.recv_bytes())))
    return reports


class Progress:
    """Counts steps up to `total`. Headless (PAPERLIB_LOG is set) it appends a line every few seconds to that file,

    so that nothing which depends on speed enters an executed notebook.
    """

    every = 10.0  # seconds between plain lines
    short = 2.0  # seconds of work that shows nothing
    reporter: ClassVar[Reporter | None] = None  # of a worker process

    def __init__(self, name: str, total: int, **bar: Any):
        self._log = os.environ.get("PAPERLIB_LOG")
        self._name, self._total, self._done, self._note = name, total, 0, ""
        self._start = self._last = time.monotonic()
        if self.reporter is not None:
            self.reporter.total += total
        # no bar for short work, so that a notebook's quick checks store none
        hidden = self._log is not None or self.reporter is not None
        self._bar = tqdm(**{"total": total, "desc": name, "disable": hidden, "leave": False, "delay": self.short} | bar)

    def step(self, count: int = 1, note: str = "") -> None:
        self._done += count
        self._note = note or self._note
        if self.reporter is not None:
            self.reporter.done += count
            self.reporter.tell(f"{self._name}: {self._note}" if self._note else self._name)
        self._show(count, note)
        if self._log and time.monotonic() - self._last > self.every:
            self._write()

    def _show(self, count: float, note: str) -> None:
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)

    def _write(self) -> None:
        assert self._log is not None
        self._last = time.monotonic()
        seconds = self._last - self._start
        left = seconds / max(1, self._done) * (self._total - self._done)
        with open(self._log, "a") as file:
            file.write(f"{self._name}: {self._done}/{self._total}, {seconds:.0f} s, {left:.0f} s left  {self._note}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._log and kind is None and time.monotonic() - self._start > self.short:
            self._write()


class TaskProgress(Progress):
    """Counts tasks that worker processes have finished; between two of them the bar moves with what they report."""

    def __init__(self, name: str, total: int, jobs: int):
        where = f"{name} on {jobs} process{'es' * (jobs > 1)}"
        looks = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"
        # drawn again also when nothing moved; the time left by the average, as reports come in bursts
        super().__init__(name, total, desc=where, bar_format=looks, mininterval=0.5, miniters=0, smoothing=0)
        self._shares = dict.fromkeys(range(total), 0.0)  # of the tasks that are not finished

    def hear(self, reports: list[Report]) -> None:
        """Move the bar: each task is a step, whatever the number of its own. It never moves backwards."""
        for report in reports:
            if report.task in self._shares:
                self._shares[report.task] = report.share
        self._show(0, reports[-1].text if reports else "")

    def finish(self, task: int) -> None:
        del self._shares[task]
        self.step()

    def _show(self, _count: float, note: str) -> None:
        reached = self._done + sum(self._shares.values())
        super()._show(max(0.0, reached - self._bar.n), note)
        if not self._shares:
            self._bar.n = self._total  # without rounding, by which a notebook would take it for unfinished
