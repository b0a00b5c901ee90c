"""Processes that share the images of `certify`: the bits of one process in each of them, and no silent loss of one.

Real processes on this machine, as torchrun starts them, that talk through gloo.
"""

import os
import signal
import sys
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from children import IMPORTED, Child, ranks, start

from paperlib import IBP, LinfBall, certify, mlp_vae
from paperlib.certificates import evaluation
from paperlib.runtime.distributed import distributed_map, process_group, rank_and_world_size

COUNT, SIZE = 13, 3  # for each of two draws five chunks, the last of one image


def rows(bad: int | None = None, **how: Any) -> tuple[pd.DataFrame, int]:
    """The rows of two draws, and how many chunks this process has certified."""
    torch.manual_seed(0)
    x, noise, vae = torch.rand(COUNT, 12), torch.randn(2, COUNT, 3), mlp_vae((12,), (8,), 3)
    if bad is not None:
        x[bad] = 2.0
    generator = torch.Generator().manual_seed(0)
    attack = {"steps": 1, "restarts": 3, "generator": generator}
    with (
        process_group(timedelta(minutes=2)),
        patch.object(evaluation, "chunk_size", lambda *_: SIZE),
        patch.object(IBP, "lower", autospec=True, side_effect=IBP.lower) as lower,
    ):
        return certify(vae, x, LinfBall(0.5), noise, attack=attack, **how), lower.call_count


@pytest.mark.parametrize("count", [2, 3, 12])
def test_processes_that_share_the_chunks_return_the_bits_of_one(count: int) -> None:
    (_, (expected, all_of_them)), *shared_runs = [child.ended() for child in [start(rows), *ranks(count, rows)]]
    assert all_of_them == 10
    assert [status for status, _ in shared_runs] == [0] * count
    for rank, (_, (shared, certified)) in enumerate(shared_runs):
        pd.testing.assert_frame_equal(shared, expected, check_exact=True)
        assert certified == len(range(rank, 10, count))


def test_an_error_in_one_process_stops_all_and_all_say_why() -> None:
    children = ranks(2, rows, 4)  # the image is in the second chunk, which the second process takes
    (first, (kind, message)), (second, (own_kind, own_message)) = [child.ended() for child in children]
    assert (first, second) == (1, 1)
    assert own_kind == "ValueError" and "finite" in own_message
    assert kind == "PeerStoppedError"
    assert message == f"process 1 of this run stopped: ValueError: {own_message}"


def lost(rank: int) -> None:
    def stop(item: int) -> int:
        if rank_and_world_size()[0] == rank and item >= 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with process_group(timedelta(minutes=2)):
        list(distributed_map(stop, range(9)))


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_is_killed_the_other_says_so(rank: int) -> None:
    children: list[Child] = ranks(2, lost, rank)
    assert children[rank].ended()[0] == -signal.SIGKILL
    status, (kind, message) = children[1 - rank].ended()
    assert (status, kind) == (1, "PeerStoppedError")
    assert message == "another process of this run stopped or cannot be reached"


def not_imported() -> list[str]:
    return [name for name in IMPORTED if name not in sys.modules]


def test_children_start_with_everything_imported() -> None:
    assert start(not_imported).ended() == (0, [])


def test_a_process_alone_takes_all_items_one_by_one() -> None:
    taken: list[int] = []
    results = distributed_map(lambda item: taken.append(item) or -item, range(5))
    assert next(results) == 0 and taken == [0], "none before it is asked for"
    assert list(results) == [-1, -2, -3, -4]
