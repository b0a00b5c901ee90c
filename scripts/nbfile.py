"""What a notebook file must be: before a run (its parameters cell), after it (complete, no error), and when stored.

Pure functions of the notebook; nothing is executed or written here.
"""

import ast
import copy
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode

INJECTED = "injected-parameters"


class NotebookError(RuntimeError):
    """A notebook cannot be run or its run cannot be trusted; the message is complete and made for the terminal."""


def check_source(source: Path, parameters: Mapping[str, object]) -> None:
    """Raise unless the notebook has one cell tagged `parameters` and that cell assigns every name in `parameters`."""
    try:
        nb = nbformat.read(source, as_version=4)
    except Exception as error:
        raise NotebookError(f"{source.name}: not a readable notebook ({error})") from error
    if any(INJECTED in tags(cell) for cell in nb.cells):
        raise NotebookError(f"{source.name}: has a cell tagged {INJECTED!r}, left by another run; delete that cell")
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and "parameters" in tags(cell)]
    if len(cells) != 1:
        raise NotebookError(f"{source.name}: needs exactly one code cell tagged 'parameters', found {len(cells)}")
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise NotebookError(f"{source.name}: its parameters cell is not plain Python ({error})") from error
    names: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.Assign):
            names.update(target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.add(statement.target.id)
    if unknown := sorted(set(parameters) - names):
        known = ", ".join(sorted(names)) or "nothing"
        raise NotebookError(f"{source.name}: unknown parameter {', '.join(unknown)}; its cell assigns {known}")


def check_run(nb: NotebookNode) -> None:
    """Raise unless every code cell was executed, in order, and none of them ended in an error (SystemExit is one)."""
    last = 0
    for cell in code_cells(nb):
        error = next((out for out in cell.outputs if out.output_type == "error"), None)
        if error is not None:
            raise NotebookError(f"ended the run with {error.ename}: {error.evalue}")
        if cell.metadata.get("papermill", {}).get("exception"):
            raise NotebookError("failed without an error output")
        if cell.execution_count is None:
            raise NotebookError(f"the run ended here; `{first_line(cell)}` and what follows never ran")
        if cell.execution_count <= last:
            raise NotebookError(f"`{first_line(cell)}` was executed out of order")
        last = cell.execution_count


def normalise(nb: NotebookNode, *, keep_injected: bool = False) -> NotebookNode:
    """The same notebook without anything that differs between two equal runs; counts are 1..n.

    The injected cell is dropped unless kept: without it the notebook states its own defaults, which is right only for
    a run whose parameters select the results that those defaults load.
    """
    nb = copy.deepcopy(nb)
    for key in ("papermill", "widgets", "signature"):
        nb.metadata.pop(key, None)
    nb.metadata.kernelspec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nb.metadata.setdefault("language_info", NotebookNode(name="python")).pop("version", None)
    if not keep_injected:
        nb.cells = [cell for cell in nb.cells if INJECTED not in tags(cell)]
    for cell in nb.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not tags(cell):
            cell.metadata.pop("tags", None)
        if INJECTED in tags(cell):
            cell.id = INJECTED
    for count, cell in enumerate(code_cells(nb), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return nb


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def first_line(cell: NotebookNode) -> str:
    return str(cell.source).strip().splitlines()[0][:70]


def stopped_at(nb: NotebookNode) -> str:
    """The code cell that ran last, counted as the reader sees it: In [n], without the injected cell."""
    own = [cell for cell in code_cells(nb) if INJECTED not in tags(cell)]
    ran = [(n, cell) for n, cell in enumerate(own, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return f"code cell {ran[-1][0]} `{first_line(ran[-1][1])}`" if ran else "before its first code cell"
