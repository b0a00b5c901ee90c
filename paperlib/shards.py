"""Work that the processes of a run share: each does its part, and each has all results, as one process would."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import distributed

from paperlib.compute import processes
from paperlib.run import PeerStoppedError

Item = TypeVar("Item")
Value = TypeVar("Value")


def dealt(work: Callable[[Item], Value], items: Sequence[Item]) -> Iterator[Value]:
    """`work` of each item, in order, in every process; inside `process_group` they take turns with the items.

    Call it in all processes with the same items. Values travel by pickle.

    Raises: in the process that fails whatever `work` raises; PeerStoppedError, with its words, in all others.
    """
    rank, count = processes()
    if count == 1:
        yield from map(work, items)
        return
    # In rounds of one item for each process, so that a failure is known after a round and none waits for longer.
    for start in range(0, len(items), count):
        own: list[Value] = []
        failed: Exception | None = None
        try:
            own = [work(item) for item in items[start + rank : start + count : count]]
        except Exception as error:
            failed = error
        shared: list[Any] = [None] * count
        try:
            distributed.all_gather_object(shared, (own, failed and f"{type(failed).__name__}: {failed}"))
        except RuntimeError as error:
            raise PeerStoppedError("another process of this run stopped or cannot be reached") from failed or error
        if failed is not None:
            raise failed
        for peer, (_, words) in enumerate(shared):
            if words is not None:
                raise PeerStoppedError(f"process {peer} of this run stopped: {words}")
        for values, _ in shared:
            yield from values
