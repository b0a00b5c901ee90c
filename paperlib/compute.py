"""What a run computes on: its device and memory, the precision of products, the processes that share the work."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


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


def keep_memory() -> None:
    """This process keeps the memory that it frees, where its C library can be told so (glibc).

    By default each step hands its large tensors back to the system and faults them in again, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # glibc's malloc.h
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def reading_is_free(device: torch.device) -> bool:
    """Whether the value of a tensor is there to read; elsewhere reading it waits for all that was asked before."""
    return device.type == "cpu"


@contextmanager
def products_in(precision: Literal["tf32", "ieee"], where: torch.device) -> Iterator[None]:
    """On CUDA float32 products are taken in this precision, and afterwards as before; elsewhere nothing changes."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv) if where.type == "cuda" else ()  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = precision
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            part.fp32_precision = old


@contextmanager
def process_group(timeout: timedelta = timedelta(minutes=5)) -> Iterator[None]:
    """In this block the processes that torchrun started train together; a process started alone trains alone.

    Args:
        timeout: how long one process waits for another before it ends with an error.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout)
    if distributed.get_rank() > 0:
        os.environ["PAPERLIB_LOG"] = os.devnull  # bars of several processes would write over each other
    try:
        yield
    finally:
        distributed.destroy_process_group()


def processes() -> tuple[int, int]:
    """The rank of this process in the run, and how many share it."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def by_first(action: Callable[[], Value]) -> Value:
    """What the first process gets from `action`, in every process; the OSError or ValueError that it raises, too."""
    rank, count = processes()
    if count == 1:
        return action()
    outcome: list[Any] = [None, None]
    failed: Exception | None = None
    if rank == 0:
        try:
            outcome[0] = action()
        except (OSError, ValueError) as error:
            failed = error
            outcome[1] = type(error), str(error)
    distributed.broadcast_object_list(outcome)
    if failed is not None:
        raise failed
    if outcome[1] is not None:
        kind, message = outcome[1]
        raise kind.__new__(kind, message)  # past its own __init__, which may ask for more than a message
    return outcome[0]
