"""pyproject.toml, lock, conda file, container, workflow and what is installed agree; make's environment is all or none.

No test here needs the network: where make would install something, stand-ins for Python answer it.
"""

import ast
import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from test_rooms import imported, modules

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
MINORS = [f"3.{minor}" for minor in range(6, 30)]

# torch fixes or bounds these for each platform, so the lock leaves them out
BY_TORCH = re.compile(r"(nvidia|cuda)-.*|triton")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def declared(*extras: str) -> list[Requirement]:
    """The core dependencies and those of some extras, in which the project's own name stands for another extra."""
    requirements = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    for requirement in (Requirement(text) for extra in extras for text in EXTRAS[extra]):
        own = requirement.name == PROJECT["project"]["name"]
        requirements += declared(*requirement.extras) if own else [requirement]
    return [*dict.fromkeys(requirements)]


CORE, PAPER = declared(), declared("paper")
BUILD = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
DIRECT = [*dict.fromkeys(declared(*EXTRAS) + BUILD)]
PYTHONS = [version for version in MINORS if version in SpecifierSet(PROJECT["project"]["requires-python"])]

LOCK_LINES = [line for line in read("requirements.lock").splitlines() if line and not line.startswith("#")]
LOCK = {canonicalize_name(line.split("==")[0]): line.split("==")[-1] for line in LOCK_LINES}

MAKEFILE = read("Makefile")
TARGETS = re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE)


# ---- lock


def test_every_pin_is_exact_and_unique() -> None:
    assert [line for line in LOCK_LINES if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []
    assert len(LOCK) == len(LOCK_LINES)


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_lock_meets_direct_dependency(requirement: Requirement) -> None:
    version = LOCK.get(canonicalize_name(requirement.name))
    assert version is not None, "not in requirements.lock: run `make lock`"
    assert requirement.specifier.contains(version, prereleases=True)


def test_installed_is_locked() -> None:
    installed = {name: _version(name) for name in LOCK}
    assert {name: version and _public(version) for name, version in installed.items()} == LOCK


def test_every_pin_admits_the_lowest_python() -> None:
    """The first release of each Python that the project admits, by what the pinned distribution itself says."""
    others = [name for name in LOCK if _public(_version(name) or "") != LOCK[name]]
    own = {name: importlib.metadata.metadata(name)["Requires-Python"] or "" for name in LOCK if name not in others}
    releases = [f"{python}.0" for python in PYTHONS]
    narrow = [f"{name}: {text}" for name, text in own.items() if not all(r in SpecifierSet(text) for r in releases)]
    assert narrow == []
    if others:
        pytest.skip(f"not read, as another version than the lock's is installed: {', '.join(others)}")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("platform", "not_locked"), [("linux", set()), ("darwin", {"appnope"})])
def test_lock_is_closed(platform: str, not_locked: set[str], python: str) -> None:
    """Whatever a locked distribution needs, on each Python, is locked and of a version that it accepts."""
    reached = _closure(tuple(DIRECT), platform, python)
    assert set(reached) - set(LOCK) == not_locked
    bad = [
        f"{requirer} needs {requirement}, the lock has {LOCK[name]}"
        for name, needs in reached.items()
        for requirer, requirement in needs
        if name in LOCK and not requirement.specifier.contains(LOCK[name], prereleases=True)
    ]
    assert bad == []


def test_lock_holds_nothing_else() -> None:
    reached = {name for python in PYTHONS for name in _closure(tuple(DIRECT), "linux", python)}
    assert set(LOCK) - reached == set()


def test_left_out_of_the_lock_are_torchs_own_only() -> None:
    assert [name for name in LOCK if BY_TORCH.fullmatch(name)] == []
    needs = {requirer: _requirements(requirer, set(), default_environment()) for requirer in LOCK}
    requirers = {name for name, needed in needs.items() if any(BY_TORCH.fullmatch(r.name.lower()) for r in needed)}
    assert requirers <= {"torch"}


def _public(version: str) -> str:
    """Without the name of a build: 2.14.1+cpu is 2.14.1."""
    return version.partition("+")[0]


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements(name: str, extras: set[str], environment: Mapping[str, str]) -> list[Requirement]:
    """What the installed distribution needs in `environment`, with these of its extras; nothing if not installed."""
    if _version(name) is None:
        return []
    named = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    wanted = [{**environment, "extra": extra} for extra in ("", *extras)]
    return [r for r in named if r.marker is None or any(r.marker.evaluate(e) for e in wanted)]


@functools.cache
def _closure(direct: tuple[Requirement, ...], platform: str, python: str) -> dict[str, list[tuple[str, Requirement]]]:
    """All that some requirements need, directly or not: name -> who needs it and how."""
    system = {"linux": "Linux", "darwin": "Darwin"}[platform]
    environment = default_environment() | {
        "sys_platform": platform,
        "platform_system": system,
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.1",
    }
    reached: dict[str, list[tuple[str, Requirement]]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [("pyproject.toml", requirement) for requirement in direct]
    while todo:
        requirer, requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if BY_TORCH.fullmatch(name):
            continue
        reached.setdefault(name, []).append((requirer, requirement))
        if (key := (name, frozenset(requirement.extras))) not in seen:
            seen.add(key)
            todo += [(name, further) for further in _requirements(name, requirement.extras, environment)]
    return reached


# ---- direct dependencies


# of the library: for downloads, for several processes, for clusters, for the picture of an attack
OPTIONAL = {"torchvision", "pebble", "ray", "matplotlib"}
OUTSIDE_THE_PAPER = [path for path in (ROOT / "paperlib").rglob("*.py") if "paper" not in path.relative_to(ROOT).parts]
EXPERIMENTS = [path for folder in ("paperlib/paper", "scripts", "notebooks") for path in (ROOT / folder).rglob("*")]
TESTS = list((ROOT / "tests").rglob("*.py"))


def test_the_library_needs_seven_packages_at_lowest_versions() -> None:
    assert {r.name for r in CORE} == {"torch", "numpy", "pandas", "safetensors", "scikit-learn", "tqdm", "tyro"}
    assert [str(r) for r in CORE if [specifier.operator for specifier in r.specifier] != [">="]] == []
    assert set(EXTRAS) == {"paper", "ladder", "cluster", "test"}
    assert {r.name for r in declared("paper", "cluster")} - {r.name for r in CORE} >= OPTIONAL


@pytest.mark.parametrize(
    ("files", "at_once", "allowed"),
    [
        (OUTSIDE_THE_PAPER, True, {r.name for r in CORE}),
        (OUTSIDE_THE_PAPER, False, {r.name for r in CORE} | OPTIONAL),
        (EXPERIMENTS, None, {r.name for r in PAPER}),
        (TESTS, None, {r.name for r in DIRECT}),
    ],
    ids=["library", "library, inside functions", "paper, scripts and notebooks", "tests"],
)
def test_what_is_imported_is_declared(files: list[Path], at_once: bool | None, allowed: set[str]) -> None:
    names = {canonicalize_name(name) for name in allowed}
    providers = importlib.metadata.packages_distributions()
    helpers = {path.stem for path in TESTS}  # a helper beside the tests is no package
    modules = {module for path in files for module, when in _imports(path) if at_once in (None, when)}
    modules -= {"paperlib", "scripts", *helpers, *sys.stdlib_module_names}
    undeclared = {m for m in modules if not names & {canonicalize_name(name) for name in providers.get(m, [])}}
    assert undeclared == set()


def test_imports_are_read_from_all_files() -> None:
    by_files = [
        {module for path in files for module, _ in _imports(path)} for files in (OUTSIDE_THE_PAPER, EXPERIMENTS)
    ]
    assert {"torch", "tyro", "tqdm", "pebble"} <= by_files[0] and "seaborn" not in by_files[0]
    assert {"matplotlib", "seaborn", "papermill", "IPython"} <= by_files[1]


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The packages that a file imports, and whether it does when it is itself imported, not in a function."""
    sources = []
    if path.suffix == ".py":
        sources = [path.read_text(encoding="utf-8")]
    elif path.suffix == ".ipynb" and ".ipynb_checkpoints" not in path.parts:
        cells = nbformat.read(path, as_version=4).cells
        sources = [re.sub(r"(?m)^\s*[%!].*$", "", cell.source) for cell in cells if cell.cell_type == "code"]
    for source in sources:
        for name, at_once in imported(ast.parse(source), "paperlib.module"):
            yield name.split(".")[0], at_once


CORE_ALONE = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(sys.argv[2].split()))  # importing any of them is an error
import paperlib
for module in pkgutil.walk_packages(paperlib.__path__, "paperlib."):
    if not module.name.startswith("paperlib.paper"):
        importlib.import_module(module.name)
from paperlib.__main__ import main
digits = ["--dataset", "mnist5k", "--hidden", "8", "--latent-dim", "2"]
main(["train", *digits, "--steps", "3", "--batch-size", "8", "--folder", sys.argv[1]])
"""


def test_core_dependencies_alone_train_a_model(tmp_path: Path) -> None:
    """All other packages that are installed here are hidden from the library."""
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = set(_closure(tuple(CORE), sys.platform, minor)) | {canonicalize_name(PROJECT["project"]["name"])}
    hidden = [
        module
        for module, providers in importlib.metadata.packages_distributions().items()
        if all(name not in needed and not BY_TORCH.fullmatch(name) for name in map(canonicalize_name, providers))
    ]
    assert {"matplotlib", "IPython", "beartype", *OPTIONAL} <= set(hidden) and not {"torch", "numpy"} & set(hidden)
    done = _python(CORE_ALONE, tmp_path, str(tmp_path / "run"), " ".join(hidden), path=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()


# ---- the wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel that the tracked files make, installed without any other package and any network."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: nothing says which files are tracked")
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.strip("\0").split("\0"):
        if (ROOT / name).is_file():  # else removed and not yet committed
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    for command in (
        ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"],
        ["install", "--no-index", "--no-deps", "--find-links", folder, "--target", folder / "site", "provae"],
    ):
        done = subprocess.run([*pip, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


IMPORT_ALL = """
import importlib, json, pkgutil, sys
import paperlib

def stop(name):
    raise

names = ["paperlib", *(module.name for module in pkgutil.walk_packages(paperlib.__path__, "paperlib.", stop))]
for name in names:
    importlib.import_module(name)
files = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "paperlib"}
digits = paperlib.load_dataset("mnist5k")
print(json.dumps({"files": files, "digits": list(digits.x.shape)}))
"""


def test_the_wheel_holds_every_module_and_the_embedded_data(site: Path, tmp_path: Path) -> None:
    assert not site.is_relative_to(ROOT)
    done = _python(IMPORT_ALL, tmp_path, path=site)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {name: Path(file).relative_to(site).parts for name, file in result["files"].items()} == {
        name: path.relative_to(ROOT).parts for name, path in modules(ROOT / "paperlib").items()
    }
    assert result["digits"] == [4_000, 784]


def test_the_wheel_holds_nothing_else_but_licences(site: Path) -> None:
    assert {path.name.partition("-")[0] for path in site.iterdir()} == {"paperlib", "provae"}
    others = {path.relative_to(site).as_posix() for path in (site / "paperlib").rglob("*") if path.is_file()}
    others = {name for name in others if not name.endswith((".py", ".pyc"))}
    assert others == {f"paperlib/data/{name}" for name in ("LICENSES.md", "mnist5k.npz", "ecg5000.npz")}


def _python(script: str, folder: Path, *args: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in another folder than this one, where the packages in `path` come before those installed."""
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-P", "-c", script, *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


# ---- one Python range


def test_same_python_range_everywhere() -> None:
    lowest = PYTHONS[0]
    conda = next(d for d in _conda() if isinstance(d, str) and d.startswith("python"))
    bounds = re.search(r"\((3, \d+)\) <= sys.version_info\[:2\] <= \((3, \d+)\)", MAKEFILE)
    assert bounds is not None
    classifiers = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if ":: Python :: 3." in c]
    candidates = re.findall(r"python(3\.\d+)", re.findall(r"(?m)^PYTHON \?= (.*)$", MAKEFILE)[0])
    assert sorted(candidates) == PYTHONS
    assert [bound.replace(", ", ".") for bound in bounds.groups()] == [lowest, PYTHONS[-1]]
    assert [version for version in MINORS if version in Requirement(conda).specifier] == PYTHONS
    assert classifiers == PYTHONS
    assert _workflow()["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert f"badge/python-{lowest}%20to%20{PYTHONS[-1]}-" in read("README.md")
    assert f"Python {lowest} to {PYTHONS[-1]}" in read("README.md")
    assert f"Serves Python {lowest} to {PYTHONS[-1]}" in read("requirements.lock")
    assert set(re.findall(r"python(3\.\d+)", read("Dockerfile"))) <= set(PYTHONS)
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    assert PROJECT["tool"]["mypy"]["python_version"] == lowest


# ---- conda, container, workflow, licence, citation


def _conda() -> list[Any]:
    return list(yaml.safe_load(read("environment.yml"))["dependencies"])


def test_conda_takes_python_and_pip_only_and_the_rest_from_the_lock() -> None:
    assert yaml.safe_load(read("environment.yml"))["channels"] == ["conda-forge", "nodefaults"]
    names = [Requirement(entry).name for entry in _conda() if isinstance(entry, str)]
    assert names == ["python", "pip"]
    assert _conda()[-1] == {"pip": ["-r requirements.lock", "-e ."]}


def _instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of the Dockerfile, without comments, continuation lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", read("Dockerfile"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_dockerfile_installs_the_lock_before_it_copies_the_source() -> None:
    steps = [f"{name} {rest}" for name, rest in _instructions()]
    lock = next(i for i, step in enumerate(steps) if re.match(r"COPY .*requirements\.lock", step))
    install = next(i for i, step in enumerate(steps) if "-r requirements.lock" in step)
    source = next(i for i, step in enumerate(steps) if re.match(r"COPY .*\. \.$", step))
    finish = next(i for i, step in enumerate(steps) if step == "RUN make env")
    assert lock < install < source < finish


def test_container_makes_the_figures_as_a_user_without_privileges() -> None:
    last = dict(_instructions())
    assert last["USER"].split(":")[0] not in {"root", "0"}
    assert json.loads(last["ENTRYPOINT"]) == ["tini", "--"]
    assert json.loads(last["CMD"]) == ["make", "figures"]
    assert re.fullmatch(r"BASE=nvidia/cuda:13\.[\w.]+-base-ubuntu24\.04", last["ARG"])


@pytest.mark.parametrize("name", ["README.md", "Dockerfile"])
def test_the_documented_container_keeps_results_and_runs_as_the_owner_of_their_folders(name: str) -> None:
    lines = re.sub(r"(?m)^# *", "", read(name)).replace("\\\n", " ").splitlines()
    (run,) = (line for line in lines if "docker run" in line and "--gpus" in line)
    work = dict(_instructions())["WORKDIR"]
    mounts = dict(re.findall(r'-v "\$PWD/(\w+):(\S+)"', run))
    assert mounts == {folder: f"{work}/{folder}" for folder in ("build", "figures", "notebooks")}
    assert '--user "$(id -u):$(id -g)"' in run and run.split()[-1] == "provae"
    assert "mkdir -p build" in "\n".join(lines), "docker would make the folder, and as root"


def test_any_user_of_the_container_has_a_home_and_data_that_stay() -> None:
    steps = [rest for name, rest in _instructions() if name in ("RUN", "ENV")]
    assert steps.index("make env") < len(steps) - 1, "nothing of the image's own user lies in that home"
    (home,) = re.findall(r"HOME=(\S+)", dict(_instructions())["ENV"])
    assert any(f"install --directory --mode=1777 {home} " in step for step in steps)
    assert any("git config --system --add safe.directory /provae" in step for step in steps)
    assert "PAPERLIB_DATA=/provae/build/data" in dict(_instructions())["ENV"], "in a folder that is mounted"


def test_jupyter_keeps_its_token() -> None:
    assert re.search(r"(?i)token\s*=|password\s*=", read("Dockerfile") + MAKEFILE) is None


def _workflow() -> Any:
    return yaml.safe_load(read(".github/workflows/test.yml"))


@pytest.mark.parametrize(
    ("schema", "name"),
    [("vendor.github-workflows", ".github/workflows/test.yml"), ("vendor.citation-file-format", "CITATION.cff")],
)
def test_file_is_valid_under_its_schema(schema: str, name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_workflow_runs_make_test_and_nothing_else() -> None:
    steps = _workflow()["jobs"]["test"]["steps"]
    assert list(_workflow()["jobs"]) == ["test"]
    assert [step["run"] for step in steps if "run" in step] == ["make test"]
    assert {step["uses"].split("@")[0] for step in steps if "uses" in step} == {
        "actions/checkout",
        "actions/setup-python",
    }
    assert _workflow()["permissions"] == {"contents": "read"}


def test_workflow_runs_on_linux_and_macos_and_keeps_downloads() -> None:
    job = _workflow()["jobs"]["test"]
    assert job["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert job["runs-on"] == "${{ matrix.os }}"
    (setup,) = (step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python"))
    assert (setup["cache"], setup["cache-dependency-path"]) == ("pip", "requirements.lock")


def test_the_badge_is_of_the_workflow() -> None:
    badge = re.findall(r"\((?:\.\./){2}actions/workflows/([\w.]+)(?:/badge\.svg)?\)", read("README.md"))
    assert len(badge) == 2 and all((ROOT / ".github" / "workflows" / name).is_file() for name in badge)


def test_licence_is_the_same_everywhere() -> None:
    assert read("LICENSE").startswith("MIT License\n")
    assert PROJECT["project"]["license"] == yaml.safe_load(read("CITATION.cff"))["license"] == "MIT"


# ---- commands


def test_ci_runs_make_test_from_any_folder(tmp_path: Path) -> None:
    script = tmp_path / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    _executable(tmp_path / "bin" / "make", 'echo "$PWD: $*"; exit 3')
    done = subprocess.run([script], cwd=tmp_path, env=_env(tmp_path / "bin"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, f"{tmp_path / 'checkout'}: test\n")


def test_every_variable_that_make_sets_or_passes_on_is_listed() -> None:
    said = subprocess.run(["make", "-C", ROOT, "-s", "help"], env=_env(), capture_output=True, text=True).stdout
    listed = set(re.findall(r"(?m)^  ([A-Z_]+) ", said.partition("Environment:\n")[2]))
    exported = set(re.findall(r"\bexport ([A-Z_]+)", MAKEFILE))
    in_recipes = set(re.findall(r"\b([A-Z]+_[A-Z_]+|PYTHON[A-Z]+|MPL[A-Z]+)=[^\s']*", MAKEFILE)) - {"LAB_FLAGS"}
    assert {"MPLBACKEND", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "PYTHONPATH"} <= exported | in_recipes
    assert exported | in_recipes <= listed
    assert {"PAPERLIB_DATA", "PIP_EXTRA_INDEX_URL", "OMP_NUM_THREADS"} <= listed


KERNEL = """
import os, paperlib, matplotlib
print(paperlib.__file__)
print(matplotlib.get_backend())
"""


@pytest.mark.parametrize("target", ["lab", "test"])
def test_a_notebook_imports_the_library_of_its_own_checkout_and_shows_pictures(tmp_path: Path, target: str) -> None:
    """Here another checkout, or none, is installed; and the user draws into files."""
    root = tmp_path / "a checkout"
    (root / "paperlib").mkdir(parents=True)
    (root / "notebooks").mkdir()
    (root / "paperlib" / "__init__.py").touch()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, root)
    cell = nbformat.v4.new_code_cell(KERNEL, execution_count=1)
    expected = f"{root / 'paperlib' / '__init__.py'}\nmodule://matplotlib_inline.backend_inline\n"
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=expected)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, root / "notebooks" / "00_a.ipynb")
    # stand-ins for all but what starts the kernel: nbval itself, and for JupyterLab the same in its place
    nbval = f"exec '{sys.executable}' -m pytest -p no:cacheprovider --nbval --nbval-current-env notebooks"
    (tmp_path / "bin").mkdir()
    _executable(tmp_path / "bin" / "python", f'case "$*" in *--nbval*) {nbval} ;; esac')
    _executable(tmp_path / "bin" / "jupyter", nbval)
    for name in ("ruff", "mypy"):
        _executable(tmp_path / "bin" / name, "exit 0")
    (tmp_path / ".installed").touch()
    env = _env() | {"MPLBACKEND": "Agg"}
    done = subprocess.run(["make", target, "VENV=.."], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def test_every_target_has_help_and_help_lists_it() -> None:
    expected = ["help", "figures", "plots", "test", "bench", "readme", "lab", "html", "docker", "lock", "env", "clean"]
    assert expected == TARGETS
    assert sorted(re.findall(r"(?m)^\.PHONY: (.*)$", MAKEFILE)[0].split()) == sorted(TARGETS)
    listed = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], env=_env(), capture_output=True, text=True)
    assert re.findall(r"(?m)^  make (\w+) +\S", listed.stdout) == expected


# Stand-ins. An interpreter answers make's questions as one of that version would; its environment's own interpreter
# writes down what it is asked to do, and fails or interrupts make (like Ctrl-C) at pip if the file `pip` says so.

INTERPRETER = """
case "$1" in
-c) exec '{real}' -I -S -c "import sys; sys.version_info = {version}; sys.modules['{missing}'] = None; $2" ;;
-m) for folder; do :; done; mkdir -p "$folder/bin"; touch "$folder/pyvenv.cfg"; echo "$0 $*" >> log
    cp '{bin}/inside' "$folder/bin/python" ;;
esac
"""
INSIDE = """
if [ "$1" = -c ]; then exit 0; fi
echo "$*" >> log
case "$*" in
*'pip freeze'*) printf 'B==2+cpu\\nnvidia-x==1\\ncuda-y==1\\ntriton==1\\npip==1\\na==1\\n' ;;
*'pip install'*) case "$(cat pip 2>/dev/null)" in interrupt) kill -INT 0; sleep 5 ;; fail) exit 1 ;; esac ;;
esac
"""


def _executable(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)


def _env(first: Path | None = None) -> dict[str, str]:
    """This environment, without what an outer make or its options would pass on; `first` comes first in PATH."""
    passed_on = ("MAKE", "MFLAGS", "GNUMAKEFLAGS", "VENV", "PYTHON", "PROFILE", "DATASET", "NB", "FORCE", "LAB_FLAGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(passed_on)}
    return env | ({"PATH": f"{first}{os.pathsep}{env['PATH']}"} if first else {})


class Checkout:
    """A folder with what make needs to create an environment, and stand-ins for every interpreter it would try."""

    def __init__(self, root: Path, versions: Mapping[str, tuple[int, int]] | None = None, missing: str = "-") -> None:
        self.root = root / "checkout"
        self.bin = root / "bin"
        self.root.mkdir()
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, self.root)
        _executable(self.bin / "inside", INSIDE)
        for name in ("python3", *(f"python{version}" for version in PYTHONS)):
            version = (versions or {}).get(name)
            values = {"real": sys.executable, "version": version, "missing": missing, "bin": self.bin}
            _executable(self.bin / name, INTERPRETER.format(**values) if version else "exit 127")  # as pyenv's shims

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / ".installed"

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *arguments],
            cwd=self.root,
            env=_env(self.bin),
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=60,
        )

    def log(self) -> list[str]:
        """What the stand-ins were asked to do since the last call."""
        path = self.root / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


def _installs(lines: Iterable[str]) -> list[str]:
    return [line.split("--no-build-isolation ")[1] for line in lines if "pip install" in line]


WRONG = {"python3": (3, 10), "python3.13": (3, 14)}  # the second lies about its name; it is asked all the same


@pytest.mark.parametrize(
    ("versions", "missing", "words"),
    [
        (WRONG, "-", "no Python 3.11 to 3.13 among: python3 python3.13 python3.12 python3.11."),
        ({}, "-", "no Python 3.11 to 3.13"),
        ({"python3": (3, 12)}, "ensurepip", "python3 lacks its venv module: install it (Debian, Ubuntu: apt install"),
        ({"python3": (3, 12)}, "venv", "python3 lacks its venv module"),
    ],
    ids=["wrong versions", "none", "no ensurepip", "no venv"],
)
def test_no_usable_python_gives_one_line(
    tmp_path: Path, versions: Mapping[str, tuple[int, int]], missing: str, words: str
) -> None:
    checkout = Checkout(tmp_path, versions, missing)
    done = checkout.make("figures")
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("versions", "arguments", "chosen"),
    [
        ({"python3": (3, 11), "python3.13": (3, 13)}, [], "python3"),
        ({"python3": (3, 10), "python3.12": (3, 12), "python3.11": (3, 11)}, [], "python3.12"),
        ({"python3": (3, 13), "python3.11": (3, 11)}, ["PYTHON=python3.11"], "python3.11"),
    ],
    ids=["python3 first", "newest in range", "named"],
)
def test_first_usable_python_is_taken(
    tmp_path: Path, versions: Mapping[str, tuple[int, int]], arguments: list[str], chosen: str
) -> None:
    checkout = Checkout(tmp_path, versions)
    assert checkout.make("env", *arguments).returncode == 0
    assert checkout.log()[0] == f"{checkout.bin / chosen} -m venv .venv"


def test_environment_is_installed_from_the_lock_once_and_again_when_the_lock_changes(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, {"python3": (3, 12)})
    expected = ["-r requirements.lock", "--no-deps -e ."]
    assert checkout.make("figures", "NB=03", "PROFILE=smoke", "FORCE=1").returncode == 0
    first = checkout.log()
    assert _installs(first) == expected
    assert first[-1] == "-m scripts.figures --profile smoke --dataset auto --only 03 --force"
    assert checkout.make("plots").returncode == 0
    assert checkout.log() == ["-m scripts.figures --profile paper --dataset auto --redraw"]
    assert checkout.make("html", "PROFILE=smoke", "DATASET=mnist5k").returncode == 0
    assert checkout.log() == ["-m scripts.html --profile smoke --dataset mnist5k"]
    os.utime(checkout.stamp, (0, 0))  # as if the lock had been changed since
    assert checkout.make("env").returncode == 0
    again = checkout.log()
    assert _installs(again) == expected
    assert not any("-m venv" in line for line in again)


@pytest.mark.parametrize("how", ["interrupt", "fail"])
def test_interrupted_install_leaves_no_stamp(tmp_path: Path, how: str) -> None:
    checkout = Checkout(tmp_path, {"python3": (3, 12)})
    assert checkout.make("env").returncode == 0
    os.utime(checkout.stamp, (0, 0))
    (checkout.root / "pip").write_text(how)
    assert checkout.make("figures").returncode != 0
    assert not checkout.stamp.exists()
    assert not any("scripts.figures" in line for line in checkout.log())
    (checkout.root / "pip").unlink()
    assert checkout.make("figures").returncode == 0
    assert checkout.stamp.exists()
    assert _installs(checkout.log()) == ["-r requirements.lock", "--no-deps -e ."]


def test_broken_environment_is_created_anew(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, {"python3": (3, 12)})
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "pyvenv.cfg").touch()  # an interrupt inside `python -m venv`: no interpreter yet
    assert checkout.make("env").returncode == 0
    assert checkout.log()[0].endswith("-m venv --clear .venv")


def test_lock_is_written_from_the_environment(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, {"python3": (3, 12)})
    lock = checkout.root / "requirements.lock"
    header = [line for line in lock.read_text().splitlines() if line.startswith("#")]
    assert checkout.make("lock").returncode == 0
    assert lock.read_text().splitlines() == [*header, "B==2", "a==1"]
    checkout.log()
    assert checkout.make("env").returncode == 0
    assert checkout.log() == []


def test_clean_keeps_results_and_environment(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    kept = ["figures/01_a.png", "notebooks/01_a.ipynb", ".venv/lib/__pycache__/a.pyc"]
    gone = ["build/a", "paperlib/__pycache__/a.pyc", "notebooks/.ipynb_checkpoints/a", ".mypy_cache/a"]
    for name in kept + gone:
        (checkout.root / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout.root / name).touch()
    assert checkout.make("clean").returncode == 0
    assert [name for name in kept + gone if (checkout.root / name).exists()] == kept


@pytest.mark.parametrize(("given", "expected"), [({}, "passive 0"), ({"OMP_WAIT_POLICY": "active"}, "active 0")])
@pytest.mark.parametrize("target", ["figures", "plots", "test", "readme", "lab", "html"])
def test_threads_of_what_make_starts_sleep_while_they_wait(target: str, given: dict[str, str], expected: str) -> None:
    taken = (
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
    )  # the suite itself runs under make
    env = {name: value for name, value in os.environ.items() if name not in taken}
    # a prerequisite has the variables of its target; it fails, so that the target itself is not made
    text = f"include Makefile\n{target}: say\nsay:\n\t@echo $$OMP_WAIT_POLICY $$GOMP_SPINCOUNT; exit 1\n"
    command = ["make", "-f", "-", target, f"VENV={sys.prefix}"]
    said = subprocess.run(command, input=text, cwd=ROOT, env=env | given, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1].strip() == expected


def test_an_environment_whose_path_has_a_space_is_refused_and_nothing_is_emptied(tmp_path: Path) -> None:
    kept = tmp_path / "my" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("kept")
    command = ["make", "-C", str(ROOT), "env", f"VENV={tmp_path}/my env"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode != 0 and "must be one path without spaces" in ended.stderr
    assert kept.read_text() == "kept" and [path.name for path in tmp_path.iterdir()] == ["my"]


def test_a_clone_that_converts_line_ends_keeps_the_bytes_of_row_files(tmp_path: Path) -> None:
    for name in (".gitattributes", "figures/data/01_summary.csv", "Makefile"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=true"]
    for args in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"], ["clone", "-q", ".", "../two"]):
        subprocess.run([*git, *args], cwd=tmp_path / "one", check=True, capture_output=True)
    for name in ("figures/data/01_summary.csv", "Makefile"):
        assert (tmp_path / "two" / name).read_bytes() == (ROOT / name).read_bytes()
