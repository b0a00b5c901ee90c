"""What a run computes on: its device, the precision of its matrix products, its memory, its share of the CPU cores."""

import ctypes
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

import torch


def choose_device(name: str = "auto") -> torch.device:
    """CUDA, else MPS, else the CPU; or the named device. Raises ValueError if that one is not present."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"{name!r} names no device; there is {[k for k, there in present.items() if there]}"
        ) from error
    if not present.get(device.type, False):
        raise ValueError(
            f"device {name!r} is not present here; there is {[k for k, there in present.items() if there]}"
        )
    return device


def tune_malloc() -> None:
    """This process keeps the memory that it frees, where its C library can be told so (glibc).

    By default each step hands its large tensors back to the system and faults them in again, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # glibc's malloc.h
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def is_synchronous(device: torch.device) -> bool:
    """Whether an operation is done when its call returns; if not, reading a value waits for all before it."""
    return device.type == "cpu"


@contextmanager
def matmul_precision(precision: Literal["tf32", "ieee"], where: torch.device) -> Iterator[None]:
    """In this block CUDA takes float32 products in this precision; other devices are left alone."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv) if where.type == "cuda" else ()  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = precision
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            part.fp32_precision = old


def cpu_quota(root: Path = Path("/")) -> float:
    """How many CPU cores' time this process may use, as its container says (Linux control groups); else infinity.

    Args:
        root: of the file system that is read.
    """
    return min((_quota(group) for group in _control_groups(root)), default=math.inf)


# in a line of mountinfo: the group that is mounted and where, version and options of the file system
MOUNTED_GROUP = re.compile(r"(?m)^\S+ \S+ \S+ (\S+) (\S+) .* - cgroup(2?) \S+ (\S+)$")


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of the groups that limit this process's CPU time, and of the groups around them; version 1 and 2."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text()
    except OSError:  # another system than Linux
        return
    # The path of this process's group by controller. Version 2 has one group for all controllers, and names none.
    paths: dict[str, PurePosixPath] = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for top, mount, version, options in re.findall(MOUNTED_GROUP, mounts):
        group = paths.get("" if version == "2" else "cpu")
        if group is not None and (version == "2" or "cpu" in options.split(",")):
            # A container may see its own group alone, mounted, while its path is still told as from outside.
            inside = group.relative_to(top) if group.is_relative_to(top) else PurePosixPath()
            yield from (root / mount.lstrip("/") / part for part in (inside, *inside.parents))


def _quota(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:  # a group that sets no limit, such as the outermost
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
