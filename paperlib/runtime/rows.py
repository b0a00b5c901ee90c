"""Result rows on disk: one CSV file whose first line is a JSON header with the configuration and the provenance."""

import hashlib
import io
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from paperlib.runtime.files import ConfigMismatchError, DamagedFileError, atomic

VOLATILE = ("commit", "seconds")  # header fields that differ between two runs with the same result


def provenance() -> dict[str, Any]:
    """Where and with what a result is made: commit, Python and package versions, CPU or GPU, torch threads."""
    packages = ("torch", "numpy", "pandas")
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(),
        "threads": torch.get_num_threads(),
    }


def write_rows(
    path: str | Path, rows: pd.DataFrame, config: dict[str, Any], origin: dict[str, Any], seconds: float
) -> None:
    """Write rows at full precision below their header; whole or not at all.

    Args:
        config: all that decides the rows, in JSON types.
        origin: the data behind them, see `paperlib.data.datasets.data_origin`.
        seconds: wall time that they took.
    """
    table = rows.to_csv(index=False, lineterminator="\n").encode()
    sha256 = hashlib.sha256(table).hexdigest()
    head = {"config": config, **origin, "seconds": round(seconds, 1), **provenance(), "sha256": sha256}
    with atomic(Path(path)) as temporary:
        temporary.write_bytes(f"# {json.dumps(head, sort_keys=True)}\n".encode() + table)


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a row file. Raises FileNotFoundError, or DamagedFileError if there is none."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            first = file.readline()
        if not first.startswith("# "):
            raise ValueError("the first line is no header")
        header = json.loads(first[2:])
        if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
            raise ValueError("the header has no configuration")
    except ValueError as error:
        raise DamagedFileError(f"{path} is no row file of this library: {error}") from error
    return header


def read_rows(path: str | Path, config: dict[str, Any] | None = None) -> pd.DataFrame:
    """The rows of a file, bit for bit as written.

    Raises:
        FileNotFoundError, DamagedFileError: no such file, no header, or a table that is not as it was written.
        ConfigMismatchError: `config` is given and another one made the file; shows the fields that differ.
    """
    header = read_header(path)
    stored = header["config"]
    if config is not None and stored != config:
        raise ConfigMismatchError(path, stored, config)
    table = Path(path).read_bytes().partition(b"\n")[2]
    if hashlib.sha256(table).hexdigest() != header.get("sha256"):
        raise DamagedFileError(f"{path} is damaged: its table is not the one that its header was written for")
    return pd.read_csv(io.BytesIO(table))


def same_result(old: Path, new: Path) -> bool:
    """Whether two files are equal but for what differs from run to run: commit and wall time in a row file's header."""
    first, second = old.read_bytes(), new.read_bytes()
    if first == second:
        return True
    if old.suffix != ".csv" or new.suffix != ".csv":
        return False
    try:
        heads = [{k: v for k, v in read_header(path).items() if k not in VOLATILE} for path in (old, new)]
    except DamagedFileError:
        return False
    return heads[0] == heads[1] and first.partition(b"\n")[2] == second.partition(b"\n")[2]


def _commit() -> str:
    """The commit of the checkout that tracks this very file; "unknown" where none does, as in an installed library, or
    in a copy that lies inside the checkout of something else.
    """
    here = Path(__file__)
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # may name another one

    def git(*args: str) -> str:
        command = ["git", "-C", str(here.parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
