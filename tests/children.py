"""Processes that tests may kill: they start within milliseconds, forked from a server that has imported everything."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

IMPORTED = ["torch._dynamo", "test_resume", "test_distributed"]  # Adam imports the first when it is made
THEIR_FOLDER = Path(__file__).with_name("training")  # not in sys.path when other tests run alone


@dataclass
class Child:
    process: BaseProcess
    pipe: Connection

    def ended(self, seconds: float = 60) -> tuple[int, Any]:
        """Exit status, and what its function returned, or the name and the message of what it raised."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"the child was still running after {seconds} seconds")
        try:
            return self.process.exitcode, self.pipe.recv()
        except EOFError:
            return self.process.exitcode, None


def start(function: Callable[..., Any], *args: object, **environment: str) -> Child:
    """Call a function of a test module in a process of its own."""
    here, there = _server().Pipe(duplex=False)
    process = _server().Process(target=_call, args=(there, environment, function, args), daemon=True)
    process.start()
    there.close()
    return Child(process, here)


def ranks(count: int, function: Callable[..., Any], *args: object) -> list[Child]:
    """Call a function in as many processes as torchrun would start, with its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    return [start(function, *args, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(THEIR_FOLDER)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PAPERLIB_LOG", os.devnull)
        forkserver.ensure_running()
    return context


def _call(pipe: Connection, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    try:
        pipe.send(function(*args))
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))
        sys.exit(1)


def alive(process: int) -> bool:
    """Whether it is at work, and not one that has ended and that nobody has asked for."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
