"""Data sets in memory, of the library and of its users: examples, and the range of their values."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from paperlib.threats.balls import LinfBall
from paperlib.threats.l1_ball import L1Ball
from paperlib.threats.l2_ball import L2Ball
from paperlib.threats.perturbation import PerturbationSet

Array = Tensor | np.ndarray
Norm = Literal["linf", "l2", "l1"]
# by the norm
BALLS: dict[str, Callable[[float, float, float], PerturbationSet]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}


class DataError(ValueError):
    """A data file is missing, truncated or altered; names the file, the expected and the found checksum."""


@dataclass(frozen=True, init=False)
class Dataset:
    """Examples and the range of their values: none lies outside [low, high], and perturbations are clipped to it.

    Args:
        name: what captions and rows say.
        x: [count, *shape]. Arrays, which numpy makes float64, and whole numbers become float32, the models' precision;
            a tensor of floats is taken as it is, one of float64 for a float64 model. Nothing is scaled.
        y: classes, [count], where there are any; they become int64.
        low, high: the range in the data's own units, rounded to the precision of x; [0, 1] is that of pixels.

    Raises ValueError, naming the first offender, if x is not [count, *shape] with an example, holds a value that is not
    finite or not in [low, high], or y has another length; and unless low < high.
    """

    name: str
    x: Tensor
    y: Tensor | None
    low: float
    high: float

    def __init__(self, name: str, x: Array, y: Array | None = None, low: float = 0.0, high: float = 1.0):
        x = _floats(x)
        if x.ndim < 2 or x.numel() == 0:
            raise ValueError(f"the examples of {name} must be [count, *shape], got {list(x.shape)}")
        if y is not None and len(y) != len(x):
            raise ValueError(f"{name} has {len(x)} examples and {len(y)} classes")
        # The largest value of a float64 array may be its own high: both are rounded, or it would lie outside.
        low, high = (torch.tensor(float(end), dtype=x.dtype).item() for end in (low, high))
        try:
            LinfBall(0.0, low, high).check(x)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; scale the data, or give their range as low and high") from error
        classes = torch.from_numpy(np.array(y, dtype=np.int64)) if isinstance(y, np.ndarray) else y
        classes = None if classes is None else classes.long()
        for field, value in {"name": name, "x": x, "y": classes, "low": low, "high": high}.items():
            object.__setattr__(self, field, value)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @overload
    def ball(self, eps: float, norm: Literal["linf"] = "linf") -> LinfBall: ...
    @overload
    def ball(self, eps: float, norm: Norm) -> PerturbationSet: ...
    def ball(self, eps: float, norm: Norm = "linf") -> PerturbationSet:
        """The ball of this radius in this norm, clipped to the range of the data. Raises ValueError for other norms."""
        if norm not in BALLS:
            raise ValueError(f"there is no ball in the norm {norm!r}; use one of {', '.join(map(repr, BALLS))}")
        return BALLS[norm](eps, self.low, self.high)


def _floats(x: Array) -> Tensor:
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiub":
            raise ValueError(f"data must be numbers, got an array of {x.dtype}")
        return torch.from_numpy(np.array(x, dtype=np.float32))  # a copy: the array may be read-only, or change
    return x if x.is_floating_point() else x.float()


def load_array(path: Path, low: float = 0.0, high: float = 1.0) -> Dataset:
    """The array [count, *shape] of a .npy file. Its name is that of the file with the range and the beginning of the
    file's SHA-256, so that results of one can never pass for those of another.

    Raises FileNotFoundError, DataError for a file without an array, and ValueError as `Dataset`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        array = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of several arrays")
    except (EOFError, ValueError, BadZipFile) as error:
        raise DataError(f"{path} holds no array ({error}): write one by numpy.save") from error
    return Dataset(f"{path.name} [{low}, {high}] {file_checksum(path)[:12]}", array, None, low, high)


def file_checksum(path: Path) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
