"""Files that are either whole or absent, and whose content says by which configuration it was made."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class DamagedFileError(ValueError):
    """A file is truncated, altered or of another kind than its name says."""


class ConfigMismatchError(ValueError):
    """A file was made by another configuration than the one asked for; nothing of it is used."""

    def __init__(self, where: object, stored: Mapping[str, Any], wanted: Mapping[str, Any]):
        differing = sorted(k for k in stored.keys() | wanted.keys() if stored.get(k) != wanted.get(k))
        lines = [f"  {k}: found {stored.get(k)!r}, wanted {wanted.get(k)!r}" for k in differing]
        super().__init__(f"{where} was made by another configuration:\n" + "\n".join(lines))


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block ends without an error; otherwise `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        with open(temporary, "rb") as file:
            os.fsync(
                file.fileno()
            )  # the content is on the disk before the name is, so that a power cut leaves a whole file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Makes the folder of a file and tries to write there, before work whose result the file is to hold.

    Raises OSError, in one sentence, if that fails or if the name is that of a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}): name another place") from error


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Named tensors and a JSON header in one safetensors file; the same content gives the same bytes."""
    # Copies, as the format refuses tensors that share memory. It keeps metadata in a hash map of unstable order: a
    # single entry has only one.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic(Path(path)) as temporary:
        save_file(copies, temporary, {"header": json.dumps(header, sort_keys=True)})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write_tensors`. Raises FileNotFoundError or DamagedFileError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged or not written by this library: {error}") from error
    return tensors, header
