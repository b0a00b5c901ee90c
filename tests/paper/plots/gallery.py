"""Every committed figure, drawn again: by the notebooks' own cells from the committed rows, with their own captions."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
from matplotlib.figure import Figure

from paperlib.paper.plots.style import style
from paperlib.paper.results import Results
from paperlib.runtime.rows import read_header, read_rows
from scripts.bench_report import cost_figure

ROOT = Path(__file__).resolve().parents[3]
SCRATCH = "00_provae_from_scratch"  # trains, and so is drawn after the few steps of its smoke profile
COST = "00_cost"  # by make bench
NOTEBOOKS = {
    path.stem: list(nbformat.read(path, as_version=4).metadata["paperlib"]["figures"])
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
NAMES = [COST, *(name for names in NOTEBOOKS.values() for name in names)]


def code_cells(notebook: str) -> Iterator[str]:
    """The source of each code cell; the parameters are the committed ones, but for the notebook that trains."""
    for cell in nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            yield cell.source
            if "parameters" in cell.metadata.get("tags", []) and notebook == SCRATCH:
                yield 'profile = "smoke"'


@contextmanager
def quietly() -> Iterator[None]:
    """Cells display their tables nowhere, and no widget is made."""
    with (
        warnings.catch_warnings(action="ignore"),
        mock.patch.dict(os.environ, PAPERLIB_LOG=os.devnull),
        mock.patch.object(plt, "show"),
        mock.patch("builtins.print"),
    ):
        yield


def run(notebook: str, until: str | None = None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Run its cells, the last of them the one that assigns `until`: what they leave, and their figures by name."""
    shown: dict[str, Figure] = {}
    namespace: dict[str, Any] = {"display": lambda *_: None}
    with quietly(), mock.patch.object(Results, "figure", lambda _, figure, name: shown.update({name: figure})):
        for source in code_cells(notebook):
            exec(compile(source, notebook, "exec"), namespace)
            if until is not None and until in namespace:
                break
    plt.close("all")  # what was drawn is kept, without a window
    return namespace, shown


@cache
def figures_of(notebook: str) -> dict[str, Figure]:
    """What the notebook hands to `Results.figure`, by name."""
    with plt.rc_context():
        return run(notebook)[1]


def cost() -> Figure:
    style()
    rows = ROOT / "figures" / "data" / f"{COST}.csv"
    return cost_figure(read_rows(rows), read_header(rows))


def drawn(name: str) -> Figure:
    """The figure of this name, closed."""
    if name == COST:
        with plt.rc_context():
            figure = cost()
        plt.close(figure)
        return figure
    (notebook,) = (stem for stem, names in NOTEBOOKS.items() if name in names)
    return figures_of(notebook)[name]


def png(name: str) -> bytes:
    """The file of a figure that needs no model: of the benchmark's, or of the first one of notebook 0."""
    with plt.rc_context():
        figure = cost() if name == COST else run(SCRATCH, until="box_figure")[0]["box_figure"]
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
