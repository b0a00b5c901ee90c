"""Commands end well on a terminal that lacks their characters."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

from paperlib import Gaussian, TrainConfig, mlp_vae, save
from paperlib.__main__ import main
from scripts.publish import start_command


@contextmanager
def ascii_terminal() -> Iterator[io.BytesIO]:
    """What is printed in the block, where the terminal has ASCII only."""
    said = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(said, encoding="ascii", write_through=True)) as terminal:
        yield said
    terminal.detach()


def test_certify_prints_its_summary_on_an_ascii_terminal(tmp_path: Path) -> None:
    config = TrainConfig(dataset="two-moons", data_shape=(2,), likelihood="gaussian", hidden=(4,), latent_dim=2)
    save(tmp_path / "a.safetensors", mlp_vae((2,), hidden=(4,), latent_dim=2, likelihood=Gaussian()), config)
    arguments = ["--eps", "0.1", "--images", "3", "--output", str(tmp_path / "rows.csv"), "--device", "cpu"]
    with ascii_terminal() as said, pytest.raises(SystemExit) as ended:
        main(["certify", str(tmp_path / "a.safetensors"), *arguments])
    assert ended.value.code == 0 and rb" \xb1 " in said.getvalue()


def test_the_commands_of_make_print_on_an_ascii_terminal(tmp_path: Path) -> None:
    with ascii_terminal() as said:
        start_command(tmp_path)
        print("step, \N{GREEK SMALL LETTER KAPPA} = 0")
    assert said.getvalue() == rb"step, \u03ba = 0" + b"\n"
