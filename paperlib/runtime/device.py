"""What a run computes on: its device, the precision of its matrix products, its memory."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
