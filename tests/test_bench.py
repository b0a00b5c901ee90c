"""The benchmark measures what it names and judges its ratios honestly, however fast the machine is."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paperlib import LinfBall, mlp_vae
from paperlib.data.datasets import data_origin
from paperlib.runtime.rows import read_header, read_rows, write_rows
from scripts import bench, readme
from scripts.bench import QUICK, BenchmarkCase, BenchmarkOptions, BenchmarkSizes
from scripts.bench_report import TARGETS, device_table, ratio_table, ratios, step_table

# Rows by hand: a round in which everything takes three times as long changes no ratio.

SECONDS = {
    ("step", "VAE"): 0.010,
    ("products", "VAE"): 0.008,
    ("step", "proVAE kappa=0"): 0.022,
    ("products", "proVAE kappa=0"): 0.016,
    ("step", "proVAE kappa=0.5"): 0.031,
    ("step", "linear kappa=0"): 0.044,
    ("step", "linear kappa=0.5"): 0.093,
    ("step", "conv VAE"): 0.030,
    ("step", "conv proVAE kappa=0"): 0.060,
    ("image", "ibp"): 0.0002,
    ("image", "crown-ibp"): 0.0004,
    ("image", "crown"): 0.005,
}
EXPECTED = [2.2, 22 / 16, 3.1, 2.0, 3.0, 2.0, 2.0]  # and CROWN in milliseconds
SHARES = pd.DataFrame(
    {"name": ["VAE", "conv proVAE kappa=0"], "products": [0.7, 0.5], "elementwise": [0.2, 0.3], "other": [0.1, 0.2]}
)


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {"kind": kind, "name": name, "round": number, "seconds": seconds * slower}
        for number, slower in enumerate((1, 3, 1))
        for (kind, name), seconds in SECONDS.items()
    )


def test_ratios_are_medians_over_rounds_in_which_a_busy_machine_slows_all_alike() -> None:
    table = ratios(rows())
    assert table["label"].tolist() == [target.label for target in TARGETS]
    for column in ("low", "median", "high"):
        assert table[column].tolist()[:-1] == pytest.approx(EXPECTED)
    assert table.iloc[-1][["low", "median", "high"]].tolist() == pytest.approx([5.0, 5.0, 10.0]), "milliseconds"


def test_a_target_is_met_up_to_itself_and_missed_above_whatever_is_printed() -> None:
    table = ratio_table(rows()).set_index("ratio")
    judged = dict(zip(table.index, table["outcome"], strict=True))
    assert [judged[target.label] for target in TARGETS] == [
        *("met", "met", "missed", "met", "missed", "met", "met", "met")
    ]
    slower = rows()
    slower.loc[slower["name"] == "conv proVAE kappa=0", "seconds"] *= 1.5001
    row = ratio_table(slower).set_index("ratio").loc["convolutional step, κ = 0 / plain"]
    assert (row["median [quartiles]"], row["target"], row["outcome"]) == ("3.00 [3.00, 3.00]", "3", "missed")


def test_steps_are_shown_in_plain_steps_of_their_own_architecture() -> None:
    table = step_table(rows(), SHARES)
    first, last = (dict(row) for _, row in table.iterrows())
    assert (first["ms"], first["plain steps"], first["bare products, ms"]) == ("10.0", "1.00", "8.0")
    assert (last["ms"], last["plain steps"], last["bare products, ms"]) == ("60.0", "2.00", "")
    assert [last[part] for part in ("matrix products", "elementwise", "other")] == ["50%", "30%", "20%"]


def test_on_another_device_each_step_and_each_work_on_an_image_is_in_milliseconds() -> None:
    table = device_table(rows())
    shown = dict(zip(table["what"], table["ms"], strict=True))
    assert shown["training step, conv proVAE kappa=0"] == "60.00"
    assert shown["an image, crown-ibp (float64)"] == "0.400"
    assert len(shown) == len(table) == sum(kind != "products" for kind, _ in SECONDS)


# The cases


class Multiplications(TorchDispatchMode):
    """Counts those of all matrix products, whatever calls they are spread over."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if "mm" in func.name():
            left, right = args[-2:]
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def multiplications(call: Callable[[], object]) -> int:
    with Multiplications() as seen:
        call()
    return seen.count


@pytest.fixture(scope="module")
def cases() -> list[BenchmarkCase]:
    return bench.cases(QUICK)


@pytest.mark.parametrize(("passes", "backward_passes"), [(1, 0), (2, 0), (3, 0), (2, 1)])
def test_bare_products_are_three_a_layer_but_for_the_networks_input(passes: int, backward_passes: int) -> None:
    vae, batch = mlp_vae((12,), hidden=(5,), latent_dim=2), 3
    first, *others = 12 * 5, 5 * 4, 2 * 5, 5 * 12
    expected = batch * (passes * (2 * first + 3 * sum(others)) + backward_passes * 3 * (first + sum(others)))
    assert multiplications(bench.products(vae, batch, passes, backward_passes)) == expected


def test_a_step_does_its_bare_products_and_no_other(cases: list[BenchmarkCase]) -> None:
    bare = {one.name: multiplications(one.call) for one in cases if one.kind == "products"}
    done = {one.name: multiplications(one.call) for one in cases if one.kind == "step" and one.name in bare}
    assert done == bare and len(bare) == 5


def test_a_step_trains_as_train_does_and_leaves_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = mlp_vae((12,), hidden=(5,), latent_dim=2), torch.rand(3, 12)
    made: list[torch.optim.Adam] = []
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: made.append(adam(*a, **k)) or made[-1])
    call = bench.step(vae, x, LinfBall(0.1), kappa=0.5)
    (optimizer,) = made
    (group,) = optimizer.param_groups
    assert group["fused"]
    for parameter in group["params"]:
        assert all(parameter is not other for other in vae.parameters()), "a model of its own"
    before = [parameter.detach().clone() for parameter in group["params"]]
    call()
    call()
    assert all(parameter.grad.norm() > 0 for parameter in group["params"])
    assert all(torch.equal(old, new) for old, new in zip(before, group["params"], strict=True))
    assert all(int(state["step"]) == 2 for state in optimizer.state.values())


def test_a_case_is_warmed_up_and_its_time_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench, "perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    one = BenchmarkCase("image", "attack step", lambda: spend(7.0), repeats=2, count=5, less=lambda: spend(2.0))
    assert one.seconds() == 1.0
    assert now[0] == 3 * 7.0 + 3 * 2.0


def test_all_take_turns_and_no_round_begins_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(bench, "perf_counter", lambda: now[0])

    def taking(name: str) -> BenchmarkCase:
        def call() -> None:
            now[0] += 1.0
            order.append(name)

        return BenchmarkCase("step", name, call)

    measured = bench.measure([taking("a"), taking("b")], BenchmarkSizes(rounds=9, seconds=10.0))
    assert order == ["a", "a", "b", "b"] * 3  # the third round begins at 8 seconds and ends at 12
    assert measured[["round", "name"]].to_numpy().tolist() == [[n, name] for n in range(3) for name in "ab"]
    assert (measured["seconds"] == 1).all()


# All of it, small


def test_the_benchmark_writes_rows_and_figure_and_prints_each_ratio_beside_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_STAGING", str(tmp_path))
    bench.main(BenchmarkOptions(quick=True))
    printed = capsys.readouterr().out
    for target in TARGETS:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"| {target.label} ")]
        most, judged = (cell.strip() for cell in line.strip("|").split("|")[-2:])
        assert most == f"{target.most:g}" and judged in ("met", "missed")

    data = tmp_path / "figures" / "data"
    header = read_header(data / "00_cost.csv")
    assert header["dataset"] == "mnist5k" and {"processor", "threads", "checksum"} <= header.keys()
    assert header["config"] == bench.asdict(QUICK)
    measured, shares = read_rows(data / "00_cost.csv"), read_rows(data / "00_profile.csv")
    assert measured.groupby("round").size().tolist() == [17] * QUICK.rounds
    assert not measured.duplicated(["kind", "name", "round"]).any()
    steps = measured.loc[measured["kind"] == "step", "name"].unique().tolist()
    assert shares["name"].tolist() == steps and len(steps) == 7
    parts = shares[["products", "elementwise", "other"]]
    assert (parts > 0).to_numpy().all() and parts.sum(axis=1).to_numpy() == pytest.approx(1)

    png, pdf = ((tmp_path / "figures" / f"00_cost.{kind}").read_bytes() for kind in ("png", "pdf"))
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
    assert b"Software" not in png and b"CreationDate" not in pdf


def test_on_cuda_the_benchmark_writes_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices: list[str] = []

    def fake(_: BenchmarkSizes, device: str) -> list[BenchmarkCase]:
        devices.append(device)
        return [BenchmarkCase("step", "VAE", lambda: None), BenchmarkCase("image", "ibp", lambda: None)]

    monkeypatch.setenv("PAPERLIB_STAGING", str(tmp_path))
    monkeypatch.setattr(bench, "cases", fake)
    bench.main(BenchmarkOptions(quick=True, device="cuda"))
    assert devices == ["cuda"]
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in files] == ["00_cost_cuda.csv", "00_cost_cuda.json"], "no figure, no shares"
    assert read_rows(files[0])["name"].tolist() == ["VAE", "ibp"] * QUICK.rounds
    printed = capsys.readouterr().out
    assert "| training step, VAE " in printed and "| an image, ibp (float64) " in printed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_cases_run_on_cuda() -> None:
    for one in bench.cases(QUICK, "cuda"):
        assert math.isfinite(one.seconds())


def test_the_block_of_the_readme_says_where_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "00_cost.csv", rows(), {}, data_origin("mnist5k"), 1.0)
    write_rows(tmp_path / "00_profile.csv", SHARES, {}, data_origin("mnist5k"), 1.0)
    monkeypatch.setattr(readme, "DATA", tmp_path)
    first, second, note = readme.cost_block().split("\n\n")
    assert first.count("\n") == 1 + len(TARGETS) and "3.10 [3.10, 3.10]" in first and "missed" in first
    assert second.count("\n") == 1 + len(SHARES)
    header = read_header(tmp_path / "00_cost.csv")
    for words in ("`make bench`", header["processor"], f"torch threads: {header['threads']}", "3 rounds"):
        assert words in note


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    monkeypatch.setattr(bench, "cases", lambda *asked: measured.append(asked) or [])
    monkeypatch.setenv("PAPERLIB_STAGING", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: cannot write into .*file/figures/data"):
        bench.main(BenchmarkOptions(quick=True))
    assert measured == []
