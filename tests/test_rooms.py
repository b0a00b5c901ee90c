"""The rooms of paperlib: imports go downwards, in no circle; a file is one idea, which its name says in plain words.

Imports are read from the sources, those inside functions, too. Each rule is first seen to fail on a made-up package.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

PACKAGE = Path(__file__).resolve().parents[1] / "paperlib"
# from the ground up
ROOMS = (
    "runtime",
    "bounds",
    "models",
    "threats",
    "data",
    "certificates",
    "training",
    "rivals",
    "detection",
    "commands",
    "paper",
)
NEVER = {("models", "bounds")}  # densities and networks know no bound, though bounds are further down
LONGEST = 250  # lines of a file
REASON = "one idea"  # what the docstring of a longer file says to explain itself
PRIVATE_WORDS = re.compile(r"\b(Band|Choice|Strip|[Ss]ettle|[Pp]ull|[Kk]nown|[Ff]ound)\b")
ALLOWED_PHRASES = {
    "expected and the found checksum": "what DESIGN, section 5, asks of the error of a damaged file",
    "expected SHA-256 {expected}, found {actual}": "that error's message",
    "expected SHA-256 {expected}, found none": "the same, of a file that cannot be read",
    "{k}: found {stored.get(k)!r}, wanted {wanted.get(k)!r}": "a message that shows both of two configurations",
}


# ---- reading a package


def modules(package: Path) -> dict[str, Path]:
    """The file of each module by the module's full name; a package's is its __init__.py."""
    named = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imported(tree: ast.AST, module: str, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """Each name that is imported, as in a.b.c, and whether it is when the module is; `from a import b` gives a.b."""
    later = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    todo = [(tree, True)]
    while todo:
        node, at_once = todo.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # one dot is the package that the module is in, or that it is
            package = module.split(".")[: None if is_package else -1]
            above = package[: len(package) - node.level + 1] if node.level else []
            source = [*above, *([node.module] if node.module else [])]
            yield from ((".".join([*source, alias.name]), at_once) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            todo.append((child, at_once and not isinstance(node, later)))


def import_graph(package: Path) -> dict[str, set[str]]:
    """For each module the modules of the same package that it imports, anywhere in its file."""
    files = modules(package)

    def nearest(name: str) -> str | None:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    graph = {}
    for module, path in files.items():
        names = imported(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py")
        graph[module] = {target for name, _ in names if (target := nearest(name)) is not None}
    return graph


def room(module: str) -> str:
    """The second part of a module's name; none for the package itself."""
    return module.split(".")[1] if "." in module else "__init__"


# ---- the rules: each gives what breaks it


def upward_imports(package: Path) -> list[str]:
    """Imports against the order of rooms; at the top stand the package's __init__ and, above it, __main__."""
    order = [*ROOMS, "__init__", "__main__"]
    graph = import_graph(package)
    nowhere = sorted(module for module in graph if room(module) not in order)
    if nowhere:
        return [f"{module} is in no room" for module in nowhere]
    return sorted(
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in targets
        if order.index(room(target)) > order.index(room(module)) or (room(module), room(target)) in NEVER
    )


def circle(package: Path) -> list[str]:
    """The modules of a circle of imports, if there is one."""
    try:
        TopologicalSorter(import_graph(package)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imports_of_the_paper(package: Path) -> list[str]:
    """Imports of the paper's own experiments by anything else."""
    return sorted(
        f"{module} imports {target}"
        for module, targets in import_graph(package).items()
        for target in targets
        if room(target) == "paper" and room(module) != "paper"
    )


def long_files(package: Path) -> list[str]:
    """Files over the limit whose docstring does not say why."""
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    return sorted(
        f"{path.relative_to(package).as_posix()} has {len(text.splitlines())} lines"
        for path, text in sources.items()
        if len(text.splitlines()) > LONGEST and REASON not in (ast.get_docstring(ast.parse(text)) or "")
    )


def hidden_modules(package: Path) -> list[str]:
    """Modules whose name their package's __init__ gives to something else, so that `package.name` is not the module."""
    files = modules(package)
    hidden = []
    for parent, path in files.items():
        if path.name != "__init__.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            bound: dict[str, str] = {}  # by name what it is given to
            if isinstance(node, ast.ImportFrom):
                targets = imported(ast.Module([node], []), parent, is_package=True)
                names = [alias.asname or alias.name for alias in node.names]
                bound = {name: target for name, (target, _) in zip(names, targets, strict=True)}
            elif isinstance(node, ast.Import):
                bound = {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound = {node.name: "its own"}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                assigned = node.targets if isinstance(node, ast.Assign) else [node.target]
                bound = {target.id: "its own" for target in assigned if isinstance(target, ast.Name)}
            modules_of_the_name = {f"{parent}.{name}": target for name, target in bound.items()}
            hidden += [module for module, target in modules_of_the_name.items() if module in files and module != target]
    return sorted(hidden)


def main_guards(package: Path) -> list[str]:
    """Files other than the package's __main__.py that compare __name__ with "__main__"."""
    guarded = []
    for path in sorted(package.rglob("*.py")):
        comparisons = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Compare)]
        sides = [{ast.unparse(side) for side in (node.left, *node.comparators)} for node in comparisons]
        if path != package / "__main__.py" and any({"__name__", "'__main__'"} <= both for both in sides):
            guarded.append(path.relative_to(package).as_posix())
    return guarded


def private_words(package: Path) -> set[tuple[str, str]]:
    """(file, word) for each word that has a better one in the field or in plain English; not in allowed phrases."""
    broken = set()
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for phrase in ALLOWED_PHRASES:
            text = text.replace(phrase, "")
        broken |= {(path.relative_to(package).as_posix(), word) for word in PRIVATE_WORDS.findall(text)}
    return broken


# ---- the library keeps them


@pytest.mark.parametrize(
    "rule", [upward_imports, circle, imports_of_the_paper, long_files, hidden_modules, main_guards]
)
def test_the_library_keeps_the_rule(rule: Any) -> None:
    assert rule(PACKAGE) == []


def test_each_room_is_there_and_has_a_docstring() -> None:
    assert {room(module) for module in modules(PACKAGE)} == {*ROOMS, "__init__", "__main__"}
    for module, path in modules(PACKAGE).items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module


def test_no_two_test_files_have_one_name() -> None:
    """They could not be collected together, as pytest imports each by its name alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_the_library_has_no_private_words() -> None:
    assert private_words(PACKAGE) == set()


@pytest.mark.parametrize("phrase", ALLOWED_PHRASES)
def test_an_allowed_phrase_is_still_used(phrase: str) -> None:
    assert any(phrase in path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")), "take it from the list"


def test_each_module_is_what_its_name_gives() -> None:
    for name in modules(PACKAGE):
        module = importlib.import_module(name)
        parent, _, leaf = name.rpartition(".")
        assert not parent or getattr(importlib.import_module(parent), leaf) is module, name


WRONG_TYPES = [
    ("runtime.distributed", "on_rank_zero", (3,)),
    ("bounds.interval", "propagate", (torch.nn.ReLU(), torch.zeros(2))),
    ("models.elbo", "elbo", ("a model", torch.zeros(1, 2), torch.zeros(1, 2))),
    ("threats.balls", "LinfBall", ("0.1",)),
    ("data.datasets", "load_dataset", (5,)),
    ("certificates.api", "certificate", ("a model", torch.zeros(1, 2), 0.1, torch.zeros(1, 2))),
    ("training.loop", "train", ("a configuration",)),
    ("rivals.civet", "civet_error", ("a model", torch.zeros(1, 2), 0.1)),
    ("detection.conformal", "rows_needed", ("0.05",)),
    ("commands.command", "say", (3,)),
    ("paper.tables", "markdown", ("a table",)),
]


@pytest.mark.parametrize(("module", "name", "args"), WRONG_TYPES, ids=[name for _, name, _ in WRONG_TYPES])
def test_a_wrong_type_is_an_error_in_each_room(module: str, name: str, args: tuple[Any, ...]) -> None:
    """So that all other tests check each type hint of the library."""
    with pytest.raises(BeartypeCallHintViolation):
        getattr(importlib.import_module(f"paperlib.{module}"), name)(*args)


def test_a_wrong_type_is_tried_in_each_room() -> None:
    assert {module.split(".")[0] for module, _, _ in WRONG_TYPES} == set(ROOMS)


# ---- the rules can fail


def made_up(folder: Path, **files: str) -> Path:
    """A package `toy` in which "bounds__lines" is the source of toy/bounds/lines.py."""
    package = folder / "toy"
    for name, source in files.items():
        head, _, tail = name.partition("__")
        special = {"init": "__init__.py", "main": "__main__.py"}
        path = package / special.get(head, f"{head}/{tail}.py" if tail else f"{head}/__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        for folder_of_path in path.relative_to(package).parents:
            (package / folder_of_path / "__init__.py").touch()
    return package


def test_the_graph_has_an_arrow_for_every_way_to_import(tmp_path: Path) -> None:
    package = made_up(
        tmp_path,
        bounds__interval="import math\nimport numpy as np\n",
        bounds__linear="from . import interval\nfrom .interval import Interval\nfrom ..models import vae\n",
        models__vae="import toy.bounds.interval as boxes, toy.data\n",
        data="from toy.bounds import interval, linear\nfrom toy.bounds.linear import anything\n",
        training__loop="def run():\n    def inner():\n        from toy import data\n    import toy.models.vae\n",
        init="from toy.training.loop import run\nclass A:\n    from toy.models import vae\n",
        main="from toy import run\nif True:\n    import toyish.data\n",
    )
    assert import_graph(package) == {
        "toy": {"toy.training.loop", "toy.models.vae"},
        "toy.__main__": {"toy"},
        "toy.bounds": set(),
        "toy.bounds.interval": set(),
        "toy.bounds.linear": {"toy.bounds.interval", "toy.models.vae"},
        "toy.models": set(),
        "toy.models.vae": {"toy.bounds.interval", "toy.data"},
        "toy.data": {"toy.bounds.interval", "toy.bounds.linear"},
        "toy.training": set(),
        "toy.training.loop": {"toy.data", "toy.models.vae"},
    }


def test_imports_inside_functions_are_told_apart() -> None:
    source = "import a\nclass B:\n    import b\n    def f(self):\n        import c\nif True:\n    from d import e\n"
    assert dict(imported(ast.parse(source), "toy.bounds")) == {"a": True, "b": True, "c": False, "d.e": True}


def test_a_package_in_order_breaks_no_rule(tmp_path: Path) -> None:
    package = made_up(
        tmp_path,
        runtime__files="",
        bounds__interval="from toy.runtime import files\n",
        training__loop="from toy.bounds.interval import Interval\ndef run(): ...\n",
        paper__plots="import toy.training.loop\n",
        init="from toy.training.loop import run\nfrom toy import bounds\n",
        main="import toy.bounds\nif __name__ == '__main__':\n    print(toy)\n",
    )
    rules = (upward_imports, circle, imports_of_the_paper, long_files, hidden_modules, main_guards)
    assert [rule(package) for rule in rules] == [[]] * len(rules)
    assert private_words(package) == set()


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        ({"bounds__a": "def f():\n    import toy.training.loop"}, ["toy.bounds.a imports toy.training.loop"]),
        ({"bounds__a": "from ..training import loop"}, ["toy.bounds.a imports toy.training.loop"]),
        ({"bounds": "from toy.training.loop import run"}, ["toy.bounds imports toy.training.loop"]),
        ({"bounds__a": "from toy import run"}, ["toy.bounds.a imports toy"]),
        ({"training__a": "import toy.__main__"}, ["toy.training.a imports toy.__main__"]),
        ({"models__a": "from toy.bounds import b", "bounds__b": ""}, ["toy.models.a imports toy.bounds.b"]),
        ({"attic__a": "", "attic": ""}, ["toy.attic is in no room", "toy.attic.a is in no room"]),
    ],
    ids=["in a function", "relative", "by an __init__", "of a public name", "of __main__", "models", "no room"],
)
def test_an_upward_import_is_seen(tmp_path: Path, files: dict[str, str], broken: list[str]) -> None:
    package = made_up(tmp_path, training__loop="def run(): ...", main="", **files)
    assert upward_imports(package) == broken
    assert circle(package) == []


@pytest.mark.parametrize("last", ["import toy.bounds.a", "def f():\n    from . import a", "import toy.bounds.c"])
def test_a_circle_is_seen(tmp_path: Path, last: str) -> None:
    package = made_up(tmp_path, bounds__a="import toy.bounds.b", bounds__b="from toy.bounds import c", bounds__c=last)
    assert upward_imports(package) == []
    modules_in_it = {"toy.bounds.c"} if last.endswith("c") else {f"toy.bounds.{name}" for name in "abc"}
    assert set(circle(package)) == modules_in_it


@pytest.mark.parametrize("importer", ["training__loop", "init", "main"])
def test_an_import_of_the_paper_is_seen(tmp_path: Path, importer: str) -> None:
    package = made_up(tmp_path, paper__plots="", **{importer: "def f():\n    from toy.paper import plots"})
    name = {"training__loop": "toy.training.loop", "init": "toy", "main": "toy.__main__"}[importer]
    assert imports_of_the_paper(package) == [f"{name} imports toy.paper.plots"]


def test_a_long_file_is_seen_unless_it_says_why(tmp_path: Path) -> None:
    package = made_up(
        tmp_path,
        bounds__long='"""Lines."""\n' + "x = 1\n" * 250,
        bounds__explained='"""A long table is one idea."""\n' + "x = 1\n" * 250,
        bounds__short='"""Lines."""\n' + "x = 1\n" * 249,
    )
    assert long_files(package) == ["bounds/long.py has 251 lines"]


@pytest.mark.parametrize(
    "init",
    [
        "from toy.training.loop import train",
        "from toy.training.loop import run as train",
        "import toy.training.loop as train",
        "def train(): ...",
        "class train: ...",
        "train = 1",
        "train: int = 1",
    ],
)
def test_a_hidden_module_is_seen(tmp_path: Path, init: str) -> None:
    package = made_up(tmp_path, training__loop="", train="", init=init)
    assert hidden_modules(package) == ["toy.train"]


def test_a_guard_is_seen(tmp_path: Path) -> None:
    guard = 'if __name__ == "__main__":\n    print()\n'
    package = made_up(tmp_path, training__loop=guard, bounds__a="x = __name__ == 'a'", main=guard)
    (package / "bounds" / "__main__.py").write_text("if '__main__' == __name__:\n    print()\n", encoding="utf-8")
    assert main_guards(package) == ["bounds/__main__.py", "training/loop.py"]


def test_a_private_word_is_seen_as_a_whole_word(tmp_path: Path) -> None:
    source = "class Band: ...\n# Pulled, unknown and foundations; found here\nknown_to = 'Strips' + f'{known}'\n"
    source += "".join(f"# {phrase}\n" for phrase in ALLOWED_PHRASES)
    package = made_up(tmp_path, bounds__a=source)
    assert private_words(package) == {("bounds/a.py", word) for word in ("Band", "found", "known")}
