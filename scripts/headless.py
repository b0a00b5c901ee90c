"""A notebook that this runner hands over has run completely, without an error, with the parameters it was asked for.

Anything less is a `NotebookError` with one message that names the notebook, the cell and the cause; then the target is
as it was before and the failed copy lies aside. The notebook handed over holds nothing that changes from run to run
(no timings, no run ids, no patch versions), so equal results give equal bytes.

papermill alone promises none of this: it accepts unknown parameters, takes `sys.exit(0)` in a cell for success, and
writes its target even when a run fails.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError

from scripts.nbfile import NotebookError, check_run, check_source, normalise, stopped_at

START_SECONDS = 120  # a kernel on a busy two-core machine
END_SECONDS = 15  # for the kernel to be shut down


def run(
    source: Path,
    target: Path,
    parameters: Mapping[str, object],
    *,
    failed: Path,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    keep_injected: bool = False,
) -> None:
    """Execute `source` with `parameters`; `target` appears only when every cell ran, and then in normal form.

    failed: folder that takes the copy of a failed run.  log: file that the notebook's progress lines go to; they are
    shown live on stderr.  env: added to the kernel's environment.  timeout: seconds for one cell.
    Raises NotebookError; an interrupt passes through after the kernel is shut down and leaves nothing behind.
    """
    source, target = source.resolve(), target.resolve()
    check_source(source, parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.stem}.part.ipynb")
    try:
        try:
            executed = _execute(source, part, parameters, log, dict(env or {}), timeout)
            check_run(executed)
        except Exception as error:  # whatever stopped it: the copy is kept and the message says where
            partial = nbformat.read(part, as_version=4) if part.exists() else nbformat.v4.new_notebook()
            message = f"{source.name}, {stopped_at(partial)}: {_cause(error, partial, timeout)}"
            if part.exists():
                failed.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part, failed / source.name)
                message += f"\nthe failed copy is {_short(failed / source.name)}"
            raise NotebookError(message) from error
        nbformat.write(normalise(executed, keep_injected=keep_injected), part)
        part.replace(target)
        (failed / source.name).unlink(missing_ok=True)  # the trace of an earlier failure
    finally:
        part.unlink(missing_ok=True)


def _execute(
    source: Path,
    part: Path,
    parameters: Mapping[str, object],
    log: Path | None,
    env: dict[str, str],
    timeout: float | None,
) -> NotebookNode:
    """Run papermill in a kernel of this very interpreter, reached through sockets in a short private folder."""
    # A Unix socket's path may have about 100 characters: the folder of a checkout or of macOS's TMPDIR can be too long.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with contextlib.ExitStack() as stack:
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nb", dir=short)))
        stack.enter_context(follow(log, source.name[:2]))
        # What the kernel process itself says (a crash in C, complaints at an interrupt) is for debugging only.
        said = stack.enter_context((log.with_name("kernel.txt") if log else private / "kernel.txt").open("wb"))
        kernel_env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # inline, not Agg
        kernel_env |= {"IPYTHONDIR": str(private), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        kernel_env |= {"PAPERLIB_LOG": str(log)} if log else {}
        if os.path.expanduser("~") == "~":  # a user without a name, where HOME is not set: Jupyter needs some home
            kernel_env["HOME"] = str(private)
        # The kernel inherits what this process did: if this one is killed, the caller's lock is held until both ended.
        launch = {"env": kernel_env | env, "stdout": said, "stderr": said, "close_fds": False}
        executed: NotebookNode = execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, part)),  # papermill formats paths
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(source.parent),
            progress_bar=False,
            start_timeout=START_SECONDS,
            execution_timeout=timeout,
            iopub_timeout=60,  # the default of 4 s is short for a large figure on a busy machine
            kernel_manager_class=_manager(private, launch),
            record_timing=False,
            coalesce_streams=True,
        )
        return executed


def _manager(private: Path, launch: dict[str, Any]) -> type[AsyncKernelManager]:
    """A kernel manager class: this interpreter, `launch` for its process, Unix sockets (TCP ports are raced for)."""

    class Manager(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            # Not looked up by name: a `python3` kernel installed by the user would win over this environment's.
            self._kernel_spec = KernelSpec(resource_dir="", **get_kernel_dict())
            self.connection_file = str(private / "k.json")
            if os.name == "posix":
                self.transport = "ipc"
                self.ip = str(private / "k")

        async def start_kernel(self, **kwargs: Any) -> None:  # type: ignore[override]
            await super().start_kernel(**{**kwargs, **launch})

    return Manager


@contextlib.contextmanager
def follow(log: Path | None, label: str) -> Iterator[None]:
    """Show each line that is appended to `log` meanwhile on stderr, with the notebook's number before it."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    ended = threading.Event()
    with log.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(0, os.SEEK_END)

        def show() -> None:
            rest, last = "", False
            while not last:
                last = ended.wait(0.2)  # asked before reading, so that the last lines are shown too
                *lines, rest = (rest + stream.read()).split("\n")
                for line in lines:
                    print(f"[{label}] {line}", file=sys.stderr, flush=True)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _cause(error: Exception, nb: NotebookNode, timeout: float | None) -> str:
    if isinstance(error, DeadKernelError):
        return "the kernel died (most often for want of memory; build/*/kernel.txt has what it said last, if anything)"
    if isinstance(error, CellTimeoutError) and timeout is not None:
        return f"took longer than the {timeout:g} seconds that one cell may take"
    if isinstance(error, PapermillExecutionError) and error.evalue:
        return f"{error.ename}: {error.evalue}"
    if isinstance(error, PapermillExecutionError):  # a bad magic raises, but its only trace is on the cell's stderr
        text = [out.text.strip() for cell in nb.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]
        return text[-1].splitlines()[-1] if text and text[-1] else str(error.ename)
    return str(error) if isinstance(error, NotebookError) else f"{type(error).__name__}: {error}"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _end_with_parent() -> None:
    """Wait until the other end of stdin is closed, which the parent does only by ending; then end this process, too."""
    os.read(0, 1)  # not sys.stdin, which would stay locked by this thread at the end of the interpreter
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)


def main(job: str) -> int:
    """Run one notebook in this process; the last line on stdout is a JSON report: seconds and peak_gib, or error.

    Stdin is a pipe whose other end the parent keeps open: this process ends when it is closed.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    values: dict[str, Any] = json.loads(job)
    values |= {name: Path(values[name]) for name in ("source", "target", "failed", "log")}
    start = time.perf_counter()
    try:
        run(**values)
    except NotebookError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    except KeyboardInterrupt:
        return 130
    # The kernel has been waited for, so the largest child of this process is the kernel (macOS counts in bytes).
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_gib": peak / 2**30}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
