"""A run in a folder: killed, cut short or refused at any moment, it ends with the bits of one that was left alone."""

import errno
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from children import start
from safetensors import SafetensorError
from test_loop import CONFIG, stripes, weights
from torch import nn

from paperlib import VAE, Bernoulli, TrainConfig, save, train
from paperlib.runtime import files
from paperlib.runtime.distributed import PeerStoppedError
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError, read_tensors, write_tensors
from paperlib.training import loop
from paperlib.training.loop import TrainingDivergedError, TrainResult
from paperlib.training.resume import RunFolderError, tensor_digest

SMALL = replace(CONFIG, hidden=(8,))  # four epochs of five steps
LONG = replace(SMALL, steps=400)


def run(folder: Path | None, config: TrainConfig = SMALL, **how: Any) -> TrainResult:
    return train(config, **{"data": stripes(), "device": "cpu", "folder": folder, **how})


@cache
def alone(config: TrainConfig = SMALL) -> TrainResult:
    return run(None, config)


def assert_same_bits(actual: TrainResult, expected: TrainResult) -> None:
    one, two = actual.vae.state_dict(), expected.vae.state_dict()
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    pd.testing.assert_frame_equal(actual.history, expected.history, check_exact=True)


@contextmanager
def at_epoch(number: int, happens: Callable[[], object]) -> Iterator[None]:
    """Something happens at the end of the epoch of this number, counted from one in this process."""
    real, calls = loop._measure, count(1)

    def measure(*args: Any) -> object:
        if next(calls) == number:
            happens()
        return real(*args)

    with patch.object(loop, "_measure", measure):
        yield


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder with the checkpoint of two epochs of SMALL."""
    with at_epoch(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert read_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 10
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- resumed to the bit


def test_a_folder_changes_no_bit_and_holds_one_file_and_a_lock(tmp_path: Path) -> None:
    assert_same_bits(run(tmp_path / "a" / "run"), alone())
    assert sorted(content(tmp_path / "a" / "run")) == ["checkpoint.safetensors", "lock"]


def test_the_seconds_of_all_calls_are_counted_and_kept(begun: Path) -> None:
    before = read_tensors(begun / "checkpoint.safetensors")[1]["seconds"]
    clock = iter(range(1_000))
    with patch.object(loop, "perf_counter", lambda: float(next(clock))):
        seconds = run(begun).seconds
    assert seconds == pytest.approx(before + next(clock) - 1, abs=1e-9) and 0 < before < seconds
    assert run(begun).seconds == seconds


def test_the_folder_may_be_a_string(tmp_path: Path) -> None:
    train(SMALL, data=stripes(), device="cpu", folder=str(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    """Each comes up to a whole epoch after a checkpoint was written: in a step, in measuring or in writing."""
    checkpoint_file, chance = tmp_path / "run" / "checkpoint.safetensors", random.Random(0)
    kept = []
    for _ in range(10):
        before = checkpoint_file.stat().st_mtime_ns if checkpoint_file.exists() else None
        child = start(run, tmp_path / "run", LONG)
        while not checkpoint_file.exists() or checkpoint_file.stat().st_mtime_ns == before:
            assert child.process.is_alive()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        child.process.kill()
        assert child.ended()[0] == -signal.SIGKILL
        kept.append(read_tensors(checkpoint_file)[1]["step"])
    assert kept == sorted(set(kept)) and kept[-1] < LONG.steps, "each child went on from the one before"
    assert_same_bits(run(tmp_path / "run", LONG), alone(LONG))


def killed_in_writing(folder: Path, moment: str) -> None:
    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(_: object, path: Path, *__: object) -> None:
        path.write_bytes(b"half a file")
        kill()

    def replaced(source: Path, target: Path) -> None:
        os.rename(source, target)
        kill()

    function, killing = {
        "in the middle of the file": ((files, "save_file"), half),
        "before it takes its place": ((os, "replace"), kill),
        "after it took its place": ((os, "replace"), replaced),
    }[moment]
    with at_epoch(2, patch.object(*function, killing).start):
        run(folder)


@pytest.mark.parametrize(
    ("moment", "steps", "left"),
    [("in the middle of the file", 5, 1), ("before it takes its place", 5, 1), ("after it took its place", 10, 0)],
)
def test_a_kill_while_the_checkpoint_is_written(tmp_path: Path, moment: str, steps: int, left: int) -> None:
    assert start(killed_in_writing, tmp_path, moment).ended()[0] == -signal.SIGKILL
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == steps
    assert len(list(tmp_path.glob(".checkpoint-*"))) == left
    assert_same_bits(run(tmp_path), alone())
    assert sorted(content(tmp_path)) == ["checkpoint.safetensors", "lock"], "what the killed one left is cleared away"


def own() -> VAE:
    """With buffers that training moves, and a layer that it does not."""
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
    encoder[0].requires_grad_(False)
    return VAE(encoder, nn.Sequential(nn.Linear(2, 16)), Bernoulli(), 2)


@pytest.mark.parametrize(
    ("config", "vae"),
    [
        (replace(SMALL, bound="crown-ibp", target="clean", likelihood="gaussian"), None),
        (replace(SMALL, steps=13), None),
        (replace(SMALL, kappa=1.0, eps=0.0), own()),
    ],
    ids=["linear bounds", "a last epoch cut short", "a model of the user's own"],
)
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_whatever_is_trained_goes_on_to_the_bit(
    tmp_path: Path, config: TrainConfig, vae: VAE | None, epoch: int
) -> None:
    expected = run(None, config, vae=vae)
    with at_epoch(epoch, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, vae=vae)
    assert (tmp_path / "checkpoint.safetensors").exists() == (epoch > 1)
    assert_same_bits(run(tmp_path, config, vae=vae), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_cuda_goes_on_where_it_was(tmp_path: Path) -> None:
    expected = run(None, device="cuda")
    with at_epoch(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        run(tmp_path, device="cuda")
    resumed = run(tmp_path, device="cuda")
    assert resumed.history["step"].tolist() == [5, 10, 15, 20]
    torch.testing.assert_close(weights(resumed.vae), weights(expected.vae), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigMismatchError, match="device: found 'cuda', wanted 'cpu'"):
        run(tmp_path)


def test_a_finished_run_is_returned_without_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    before = content(tmp_path)
    for name in ("_epoch", "_measure"):
        monkeypatch.setattr(loop, name, None)
    again = run(tmp_path)
    assert_same_bits(again, alone())
    assert not again.vae.training and content(tmp_path) == before


def test_a_run_that_diverges_after_a_break_still_holds_the_last_good_epoch(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_measure", lambda *_: {"clean": torch.nan, "certified": torch.nan})
    before = content(begun)
    with pytest.raises(TrainingDivergedError, match=r"step 14: training diverged.*2 epochs") as caught:
        run(begun)
    tensors, _ = read_tensors(begun / "checkpoint.safetensors")
    for name, tensor in caught.value.result.vae.state_dict().items():
        assert torch.equal(tensor, tensors[f"vae.{name}"])
    pd.testing.assert_frame_equal(caught.value.result.history, alone().history[:2], check_exact=True)
    assert content(begun) == before


# ---- stopped by Ctrl-C, a full disk or a folder that cannot be written


def test_ctrl_c_while_the_checkpoint_is_written_leaves_the_last_one(begun: Path) -> None:
    def interrupted(_: object, path: Path, *__: object) -> None:
        path.write_bytes(b"half a file")
        press_ctrl_c()

    before = content(begun)
    with patch.object(files, "save_file", interrupted), pytest.raises(KeyboardInterrupt):
        run(begun)
    assert content(begun) == before
    assert_same_bits(run(begun), alone())


FULL = r"epoch {} cannot be written to .*checkpoint\.safetensors .*free space there and run the same command again; "


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=["of the system", "of safetensors"],
)
def test_a_full_disk_is_one_error_that_says_what_to_do(begun: Path, error: Exception) -> None:
    def full(*_: object) -> None:
        raise error

    before = content(begun)
    with patch.object(files, "save_file", full), pytest.raises(RunFolderError) as caught:
        run(begun)
    assert caught.match(FULL.format(3) + "the checkpoint of epoch 2 is intact, and it goes on from there")
    assert caught.match("No space left on device") and caught.value.__cause__ is error
    assert content(begun) == before
    assert_same_bits(run(begun), alone())


def test_a_disk_that_is_full_from_the_start_promises_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(RunFolderError, match=FULL.format(1) + "there is no earlier checkpoint, so it starts over"):
        run(tmp_path)


def no_room(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write past the limit fails instead of killing
    with at_epoch(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))):
        run(folder)


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    status, (kind, message) = start(no_room, tmp_path).ended()
    assert (status, kind) == (1, "RunFolderError")
    assert "epoch 3 cannot be written" in message and "the checkpoint of epoch 2 is intact" in message
    assert "File too large" in message
    assert sorted(content(tmp_path)) == ["checkpoint.safetensors", "lock"]
    assert_same_bits(run(tmp_path), alone())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("the user's own")
    with pytest.raises(RunFolderError, match=r"no run can be kept in .*file/run .*name a folder that can be written"):
        run(tmp_path / "file" / "run")
    assert content(tmp_path) == {"file": b"the user's own"}


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("paperlib.runtime.files.open", refuse, raising=False)
    with pytest.raises(RunFolderError, match=r"no run can be kept in .*run .*Permission denied.*lock"):
        run(tmp_path / "run")


# ---- refused, and nothing touched


def hold(folder: Path) -> None:
    with at_epoch(2, lambda: time.sleep(600)):
        run(folder)


def test_a_folder_belongs_to_one_run_until_its_process_ends(tmp_path: Path) -> None:
    child = start(hold, tmp_path)
    while not (tmp_path / "checkpoint.safetensors").exists():
        assert child.process.is_alive()
        time.sleep(0.01)
    before = content(tmp_path)
    for _ in range(2):
        with pytest.raises(RunFolderError, match=f"another process trains in {tmp_path}: wait until it ends"):
            run(tmp_path)
    assert content(tmp_path) == before
    child.process.kill()
    child.process.join()
    assert_same_bits(run(tmp_path), alone())


@pytest.mark.parametrize("field", [{"eps": 0.2}, {"seed": 3}, {"steps": 25}])
def test_a_checkpoint_of_another_configuration_is_refused(begun: Path, field: dict[str, Any]) -> None:
    ((name, value),) = field.items()
    before = content(begun)
    with pytest.raises(ConfigMismatchError) as caught:
        run(begun, replace(SMALL, **field))
    assert f"  {name}: found {getattr(SMALL, name)!r}, wanted {value!r}" in str(caught.value)
    assert str(begun) in str(caught.value) and "kappa" not in str(caught.value)
    assert content(begun) == before


@pytest.mark.parametrize("change", ["name", "one pixel", "range"])
def test_a_checkpoint_of_other_data_is_refused(begun: Path, change: str) -> None:
    data = stripes()
    if change == "one pixel":
        data.x[3, 4] += 1e-6
    else:
        narrower = {"high": data.x.max().item()}
        data = replace(data, **({"name": "spots"} if change == "name" else narrower))  # type: ignore[arg-type]
    before = content(begun)
    with pytest.raises(
        ValueError, match=r"checkpoint\.safetensors.*\n  data: found 'stripes in \[0\.0, 1\.0\], SHA-256 \w{64}'"
    ):
        run(begun, data=data)
    assert content(begun) == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = replace(SMALL, kappa=1.0, eps=0.0)
    run(tmp_path, config, vae=own())
    before = content(tmp_path)
    trained, other = run(None, config, vae=own()).vae, own()
    other.encoder[2] = nn.Sigmoid()  # type: ignore[operator]
    for vae in (None, trained, other):
        with pytest.raises(ConfigMismatchError, match="own model: found 'SHA-256"):
            run(tmp_path, config, vae=vae)
    assert content(tmp_path) == before


@pytest.mark.parametrize("part", ["half", "no end", "nothing", "garbage", "weight", "history", "model", "foreign"])
def test_a_damaged_checkpoint_is_refused_and_kept(begun: Path, part: str) -> None:
    path = begun / "checkpoint.safetensors"
    whole = path.read_bytes()
    row = whole.index(b"clean")
    if part == "model":
        save(path, SMALL.build(), SMALL)
    elif part == "foreign":
        write_tensors(path, {}, {})
    else:
        damaged = {
            "half": whole[: len(whole) // 2],
            "no end": whole[:-1],
            "nothing": b"",
            "garbage": random.Random(0).randbytes(len(whole)),
            "weight": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
            "history": whole[:row] + whole[row:].replace(b"5", b"6", 1),
        }[part]
        assert damaged != whole
        path.write_bytes(damaged)
    before = content(begun)
    with pytest.raises(DamagedFileError, match=r"checkpoint\.safetensors .*: move it away to start over") as caught:
        run(begun)
    assert str(begun) in str(caught.value) and content(begun) == before
    path.rename(begun / "aside")
    assert_same_bits(run(begun), alone())


def test_the_digest_tells_apart_names_types_shapes_bytes_and_what_is_said() -> None:
    x = torch.arange(6, dtype=torch.float32)
    variants = [
        tensor_digest({"x": x}),
        tensor_digest({"y": x}),
        tensor_digest({"x": x.view(torch.int32)}),
        tensor_digest({"x": x.view(2, 3)}),
        tensor_digest({"x": x.flip(0)}),
        tensor_digest({"x": x}, "said"),
    ]
    assert len(set(variants)) == len(variants)
    assert tensor_digest({"x": x[::2]}) == tensor_digest({"x": x[::2].clone()}), "the layout in memory does not count"


def test_only_the_error_of_a_lost_peer_is_called_one(tmp_path: Path) -> None:
    def lost() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:2440")

    def own_fault() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with at_epoch(2, own_fault), pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        run(tmp_path)
    assert caught.type is RuntimeError
    with at_epoch(2, lost), pytest.raises(PeerStoppedError, match="the checkpoint of epoch 2 is intact"):
        run(tmp_path)
