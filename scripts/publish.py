"""Results appear in a home whole or not at all, and a result that is equal to the published one leaves it untouched.

A `Site` says where everything of one profile and data set lies; a stamp remembers what a notebook was made from and the
SHA-256 of every file that it published.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paperlib.runtime.files import UnwritableFolderError, check_folder, locked
from paperlib.runtime.rows import same_result
from paperlib.runtime.terminal import escape_unprintable
from scripts.nbfile import NotebookError

RUNS = Path("figures/data/runs.json")  # measured seconds and memory of the runs that made the published results


@dataclass(frozen=True)
class Site:
    """Where results of one profile and data set are made (`work`) and published (`home`; the root if committed)."""

    root: Path
    profile: str
    dataset: str
    home: Path
    checksum: str = ""  # of the data set

    @property
    def work(self) -> Path:
        return self.root / "build" / f"{self.profile}-{self.dataset}"

    @property
    def committed(self) -> bool:
        return self.home == self.root

    def stamp(self, number: str) -> Path:
        return self.work / "stamps" / f"{number}.json"

    def show(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty when it is absent or was cut short, so that a damaged note is never trusted."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    part.replace(path)


def published(staging: Path, home: Path) -> dict[str, str]:
    """The SHA-256 of what the home holds of the staging's files, by name."""
    return {name.as_posix(): file_digest(home / name) for name in _names(staging) if (home / name).is_file()}


def publish(staging: Path, home: Path) -> dict[str, str]:
    """Move every file of the staging to its place in the home; returns the SHA-256 of each published file.

    All copies are complete beside their targets before the first target is replaced: a full disk or an interrupt while
    copying leaves the old files, every one of them.
    """
    parts: list[tuple[Path, Path]] = []
    try:
        for name in _names(staging):
            old, new = home / name, staging / name
            if old.exists() and same_result(old, new):
                continue
            old.parent.mkdir(parents=True, exist_ok=True)
            part = old.with_name(f".{old.name}.part")
            parts.append((part, old))
            shutil.copyfile(new, part)
        for part, old in parts:
            part.replace(old)
    finally:
        for part, _ in parts:
            part.unlink(missing_ok=True)
    return published(staging, home)


def _names(staging: Path) -> list[Path]:
    return sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file() and path.name[0] != ".")


def start_command(*folders: Path) -> None:
    """First in a command: end it with one line unless it can write into these folders; it may print anything."""
    escape_unprintable()
    try:
        for folder in folders:
            check_folder(folder)
    except UnwritableFolderError as error:
        sys.exit(f"error: {error}")


@contextmanager
def alone(site: Site) -> Iterator[None]:
    """Two runs for the same results at once would share a staging: the second is refused."""
    check_folder(site.work)
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked(site.work / "lock"))
        except BlockingIOError as error:
            raise NotebookError(f"another run is at work in {site.show(site.work)}: wait until it ends") from error
        os.set_inheritable(descriptor, True)  # by the notebooks' runners: it is free only when all have ended
        yield


def check_folders(site: Site) -> None:
    """Raise UnwritableFolderError before any work, unless everything that a run leaves behind can be written."""
    kept = [folder for folder in (site.root / "build" / "failed", *site.work.rglob("*")) if folder.is_dir()]
    for folder in (*kept, site.home / "figures", site.home / "figures" / "data", site.home / "notebooks"):
        check_folder(folder)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a hang-up take effect only after the block; those that are ignored stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    late: list[int] = []
    old = {
        number: signal.signal(number, lambda n, _: late.append(n))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if late:
        raise KeyboardInterrupt


def changed_file(site: Site, stamp: dict[str, Any]) -> str | None:
    """The first published file that is missing or no longer what the stamp says."""
    for name, expected in stamp.get("files", {}).items():
        path = site.home / name
        if not path.is_file() or file_digest(path) != expected:
            return str(name)
    return None


def record(site: Site, number: str, entry: dict[str, Any], *, changed: bool) -> None:
    """Write what a run of one notebook cost, beside what the others cost.

    A run that only confirmed the published results leaves the numbers published with them as they are.
    """
    kept = read_json(site.home / RUNS)
    if changed or number not in kept:
        write_json(site.home / RUNS, {**kept, number: entry})
    write_json(site.work / "runs.json", {**read_json(site.work / "runs.json"), number: entry})
