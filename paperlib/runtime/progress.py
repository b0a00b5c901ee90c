"""Progress for people: a bar in a terminal or notebook, plain lines in the file named by PAPERLIB_LOG when headless."""

import os
import time
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm


class Progress:
    """Counts steps up to `total`. Headless (PAPERLIB_LOG is set) it appends a line every few seconds to that file,

    so that nothing which depends on speed enters an executed notebook.
    """

    every = 10.0  # seconds between plain lines
    short = 2.0  # seconds of work that shows nothing

    def __init__(self, name: str, total: int):
        self._log = os.environ.get("PAPERLIB_LOG")
        self._name, self._total, self._done, self._note = name, total, 0, ""
        self._start = self._last = time.monotonic()
        # no bar for short work, so that a notebook's quick checks store none
        self._bar = tqdm(total=total, desc=name, disable=self._log is not None, leave=False, delay=self.short)

    def step(self, count: int = 1, note: str = "") -> None:
        self._done += count
        self._note = note or self._note
        self._bar.update(count)
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        if self._log and time.monotonic() - self._last > self.every:
            self._write()

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
