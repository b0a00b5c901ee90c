"""The runner behind `make figures`, on throw-away notebooks: each way in which a run can lie is tried here."""

import errno
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from children import alive

from paperlib.runtime.rows import read_rows, write_rows
from scripts import figures as command
from scripts.figures import FigureOptions, figures, make
from scripts.headless import run
from scripts.nbfile import NotebookError, normalise
from scripts.plan import discover, fingerprint, outdated, plan
from scripts.publish import RUNS, Site, alone, publish, read_json, start_command, uninterrupted

PARAMETERS = 'profile = "paper"\ndataset: str = "mnist"\nrecompute = False'

DRAW = """
import os, pathlib
figures = pathlib.Path(os.environ["PAPERLIB_STAGING"]) / "figures"
for kind in ("png", "pdf"):
    (figures / f"NAME.{kind}").write_bytes(b"drawn by NAME")
if recompute:
    (figures / "data" / "NAME.csv").write_text("value\\n1\\n")
"""


def write(
    path: Path, *cells: str, parameters: str | None = PARAMETERS, needs: tuple[str, ...] = (), promise: str = ""
) -> Path:
    nb = nbformat.v4.new_notebook()
    nb.metadata.paperlib = {"needs": list(needs), "figures": [promise] if promise else []}
    nb.cells.append(nbformat.v4.new_markdown_cell("# A title"))
    if parameters is not None:
        nb.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nb.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def no_leftovers(folder: Path) -> bool:
    return not list(folder.rglob("*.part*"))


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., str]:
    """Run a notebook that must fail; returns the message, once the old target and a failed copy are found."""

    def attempt(*cells: str, **options: Any) -> str:
        source, target = write(tmp_path / "07_bad.ipynb", *cells), tmp_path / "out" / "07_bad.ipynb"
        target.parent.mkdir(exist_ok=True)
        target.write_text("the old one")
        with pytest.raises(NotebookError) as caught:
            run(source, target, {"recompute": True}, failed=tmp_path / "failed", **options)
        assert target.read_text() == "the old one" and no_leftovers(tmp_path)
        assert (tmp_path / "failed" / "07_bad.ipynb").is_file()
        assert str(caught.value).startswith("07_bad.ipynb, code cell ") and "failed copy" in str(caught.value)
        return str(caught.value)

    return attempt


def test_a_failing_cell_is_named(attempt: Callable[..., str]) -> None:
    message = attempt("1 + 1", "assert 1 == 2, 'never equal'", "3")
    assert "code cell 3 `assert 1 == 2, 'never equal'`: AssertionError: never equal" in message


@pytest.mark.parametrize("later", [("print('never runs')",), ()])
def test_sys_exit_is_not_success(attempt: Callable[..., str], later: tuple[str, ...]) -> None:
    assert "code cell 2 `import sys; sys.exit(0)`" in attempt("import sys; sys.exit(0)", *later)


def test_a_bad_magic_is_an_error(attempt: Callable[..., str]) -> None:
    assert "UsageError" in attempt("%no_such_magic")


def test_a_dead_kernel_is_named(attempt: Callable[..., str]) -> None:
    message = attempt("1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "2")
    assert "code cell 3" in message and "kernel died" in message


def test_a_hung_cell_is_ended(attempt: Callable[..., str]) -> None:
    assert "longer than the 1 seconds" in attempt("import time; time.sleep(60)", timeout=1)


@pytest.mark.parametrize(
    ("parameters", "asked", "message"),
    [
        (None, {}, "exactly one code cell tagged 'parameters', found 0"),
        (PARAMETERS, {"recompte": True}, "unknown parameter recompte; its cell assigns dataset, profile, recompute"),
        ("%magic", {}, "not plain Python"),
    ],
)
def test_wrong_parameters_never_start_a_kernel(
    tmp_path: Path, parameters: str | None, asked: dict[str, object], message: str
) -> None:
    source = write(tmp_path / "01_x.ipynb", "raise SystemExit", parameters=parameters)
    with pytest.raises(NotebookError, match=message):
        run(source, tmp_path / "out.ipynb", asked, failed=tmp_path / "failed")
    assert not (tmp_path / "out.ipynb").exists() and not (tmp_path / "failed").exists()


def test_two_runs_give_the_same_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cells = (
        "import os, sys, time",
        "open(os.environ['PAPERLIB_LOG'], 'a').write(f'half done\\n'); print('out'); print('out', 2)",
        "import IPython; IPython.display.display(IPython.display.HTML('<b>bold</b>')); time.sleep(0.01)",
        "(recompute, profile, os.environ['EXTRA'], 'MPLBACKEND' in os.environ and os.environ['MPLBACKEND'])",
        "sys.executable",
    )
    source = write(tmp_path / "{01}_x.ipynb", *cells)  # papermill formats paths: braces must survive
    texts = []
    for folder in ("a", "b"):
        target = tmp_path / folder / "01_x.ipynb"
        log = tmp_path / "log.txt"
        run(source, target, {"recompute": True}, failed=tmp_path / "failed", log=log, env={"EXTRA": "seen"})
        texts.append(target.read_bytes())
    assert texts[0] == texts[1] and no_leftovers(tmp_path)
    assert capfd.readouterr().err.count("[{0] half done\n") == 2
    nb = nbformat.read(tmp_path / "a" / "01_x.ipynb", as_version=4)
    nbformat.validate(nb)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5, 6]
    assert [cell.id for cell in nb.cells] == [cell.id for cell in nbformat.read(source, as_version=4).cells]
    assert code[0].source == PARAMETERS and code[1].source == cells[0]  # the injected cell is gone
    assert "(True, 'paper', 'seen', 'module://matplotlib_inline" in code[4].outputs[0].data["text/plain"]
    assert code[5].outputs[0].data["text/plain"] == repr(sys.executable) and code[5].outputs[0].execution_count == 6
    assert not {"papermill", "widgets"} & set(nb.metadata) and "version" not in nb.metadata.language_info
    assert all(set(cell.metadata) <= {"tags"} for cell in nb.cells)


def test_a_kept_injected_cell_has_a_fixed_id() -> None:
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("profile = 'smoke'", metadata={"tags": ["injected-parameters"]})]
    )
    assert normalise(nb, keep_injected=True).cells[0].id == "injected-parameters" and not normalise(nb).cells


def test_a_user_without_a_home_runs_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError("no such user")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)  # the kernel would still find one for the user of these tests
    source = write(tmp_path / "01_x.ipynb", "import os; assert os.path.isdir(os.environ['HOME'])")
    run(source, tmp_path / "out.ipynb", {}, failed=tmp_path / "failed")


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Site:
    root = tmp_path / "repository"
    for name in ("__init__.py", "models/elbo.py", "paper/plots/style.py"):
        (root / "paperlib" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "paperlib" / name).write_text("one = 1\n")
    (root / "requirements.lock").write_text("torch==1\n")
    write(root / "notebooks" / "01_one.ipynb", DRAW.replace("NAME", "01_a"), promise="01_a")
    write(root / "notebooks" / "02_two.ipynb", DRAW.replace("NAME", "02_b"), promise="02_b", needs=("01",))
    return Site(root, "paper", "mnist", root, "checksum")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the child process: draws at once what each notebook of `site` draws; returns the numbers that ran."""
    ran: list[str] = []

    def in_child(job: dict[str, Any], name: str) -> dict[str, Any]:
        ran.append(name[:2])
        figure = {"01": "01_a", "02": "02_b"}[name[:2]]
        code = DRAW.replace("NAME", figure).replace('os.environ["PAPERLIB_STAGING"]', "staging")
        exec(code, {"staging": job["env"]["PAPERLIB_STAGING"], **job["parameters"]})
        Path(job["target"]).parent.mkdir(exist_ok=True)
        shutil.copyfile(job["source"], job["target"])
        return {"seconds": 1.0, "peak_gib": 0.5}

    monkeypatch.setattr(command, "in_child", in_child)
    return ran


def snapshot(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and "build" not in path.relative_to(root).parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_figures_are_made_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    figures(site, FigureOptions())
    said = capsys.readouterr().out
    assert "paper profile on mnist" in said and "01_one" in said and "peak GiB" in said
    made = snapshot(site.root)
    assert {"figures/02_b.pdf", "figures/data/02_b.csv", "figures/data/runs.json"} <= set(made)
    runs = read_json(site.home / RUNS)
    assert 0.02 < runs["02"]["peak_gib"] < 1 and runs["02"]["seconds"] > 0 and runs["01"]["notebook"] == "01_one"
    published = nbformat.read(site.root / "notebooks" / "02_two.ipynb", as_version=4)
    assert [cell.get("execution_count") for cell in published.cells] == [None, 1, 2]
    figures(site, FigureOptions())
    assert "nothing to do: 01_one, 02_two up to date" in capsys.readouterr().out
    assert snapshot(site.root) == made
    figures(site, FigureOptions(force=True))
    assert "peak GiB" in capsys.readouterr().out
    assert snapshot(site.root) == made  # the measured seconds, too, are still those of the first run
    assert no_leftovers(site.root) and not (site.work / "staging").exists()


def test_an_interrupted_run_finds_its_finished_rows_again(
    site: Site, pretend: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, found = command.in_child, []

    def interrupted(job: dict[str, Any], name: str) -> dict[str, Any]:
        row = Path(job["env"]["PAPERLIB_STAGING"]) / "figures" / "data" / "01_row.csv"
        found.append(row.read_text() if row.exists() else "nothing")
        row.write_text("made" if job["parameters"]["recompute"] else "drawn")
        (site.work / "runs" / "digest").mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "in_child", interrupted)
    before = snapshot(site.root)
    for options in (FigureOptions(), FigureOptions(), FigureOptions(force=True)):
        with pytest.raises(KeyboardInterrupt):
            figures(site, options)
    assert found == ["nothing", "made", "made"] and snapshot(site.root) == before
    (site.home / "figures" / "data").mkdir(parents=True)
    (site.home / "figures" / "data" / "00.csv").write_text("rows\n")  # something to draw
    for only in ("01", "02"):
        with pytest.raises(KeyboardInterrupt):
            figures(site, FigureOptions(redraw=True, only=only))
    assert found[3:] == ["nothing", "nothing"], "a redrawing went on with another"
    with pytest.raises(KeyboardInterrupt):
        figures(site, FigureOptions())
    assert found[5:] == ["made"] and (site.work / "runs" / "digest").exists(), "a redrawing took what was kept"
    (site.root / "paperlib" / "models" / "elbo.py").write_text("one = 2\n")
    with pytest.raises(KeyboardInterrupt):
        figures(site, FigureOptions())
    assert found[6:] == ["nothing"], "rows of other code were kept"

    monkeypatch.setattr(command, "in_child", whole)
    figures(site, FigureOptions())
    assert "is not recorded" in capsys.readouterr().out and read_json(site.home / RUNS).keys() == {"02"}
    assert (site.home / "figures" / "data" / "01_row.csv").exists()
    assert not (site.work / "staging").exists() and not (site.work / "runs").exists()


def test_every_cause_makes_it_run_again(site: Site, pretend: list[str]) -> None:
    figures(site, FigureOptions())

    def why(site: Site = site) -> list[str | None]:
        notebooks = discover(site.root)
        return [outdated(site, notebooks, number) for number in notebooks]

    stale = "code, data or earlier results have changed"
    assert why() == [None, None]
    in_rooms = ("paperlib/models/elbo.py", "paperlib/paper/plots/style.py", "paperlib/paper/plots/new.py")
    for name in (*in_rooms, "paperlib/__init__.py", "paperlib/new.py", "requirements.lock"):
        path = site.root / name
        old = path.read_text() if path.exists() else None
        path.write_text("changed")
        assert why() == [stale, stale], name
        path.unlink() if old is None else path.write_text(old)
    assert why(Site(site.root, "paper", "mnist", site.root, "another checksum")) == [stale, stale]
    (site.root / "figures" / "01_a.png").write_bytes(b"painted over")
    assert why() == ["figures/01_a.png is not as it was published", None]
    figures(site, FigureOptions())
    assert pretend == ["01", "02", "01"] and why() == [None, None]
    source = site.root / "notebooks" / "01_one.ipynb"
    source.write_text(source.read_text().replace("drawn by", "painted by"))
    assert why() == [stale, stale]


def test_new_rows_of_a_need_make_the_later_notebook_run(site: Site, pretend: list[str]) -> None:
    figures(site, FigureOptions())
    stamp = read_json(site.stamp("01"))
    stamp["files"]["figures/data/01_a.csv"] = "other rows"
    site.stamp("01").write_text(json.dumps(stamp))
    assert outdated(site, discover(site.root), "02") == "code, data or earlier results have changed"


def test_promised_and_made_figures_must_agree(site: Site, pretend: list[str]) -> None:
    path = site.root / "notebooks" / "01_one.ipynb"
    write(path, "0", promise="01_other")
    before = snapshot(site.root)
    with pytest.raises(NotebookError, match=r"promises 01_other\.pdf, 01_other\.png and did not make it"):
        figures(site, FigureOptions())
    write(path, "0")
    with pytest.raises(NotebookError, match=r"made 01_a\.pdf, 01_a\.png, which its metadata does not promise"):
        figures(site, FigureOptions())
    write(path, "0", promise="02_a")
    with pytest.raises(NotebookError, match="begins with its notebook's number"):
        figures(site, FigureOptions())
    assert {name for name in snapshot(site.root)} == set(before) and not site.stamp("01").exists()


def test_a_full_disk_while_publishing_leaves_the_old_files(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, copies, copy = tmp_path / "staging", [], shutil.copyfile
    for folder, text in ((site.home / "figures", "old"), (staging / "figures", "new")):
        folder.mkdir(parents=True)
        for name in ("a.png", "b.png"):
            (folder / name).write_text(text)

    def full_at_second(source: Path, target: Path) -> None:
        copies.append(copy(source, target))
        if len(copies) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full_at_second)
    before = snapshot(site.root)
    with pytest.raises(OSError, match="No space"):
        publish(staging, site.home)
    assert snapshot(site.root) == before
    monkeypatch.undo()
    assert set(publish(staging, site.home)) == {"figures/a.png", "figures/b.png"}
    assert (site.home / "figures" / "b.png").read_text() == "new"


def test_a_table_and_its_header_are_published_together_or_left_as_they_are(site: Site, tmp_path: Path) -> None:
    def make(value: float, threads: int, seconds: float) -> dict[str, bytes]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("paperlib.runtime.rows.provenance", lambda: {"commit": str(seconds), "threads": threads})
            rows = pd.DataFrame({"value": [value]})
            write_rows(tmp_path / "staging" / "figures" / "data" / "01_x.csv", rows, {}, {}, seconds)
        publish(tmp_path / "staging", site.home)
        read_rows(site.home / "figures" / "data" / "01_x.csv")
        return {kind: (site.home / "figures" / "data" / f"01_x.{kind}").read_bytes() for kind in ("csv", "json")}

    first = make(1.0, 1, 1.0)
    assert make(1.0, 1, 2.0) == first, "another commit and wall time are the same result"
    other_machine = make(1.0, 2, 3.0)
    assert other_machine["csv"] == first["csv"] and other_machine["json"] != first["json"]
    other_rows = make(2.0, 2, 4.0)
    assert all(other_rows[kind] != other_machine[kind] for kind in first)


def test_an_interrupt_waits_for_the_end_of_publishing() -> None:
    done = False

    def publishing() -> None:
        nonlocal done
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done = True

    with pytest.raises(KeyboardInterrupt):
        publishing()
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_hang_up_waits_for_the_end_of_publishing_and_stays_ignored_where_it_is() -> None:
    done = []

    def publishing() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGHUP)
            done.append("published")

    with pytest.raises(KeyboardInterrupt):
        publishing()
    assert done == ["published"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a command
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupted_run_leaves_no_kernel_and_no_result(site: Site, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    cell = f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    write(site.root / "notebooks" / "01_one.ipynb", cell)
    before = snapshot(site.root)

    def interrupt() -> None:
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        figures(site, FigureOptions())
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    assert snapshot(site.root) == before and not site.stamp("01").exists()


def test_an_edit_during_the_run_is_not_overwritten(site: Site, pretend: list[str]) -> None:
    notebooks = discover(site.root)
    path = write(site.root / "notebooks" / "01_one.ipynb", "edited = True", promise="01_a")
    before = path.read_bytes()
    with pytest.raises(NotebookError, match="was edited during the run"):
        make(site, notebooks["01"], fingerprint(site, notebooks, "01"), redraw=False)
    assert path.read_bytes() == before


def test_redraw_touches_figures_only(site: Site, pretend: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotebookError, match="nothing to redraw: no rows in figures/data"):
        figures(site, FigureOptions(redraw=True))
    figures(site, FigureOptions())
    data = {name: content for name, content in snapshot(site.root).items() if name.startswith("figures/data")}
    (site.root / "figures" / "01_a.png").write_bytes(b"another style")
    figures(site, FigureOptions(redraw=True))
    after = snapshot(site.root)
    assert after["figures/01_a.png"] == b"drawn by 01_a" and data.items() <= after.items()
    capsys.readouterr()
    figures(site, FigureOptions())
    assert "nothing to do" in capsys.readouterr().out


def test_one_notebook_alone_makes_its_needs_first(
    site: Site, pretend: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    notebooks = discover(site.root)
    assert plan(site, notebooks, "2") == ["01", "02"] and "02 needs 01" in capsys.readouterr().out
    figures(site, FigureOptions(only="02"))
    assert pretend == ["01", "02"]
    shutil.rmtree(site.root / "build")  # a fresh clone: results are committed, stamps are not
    assert plan(site, notebooks, "02_two") == ["02"] and plan(site, notebooks, None) == ["01", "02"]
    figures(site, FigureOptions(only="02", force=True))
    assert pretend == ["01", "02", "02"]
    with pytest.raises(NotebookError, match="no notebook 09"):
        plan(site, notebooks, "09")


def test_results_of_other_data_go_to_their_own_home(site: Site, pretend: list[str]) -> None:
    before = snapshot(site.root)
    home = site.root / "build" / "smoke-mnist5k"
    figures(Site(site.root, "smoke", "mnist5k", home), FigureOptions(profile="smoke"))
    assert snapshot(site.root) == before
    assert (home / "figures" / "01_a.png").is_file() and (home / "notebooks" / "01_one.ipynb").is_file()


def test_smoke_and_redraw_look_for_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "resolve", lambda name: f"resolved {name}")
    assert command.dataset_of(FigureOptions(profile="smoke")) == "mnist5k"
    assert command.dataset_of(FigureOptions(redraw=True)) == "mnist"
    assert command.dataset_of(FigureOptions()) == "resolved auto"


def test_needs_are_checked(site: Site) -> None:
    path = site.root / "notebooks" / "01_one.ipynb"
    write(path, needs=("07",))
    with pytest.raises(NotebookError, match="needs 07, and there is no such notebook"):
        discover(site.root)
    write(path, needs=("02",))
    with pytest.raises(NotebookError, match="in a circle"):
        discover(site.root)
    shutil.copyfile(path, path.with_name("01_again.ipynb"))
    with pytest.raises(NotebookError, match="the same number"):
        discover(site.root)


# --- one run at a time, also when it is killed -----------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from scripts.figures import FigureOptions, figures
from scripts.publish import Site, alone
root = Path(sys.argv[1])
site = Site(root, "paper", "mnist", root)
with alone(site):
    figures(site, FigureOptions())
"""


def refused(site: Site) -> bool:
    try:
        with alone(site):
            return False
    except NotebookError:
        return True


@pytest.mark.parametrize("killed", ["runner", "runner and its child"])
def test_after_a_kill_the_lock_is_free_only_when_nobody_is_at_work(site: Site, tmp_path: Path, killed: str) -> None:
    note = tmp_path / "note"
    cell = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'part')!r}).write_text(f'{{os.getppid()}} {{os.getpid()}}')\n"
        f"os.rename({str(tmp_path / 'part')!r}, {str(note)!r})\n"
        "time.sleep(3600)"
    )
    write(site.root / "notebooks" / "01_one.ipynb", cell)
    env = os.environ | {"PYTHONPATH": str(Path(command.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", KILLED, site.root], env=env, stdout=subprocess.DEVNULL) as runner:
        while not note.exists():
            assert runner.poll() is None
            time.sleep(0.05)
        child, kernel = map(int, note.read_text().split())
        assert refused(site)
        runner.kill()
        if killed == "runner and its child":
            os.kill(child, signal.SIGKILL)
    end = time.monotonic() + 120
    try:
        while refused(site):
            assert time.monotonic() < end, "they are still at work"
            time.sleep(0.01)
        assert not alive(child) and not alive(kernel)
    finally:
        for process in (child, kernel):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def test_a_second_run_is_refused_and_other_errors_of_the_lock_are_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with alone(site), pytest.raises(NotebookError, match="another run is at work in build/paper-mnist"), alone(site):
        pass

    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), alone(site):
        pass


@pytest.mark.parametrize(
    "folder", ["build", "build/failed", "build/paper-mnist", "figures", "figures/data", "notebooks", "build/x/staging"]
)
def test_a_folder_of_results_that_cannot_be_written_is_one_line_before_any_work(
    site: Site,
    folder: str,
    pretend: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unwritable = site.root / folder.replace("/x/", "/paper-mnist/")
    unwritable.mkdir(parents=True, exist_ok=True)
    whole = tempfile.TemporaryFile

    def temporary_file(dir: Path) -> Any:  # permissions say nothing to root, as whom the tests may run
        if dir == unwritable:
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(dir=dir)

    looked_for: list[str] = []
    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    monkeypatch.setattr(command, "ROOT", site.root)
    monkeypatch.setattr(command, "home", lambda *_: site.root)
    monkeypatch.setattr(command, "resolve", lambda name: looked_for.append(name) or "mnist")
    assert command.main(FigureOptions()) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: cannot write into {unwritable} (Permission denied)") and said.out == ""
    assert said.err.count("\n") == 1 and "docker run --user" in said.err
    assert pretend == [] and (looked_for == [] or folder != "build"), "nor are data downloaded"


def test_a_command_whose_folder_cannot_be_written_ends_with_one_line(tmp_path: Path) -> None:
    start_command(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^error: cannot write into .*/file \(File exists\).*$"):
        start_command(tmp_path, tmp_path / "file")


def test_a_full_disk_is_one_line(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.csv")

    monkeypatch.setattr(command, "ROOT", site.root)
    monkeypatch.setattr(command, "home", lambda *_: site.root)
    monkeypatch.setattr(command, "resolve", lambda _: "mnist")
    monkeypatch.setattr(command, "figures", full)
    assert command.main(FigureOptions()) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'a.csv'\n"


def test_ctrl_c_is_tested_where_it_is_ignored_from_the_start() -> None:
    """As in the background of a script: `make test &`."""
    one = f"{__file__}::{test_an_interrupt_waits_for_the_end_of_publishing.__name__}"
    ignoring = [
        "sh",
        "-c",
        'trap "" INT; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        one,
    ]
    done = subprocess.run(ignoring, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
