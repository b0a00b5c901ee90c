"""A grid of configurations: each in its own folder, finished ones kept, failed ones named, all rows in one file."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from paperlib import LinfBall, TrainConfig, certify, load, load_dataset
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.arrays import BALLS
from paperlib.runtime import parallel
from paperlib.runtime.files import DamagedFileError
from paperlib.runtime.parallel import Outcome, TaskError, TasksFailedError
from paperlib.runtime.rows import read_header, read_rows
from paperlib.training import sweep as sweep_module
from paperlib.training.sweep import sweep, varying

CONFIG = TrainConfig("two-moons", (2,), (16,), latent_dim=4, likelihood="gaussian", steps=20, batch_size=64, eps=0.05)
GRID = [replace(CONFIG, kappa=kappa, lr=lr) for lr in (2e-3, 1e30) for kappa in (0.0, 0.5)]  # the last two diverge
GOOD = GRID[:2]
IMAGES = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that were not finished, in order; they run in this process."""
    ran: list[TrainConfig] = []

    def here(task: Any, items: list[TrainConfig], *_: object) -> Iterator[Outcome[TrainConfig, None]]:
        for item in items:
            ran.append(item)
            try:
                yield Outcome(item, task(item))
            except Exception as error:
                yield Outcome(item, error=TaskError(f"{type(error).__name__}: {error}"))

    monkeypatch.setattr(sweep_module, "outcomes", here)
    return ran


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_row_for_each_configuration_measured_at_its_own_eps(tmp_path: Path, tasks: list[TrainConfig]) -> None:
    configs = [replace(CONFIG, eps=0.1), CONFIG, replace(CONFIG, eps=0.1)]
    rows = sweep(configs, tmp_path, images=IMAGES)
    assert rows["digest"].tolist() == [configs[0].digest, CONFIG.digest], "in order, and the same one once"
    assert tasks == configs[:2]
    for (_, row), config in zip(rows.iterrows(), configs, strict=False):
        vae, test = load(tmp_path / config.digest / "model.safetensors", config), load_dataset("two-moons", "test")
        ball, noise = test.ball(config.eps), evaluation_noise(IMAGES, 4)
        for method, name in (("ibp", "ibp"), ("crown-ibp", "crown_ibp")):
            measured = certify(vae, test.x[:IMAGES], ball, noise, method=method)
            assert (row[name], row[f"{name}_se"]) == (measured["certified"].mean(), measured["certified"].sem())
        assert (row["clean"], row["clean_se"], row["kl"]) == (
            measured["clean"].mean(),
            measured["clean"].sem(),
            measured["kl"].mean(),
        )
        fields = {k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
        assert {name: str(row[name]) for name in fields} == {name: str(value) for name, value in fields.items()}
        assert row["images"] == IMAGES
    pd.testing.assert_frame_equal(read_rows(tmp_path / "sweep.csv"), rows, check_exact=True)
    header = read_header(tmp_path / "sweep.csv")
    assert header["config"]["models"] == [config.as_dict() for config in configs[:2]]
    assert list(header["checksums"]) == ["two-moons"]


def test_a_row_is_measured_in_the_norm_that_was_trained_on(
    tmp_path: Path, tasks: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BALLS, "l2", lambda eps, low, high: LinfBall(2 * eps, low, high))
    config = replace(CONFIG, threat="l2")
    (row,) = sweep([config], tmp_path, images=IMAGES).to_dict("records")
    vae, test = load(tmp_path / config.digest / "model.safetensors", config), load_dataset("two-moons", "test")
    measured = certify(vae, test.x[:IMAGES], test.ball(2 * config.eps), evaluation_noise(IMAGES, 4), method="ibp")
    assert tasks == [config] and row["ibp"] == measured["certified"].mean() and row["threat"] == "l2"


def test_what_is_finished_is_not_done_again(tmp_path: Path, tasks: list[TrainConfig]) -> None:
    expected = sweep(GOOD, tmp_path, images=IMAGES)
    before = content(tmp_path)
    tasks.clear()
    pd.testing.assert_frame_equal(sweep(GOOD, tmp_path, images=IMAGES), expected, check_exact=True)
    assert tasks == [] and content(tmp_path) == before

    path = tmp_path / GOOD[1].digest / "measured.csv"
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(DamagedFileError):
        read_rows(path)
    sweep(GOOD, tmp_path, images=IMAGES)
    assert tasks == [GOOD[1]] and content(tmp_path).keys() == before.keys()
    pd.testing.assert_frame_equal(read_rows(path), expected[1:].reset_index(drop=True), check_exact=True)

    tasks.clear()
    more = sweep(GOOD, tmp_path, images=IMAGES + 1)
    assert tasks == GOOD and more["images"].tolist() == [IMAGES + 1] * 2, "another number of images: measured again"
    after = content(tmp_path)
    assert {k for k in after if after[k] != before[k]} == {
        *("sweep.csv", "sweep.json"),
        *(str(Path(config.digest) / f"measured.{kind}") for config in GOOD for kind in ("csv", "json")),
    }, "and not trained again"


def assert_the_same(one: Path, other: Path) -> None:
    """But for commit and wall time."""
    assert {path.parent.name for path in one.rglob("model.safetensors")} == {config.digest for config in GOOD}
    for config in GOOD:
        for name in ("model.safetensors", "measured.csv"):
            first, second = ((folder / config.digest / name) for folder in (one, other))
            if name.endswith("csv"):
                pd.testing.assert_frame_equal(read_rows(first), read_rows(second), check_exact=True)
            else:
                assert first.read_bytes() == second.read_bytes()


def test_processes_train_beside_each_other_and_failures_stop_no_other(tmp_path: Path, tasks: list[TrainConfig]) -> None:
    sweep(GOOD, tmp_path / "here", images=IMAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "outcomes", parallel.outcomes)
        with pytest.raises(TasksFailedError) as caught:
            sweep(GRID, tmp_path / "there", images=IMAGES, jobs=2, device="cpu")
    first, *failed = str(caught.value).splitlines()
    assert first == "2 of 4 runs failed"
    assert [line.partition(" at step ")[0] for line in failed] == [
        f"{config.digest} kappa={config.kappa} lr=1e+30: TrainingDivergedError: loss nan, gradient norm nan"
        for config in GRID[2:]
    ]
    assert_the_same(tmp_path / "there", tmp_path / "here")
    gathered = read_rows(tmp_path / "there" / "sweep.csv")
    pd.testing.assert_frame_equal(gathered, read_rows(tmp_path / "here" / "sweep.csv"), check_exact=True)
    assert read_header(tmp_path / "there" / "sweep.csv")["config"]["models"] == [c.as_dict() for c in GOOD]


def test_a_data_set_that_is_not_there_fails_its_own_runs_alone(tmp_path: Path, tasks: list[TrainConfig]) -> None:
    nowhere = replace(CONFIG, dataset="emnist")
    with pytest.raises(TasksFailedError, match=r"^2 of 3 runs failed\nruns on emnist: unknown data set [^\n]*$"):
        sweep([nowhere, CONFIG, replace(nowhere, seed=1)], tmp_path, images=IMAGES)
    assert tasks == [CONFIG], "no process was started for the others, and their failure is said once"
    assert read_rows(tmp_path / "sweep.csv")["dataset"].tolist() == ["two-moons"]


def test_rows_that_another_machine_wrote_elsewhere_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "cluster_outcomes", lambda _, items, name: (Outcome(item) for item in items))
    with pytest.raises(
        TasksFailedError, match=rf"^1 of 1 runs failed\n{CONFIG.digest}: its rows are not in {tmp_path}"
    ):
        sweep([CONFIG], tmp_path, cluster=True)
    assert list(tmp_path.iterdir()) == []


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a configuration"):
        sweep([], tmp_path)
    with pytest.raises(ValueError, match="needs a configuration and an image, got 1 and images=0"):
        sweep([CONFIG], tmp_path, images=0)
    with pytest.raises(ValueError, match="leave jobs out"):
        sweep([CONFIG], tmp_path, cluster=True, jobs=2)
    assert list(tmp_path.iterdir()) == []


def test_varying_fields() -> None:
    assert varying(GRID) == ["kappa", "lr"]
    assert varying(GRID[:1]) == []
    assert varying([CONFIG, replace(CONFIG, beta=4.0)]) == ["beta"]


@pytest.fixture
def ray_cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two cores of this machine, as a cluster that leaves nothing behind."""
    folder = tmp_path_factory.mktemp("r")
    if len(str(folder)) > 45:
        pytest.skip("Ray's sockets need a shorter temporary folder")
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder)}.items():
        monkeypatch.setenv(name, value)
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=str(folder))
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
def test_a_cluster_gives_the_rows_of_this_process(ray_cluster: None, tmp_path: Path, tasks: list[TrainConfig]) -> None:
    with pytest.raises(TasksFailedError) as caught:
        sweep([*GOOD, GRID[2]], tmp_path / "there", images=IMAGES, cluster=True)
    assert tasks == []
    assert f"1 of 3 runs failed\n{GRID[2].digest} kappa=0.0 lr=1e+30: TrainingDivergedError: " in str(caught.value)
    sweep(GOOD, tmp_path / "here", images=IMAGES)
    assert tasks == GOOD
    assert_the_same(tmp_path / "there", tmp_path / "here")
