"""One rule for results: made again, or loaded if made by exactly this configuration, and written nowhere else."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from paperlib import TrainConfig
from paperlib.data.datasets import DataError, checksum
from paperlib.paper import results as module
from paperlib.paper.results import ROOT, Results, home, library_files
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError
from paperlib.runtime.rows import read_header

CONFIG = TrainConfig(dataset="two-moons", data_shape=(2,), hidden=(4,), latent_dim=2, likelihood="gaussian", steps=3)
ROWS = pd.DataFrame({"eps": [0.0, 0.1], "certified": [-100.0, -1 / 3]})


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository is out of reach of every test, and so are a runner's staging folder."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "in_parallel", lambda task, items, **_: [task(item) for item in items])
    monkeypatch.delenv("PAPERLIB_STAGING", raising=False)
    return tmp_path


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("nothing was to be computed or looked for")


def make() -> Results:
    return Results("smoke", "mnist5k", recompute=True)


def read() -> Results:
    return Results("smoke", "mnist5k", recompute=False)


def files(root: Path) -> set[str]:
    """All files but those of training runs."""
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return {name for name in names if "/runs/" not in name}


def draw() -> Figure:
    figure, axis = plt.subplots()
    axis.plot([0, 1], [0, 1], label="x")
    axis.set_title("$\\epsilon$ and text")
    plt.close(figure)
    return figure


def test_only_full_mnist_at_full_size_lives_in_the_repository_itself(root: Path) -> None:
    assert home("paper", "mnist") == root
    for profile, dataset in (("paper", "mnist5k"), ("smoke", "mnist"), ("smoke", "mnist5k"), ("paper", "auto")):
        assert home(profile, dataset) == root / "build" / f"{profile}-{dataset}"
    assert (ROOT / "paperlib" / "paper" / "results.py").is_file()


@pytest.mark.parametrize(
    ("profile", "dataset", "recompute", "opened"),
    [
        ("smoke", "auto", False, "mnist5k"),
        ("smoke", "auto", True, "mnist5k"),
        ("paper", "auto", False, "mnist"),
        ("paper", "mnist5k", False, "mnist5k"),
        ("paper", "mnist", True, "mnist"),
        ("smoke", "fashion-mnist", False, "fashion-mnist"),
    ],
)
def test_opening_looks_for_no_data(
    profile: str, dataset: str, recompute: bool, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.data.datasets._ensure_files", refuse)
    results = Results.open(profile, dataset, recompute)
    assert (results.profile, results.dataset, results.recompute) == (profile, opened, recompute)


@pytest.mark.parametrize("found", ["mnist", "mnist5k"])
def test_only_a_full_computation_on_auto_asks_what_is_there(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve", lambda name: {"auto": found}[name])
    assert Results.open("paper", "auto", recompute=True).dataset == found


@pytest.mark.parametrize("profile", ["", "Paper", "full"])
def test_an_unknown_profile_is_an_error(profile: str) -> None:
    with pytest.raises(ValueError, match='profile must be "paper", "smoke" or "long"'):
        Results.open(profile, "mnist5k", recompute=False)


@pytest.mark.parametrize(
    ("profile", "dataset", "label"),
    [
        ("paper", "mnist", "full MNIST"),
        ("paper", "mnist5k", "5,000 embedded digits (a subset of MNIST)"),
        ("smoke", "mnist5k", "5,000 embedded digits (a subset of MNIST), smoke profile"),
        ("paper", "fashion-mnist", "fashion-mnist"),
    ],
)
def test_a_subset_never_passes_for_the_full_set(profile: str, dataset: str, label: str) -> None:
    assert Results(profile, dataset, recompute=False).label == label


def test_rows_are_made_once_and_then_loaded(root: Path) -> None:
    made = make().table("04_x", {"eps": 0.1}, lambda: ROWS)
    loaded = read().table("04_x", {"eps": 0.1}, refuse)
    pd.testing.assert_frame_equal(made, ROWS, check_exact=True)
    pd.testing.assert_frame_equal(loaded, ROWS, check_exact=True)
    assert files(root) == {f"build/smoke-mnist5k/figures/data/04_x.{kind}" for kind in ("csv", "json")}


def test_the_header_names_the_data_set_its_checksum_and_the_time(root: Path) -> None:
    make().table("04_x", {"eps": 0.1}, lambda: ROWS)
    header = read_header(make().target / "data" / "04_x.csv")
    assert header["dataset"] == "mnist5k" and header["checksum"] == checksum("mnist5k") and header["seconds"] >= 0
    assert header["config"] == {"eps": 0.1}


def test_several_frames_go_to_several_files_in_order() -> None:
    frames = (ROWS, ROWS.assign(eps=9.0))
    make().tables(["04_a", "04_b"], {}, lambda: frames)
    for name, frame in zip(("04_a", "04_b"), frames, strict=True):
        pd.testing.assert_frame_equal(read().load_rows(name, {}), frame, check_exact=True)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_frames_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match="argument"):
        make().tables(["04_a", "04_b"], {}, lambda: (ROWS,) * count)


def test_tensors_are_made_once_and_then_loaded(root: Path) -> None:
    tensors = {"x": torch.rand(2, 3).double(), "y": torch.arange(3)}
    made = make().tensors("02_t", {"a": [1]}, lambda: tensors)
    loaded = read().tensors("02_t", {"a": [1]}, refuse)
    for found in (made, loaded):
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert files(root) == {"build/smoke-mnist5k/figures/data/02_t.safetensors"}


def test_a_model_and_its_history_are_trained_once_and_then_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, history = make().trained({"01_m": CONFIG})["01_m"]
    monkeypatch.setattr(module, "train", refuse)
    again, loaded = read().trained({"01_m": CONFIG})["01_m"]
    pd.testing.assert_frame_equal(history, loaded, check_exact=True)
    for other in (again, read().model("01_m", CONFIG)):
        weights = zip(vae.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(first, second) for first, second in weights)
    assert files(root) == {f"build/smoke-mnist5k/figures/data/01_m.{kind}" for kind in ("csv", "json", "safetensors")}


def test_a_toy_model_says_that_it_was_trained_on_the_toy_set() -> None:
    make().trained({"01_m": CONFIG})
    header = read_header(make().target / "data" / "01_m.csv")
    assert header["config"]["dataset"] == "two-moons"
    assert (header["dataset"], header["checksum"]) == ("two-moons", checksum("two-moons"))


def test_the_seconds_of_a_training_are_those_of_its_rows() -> None:
    make().trained({"01_m": CONFIG})
    path = make().target / "data" / "01_m.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 12.5}))
    assert make().seconds("01_m") == 12.5


def load_rows() -> object:
    return read().table("04_x", {"eps": 0.2}, refuse)


def load_earlier_rows() -> object:
    return read().load_rows("04_x", {"eps": 0.2})


def load_tensors() -> object:
    return read().tensors("02_t", {"eps": 0.2}, refuse)


def load_model() -> object:
    return read().model("01_m", replace(CONFIG, eps=0.2))


def load_trained() -> object:
    return read().trained({"01_m": replace(CONFIG, eps=0.2)})


LOADERS = [load_rows, load_earlier_rows, load_tensors, load_model, load_trained]


@pytest.mark.parametrize("loader", LOADERS)
def test_what_another_configuration_made_is_refused(loader: Any) -> None:
    make().table("04_x", {"eps": 0.1}, lambda: ROWS)
    make().tensors("02_t", {"eps": 0.1}, lambda: {"x": torch.zeros(1)})
    make().trained({"01_m": CONFIG})
    with pytest.raises(ConfigMismatchError, match=r"eps: found 0.1, wanted 0.2"):
        loader()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_missing_result_says_how_to_make_it(loader: Any, root: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        loader()
    said = str(caught.value)
    command, number = re.search(r"`(make figures NB=(\d\d) DATASET=mnist5k PROFILE=smoke)`", said).groups()  # type: ignore[union-attr]
    assert f"no {number}_" in said and f"recompute=True in notebook {number}" in said, "the command is for this file"
    assert str(root / "build" / "smoke-mnist5k" / "figures" / "data") in said
    assert command.split()[2:] == [f"NB={number}", "DATASET=mnist5k", "PROFILE=smoke"]


def test_a_missing_result_of_the_repository_names_its_command_in_full(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`make figures NB=04 DATASET=mnist PROFILE=paper`"):
        Results("paper", "mnist", recompute=False).load_rows("04_x", {})


def test_an_unreachable_data_set_is_said_once_before_any_process_starts(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path_factory.mktemp("data")))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # nothing is downloaded
    monkeypatch.setattr(module, "in_parallel", refuse)
    digits = replace(CONFIG, dataset="mnist", data_shape=(784,))
    with pytest.raises(DataError, match=r"train-images.* is missing"):
        make().trained({"02_a": digits, "02_b": replace(digits, seed=1)})


def test_a_line_says_at_once_what_is_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PAPERLIB_LOG", raising=False)
    monkeypatch.setattr(module, "training_jobs", lambda: 2)
    said = []

    def here(task: Any, items: list[Any], **_: Any) -> list[Any]:
        said.append(capsys.readouterr().out)
        return [task(item) for item in items]

    monkeypatch.setattr(module, "in_parallel", here)
    make().trained({"01_m": CONFIG, "01_n": replace(CONFIG, steps=1_000, seed=1), "01_o": replace(CONFIG, seed=2)})
    make().trained({"01_p": replace(CONFIG, seed=3)})
    assert said == [
        "training 3 models on 2 processes: two-moons, 3 to 1,000 steps each\n",
        "training 1 model on 1 process: two-moons, 3 steps each\n",
    ]
    make().tables(["04_x", "04_y"], {}, lambda: (ROWS, ROWS))
    make().tensors("02_t", {}, lambda: {"x": torch.zeros(1)})
    lines = "making the rows of 04_x, 04_y (smoke profile)\nmaking 02_t (smoke profile)\n"
    assert capsys.readouterr().out == lines


def test_nothing_is_said_where_nothing_is_made_or_nobody_looks_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_LOG", str(tmp_path / "log.txt"))  # as for an executed notebook
    make().trained({"01_m": CONFIG})
    make().table("04_x", {}, lambda: ROWS)
    monkeypatch.delenv("PAPERLIB_LOG")
    read().trained({"01_m": CONFIG})
    read().table("04_x", {}, refuse)
    monkeypatch.setenv("PAPERLIB_STAGING", str(tmp_path / "staging"))
    for _ in range(2):
        make().trained({})
    assert capsys.readouterr().out == ""


def test_damaged_tensors_are_refused() -> None:
    make().tensors("02_t", {}, lambda: {"x": torch.zeros(9)})
    path = make().target / "data" / "02_t.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError):
        read().tensors("02_t", {}, refuse)


def test_a_staging_folder_is_written_to_instead_and_read_first(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().table("04_x", {}, lambda: ROWS)
    make().table("04_y", {}, lambda: ROWS)
    before = {name: (root / name).read_bytes() for name in files(root)}
    staging = tmp_path_factory.mktemp("staging")
    monkeypatch.setenv("PAPERLIB_STAGING", str(staging))
    other = ROWS.assign(eps=5.0)
    make().table("04_x", {}, lambda: other)
    make().figure(draw(), "04_f")
    assert files(staging) == {
        "figures/data/04_x.csv",
        "figures/data/04_x.json",
        "figures/04_f.png",
        "figures/04_f.pdf",
    }
    assert {name: (root / name).read_bytes() for name in files(root)} == before
    pd.testing.assert_frame_equal(read().load_rows("04_x", {}), other)
    pd.testing.assert_frame_equal(read().load_rows("04_y", {}), ROWS)


def test_what_a_staging_folder_holds_already_is_not_made_again(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_STAGING", str(tmp_path_factory.mktemp("staging")))
    tensors = {"x": torch.rand(2)}
    make().table("04_x", {"eps": 0.1}, lambda: ROWS)
    make().tensors("02_t", {}, lambda: tensors)
    _, history = make().trained({"01_m": CONFIG})["01_m"]
    monkeypatch.setattr(module, "train", refuse)
    rows = make().table("04_x", {"eps": 0.1}, refuse)
    pd.testing.assert_frame_equal(rows, ROWS)
    assert torch.equal(make().tensors("02_t", {}, refuse)["x"], tensors["x"])
    pd.testing.assert_frame_equal(make().trained({"01_m": CONFIG})["01_m"][1], history, check_exact=True)
    with pytest.raises(ConfigMismatchError):
        make().table("04_x", {"eps": 0.2}, refuse)


def without_its_header(path: Path) -> None:
    path.with_suffix(".json").unlink()


def beside_another_header(path: Path) -> None:
    path.write_text("eps,certified\n5.0,-1.0\n")


@pytest.mark.parametrize("break_off", [Path.unlink, without_its_header, beside_another_header])
def test_half_of_a_result_in_the_staging_is_made_again(
    break_off: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_STAGING", str(tmp_path_factory.mktemp("staging")))
    make().tables(["04_x", "04_y"], {}, lambda: (ROWS, ROWS))
    break_off(make().target / "data" / "04_y.csv")
    other = ROWS.assign(eps=5.0)
    for found in make().tables(["04_x", "04_y"], {}, lambda: (other, other)):
        pd.testing.assert_frame_equal(found, other)


def test_an_interrupted_training_goes_on_in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def train(config: TrainConfig, *, folder: Path) -> NoReturn:
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", train)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make().trained({"01_m": CONFIG})
    assert folders == [make().runs / CONFIG.digest] * 2


def test_a_figure_is_written_as_png_and_pdf_with_the_same_bytes_each_time(root: Path) -> None:
    make().figure(draw(), "04_f")
    folder = root / "build" / "smoke-mnist5k" / "figures"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first.keys() == {"04_f.png", "04_f.pdf"}
    assert first["04_f.png"].startswith(b"\x89PNG") and first["04_f.pdf"].startswith(b"%PDF")
    assert b"Software" not in first["04_f.png"] and b"CreationDate" not in first["04_f.pdf"]
    for path in folder.iterdir():
        path.unlink()
    make().figure(draw(), "04_f")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_reading_writes_nothing(root: Path) -> None:
    make().table("04_x", {}, lambda: ROWS)
    make().trained({"01_m": CONFIG})
    before = {name: ((root / name).read_bytes(), (root / name).stat().st_mtime_ns) for name in files(root)}
    results = read()
    results.table("04_x", {}, refuse)
    results.trained({"01_m": CONFIG})
    results.figure(draw(), "04_f")
    assert {name: ((root / name).read_bytes(), (root / name).stat().st_mtime_ns) for name in files(root)} == before


def test_redrawing_into_a_staging_folder_writes_the_figure_without_recomputing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = tmp_path_factory.mktemp("staging")
    monkeypatch.setenv("PAPERLIB_STAGING", str(staging))
    read().figure(draw(), "04_f")
    assert files(staging) == {"figures/04_f.png", "figures/04_f.pdf"}


def test_a_failed_computation_leaves_the_earlier_rows() -> None:
    make().table("04_x", {}, lambda: ROWS)

    def fail() -> NoReturn:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make().table("04_x", {}, fail)
    pd.testing.assert_frame_equal(read().load_rows("04_x", {}), ROWS)


def test_runs_are_of_one_code_wherever_in_the_library_it_changes(root: Path) -> None:
    files = [root / "paperlib" / name for name in ("__init__.py", "bounds/interval.py", "paper/plots/style.py")]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one = 1\n")
    assert library_files(root) == sorted(files)
    seen = set()
    for path in (None, *files):  # as it is, and with one file changed after the other
        if path:
            path.write_text("one = 2\n")
        module._code.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "library_files", lambda: library_files(root))
            seen.add(make().runs)
    module._code.cache_clear()
    assert len(seen) == 4


def test_runs_of_the_long_profile_are_kept_for_any_code_and_its_results_lie_beside_those_of_the_paper(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_code", refuse)
    long = Results("long", "mnist5k", recompute=True)
    assert long.runs == root / "build" / "long-mnist5k" / "runs"
    assert long.target == root / "build" / "paper-mnist5k" / "figures"
    assert (
        home("long", "mnist") == home("paper", "mnist") == root and long.label == replace(long, profile="paper").label
    )


def test_the_files_of_the_library_are_those_of_all_its_rooms() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in library_files(ROOT)}
    assert {"paperlib/__init__.py", "paperlib/bounds/interval.py", "paperlib/paper/plots/style.py"} <= files
