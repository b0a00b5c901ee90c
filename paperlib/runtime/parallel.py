"""Independent tasks in processes of one torch thread each: faster than one task at a time on several threads.

A task's result does not depend on how many run beside it, or where: more cores give the same bytes sooner.
"""

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from paperlib.runtime.device import cpu_quota, tune_malloc
from paperlib.runtime.progress import Progress, Reporter, TaskProgress, received

Item = TypeVar("Item")
Value = TypeVar("Value")


class TaskError(RuntimeError):
    """What a task raised, or how its process ended, as a message: not every exception can be sent between processes."""


class TasksFailedError(RuntimeError):
    """Some tasks failed. It is raised when all others are done, and names each failed item with its error."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """The result of one item: its value, or the error that ended its task."""

    item: Item
    value: Value | None = None
    error: TaskError | None = None


def outcomes(
    task: Callable[[Item], Value], items: Sequence[Item], jobs: int | None = None, name: str = "tasks"
) -> Generator[Outcome[Item, Value], None, None]:
    """Each item's outcome as soon as its task ends. A task that fails, or whose process dies, does not stop the others.

    The processes are ended when the caller stops iterating, and end themselves when this process dies.

    Args:
        task: a function of a module, which each process imports anew.
        jobs: processes at a time; by default one for each CPU core. For trainings, see `training_jobs`.
        name: of the progress bar, which the steps of all tasks move.

    Raises:
        ValueError: fewer than one job.
        ModuleNotFoundError: pebble is not installed.
        ChildProcessError: the processes ended before any task began, as those of a script without a main guard.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a process that imports a script without a main guard: the one that started it says so, once
    jobs = cores() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if not items:
        return
    try:
        from pebble import ProcessExpired, ProcessPool  # here, as the library works without it in one process
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("work in several processes needs pebble: pip install pebble") from error
    jobs = min(jobs, len(items))
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(duplex=False)
    reports = None if "PAPERLIB_LOG" in os.environ else writer  # headless, processes write lines to the log themselves
    pool = ProcessPool(jobs, initializer=_prepare, initargs=[task, reports], context=spawn)
    try:
        pending: dict[Future[tuple[Value | None, TaskError | None]], int] = {
            pool.schedule(_attempt_numbered, args=[task, number, item]): number for number, item in enumerate(items)
        }
        with TaskProgress(name, len(items), jobs) as progress:
            while pending:
                ended = wait_for(pending, timeout=Reporter.every, return_when=FIRST_COMPLETED).done
                progress.hear(received(reader))
                for future in ended:
                    number = pending.pop(future)
                    try:
                        outcome = Outcome(items[number], *future.result())
                    except ProcessExpired as error:
                        outcome = Outcome(items[number], error=TaskError(_death(error.exitcode)))
                    except BrokenProcessPool:
                        raise ChildProcessError(_no_process()) from None
                    yield outcome
                    progress.finish(number)
    finally:
        pool.stop()
        pool.join()
        reader.close()
        writer.close()


def cluster_outcomes(
    task: Callable[[Item], Value], items: Sequence[Item], name: str = "tasks"
) -> Generator[Outcome[Item, Value], None, None]:
    """`outcomes` on the CPU cores of a Ray cluster, whose machines must have this library and see the same files.

    The cluster is the one that this process is connected to, else that of RAY_ADDRESS, else the one that runs on this
    machine, else a new one on its cores, for these tasks alone. Ray starts a task again whose machine fails.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no cluster at RAY_ADDRESS.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a cluster needs Ray: pip install -e '.[cluster]'") from error
    connected = ray.is_initialized()
    if not connected:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    remote: Any = ray.remote(num_cpus=1)(_attempt_on_one_thread)
    pending = {remote.remote(task, item): item for item in items}
    try:
        with Progress(name, len(items)) as progress:
            while pending:
                (done,), _ = ray.wait(list(pending))
                item = pending.pop(done)
                try:
                    outcome = Outcome(item, *ray.get(done))
                except ray.exceptions.RayError as error:  # of the cluster: the task's own is part of what it returns
                    outcome = Outcome(item, error=TaskError(f"{type(error).__name__}: {error}"))
                yield outcome
                progress.step()
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if not connected:
            ray.shutdown()


def in_parallel(
    task: Callable[[Item], Value], items: Sequence[Item], jobs: int | None = None, name: str = "tasks"
) -> list[Value]:
    """The value of each item, in order. Raises TasksFailedError when all are done and some have failed."""
    by_item = {id(outcome.item): outcome for outcome in outcomes(task, items, jobs, name)}
    failed = [outcome for outcome in by_item.values() if outcome.error is not None]
    if failed:
        lines = [f"{outcome.item}: {outcome.error}" for outcome in failed]
        raise TasksFailedError(f"{len(failed)} of {len(items)} {name} failed\n" + "\n".join(lines)) from failed[0].error
    return [by_item[id(item)].value for item in items]  # type: ignore[misc]


def cores() -> int:
    """How many CPU cores this process may use; a container's quota of a part of a core counts as one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


def training_jobs() -> int:
    """How many trainings at a time: one for each CPU core, and one alone where they would share a CUDA device."""
    return 1 if torch.cuda.is_available() else cores()


def _prepare(_task: object, reports: Connection | None) -> None:
    # The task is an argument so that each process imports its module here, all of them at the same time. Without it
    # they would import it when they take a task from the queue, which they do one after another.
    _use_one_thread()
    Progress.reporter = None if reports is None else Reporter(reports)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    tune_malloc()


def _attempt(task: Callable[[Item], Value], item: Item) -> tuple[Value | None, TaskError | None]:
    try:
        return task(item), None
    except (Exception, SystemExit) as error:
        failed = TaskError(f"{type(error).__name__}: {error}")
        failed.add_note(traceback.format_exc())
        return None, failed


def _attempt_numbered(task: Callable[[Item], Value], number: int, item: Item) -> tuple[Value | None, TaskError | None]:
    if Progress.reporter is not None:
        Progress.reporter.begin(number)
    return _attempt(task, item)


def _attempt_on_one_thread(task: Callable[[Item], Value], item: Item) -> tuple[Value | None, TaskError | None]:
    _use_one_thread()
    os.environ.setdefault("PAPERLIB_LOG", os.devnull)  # bars of several processes would write over each other
    return _attempt(task, item)


def _no_process() -> str:
    script = getattr(sys.modules["__main__"], "__file__", None)
    return (
        f"no process could begin its tasks: each imports {script or 'the main module'}, and ended meanwhile. "
        'In a script put what starts processes below `if __name__ == "__main__":`; any other cause is shown above'
    )


def _death(code: int) -> str:
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}, as for want of memory"
    return f"its process ended with status {code}"
