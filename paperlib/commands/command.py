"""What a command is, and what commands share."""

from abc import ABC, abstractmethod
from pathlib import Path

from paperlib.data.arrays import Dataset, load_array
from paperlib.runtime.distributed import rank_and_world_size


class Command(ABC):
    """A dataclass whose fields are flags, and whose docstrings are their help."""

    @abstractmethod
    def run(self) -> None:
        """Raises one of `paperlib.__main__.ERRORS` for what its user can mend."""


def say(text: str) -> None:
    """Print lines at once; of several processes that share a command, only the first speaks."""
    if rank_and_world_size()[0] == 0:
        print(text, flush=True)


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
