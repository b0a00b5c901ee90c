"""What a command is, and what commands share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from paperlib.data.arrays import Dataset, load_array
from paperlib.runtime.distributed import rank_and_world_size
from paperlib.threats.directions import lighting
from paperlib.threats.patch import PatchSet
from paperlib.threats.perturbation import PerturbationSet


class BadInputError(ValueError):
    """A file or a flag that the user gave cannot be used; nothing was written."""


@contextmanager
def user_input() -> Iterator[None]:
    """A block that reads what the user gave: what is wrong there is a BadInputError."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise BadInputError(error) from error


class Command(ABC):
    """A dataclass whose fields are flags, and whose docstrings are their help."""

    @abstractmethod
    def run(self) -> None:
        """Raises one of `paperlib.__main__.ERRORS` for what its user can mend."""


def say(text: str) -> None:
    """Print lines at once; of several processes that share a command, only the first speaks."""
    if rank_and_world_size()[0] == 0:
        print(text, flush=True)


Threat = Literal["linf", "l2", "l1", "patch", "lighting"]


def perturbation_set(threat: Threat, eps: float, data: Dataset) -> PerturbationSet:
    """The set of --threat and --eps in the range of the data.

    Raises ValueError for a patch whose side is no whole number, and for lighting of data that are not in [0, 1].
    """
    if threat == "patch":
        if not float(eps).is_integer():
            raise ValueError(f"--threat patch: --eps is the side of the patch in whole pixels, got {eps:g}")
        return PatchSet(int(eps), int(eps), low=data.low, high=data.high)
    if threat == "lighting":
        if (data.low, data.high) != (0.0, 1.0):
            raise ValueError(f"--threat lighting is for pixels in [0, 1], these are in [{data.low:g}, {data.high:g}]")
        return lighting(eps, eps)
    return data.ball(eps, threat)


def own_data(path: Path | None, low: float, high: float, dataset: str | None) -> Dataset | None:
    """The data set of --data, --low and --high beside --dataset; None without --data.

    Raises ValueError for flags that contradict each other, and as `load_array`.
    """
    if path is None:
        if (low, high) != (0.0, 1.0):
            raise ValueError("--low and --high are the range of --data; the library's data sets have their own")
        return None
    if dataset is not None:
        raise ValueError(f"give --data or --dataset, not both: got {path} and {dataset}")
    return load_array(path, low, high)
