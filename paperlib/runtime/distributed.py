"""Several processes of one run: each does its part, and each has all results, as one process would."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")
Value = TypeVar("Value")


class PeerStoppedError(RuntimeError):
    """Another process of the same run stopped or cannot be reached, so this one cannot go on either."""


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


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process in the run, and how many share it."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def on_rank_zero(action: Callable[[], Value]) -> Value:
    """Run `action` in the first process only; in every process return its value, or raise its OSError or ValueError."""
    rank, count = rank_and_world_size()
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


def distributed_map(work: Callable[[Item], Value], items: Sequence[Item]) -> Iterator[Value]:
    """`work` of each item, in order, in every process; inside `process_group` each process computes its share.

    Call it in all processes with the same items. Values are sent by pickle.

    Raises: what `work` raises, in the process where it fails; PeerStoppedError with its message in all others.
    """
    rank, count = rank_and_world_size()
    if count == 1:
        yield from map(work, items)
        return
    # In rounds of one item for each process, so that a failure ends all processes after that round.
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
