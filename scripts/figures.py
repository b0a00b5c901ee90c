"""Every figure is made from the data by its notebook, and nothing is published unless the whole notebook succeeded.

`python -m scripts.figures` runs the notebooks in the order of their needs, each in a process of its own, and publishes
rows, figures and the executed notebook of each as soon as it is done. What is made from the same sources, the same data
and the same earlier results is not made again, neither by a run that was interrupted before: its finished rows wait in
the staging, and its trainings go on from their last epoch.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from paperlib.data.arrays import DataError
from paperlib.data.datasets import checksum, data_root, resolve
from paperlib.paper.results import ROOT, home
from paperlib.runtime.files import check_folder
from paperlib.runtime.parallel import cores
from paperlib.runtime.terminal import escape_unprintable
from scripts.nbfile import NotebookError
from scripts.plan import Notebook, discover, fingerprint, outdated, plan
from scripts.publish import (
    RUNS,
    Site,
    alone,
    check_folders,
    publish,
    published,
    read_json,
    record,
    uninterrupted,
    write_json,
)

CELL_SECONDS = 6 * 3600.0  # a guard against a hung cell, far above the slowest one on a slow laptop


@dataclass(frozen=True)
class FigureOptions:
    """Run the notebooks and publish their rows, figures and executed copies."""

    profile: Literal["paper", "smoke", "long"] = "paper"
    """paper: full size, notebooks of the long profile drawn from their rows; smoke: small; long: these, in hours."""
    dataset: str = "auto"
    """mnist, mnist5k, fashion-mnist or auto (smoke: auto is the embedded mnist5k, without looking for more)."""
    only: str | None = None
    """The number of one notebook, such as 03: runs it alone, on the published results of those it needs."""
    force: bool = False
    """Run also what is up to date."""
    redraw: bool = False
    """Draw again from the published rows; no row is made."""


def make(site: Site, notebook: Notebook, mark: str, *, redraw: bool) -> dict[str, Any]:
    """Run one notebook into its staging, check what it made, publish it; returns its seconds and peak memory."""
    # drawing again leaves alone what an interrupted run has kept in its staging
    staging = site.work / ("redraw" if redraw else "staging")
    if redraw:
        shutil.rmtree(staging, ignore_errors=True)
    trained_before = notebook.profile == "long" and any((site.work / "runs").glob("*"))
    continued = prepare(staging, mark) or trained_before
    path = os.pathsep.join(filter(None, (str(site.root), os.environ.get("PYTHONPATH"))))  # this checkout's paperlib
    profile = "smoke" if site.profile == "smoke" else notebook.profile
    job = {
        "source": str(notebook.path),
        "target": str(staging / "notebooks" / notebook.path.name),
        "failed": str(site.root / "build" / "failed"),
        "log": str(site.work / "log.txt"),
        "parameters": {"profile": profile, "dataset": site.dataset, "recompute": not redraw},
        "env": {
            "PAPERLIB_STAGING": str(staging),
            "PYTHONPATH": path,
            # the kernel works in another folder: a relative root of the data would point elsewhere
            "PAPERLIB_DATA": str(data_root().resolve()),
            # A thread for each process: a machine with more cores makes the same bytes.
            "OMP_NUM_THREADS": "1",
        },
        "timeout": CELL_SECONDS,
        "keep_injected": not site.committed,  # elsewhere the notebook's own defaults would tell of other results
    }
    report = in_child(job, notebook.path.name)
    check_figures(staging, notebook)
    if Notebook.read(notebook.path).source != notebook.source:
        raise NotebookError(f"{notebook.path.name} was edited during the run: nothing published, please run again")
    stamp = read_json(site.stamp(notebook.number))
    with uninterrupted():  # an interrupt after the work is done shall not lose it
        before = published(staging, site.home)
        files = publish(staging, site.home)
        if not redraw and continued:
            print("what it cost is not recorded, as a part of it was made before an interruption", flush=True)
        elif not redraw:
            entry = {"notebook": notebook.path.stem, "cores": cores(), **{k: round(v, 2) for k, v in report.items()}}
            record(site, notebook.number, entry, changed=files != before)
        if not redraw or notebook.is_drawn_only(site):
            write_json(site.stamp(notebook.number), {"fingerprint": mark, "files": files})
        elif stamp:
            write_json(site.stamp(notebook.number), {**stamp, "files": {**stamp["files"], **files}})
    for name in sorted(set(stamp.get("files", {})) - set(files)) if not redraw else ():
        print(f"note: {name} is no longer made by {notebook.number}; remove it if nothing else needs it")
    shutil.rmtree(staging, ignore_errors=True)
    if not redraw and site.profile != "long":  # hours of training outlast a change of the code that measures
        shutil.rmtree(site.work / "runs", ignore_errors=True)
    return report


def prepare(staging: Path, mark: str) -> bool:
    """Leave the staging as an interrupted run of the same mark left it, True, or empty, False."""
    note = staging / ".mark"
    if note.is_file() and note.read_text() == mark:
        return True
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "figures" / "data").mkdir(parents=True)
    note.write_text(mark)
    return False


def check_figures(staging: Path, notebook: Notebook) -> None:
    """Raise unless the figures made are exactly those promised, each as PNG and as PDF."""
    made = {path.name for kind in ("png", "pdf") for path in (staging / "figures").glob(f"*.{kind}")}
    promised = {f"{name}.{kind}" for name in notebook.figures for kind in ("png", "pdf")}
    if missing := sorted(promised - made):
        raise NotebookError(f"{notebook.path.name} promises {', '.join(missing)} and did not make it")
    if extra := sorted(made - promised):
        raise NotebookError(f"{notebook.path.name} made {', '.join(extra)}, which its metadata does not promise")


def in_child(job: dict[str, Any], name: str) -> dict[str, Any]:
    """Run `scripts.headless` in a process of its own, so that memory is measured and given back for each notebook.

    It inherits the lock of `alone`, and ends when this process does: the lock is free only when nobody is at work.
    """
    command = [sys.executable, "-m", "scripts.headless", json.dumps(job)]
    here = Path(__file__).resolve().parent.parent
    # Its own session: Ctrl-C reaches only this process, which then ends the child once and lets it close its kernel.
    # Nothing is ever written into the pipe to the child: that it closes tells the child of this process's end.
    with subprocess.Popen(
        command,
        cwd=here,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        close_fds=False,
    ) as child:
        assert child.stdout is not None
        try:
            output = child.stdout.read()
            child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    lines = output.strip().splitlines()
    try:
        report: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise NotebookError(f"{name}: its runner ended with status {child.returncode} and no report") from None
    if "error" in report:
        raise NotebookError(report["error"])
    return report


def figures(site: Site, options: FigureOptions) -> None:
    """Make what is asked for and not up to date; raises NotebookError at the first notebook that fails."""
    notebooks = discover(site.root)
    if options.redraw and not any((site.home / "figures" / "data").glob("*.csv")):
        raise NotebookError(
            f"nothing to redraw: no rows in {site.show(site.home / 'figures/data')}; run `make figures`"
        )
    where = "figures/, notebooks/ (the committed results)" if site.committed else site.show(site.home)
    print(f"{site.profile} profile on {site.dataset}, {cores()} CPU cores, results go to {where}", flush=True)
    table: list[tuple[str, str, str]] = []
    for number in plan(site, notebooks, options.only):
        notebook, redraw = notebooks[number], options.redraw or notebooks[number].is_drawn_only(site)
        if lack := notebook.lacks_rows(site):
            if options.only is not None:
                raise NotebookError(lack)
            print(f"[{number}] left out: {lack}", flush=True)
            continue
        why = "drawing again from published rows" if redraw else "asked for"
        if not (options.redraw or options.force):
            reason = outdated(site, notebooks, number)
            if reason is None:
                table.append((notebook.path.stem, "up to date", ""))
                continue
            why = reason
        past = read_json(site.home / RUNS).get(number, {})
        hint = f" (last time {past['seconds']:.0f} s)" if past and not redraw else ""
        print(f"[{number}] {notebook.path.stem}: {why}{hint}", flush=True)
        report = make(site, notebook, fingerprint(site, notebooks, number), redraw=redraw)
        print(f"[{number}] done in {report['seconds']:.0f} s", flush=True)
        table.append((notebook.path.stem, f"{report['seconds']:.1f}", f"{report['peak_gib']:.2f}"))
    if all(seconds == "up to date" for _, seconds, _ in table):
        print(f"nothing to do: {', '.join(name for name, _, _ in table)} up to date in {where}")
        return
    print(f"\n{'notebook':<24}{'seconds':>12}{'peak GiB':>10}  where")
    for name, seconds, peak in table:
        print(f"{name:<24}{seconds:>12}{peak:>10}  {site.show(site.home / 'notebooks' / name)}.ipynb")


def dataset_of(options: FigureOptions) -> str:
    """The data set by name; looks for data, or downloads them, only where full MNIST shall be computed on."""
    if options.dataset == "auto" and options.profile == "smoke":
        return "mnist5k"
    if options.dataset == "auto" and options.redraw:
        return "mnist"  # the committed rows: drawing needs no data
    return resolve(options.dataset)


def main(options: FigureOptions) -> int:
    """Exit status: 0, 1 after a failure told in one message, 130 after an interrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, interrupt)
    escape_unprintable()
    try:
        check_folder(ROOT / "build")  # before data are downloaded
        dataset = dataset_of(options)
        site = Site(ROOT, options.profile, dataset, home(options.profile, dataset), checksum(dataset))
        with alone(site):
            check_folders(site)
            figures(site, options)
    except (NotebookError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted: finished notebooks are published, the rest is as before; the same command goes on",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(FigureOptions)))
