"""Committed notebooks are executed, small and machine-free, and the smoke profile makes all their figures."""

import ast
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from prose import typed_in, typed_numbers

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|Users|root|work|tmp|mnt|usr|opt)/|[A-Z]:\\\\|site-packages")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
SMOKE = ROOT / "build" / "smoke-mnist5k"

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def promised(path: Path) -> list[str]:
    return list(read(path).metadata["paperlib"]["figures"])


def displayed(nb: NotebookNode) -> list[str]:
    """The Markdown that code cells display: prose with numbers from the rows."""
    return [
        out.data["text/markdown"] for cell in code(nb) for out in cell.outputs if "text/markdown" in out.get("data", {})
    ]


def text_of(path: Path) -> str:
    """All that the file says, without pictures, whose encoding may hold any word by chance."""
    nb = copy.deepcopy(read(path))
    for cell in code(nb):
        for output in cell.outputs:
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                del output["data"][kind]
    return json.dumps(nb, ensure_ascii=False)


def test_the_notebooks_of_the_paper_are_there() -> None:
    names = {path.stem for path in PATHS}
    paper = ["00_provae_from_scratch", "01_toy_2d", "02_mnist_training", "03_attacks", "04_certification"]
    assert {*paper, "05_linear_bounds", "06_tighter_training"} <= names
    assert all(re.fullmatch(r"\d\d_\w+", name) for name in names)


@every_notebook
def test_a_notebook_is_valid(path: Path) -> None:
    nb = json.loads(path.read_text())
    assert nb["nbformat"] == 4
    nbformat.validate(nb)
    assert nb["metadata"]["kernelspec"]["name"] == "python3"


@every_notebook
def test_a_notebook_was_executed_from_top_to_bottom(path: Path) -> None:
    counts = [cell.execution_count for cell in code(read(path))]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_no_cell_ended_in_an_error_or_complained(path: Path) -> None:
    for cell in code(read(path)):
        for output in cell.outputs:
            assert output.output_type != "error", f"{output.ename}: {output.evalue}"
            assert output.get("name") != "stderr", output.text


@every_notebook
def test_an_executed_notebook_shows_its_figures(path: Path) -> None:
    pictures = [out for cell in code(read(path)) for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= len(promised(path))


@every_notebook
def test_the_parameters_are_profile_dataset_and_recompute(path: Path) -> None:
    cells = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1 and cells[0].cell_type == "code"
    values = {}
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    profile = read(path).metadata["paperlib"].get("profile", "paper")
    assert values == {"profile": profile, "dataset": "auto", "recompute": False}
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in read(path).cells)


@every_notebook
def test_a_notebook_is_under_one_megabyte(path: Path) -> None:
    assert path.stat().st_size < 1_000_000


@every_notebook
def test_a_notebook_holds_no_machine_path_and_no_time(path: Path) -> None:
    text = text_of(path)
    for pattern in (MACHINE_PATH, TIMESTAMP):
        found = pattern.search(text)
        assert found is None, text[max(0, found.start() - 60) : found.end() + 60]


@every_notebook
def test_a_notebook_holds_nothing_of_the_run(path: Path) -> None:
    nb = read(path)
    assert not {"widgets", "papermill"} & nb.metadata.keys()
    for cell in nb.cells:
        assert not {"papermill", "execution"} & cell.metadata.keys()
        assert not any("widget" in kind for out in cell.get("outputs", []) for kind in out.get("data", {}))


@every_notebook
def test_each_promised_figure_is_named_after_its_notebook_and_drawn_in_it(path: Path) -> None:
    names = promised(path)
    source = "\n".join(cell.source for cell in code(read(path)))
    assert names and len(set(names)) == len(names)
    assert all(name.startswith(path.name[:3]) for name in names)
    drawn = re.findall(r'results\.figure\((?s:.*?)"(\d\d_\w+)",?\s*\)', source)
    assert sorted(drawn) == sorted(names)


def test_what_a_notebook_needs_comes_before_it() -> None:
    for path in PATHS:
        assert all(need < path.name[:2] for need in read(path).metadata["paperlib"]["needs"])


@every_notebook
def test_a_notebook_tells_its_part_as_a_paper_would(path: Path) -> None:
    nb = read(path)
    assert nb.cells[0].cell_type == "markdown" and nb.cells[0].source.startswith("# ")
    prose = "\n".join([cell.source for cell in nb.cells if cell.cell_type == "markdown"] + displayed(nb))
    assert all(word in prose for word in ("**Claim.**", "**What we saw.**", "**Limits.**", "$"))
    said = re.findall(r"\*\*(?:Claim|What we saw|Limits)\.\*\* ?(.*)", prose)
    assert all(len(text.split()) > 10 for text in said), "a word that holds a place is no claim"


@every_notebook
def test_no_measured_number_is_typed_into_the_prose(path: Path) -> None:
    typed = [f"cell {place}: {number}" for place, number in typed_in(read(path))]
    assert typed == [], "compute it from the rows and display it, see tests/prose.py"


@pytest.mark.parametrize(
    "text",
    [
        "It keeps 351 nats.", "It keeps thirteen nats.", "thirteen ($\\kappa=1$) to twenty-four nats higher",
        "ten to thirty nats below", "within a nat or 0.5 nats", "by 15.3", "a certificate of -353", "12 % of all",
        "at $-351$ nats", "$C = -351$", "$\\epsilon=0.1$", "MLP 784-512-20", "by hundreds of nats", "tens of nats",
        "ten times wider", "a hundredfold of it", "costs about twice an interval step", "half as many", "one more nat",
        "a quarter to nearly all", "nearly half of all units", "more than half",
        "by a few millionths", "5 per cent", "in 3 minutes", "16,000 draws", "see row 17",
    ],
)  # fmt: skip
def test_a_typed_result_is_noticed(text: str) -> None:
    assert typed_numbers(text)
    assert typed_numbers(f"**What we saw.** At the radius of training {text} and so on, see notebook 4.")


@pytest.mark.parametrize(
    "text",
    [
        "# 4. What is certified", "1. the first item\n2. the second", "see notebook 4 and notebooks 5 and 6, section 3",
        "(Condessa & Kolter 2020, [arXiv 2004.10608](https://arxiv.org/abs/2004.10608))", "Madry et al. 2018",
        "`sound=True` and `pgd(steps=40)` in float32", "$\\tfrac12\\log\\sigma^2$ and $$1+e^{-l}$$",
        "Twenty embedded digits", "three models in two dimensions", "One is exact", "at radius 0 the KL is 0",
        "a few nats", "the third row", "Half of the points are corners", "a [link](../figures/04_x.png)",
    ],
)  # fmt: skip
def test_references_formulas_and_small_counts_are_no_results(text: str) -> None:
    assert typed_numbers(text) == []


def test_a_setting_may_stand_beside_the_code_that_states_it_but_never_as_a_result() -> None:
    def notebook(*cells: tuple[str, str]) -> NotebookNode:
        make = {"md": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
        return nbformat.v4.new_notebook(cells=[make[kind](source) for kind, source in cells])

    text = ("md", "Points of a ball of radius 0.25, 1,000 in all.")
    assert list(typed_in(notebook(text, ("code", "ball = LinfBall(0.25)\nx = ball.sample(1_000)")))) == []
    assert list(typed_in(notebook(("code", "radius, count = 0.25, 1000"), text))) == []
    far = notebook(text, ("code", "pass"), ("code", "radius, count = 0.25, 1000"))
    assert list(typed_in(far)) == [(0, "0.25")], "a count may be stated anywhere, another setting only beside"
    assert list(typed_in(notebook(text, ("code", "pass")))) == [(0, "0.25"), (0, "1,000")]
    assert list(typed_in(notebook(("md", "It gains 15 nats."), ("code", "n = 15")))) == [(0, "15 nats")]


def test_text_that_code_displays_is_read_too() -> None:
    cell = nbformat.v4.new_code_cell(
        """Markdown(f"It gains {gain:.1f} nats at {eps}, and thirteen nats more" + "; 77")"""
    )
    computed = nbformat.v4.new_code_cell("""display(Markdown(f"It gains {gain:.1f} nats {of('kappa=0.5')} at 0.5."))""")
    typed = list(typed_in(nbformat.v4.new_notebook(cells=[cell, computed])))
    assert typed == [(0, "thirteen nats"), (0, "77")]


@every_notebook
def test_logic_lives_in_the_library(path: Path) -> None:
    source = "\n".join(cell.source for cell in code(read(path)))
    tree = ast.parse(source)
    assert not any(isinstance(node, ast.ClassDef | ast.While) for node in ast.walk(tree))
    assert not re.search(r"^\s*[%!]|\bopen\(|\bchdir\b", source.replace("Results.open(", ""), re.MULTILINE)
    assert ".backward(" not in source or path.stem == "00_provae_from_scratch"


def test_notebook_0_takes_nothing_from_the_library_before_its_last_cell() -> None:
    (path,) = [path for path in PATHS if path.stem == "00_provae_from_scratch"]
    *before, last = [ast.parse(cell.source) for cell in code(read(path))]
    assert "paperlib" in _imported(last)
    assert not any("paperlib" in _imported(tree) for tree in before)


def _imported(tree: ast.AST) -> set[str]:
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README.md yet")
@every_notebook
def test_the_readme_lists_each_notebook(path: Path) -> None:
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text()


def committed() -> dict[str, str]:
    folders = (ROOT / "figures", ROOT / "notebooks")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make_smoke(tmp_path: Path) -> str:
    """Run the smoke profile as `make figures PROFILE=smoke` does, with no data to be found; returns what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PAPERLIB_")}
    env |= {"PAPERLIB_DATA": str(tmp_path / "no data here"), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "scripts.figures", "--profile", "smoke", "--dataset", "auto"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1_200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_smoke_profile_makes_every_figure_and_touches_no_committed_result(tmp_path: Path) -> None:
    before = committed()
    make_smoke(tmp_path)
    assert committed() == before
    for path in PATHS:
        for name in promised(path):
            assert (SMOKE / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
            assert (SMOKE / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name
        executed = [cell for cell in code(read(SMOKE / "notebooks" / path.name)) if cell.source.strip()]
        assert [cell.execution_count for cell in executed] == list(range(1, len(executed) + 1))
    assert "nothing to do" in make_smoke(tmp_path)
    assert not (tmp_path / "no data here").exists()
