"""Files that are either whole or absent, and whose content says by which configuration it was made."""

import errno
import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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


class UnwritableFolderError(OSError):
    """No file can be made in a folder; the message names it, the cause and what to do."""


def check_folder(folder: Path) -> None:
    """To be called before work begins whose results go into `folder`, which is made if it is missing.

    Raises:
        UnwritableFolderError: no file can be made in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        user = f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"
        raise UnwritableFolderError(
            f"cannot write into {folder} ({error.strerror}): it must be a folder that {user} may write to; "
            "give it to them (chown), or run as its owner (docker run --user)"
        ) from error


def check_writable(path: Path) -> None:
    """To be called before work whose result goes into this file; its folder is made if it is missing.

    Raises:
        IsADirectoryError: the name is that of a folder.
        UnwritableFolderError: no file can be made in its folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    check_folder(path.parent)


NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """A block in which one process at a time can be, of all that name the same `path`; yields the open descriptor.

    The system releases the lock however the process ends; but a child that inherits the descriptor holds it, too, until
    it has ended. The file stays, as removing it could race with another process that has just opened it. On a file
    system without locks a line says so, and the block is entered.

    Raises:
        BlockingIOError: another process is in the block.
        OSError: the file cannot be opened or locked.
    """
    import fcntl  # here, as a system without it can still use the rest of the library

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f"note: the file system of {path.parent} has no locks: start no second run there", file=sys.stderr)
        yield file.fileno()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block ends without an error; otherwise `path` stays as it was.

    The permissions are those of the file that is replaced, and of a new file those that the umask leaves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = _permissions(path if path.exists() else temporary)
        yield temporary
        if _permissions(temporary) != mode:  # the old file had others, or the writer made the temporary file anew
            with suppress(OSError):  # some file systems refuse to change them; what counts is the content
                os.chmod(temporary, mode)
        with open(temporary, "rb") as file:
            os.fsync(
                file.fileno()
            )  # the content is on the disk before the name is, so that a power cut leaves a whole file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


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
