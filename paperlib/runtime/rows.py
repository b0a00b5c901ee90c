"""Result rows on disk: a table NAME.csv that any reader of CSV takes, and its header NAME.json beside it.

The header holds the configuration, the provenance and the SHA-256 of the table.
"""

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
MEND = "restore both files, or make the rows again"


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


def header_path(path: str | Path) -> Path:
    """The header of a row file: `NAME.json` beside `NAME.csv`. Raises ValueError for a name that is none of a table."""
    path = Path(path)
    if path.suffix != ".csv":
        raise ValueError(f"rows are written to a file NAME.csv, and their header to NAME.json beside it: got {path}")
    return path.with_suffix(".json")


def write_rows(
    path: str | Path, rows: pd.DataFrame, config: dict[str, Any], origin: dict[str, Any], seconds: float
) -> None:
    """Write rows at full precision, with their header beside them; both whole or not at all.

    No table ever stands beside a header that was not written for it: an interruption leaves the former rows, the new
    ones, or a table without a header, which `read_rows` refuses.

    Args:
        path: of the table, NAME.csv; the header is NAME.json.
        config: all that decides the rows, in JSON types.
        origin: the data behind them, see `paperlib.data.datasets.data_origin`.
        seconds: wall time that they took.
    """
    path, header = Path(path), header_path(path)
    table = rows.to_csv(index=False, lineterminator="\n").encode()
    sha256 = hashlib.sha256(table).hexdigest()
    head = {"config": config, **origin, "seconds": round(seconds, 1), **provenance(), "sha256": sha256}
    # the inner file takes its place first: the header, which vouches for the table, is the last
    with atomic(header) as header_part, atomic(path) as table_part:
        _write(header_part, f"{json.dumps(head, indent=1, sort_keys=True)}\n".encode())
        _write(table_part, table)
        header.unlink(missing_ok=True)  # as late as possible: nothing is left to do that takes time or space


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a row file, read from the file beside it.

    Raises:
        FileNotFoundError: no such table.
        DamagedFileError: a table without a header.
    """
    path, header = Path(path), header_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no row file {path}")
    try:
        head = json.loads(header.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedFileError(
            f"{path} has no header {header.name} beside it, as after an interruption or when the table alone was "
            "copied: copy both, or make the rows again"
        ) from None
    except ValueError as error:
        raise DamagedFileError(f"{header} is no header of rows ({error}); {MEND}") from error
    if not isinstance(head, dict) or not isinstance(head.get("config"), dict):
        raise DamagedFileError(f"{header} is no header of rows: it has no configuration; {MEND}")
    return head


def read_rows(path: str | Path, config: dict[str, Any] | None = None) -> pd.DataFrame:
    """The rows of a file, bit for bit as written.

    Raises:
        FileNotFoundError: no such table.
        DamagedFileError: a table without a header, or another one than its header was written for.
        ConfigMismatchError: `config` is given and another one made the file; shows the fields that differ.
    """
    head, table = read_header(path), Path(path).read_bytes()
    if hashlib.sha256(table).hexdigest() != head.get("sha256"):
        raise DamagedFileError(f"{path} is damaged, or not the table that {header_path(path).name} is for; {MEND}")
    if config is not None and head["config"] != config:
        raise ConfigMismatchError(path, head["config"], config)
    return pd.read_csv(io.BytesIO(table))


def same_result(old: Path, new: Path) -> bool:
    """Whether two files are equal but for what differs from run to run: commit and wall time in the header of rows.

    A header holds the checksum of its table: if it is the same result, so is the table.
    """
    first, second = old.read_bytes(), new.read_bytes()
    if first == second:
        return True
    if old.suffix != ".json" or new.suffix != ".json":
        return False
    try:
        heads = [json.loads(content) for content in (first, second)]
    except ValueError:
        return False
    if not all(isinstance(head, dict) and "sha256" in head for head in heads):
        return False
    one, other = ({k: v for k, v in head.items() if k not in VOLATILE} for head in heads)
    return one == other


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


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
