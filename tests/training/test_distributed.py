"""Several processes train one model: the result of one alone, one writer, and nobody left waiting for a lost one.

Real processes on this machine, as torchrun starts them, that talk through gloo.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from children import ranks
from safetensors import SafetensorError
from test_loop import weights
from test_resume import SMALL, at_epoch, content, run
from torch import distributed

from paperlib import TrainConfig
from paperlib.runtime import files
from paperlib.runtime.distributed import on_rank_zero, process_group, rank_and_world_size
from paperlib.runtime.files import read_tensors
from paperlib.training.loop import TrainResult

FIFTY = replace(SMALL, steps=50)  # ten epochs of five steps


def numbers(result: TrainResult) -> tuple[np.ndarray, np.ndarray]:
    return weights(result.vae).numpy(), result.history.to_numpy()


def shared(folder: Path | None, config: TrainConfig = FIFTY) -> tuple[np.ndarray, np.ndarray]:
    with process_group(timedelta(seconds=30)):
        return numbers(run(folder, config))


def assert_close(actual: Any, expected: tuple[np.ndarray, np.ndarray]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(other)


@pytest.mark.parametrize(
    ("count", "config"),
    [
        (2, FIFTY),
        (2, replace(FIFTY, batch_size=33, bound="crown-ibp", kappa=0.0)),
        (3, replace(FIFTY, batch_size=7, lr=2e-3)),
    ],
    ids=["two halves", "17 and 16", "3, 2 and 2"],
)
def test_processes_that_share_each_batch_train_as_one(count: int, config: TrainConfig) -> None:
    outcomes = [child.ended() for child in ranks(count, shared, None, config)]
    assert [status for status, _ in outcomes] == [0] * count
    expected = numbers(run(None, config))
    for _, result in outcomes:
        assert_close(result, expected)
        for own, first in zip(result, outcomes[0][1], strict=True):
            assert np.array_equal(own, first), "all processes hold one model"


def each_in_its_own(folder: Path, config: TrainConfig = FIFTY) -> tuple[np.ndarray, np.ndarray]:
    return shared(folder / os.environ["RANK"], config)


def broken_off(folder: Path, rank: str, way: str) -> None:
    """One of the processes stops at the end of the third epoch; the others do not wait for it longer than 2 seconds."""

    def stop() -> None:
        if os.environ["RANK"] == rank:
            time.sleep(600) if way == "hangs" else os.kill(os.getpid(), signal.SIGKILL)

    with at_epoch(3, stop), process_group(timedelta(seconds=2)):
        run(folder / os.environ["RANK"], FIFTY)


@pytest.mark.parametrize(("rank", "way"), [("0", "is killed"), ("1", "is killed"), ("1", "hangs")])
def test_when_a_process_is_lost_the_others_say_so_and_the_run_goes_on_later(
    tmp_path: Path, rank: str, way: str
) -> None:
    children = ranks(2, broken_off, tmp_path, rank, way)
    lost, other = children[int(rank)], children[1 - int(rank)]
    status, (kind, message) = other.ended()
    assert (status, kind) == (1, "PeerStoppedError")
    assert message.startswith("another process of this run stopped or cannot be reached: run the same command again; ")
    epoch = 2 if rank == "0" else 3  # when the other is lost, the first still writes what it measured
    assert message.endswith(f"the checkpoint of epoch {epoch} is intact, and it goes on from there")
    if way == "hangs":
        lost.process.kill()
    assert lost.ended()[0] == -signal.SIGKILL
    assert read_tensors(tmp_path / "0" / "checkpoint.safetensors")[1]["step"] == 5 * epoch

    outcomes = [child.ended() for child in ranks(2, each_in_its_own, tmp_path)]
    expected = numbers(run(None, FIFTY))
    for status, result in outcomes:
        assert status == 0
        assert_close(result, expected)
    assert_close(numbers(run(tmp_path / "0", FIFTY)), expected)  # one process takes over what two have made
    assert sorted(content(tmp_path / "0")) == ["checkpoint.safetensors", "lock"]
    assert not (tmp_path / "1").exists(), "the first process alone writes, and the others go on from what it read"


def test_one_process_finishes_what_two_began(tmp_path: Path) -> None:
    children = ranks(2, broken_off, tmp_path, "1", "is killed")
    assert [child.ended()[0] for child in children] == [1, -signal.SIGKILL]
    assert_close(numbers(run(tmp_path / "0", FIFTY)), numbers(run(None, FIFTY)))


@pytest.mark.parametrize("reason", ["another configuration", "damaged", "not a folder"])
def test_a_folder_that_the_first_refuses_stops_all_with_its_error(tmp_path: Path, reason: str) -> None:
    run(tmp_path / "0")
    path = tmp_path / "0" / "checkpoint.safetensors"
    config = SMALL
    if reason == "another configuration":
        config = replace(SMALL, eps=0.2)
        expected = ("ConfigMismatchError", f"{path} was made by another configuration:\n  eps: found 0.05, wanted 0.2")
    elif reason == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
        expected = ("DamagedFileError", f"{path} is not a whole checkpoint of a run")
    else:
        (tmp_path / "0").rename(tmp_path / "aside")
        (tmp_path / "0").write_text("a file")
        expected = ("RunFolderError", f"no run can be kept in {tmp_path / '0'}")
    for child in ranks(2, each_in_its_own, tmp_path, config):
        status, (kind, message) = child.ended()
        assert (status, kind) == (1, expected[0])
        assert message.startswith(expected[1])


def full_disk(folder: Path) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    with at_epoch(3, patch.object(files, "save_file", full).start):
        each_in_its_own(folder)


def test_a_full_disk_under_the_first_stops_all_with_its_error(tmp_path: Path) -> None:
    for child in ranks(2, full_disk, tmp_path):
        status, (kind, message) = child.ended()
        assert (status, kind) == (1, "RunFolderError")
        assert "No space left on device" in message and "the checkpoint of epoch 2 is intact" in message


def test_a_batch_with_fewer_examples_than_processes_is_an_error() -> None:
    for child in ranks(2, shared, None, replace(SMALL, batch_size=1)):
        assert child.ended() == (1, ("ValueError", "a batch of 1 cannot be shared by 2 processes"))


def test_a_process_started_alone_trains_alone() -> None:
    with process_group():
        assert not distributed.is_initialized()
        assert rank_and_world_size() == (0, 1)
        assert on_rank_zero(lambda: "its own") == "its own"


SCRIPT = """
import sys
from test_distributed import SMALL, numbers, process_group, rank_and_world_size, run
with process_group():
    rank, count = rank_and_world_size()
    result = numbers(run(sys.argv[1], SMALL))
sys.stdout.write(f"rank {rank} of {count} ended with {result[1][-1, 0]:g} steps\\n")  # in one piece, unbuffered too
"""


def test_torchrun_starts_a_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*command, tmp_path / "script.py", tmp_path / "run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == [f"rank {rank} of 2 ended with 20 steps" for rank in (0, 1)]
    assert_close(numbers(run(tmp_path / "run")), numbers(run(None)))
