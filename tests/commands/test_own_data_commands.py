"""`train`, `attack` and `certify` on examples of one's own, and what is checked before their work begins."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors import safe_open

from paperlib import TrainConfig, elbo, load, save
from paperlib.__main__ import main
from paperlib.commands import measure
from paperlib.data.arrays import file_checksum
from paperlib.runtime.rows import read_header, read_rows
from paperlib.threats.picture import picture_shape
from paperlib.training import loop

FLAGS = ["--hidden", "8", "--latent-dim", "3", "--steps", "10", "--batch-size", "32", "--device", "cpu"]
CONFIG = TrainConfig("mnist5k", (8, 8), (8,), latent_dim=3)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    np.save("train.npy", generator.random((100, 8, 8)))
    np.save("test.npy", generator.random((20, 8, 8)))
    np.save("grey.npy", generator.integers(0, 256, (100, 8, 8), dtype=np.uint8))
    np.save("table.npy", generator.normal(0, 3, (100, 5)))
    return tmp_path


@pytest.fixture
def model(here: Path) -> Path:
    save("model.safetensors", CONFIG.build(), CONFIG)
    return Path("model.safetensors")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(loop, "_epoch", work)
    monkeypatch.setattr(measure, "evaluate", work)


def status(*args: object) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code


def test_a_model_is_trained_certified_and_attacked_on_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("train", "--data", "train.npy", *FLAGS, "--folder", "run") == 0
    vae = load("run/model.safetensors")
    assert vae(torch.rand(2, 8, 8)).shape == (2, 8, 8), "the shape of the data is the model's"
    name = f"train.npy [0.0, 1.0] {file_checksum(Path('train.npy'))[:12]}"
    header = read_header("run/history.csv")
    assert header["config"]["dataset"] == header["dataset"] == name
    assert header["checksum"] == file_checksum(Path("train.npy"))
    assert f"on {name}" in capsys.readouterr().out.splitlines()[0]

    model = ["run/model.safetensors", "--eps", 0.05, "--data", "test.npy"]
    assert status("certify", *model, "--output", "certified.csv") == 0
    assert status("attack", *model, "--output", "attacked.csv", "--steps", 2) == 0
    for file in ("certified.csv", "attacked.csv"):
        header = read_header(file)
        assert header["dataset"] == f"test.npy [0.0, 1.0] {file_checksum(Path('test.npy'))[:12]}"
        assert header["checksum"] == file_checksum(Path("test.npy")) and len(read_rows(file)) == 20
    assert status("certify", "run/model.safetensors", "--eps", 0.05) == (
        f"error: the model was trained on data of your own, {name}: give the test examples by --data"
    )


def test_other_data_or_another_range_are_another_run() -> None:
    assert status("train", "--data", "train.npy", *FLAGS) == 0
    assert status("train", "--data", "train.npy", "--high", 2, "--eps", 0, *FLAGS) == 0
    np.save("train.npy", np.load("train.npy") ** 2)
    assert status("train", "--data", "train.npy", *FLAGS) == 0
    assert len(list(Path("runs").iterdir())) == 3


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "gone.npy"], "no such file: gone.npy"),
        (["--data", "grey.npy"], "must be finite and in [0.0, 1.0], got "),
        (["--data", "grey.npy", "--high", 255], "Bernoulli explains targets in [0, 1], but these are in [0, 255]"),
        (["--data", "table.npy", "--low", -20, "--high", 20], "Bernoulli explains targets in [0, 1], but these are in"),
        (["--data", "train.npy", "--dataset", "two-moons"], "give --data or --dataset, not both"),
        (["--low", -1], "--low and --high are the range of --data"),
        (["--data", "train.npy", "--data-shape", 64], "has examples of shape (8, 8), the configuration says (64,)"),
    ],
)
def test_data_that_cannot_be_trained_on_are_one_line_before_the_first_step(flags: list[object], words: str) -> None:
    error = status("train", *FLAGS, *flags)
    assert error.startswith("error: ") and words in error and "\n" not in error
    assert not Path("runs").exists()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("certify", ["--output", "folder.csv"], "folder.csv is a folder: name a file in it"),
        ("certify", ["--output", "/dev/null/rows.csv"], "cannot write into /dev/null ("),
        ("attack", ["--output", "/dev/null/rows.csv"], "cannot write into /dev/null ("),
        ("attack", ["--save", "/dev/null/x.safetensors"], "cannot write into /dev/null ("),
        ("attack", ["--picture", "folder.csv"], "folder.csv is a folder"),
        ("attack", ["--picture", "images.jpg"], "a picture is a file in .png, .pdf, .svg, got images.jpg"),
        ("attack", ["--output", "1.csv", "--save", "1.csv"], "each result needs a file of its own, got 1.csv, 1.csv"),
    ],
)
def test_targets_that_cannot_be_written_are_one_line_before_any_work(
    command: str, flags: list[object], words: str, model: Path
) -> None:
    Path("folder.csv").mkdir()
    error = status(command, model, "--eps", 0.1, "--data", "test.npy", *flags)
    assert error.startswith(f"error: {words}") and "\n" not in error


def test_means_are_printed_before_it_is_written(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(measure, "write_rows", side_effect=OSError("no space left on device")):
        assert status("certify", model, "--eps", 0.1, "--data", "test.npy") == "error: no space left on device"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["clean", "certified"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--eps", 0.1000001],
        ["--images", 5],
        ["--draws", 2],
        ["--noise-seed", 3],
        ["--target", "clean"],
        ["--high", 2, "--target", "clean"],
        ["--method", "crown-ibp"],
        ["--sound"],
    ],
    ids=str,
)
def test_runs_with_different_settings_never_share_a_default_file(flags: list[object], model: Path) -> None:
    base = ["certify", model, "--eps", 0.1, "--data", "test.npy"]
    assert status(*base) == 0
    (first,) = Path().glob("model_*.csv")
    before = first.read_bytes()
    assert status(*base, *flags) == 0
    assert len(list(Path().glob("model_*.csv"))) == 2 and first.read_bytes() == before
    assert status(*base) == 0 and len(list(Path().glob("model_*.csv"))) == 2, "the same settings have the same file"


def test_attacked_examples_are_kept_with_all_that_they_depend_on(model: Path) -> None:
    flags = ["--eps", 0.1, "--data", "test.npy", "--images", 7, "--draws", 2, "--steps", 3, "--restarts", 2]
    assert status("attack", model, *flags, "--save", "sub/x_adv.safetensors", "--output", "rows.csv") == 0
    with safe_open("sub/x_adv.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["header"])
        x, x_adv, index, draw, noise = (file.get_tensor(name) for name in ("x", "x_adv", "index", "draw", "noise"))
    rows = read_rows("rows.csv")
    assert header["config"] == read_header("rows.csv")["config"]
    assert (header["eps"], header["low"], header["high"]) == (0.1, 0.0, 1.0)
    assert index.tolist() == rows["index"].tolist() and draw.tolist() == rows["draw"].tolist() == [0] * 7 + [1] * 7
    assert x.shape == (7, 8, 8) and x_adv.shape == (14, 8, 8)
    np.testing.assert_array_equal(x.numpy(), np.load("test.npy")[:7].astype(np.float32))
    assert ((x_adv - x[index]).abs() <= 0.1 + 1e-12).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    values = elbo(load(model).double(), x_adv, noise.double())
    np.testing.assert_allclose(values.detach().numpy(), rows["attacked"], rtol=1e-12)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_picture_shows_the_first_attacked_images(suffix: str, model: Path) -> None:
    flags = ["--eps", 0.1, "--data", "test.npy", "--images", 3, "--steps", 2, "--picture", f"images{suffix}"]
    assert status("attack", model, *flags) == 0
    content = Path(f"images{suffix}").read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix])
    if suffix == ".svg":
        assert content.count(b"<image ") == 15, "input, perturbation, perturbed, and what is rebuilt of both"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64,), (8, 8)), ((3, 5), (3, 5)), ((1, 4, 6), (4, 6)), ((3, 4, 6), (4, 6, 3))],
)
def test_shapes_of_images(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert picture_shape(shape) == expected


@pytest.mark.parametrize("shape", [(5,), (1,), (2, 4, 4), (1, 3, 4, 4)])
def test_examples_that_are_no_images_have_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are no images, so there is no picture of them"):
        picture_shape(shape)


@pytest.mark.usefixtures("no_work")
def test_a_picture_without_matplotlib_says_what_to_install(model: Path) -> None:
    with patch.dict(sys.modules, {"matplotlib": None}):
        error = status("attack", model, "--eps", 0.1, "--data", "test.npy", "--picture", "images.png")
    assert error == "error: --picture needs matplotlib: pip install matplotlib"


def test_a_collapsed_posterior_is_said_in_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    collapsed = ["--beta", 1000, "--kappa", 1, "--lr", 0.05, "--steps", 100]
    assert status("train", "--data", "train.npy", *FLAGS, *collapsed, "--folder", "run") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("warning: the posterior has collapsed: a KL of ")
    assert "CollapsedPosteriorWarning" not in printed.err
    assert status("certify", "run/model.safetensors", "--eps", 0.1, "--data", "test.npy") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[3].startswith("warning: the posterior has collapsed: a KL of ") and said[-1].startswith("rows in ")


@pytest.mark.parametrize("command", ["train", "attack", "certify", "sweep", "detect fit", "detect score"])
def test_each_flag_is_explained_in_a_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*command.split(), "--help") == 0
    own = capsys.readouterr().out.partition("grid options")[0]  # those of a grid are explained by train
    inside = "\n".join(line.strip("│ ") for line in own.splitlines())
    flags = re.findall(r"^(--[a-z]\S*)(.*?)(?=^--[a-z]|\Z)", inside, re.DOTALL | re.MULTILINE)
    assert len(flags) > 4
    for flag, explained in flags:
        sentence, default, _ = " ".join(explained.split()).partition(" (default:")
        assert re.search(r"[A-Z][a-z ].*\.( \(required\))?$", sentence), f"{flag}{explained}"
        assert default or sentence.endswith("(required)")


@pytest.mark.parametrize(
    ("threat", "eps", "method"),
    [("l2", "0.2", "crown"), ("l1", "0.5", "crown-ibp"), ("patch", "2", "ibp"), ("lighting", "0.05", "exact")],
)
def test_other_perturbation_sets_are_certified_and_attacked(
    threat: str, eps: str, method: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--threat", threat, "--eps", eps, "--data", "test.npy", "--images", 2]
    assert status("certify", model, *flags, "--method", method, "--output", "certified.csv") == 0
    assert f" at {threat} {eps}, 2 test images" in capsys.readouterr().out
    assert read_header(Path("certified.csv"))["config"]["threat"] == threat
    assert status("attack", model, *flags, "--steps", 3, "--output", "attacked.csv") == 0
    certified, attacked = (read_rows(Path(f"{name}.csv")) for name in ("certified", "attacked"))
    assert (certified["certified"] <= attacked["attacked"]).all() and (attacked["attacked"] <= attacked["clean"]).all()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threat", "patch", "--eps", 2.5], "--eps is the side of the patch in whole pixels, got 2.5"),
        (["--threat", "patch", "--eps", "inf"], "--eps is the side of the patch in whole pixels, got inf"),
        (["--threat", "lighting", "--eps", 0.1, "--low", -1], "--threat lighting is for pixels in [0, 1]"),
        (["--threat", "patch", "--eps", 0], "at least 1"),
    ],
)
def test_a_perturbation_set_that_cannot_be_is_an_error(flags: list[str], message: str, model: Path) -> None:
    assert message in str(status("certify", model, "--data", "test.npy", *flags))
