"""A training run that goes on after its process has ended: its state, the folder that keeps it, and its errors."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed

from paperlib.models.vae import VAE
from paperlib.runtime.distributed import PeerStoppedError, on_rank_zero
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError, locked, read_tensors, write_tensors

Snapshot = tuple[dict[str, Tensor], int, list[dict[str, float]], float]  # the arguments of State.restore


class RunFolderError(OSError):
    """The folder of a run cannot be used; says why and what to do. The last whole checkpoint is intact."""


@dataclass
class State:
    """All that the next step depends on, and the history so far.

    `average` is the moving average of the weights of `vae`, where a run takes one, and `good` the result as it was at
    the end of the last epoch.

    Torch's global generator is no part of it: a model with dropout does not continue to the same bits.
    """

    vae: VAE
    good: VAE
    optimizer: torch.optim.Adam
    generator: torch.Generator
    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    saved: int = 0  # epochs that the checkpoint in the run's folder holds
    seconds: float = 0.0  # of training up to the end of the last epoch, interruptions not counted
    average: VAE | None = None

    @property
    def result(self) -> VAE:
        """What the training is for: the average where there is one, else the model itself."""
        return self.vae if self.average is None else self.average

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * vae  of all weights; the statistics of layers are copied."""
        if self.average is None:
            return
        torch._foreach_lerp_([*self.average.parameters()], [*self.vae.parameters()], 1 - decay)
        for old, new in zip(self.average.buffers(), self.vae.buffers(), strict=True):
            old.copy_(new)

    def tensors(self) -> dict[str, Tensor]:
        moments = self.optimizer.state_dict()["state"]
        average = {} if self.average is None else self.average.state_dict()
        return {
            **{f"vae.{name}": tensor for name, tensor in self.vae.state_dict().items()},
            **{f"average.{name}": tensor for name, tensor in average.items()},
            **{f"adam.{index}.{name}": tensor for index in moments for name, tensor in moments[index].items()},
            "generator": self.generator.get_state(),
        }

    def restore(self, tensors: Mapping[str, Tensor], step: int, rows: list[dict[str, float]], seconds: float) -> None:
        """Take over a stored state, to the bit: the inverse of `tensors`, and the other fields of these names."""
        weights: dict[str, Tensor] = {}
        average: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "vae":
                weights[name] = tensor
            elif kind == "average":
                average[name] = tensor
            elif kind == "adam":
                index, _, moment = name.partition(".")
                moments[int(index)][moment] = tensor
        self.vae.load_state_dict(weights)
        if self.average is not None:
            self.average.load_state_dict(average)
        self.good.load_state_dict(self.result.state_dict())
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(tensors["generator"])
        self.step, self.rows, self.saved, self.seconds = step, rows, len(rows), seconds


def tensor_digest(tensors: Mapping[str, Tensor], about: object = None) -> str:
    """SHA-256 of tensors with their names, types and shapes, and of `about`, in JSON types."""
    sha256 = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha256.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


@contextmanager
def resumable(folder: str | Path | None, state: State, identity: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """A block in which a run owns `folder`: `state` is restored from its checkpoint; yields a function that saves.

    `checkpoint.safetensors` is whole at any moment. Of several processes that share a run, only the first reads, writes
    and holds the lock; its errors are raised in all of them. Without a folder nothing is stored.

    Args:
        identity: all that determines the result of the run, in JSON types.

    Raises:
        RunFolderError: another process holds the folder, or it cannot be written.
        DamagedFileError: the checkpoint is truncated or altered.
        ConfigMismatchError: the checkpoint has another identity; shows what differs.
    """
    if folder is None:
        yield lambda: None
        return
    path = Path(folder) / "checkpoint.safetensors"
    with ExitStack() as stack:

        def lock_and_read() -> Snapshot | None:
            _lock(path, stack)
            return _read(path, identity)

        def save() -> None:
            on_rank_zero(lambda: _write(path, state, identity))
            state.saved = len(state.rows)

        snapshot = on_rank_zero(lock_and_read)
        if snapshot is not None:
            state.restore(*snapshot)
        yield save


def _lock(path: Path, stack: ExitStack) -> None:
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(folder / "lock"))
        for half_written in folder.glob(f".{path.stem}-*{path.suffix}"):  # by a process that was killed
            half_written.unlink()
    except BlockingIOError as error:
        raise RunFolderError(
            f"another process trains in {folder}: wait until it ends, or give this run a folder of its own"
        ) from error
    except OSError as error:
        raise RunFolderError(f"no run can be kept in {folder} ({error}): name a folder that can be written") from error


def _read(path: Path, identity: dict[str, Any]) -> Snapshot | None:
    try:
        tensors, header = read_tensors(path)
        header = dict(header)
        if header.pop("digest") != tensor_digest(tensors, header):
            raise DamagedFileError("its content is not what was written")
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} is not a whole checkpoint of a run ({error}): move it away to start over"
        ) from error
    if header["config"] != identity:
        raise ConfigMismatchError(path, header["config"], identity)
    seconds = header.get("seconds", 0.0)  # which older checkpoints do not have
    return tensors, header["step"], [dict(row) for row in header["rows"]], seconds


def _write(path: Path, state: State, identity: dict[str, Any]) -> None:
    tensors = state.tensors()
    # rows as pairs: JSON objects are written in alphabetical order, and columns have their own
    rows = [list(row.items()) for row in state.rows]
    header = {"config": identity, "step": state.step, "rows": rows, "seconds": state.seconds}
    try:
        write_tensors(path, tensors, {**header, "digest": tensor_digest(tensors, header)})
    except (OSError, SafetensorError) as error:
        full = "No space left" in str(error) or "quota exceeded" in str(error)
        raise RunFolderError(
            f"the checkpoint of epoch {len(state.rows)} cannot be written to {path} ({error}): "
            f"{'free space there and ' if full else 'mend this and '}run the same command again; {_advice(state)}"
        ) from error
    state.saved = len(state.rows)  # here, too: the other processes may be lost before this block ends in them


def _advice(state: State) -> str:
    if not state.saved:
        return "there is no earlier checkpoint, so it starts over"
    return f"the checkpoint of epoch {state.saved} is intact, and it goes on from there"


@contextmanager
def translate_peer_errors(state: State) -> Iterator[None]:
    """Turns the error that follows when another process of the run stops into PeerStoppedError, with advice."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors are plain RuntimeErrors that name its sources
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise PeerStoppedError(
            f"another process of this run stopped or cannot be reached: run the same command again; {_advice(state)}"
        ) from error
