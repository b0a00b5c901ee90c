"""The command line: what its commands write and print, what their help says, how they end when something is wrong."""

import fcntl
import os
import re
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch

from paperlib import Crown, CrownIBP, TrainConfig, certify, load, load_dataset, save
from paperlib.__main__ import COMMANDS, main
from paperlib.certificates.evaluation import NOISE_SEED, chunk_size, evaluation_noise
from paperlib.certificates.method import METHODS
from paperlib.runtime.numbers import rounded_down
from paperlib.runtime.rows import read_header, read_rows

CONFIG = TrainConfig("two-moons", (2,), (16,), latent_dim=4, likelihood="gaussian", steps=20, batch_size=64, eps=0.05)
PLANE = ["--dataset", "two-moons", "--data-shape", "2", "--likelihood", "gaussian"]
BASE = [*PLANE, "--hidden", "16", "--latent-dim", "4", "--steps", "20", "--batch-size", "64"]
FLAGS = [*BASE, "--eps", "0.05", "--device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(here: Path) -> Path:
    path = here / "model.safetensors"
    save(path, CONFIG.build(), CONFIG)
    return path


def status(*args: object) -> Any:
    """How a command ends; an error message counts as 1, as Python prints it and ends with that."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    if isinstance(ended.value.code, str):
        print(ended.value.code, file=sys.stderr)
        return 1
    return ended.value.code


def test_train_keeps_model_and_history_under_the_digest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("train", *FLAGS) == 0
    folder = here / "runs" / CONFIG.digest
    history = read_rows(folder / "history.csv", CONFIG.as_dict())
    assert history["step"].tolist() == [20]
    header = read_header(folder / "history.csv")
    assert header["dataset"] == "two-moons" and header["seconds"] >= 0 and len(header["checksum"]) == 64
    vae, data = load(folder / "model.safetensors", CONFIG), load_dataset("two-moons")
    x = data.x[-409:]  # held out
    noise = torch.randn(409, 4, generator=torch.Generator().manual_seed(CONFIG.seed))
    rows = certify(vae, x, data.ball(0.05), noise)
    np.testing.assert_allclose(rows["certified"].mean(), history["certified"].iloc[-1], rtol=1e-5)
    first, last, *warning = capsys.readouterr().out.splitlines()
    assert len(warning) == (history["kl"].iloc[-1] < 0.5)
    assert first == f"training {CONFIG.digest} on two-moons"
    end = history.iloc[-1]
    assert last.startswith(f"{CONFIG.digest}: clean {end['clean']:.1f} nats, KL {end['kl']:.1f} nats, certified ")
    assert f"certified {rounded_down(end['certified'])} nats at eps 0.05 in data units" in last
    assert last.endswith(f"see {Path('runs') / CONFIG.digest / 'model.safetensors'} and history.csv")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert status("train", *FLAGS) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "a finished run is left as it is"


def test_every_field_of_the_configuration_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "sweep"):
        assert status(command, "--help") == 0
        text = capsys.readouterr().out
        for name in vars(CONFIG):
            assert f"--{name.replace('_', '-')} " in text


def test_an_objective_is_trained_by_its_flag(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, objective="civet delta=0.1", weight_decay=0.1)
    assert status("train", *FLAGS, "--objective", "civet delta=0.1", "--weight-decay", "0.1") == 0
    assert load(here / "runs" / config.digest / "model.safetensors", config).latent_dim == 4
    assert status("train", *FLAGS, "--objective", "magic") == 1
    assert (
        "TrainConfig.objective is out of range: 'magic': unknown objective 'magic'; use one of 'adversarial', 'civet'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "train",
            ["python -m paperlib train", "torchrun --nproc-per-node N", "--folder", "pixels in [0, 1]"],
        ),
        ("attack", ["python -m paperlib attack", "MODEL.safetensors", "--restarts", "--draws", "no guarantee"]),
        ("certify", ["python -m paperlib certify", "--method {ibp,crown-ibp,crown,exact,best,", "--sound", "torchrun"]),
        ("certify", ["--alpha-steps"]),
        ("sweep", ["python -m paperlib sweep", "--jobs", "--cluster", "[{ibp,crown-ibp,hybrid-", "see the folder"]),
        ("detect", ["python -m paperlib detect", "{fit,score}", "no perturbation within a radius can change"]),
    ],
)
def test_help_says_what_there_is(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert [word for word in words if word not in text] == []


@pytest.mark.filterwarnings("ignore:'paperlib.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", ["train", "attack", "certify", "sweep", "detect"])
def test_the_package_runs_each_command_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(sys, "argv", ["module", name, "--help"]), pytest.raises(SystemExit) as ended:
        runpy.run_module("paperlib", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m paperlib {name} ")


def test_without_a_command_or_with_an_unknown_one_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(COMMANDS) == ["train", "attack", "certify", "sweep", "detect"]
    for args, code in (([], 2), (["prove"], 2), (["--help"], 0)):
        assert status(*args) == code
        printed = capsys.readouterr()
        text = printed.err if code else printed.out
        assert [name for name in COMMANDS if name not in text] == [] and "Traceback" not in text


def only(pattern: str, model: Path) -> Path:
    """The one file of such a name beside the model."""
    (path,) = model.parent.glob(pattern)
    return path


def test_certify_writes_its_rows_beside_the_model_and_prints_their_means(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = ["--draws", 2, "--noise-seed", 5, "--target", "clean"]
    assert (
        status("certify", model, "--eps", 0.02, "--images", 9, *noisy, "--method", "crown-ibp", "--alpha-steps", 1) == 0
    )
    path = only("model_crown-ibp_0.02_*.csv", model)
    rows = read_rows(path)
    test = load_dataset("two-moons", "test")
    noise, ball = evaluation_noise(9, 4, draws=2, seed=5), test.ball(0.02)
    expected = certify(load(model), test.x[:9], ball, noise, target="clean", method=CrownIBP(alpha_steps=1))
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    config = read_header(path)["config"]
    assert config["model"] == CONFIG.as_dict()
    assert {name: config[name] for name in ("dataset", "eps", "images", "draws", "noise_seed", "target", "attack")} == {
        "dataset": "two-moons",
        "eps": 0.02,
        "images": 9,
        "draws": 2,
        "noise_seed": 5,
        "target": "clean",
        "attack": None,
    }
    assert {name: config[name] for name in ("method", "sound")} == {
        "method": {"name": "CrownIBP", "alpha_steps": 1},
        "sound": False,
    }
    mean = expected.groupby("index")[["clean", "log_likelihood", "kl", "certified"]].mean()
    said = capsys.readouterr().out.splitlines()
    assert said.pop(3).startswith("warning: the posterior has collapsed"), "that of a model without training"
    assert said == [
        f"{CONFIG.digest}: crown-ibp at eps 0.02 in data units, 9 test images of two-moons",
        f"clean      {mean['clean'].mean():.1f} ± {mean['clean'].sem():.1f} nats  "
        f"(log-likelihood {mean['log_likelihood'].mean():.1f}, KL {mean['kl'].mean():.1f})",
        f"certified  {rounded_down(mean['certified'].mean())} ± {mean['certified'].sem():.1f} nats",
        f"{read_header(path)['seconds']:.1f} seconds",
        f"rows in {path}",
    ]


def test_attack_writes_rows_between_clean_and_certified(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = ["attack", model, "--eps", 0.1, "--images", 5, "--steps", 1, "--restarts", 2]
    for name in ("sub/rows.csv", "sub/again.csv"):
        assert status(*attack, "--output", name) == 0
    rows = read_rows("sub/rows.csv")
    assert (rows["certified"] < rows["attacked"]).all() and (rows["attacked"] < rows["clean"]).all()
    assert f"attacked   {rows['attacked'].mean():.1f} ± " in capsys.readouterr().out
    assert read_header("sub/rows.csv")["config"]["attack"] == {"steps": 1, "restarts": 2}
    pd.testing.assert_frame_equal(read_rows("sub/again.csv"), rows, check_exact=True)  # the random starts are seeded


@pytest.mark.parametrize("method", ["ibp", "exact", "best"])
def test_steps_for_alpha_are_refused_by_methods_without_them(
    method: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (0, 3):
        flags = ["--eps", 0.02, "--images", 2, "--method", method, "--alpha-steps", steps]
        assert status("certify", model, *flags) == 1
        assert one_line(capsys) == f"error: --alpha-steps is for crown-ibp and crown, not for {method}\n"
    assert list(model.parent.glob("*.csv")) == []


@pytest.mark.parametrize(("flags", "steps"), [([], 0), (["--alpha-steps", 2], 2)])
def test_steps_for_alpha_reach_crown(flags: list[object], steps: int, model: Path) -> None:
    assert status("certify", model, "--eps", 0.02, "--images", 2, "--method", "crown", *flags) == 0
    path = only("model_crown_0.02_*.csv", model)
    test = load_dataset("two-moons", "test")
    expected = certify(load(model), test.x[:2], test.ball(0.02), evaluation_noise(2, 4), method=Crown(steps))
    pd.testing.assert_frame_equal(read_rows(path), expected, check_exact=True)
    assert read_header(path)["config"]["method"] == {"name": "Crown", "alpha_steps": steps}


def test_every_method_is_offered_and_runs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("certify", "--help") == 0
    text = "".join(capsys.readouterr().out.replace("│", " ").split())
    offered = re.search(r"--method\{(.*?)\}", text)
    assert offered is not None and sorted(offered[1].split(",")) == sorted(METHODS)
    for method in METHODS:
        assert status("certify", model, "--eps", 0.02, "--images", 2, "--method", method) == 0
        said = f"{CONFIG.digest}: {method} at eps 0.02 in data units, 2 test images of two-moons\n"
        assert capsys.readouterr().out.startswith(said)


def test_the_noise_is_that_of_the_experiments(model: Path) -> None:
    assert NOISE_SEED == 1
    draws = [torch.randn(10_000, 4, generator=torch.Generator().manual_seed(seed))[:7] for seed in (1, 2)]
    assert torch.equal(evaluation_noise(7, 4, draws=2), torch.stack(draws))
    assert status("certify", model, "--eps", 0.02, "--images", 2) == 0
    assert read_header(only("model_ibp_0.02_*.csv", model))["config"]["noise_seed"] == NOISE_SEED


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "emnist"], "unknown data set 'emnist'"),
        (["--data-shape", "3"], "two-moons has examples of shape (2,), the configuration says (3,)"),
        (["--device", "tpu"], "'tpu' names no device"),
        (["--lr", "1e30"], "training diverged"),
        (["--batch-size", "5000"], "fewer than one batch of 5000"),
    ],
)
def test_train_ends_with_one_line_for_what_cannot_be_trained(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("train", *FLAGS, *flags) == 1
    assert words in one_line(capsys)


def test_train_refuses_the_folder_of_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("train", *FLAGS, "--folder", "mine") == 0
    capsys.readouterr()
    assert status("train", *FLAGS, "--folder", "mine", "--seed", 7) == 1
    assert "was made by another configuration: seed: found 0, wanted 7" in one_line(capsys)
    with open("mine/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status("train", *FLAGS, "--folder", "mine") == 1
    assert "another process trains in mine" in one_line(capsys)


@pytest.mark.parametrize("command", ["attack", "certify"])
def test_a_model_that_cannot_be_measured_is_one_line(
    command: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = model.with_name("damaged.safetensors")
    damaged.write_bytes(model.read_bytes()[:-9])
    for flags, words in (
        (["gone.safetensors", "--eps", 0.1], "no such file: gone.safetensors"),
        ([damaged, "--eps", 0.1], "is damaged"),
        ([model, "--eps", -0.1, "--images", 2], "eps"),
        ([model, "--eps", 0.1, "--dataset", "mnist5k", "--images", 2], "does not fit the model"),
        ([model, "--eps", 0.1, "--images", 0], "needs an image and a draw"),
        ([model, "--eps", 0.1, "--draws", 0], "needs an image and a draw"),
        ([model, "--eps", 0.1, "--images", 2, "--memory", 0], "memory must be positive"),
        ([model, "--eps", 0.1, "--images", 2, "--output", "/dev/null/rows.csv"], "/dev/null"),
        ([model, "--eps", 0.1, "--images", 2, "--output", "rows.json"], "NAME.csv, and their header"),
    ):
        assert status(command, *flags) == 1
        assert words in one_line(capsys)


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("train", ["--eps", "-1"], "TrainConfig.eps is out of range: -1.0"),
        ("train", ["--hidden", "0"], "TrainConfig.hidden is out of range: (0,)"),
        ("sweep", ["--kappa", "0.5", "2"], "TrainConfig.kappa is out of range: 2.0"),
    ],
)
def test_a_value_out_of_range_is_one_line_without_words_of_the_parser(
    command: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(command, *flags) == 1
    assert one_line(capsys) == f"error: {words}\n"


@pytest.mark.parametrize("flags", [["--steps", "1.5"], ["--bound", "crown"], ["--stepps", "3"]])
def test_flags_that_make_no_sense_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status("train", *flags) == 2
    error = capsys.readouterr().err
    assert flags[0].strip("-") in error and "Traceback" not in error and "tyro" not in error


def test_sweep_takes_several_values_of_every_field_but_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*BASE, "--eps", "0.05", "0.1", "--seed", "0", "1", "--hidden", "16", "8", "--images", "6"]
    assert status("sweep", *flags, "--jobs", 0, "--folder", "grid") == 1
    assert "jobs must be at least 1" in one_line(capsys)
    with patch("paperlib.training.sweep.sweep", return_value=ROWS) as sweep:
        assert status("sweep", *flags, "--jobs", 3, "--folder", "grid") == 0
    (configs, folder), how = sweep.call_args
    assert [(c.eps, c.seed) for c in configs] == [(0.05, 0), (0.05, 1), (0.1, 0), (0.1, 1)]
    assert {c.hidden for c in configs} == {(16, 8)} and {c.steps for c in configs} == {20}
    assert folder == Path("grid") and how == {"images": 6, "jobs": 3, "cluster": False, "device": "auto"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 configurations in grid" and lines[-1] == f"rows in {Path('grid') / 'sweep.csv'}"
    assert "in nats" in lines[-2] and "in data units" in lines[-2]
    assert lines[1].split() == ["digest", "eps", "seed", "clean", "kl", "ibp", "crown_ibp"]
    assert lines[2].split() == ["abc", "0.05", "0", "-100.0", "5.0", "-200.1", "-150.0"], "certificates rounded down"


ROWS = pd.DataFrame(
    [{"digest": "abc", "eps": 0.05, "seed": 0, "clean": -100.01, "kl": 5.01, "ibp": -200.01, "crown_ibp": -150.0}]
)


# ---- as processes


def started(*command: object, **how: Any) -> subprocess.Popen[str]:
    """A Python command in which warnings are errors."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def test_an_interrupt_is_one_line_and_the_run_goes_on(here: Path) -> None:
    with started("-m", "paperlib", "train", *FLAGS, "--steps", 1_000_000) as train:
        assert train.stdout is not None
        assert train.stdout.readline().startswith("training ")
        while not list(here.glob("runs/*/checkpoint.safetensors")):
            assert train.poll() is None, train.stderr
        train.send_signal(signal.SIGINT)
        _, error = train.communicate(timeout=300)
    assert train.returncode == 130
    assert error.strip().splitlines()[-1] == "interrupted: whole files are kept, and the same command goes on from them"
    assert "Traceback" not in error


def test_torchrun_shares_the_images_and_writes_once(model: Path) -> None:
    memory = 4e-5
    assert chunk_size(CONFIG.build(), torch.zeros(1, 2), torch.zeros(1, 4), "ibp", memory) < 10
    flags = [model, "--eps", 0.05, "--images", 30, "--memory", memory]
    assert status("certify", *flags, "--output", "alone.csv") == 0
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "paperlib", "certify"]
    with started(*run, *flags, "--output", "shared.csv") as shared:
        output, error = shared.communicate(timeout=300)
    assert shared.returncode == 0, error
    assert output.splitlines()[-1] == "rows in shared.csv" and len(output.splitlines()) == 6, "the first alone speaks"
    pd.testing.assert_frame_equal(read_rows("shared.csv"), read_rows("alone.csv"), rtol=1e-12)
    assert read_header("shared.csv")["config"] == read_header("alone.csv")["config"]


IMPORTS = """
import sys
import paperlib
slow = {"ray", "pebble", "torchvision", "mlxtend", "matplotlib", "sklearn"}
print(*(slow | {"tyro", "paperlib.__main__", "paperlib.commands", "paperlib.paper"}) & set(sys.modules))
import paperlib.__main__
print(*slow & set(sys.modules))
"""


def test_the_library_does_not_import_its_commands_nor_they_what_is_slow_to_import() -> None:
    with started("-c", IMPORTS) as importing:
        output, error = importing.communicate(timeout=300)
    assert (output.strip(), error) == ("", "")


THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["None None", "passive 0"]),  # started again before anything is computed
        ({"OMP_WAIT_POLICY": "active"}, ["active None"]),
        ({"GOMP_SPINCOUNT": "7"}, ["None 7"]),
    ],
)
def test_threads_of_a_command_sleep_while_they_wait_unless_the_user_decided(
    here: Path, given: dict[str, str], expected: list[str]
) -> None:
    said = "import os; open('started', 'a').write(' '.join(str(os.environ.get(n)) for n in {}) + '\\n')"
    (here / "sitecustomize.py").write_text(said.format(THREADS))  # Python runs it at each start
    env = {name: value for name, value in os.environ.items() if name not in THREADS}
    path = os.pathsep.join([str(here), *sys.path])
    command = [sys.executable, "-m", "paperlib", "train", "--help"]
    ended = subprocess.run(command, env=env | given | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 0 and "--kappa" in ended.stdout
    assert (here / "started").read_text().splitlines() == expected
