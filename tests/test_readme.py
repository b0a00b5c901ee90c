"""The prose files say what the rows say, their links lead somewhere and their examples run."""

import hashlib
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from paperlib import LinfBall, elbo, interval_rule, propagate, relaxation_rule
from paperlib.bounds.linear import backward_substitute
from paperlib.paper.results import ROOT
from paperlib.paper.tables import by_method, markdown
from paperlib.paper.tighter_training import front_models
from paperlib.runtime.rows import write_rows
from scripts import readme
from scripts.readme import BLOCKS, PAGES, filled

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


needs_rows = pytest.mark.skipif(
    not all((readme.DATA / f"{name}.csv").exists() for name in ("04_certified", "04_linear", "05_front")),
    reason="the results of full MNIST are not committed yet: no figures/data rows",
)


@needs_rows
@pytest.mark.parametrize("page", PAGES)
def test_generated_blocks_are_those_of_the_committed_rows(page: str) -> None:
    text = (ROOT / page).read_text()
    assert filled(text) == text, f"{page} differs from the rows: run `make readme`"


def test_every_block_is_used() -> None:
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    assert [name for name in BLOCKS if pages.count(f"<!-- {name} -->\n") != 1] == []


@needs_rows
def test_a_wrong_number_is_noticed() -> None:
    altered = README.replace("**certified**", "").replace("| -", "| -9", 1)
    assert altered != README
    assert filled(altered) != altered


def test_an_unknown_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="names no block"):
        filled("<!-- nothing -->\n<!-- /nothing -->")


# The blocks from rows made by hand

MODELS = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of rows in which model number k has -100k off each value."""
    errors = {f"{name}_se": 0.25 for name in ("clean", "certified", "ibp", "crown-ibp", "crown")}
    certified, attacked, linear = [], [], []
    for k, model in enumerate(MODELS):
        for eps in (0.1, 0.2):
            row = {"model": model, "eps": eps, "images": 9_000, "draws": 7, "clean": -100.4 - 100 * k, **errors}
            row |= {"log_likelihood": -80.0, "kl": 20.0}
            certified.append(row | {"certified": -4321.01 - 100 * k - 1000 * eps})
            attacked += [
                {"model": model, "eps": eps, "index": i, "attacked": -500.4 - 100 * k - i} for i in range(1200)
            ]
            linear.append(row | {"ibp": -4400.01, "crown-ibp": -900.01 - k, "crown": -800.01 - k - 1000 * eps})
    front = [
        {"bound": bound, "kappa": 0.5, "train_eps": 0.1, "steps": 1_234, "seed": seed, "clean": -160.0}
        | {"ibp": -370.01, "crown_ibp": -350.01 - seed, "kl": 18.0}
        for bound in ("ibp", "crown-ibp")
        for seed in range(3)
    ]
    models = [config.as_dict() for config in front_models("mnist", "smoke")]
    config = {"models": models, "eps": 0.1, "images": 7_000}
    for name, rows, about in (
        ("04_certified", certified, {}), ("03_attacked", attacked, {"steps": 33}),
        ("04_linear", linear, {}), ("05_front", front, config),
    ):  # fmt: skip
        write_rows(tmp_path / f"{name}.csv", pd.DataFrame(rows), about, dataset="mnist")
    monkeypatch.setattr(readme, "DATA", tmp_path)
    return tmp_path


def test_the_headline_says_what_it_was_measured_on(data: Path) -> None:
    table, note = readme.headline_block().split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0][-3:] == ["attacked", "certified: intervals", "linear bound"]
    assert [line[0] for line in cells[2:]] == MODELS
    assert cells[3][-2:] == ["-4521.1 ± 0.2", "-901.1 ± 0.2"], "certificates are rounded down"
    for words in ("`mnist`", "radius 0.1", "9,000 test images, 7 noise draws", "33 steps", "1,200 test images"):
        assert words in note


def test_the_sentence_rounds_certificates_down_and_quotes_the_linear_one(data: Path) -> None:
    text = readme.reading_block()
    assert "plain VAE from -100 to -1100 nats" in text  # -500.4 less the mean of 0 to 1199
    assert "by intervals (-4,422)" in text
    assert "driven from -300 to -1300" in text
    assert "below -903 (intervals: -4622)" in text


def test_methods_are_compared_at_every_radius_of_the_rows(data: Path) -> None:
    rows, attacked = (pd.read_csv(data / f"{name}.csv", skiprows=1) for name in ("04_linear", "03_attacked"))
    assert readme.methods_block() == markdown(by_method(rows, attacked))
    assert readme.methods_block().count("\n") == 1 + 6


def test_the_front_says_over_how_many_seeds_images_and_steps(data: Path) -> None:
    table, note = readme.front_block().split("\n\n")
    assert table.count("\n") == 1 + 2 and "-351.1 [-352.1, -350.1]" in table and " 1,234 " in table
    for words in ("Means of 3 seeds", "7,000 test images", "radius 0.1", "rounded down"):
        assert words in note


def test_each_released_model_has_its_configuration_and_checksum(data: Path) -> None:
    names = ["02_vae", "02_provae_kappa_0", "02_provae_kappa_0.5", "05_provae_kappa_0", "05_provae_kappa_0.5"]
    for name in names:
        (data / f"{name}.safetensors").write_bytes(name.encode())
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme.checkpoints_block().splitlines()]
    assert [line[0] for line in lines[2:]] == [f"{name}.safetensors" for name in names]
    assert [line[1] for line in lines[2:]] == ["ELBO", "ibp", "ibp", "crown-ibp", "crown-ibp"]
    assert [line[2] for line in lines[2:]] == ["1", "0", "0.5", "0", "0.5"]
    assert [line[4] for line in lines[2:]] == [f"`{hashlib.sha256(name.encode()).hexdigest()}`" for name in names]
    assert len({line[3] for line in lines[2:]}) == 5


# The prose


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_to_files(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert links
    if not (readme.DATA / "05_front.csv").exists():
        links = [link for link in links if "05_front" not in link]  # drawn with its rows
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_example_for_ones_own_vae_runs_and_its_bounds_hold() -> None:
    names: dict = {}
    exec(EXAMPLES[0], names)
    inside = names["ball"].sample(names["x"])
    with torch.no_grad():
        values = elbo(names["vae"], inside, names["noise"])
    for bounds in (names["bounds"], names["tight"]):
        assert (bounds.lower <= values).all()
        assert (values <= bounds.upper).all()
    assert (names["tight"].lower > names["bounds"].lower).all()
    assert list(names["rows"][["clean", "attacked", "certified"]].count()) == [100, 100, 100]
    assert len(names["worst"]) == 3 and (names["worst"]["bound"] < names["worst"]["mean"]).all()


def test_the_example_of_an_own_rule_registers_both() -> None:
    class Exp(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

    exec(EXAMPLES[1], {"Exp": Exp, "torch": torch})
    assert interval_rule.dispatch(Exp) is not interval_rule.dispatch(nn.Module)
    box = LinfBall(0.1).box(torch.full((1, 3), 0.5).double())
    assert torch.equal(propagate(Exp(), box).upper, box.upper.exp())
    band = relaxation_rule(Exp(), box)
    for sign in (1.0, -1.0):
        slope, offset = backward_substitute(torch.full((1, 3), sign).double(), band)
        for v in torch.linspace(0, 1, 11):
            point = torch.lerp(box.lower, box.upper, v.double())
            assert (slope * point + offset <= sign * point.exp() + 1e-12).all()


def test_every_supported_layer_is_named() -> None:
    named = README.partition("Supported are")[2].partition("A layer of your own")[0]
    layers = {layer.__name__ for layer in interval_rule.registry if layer.__module__.startswith("torch")} - {"Module"}
    assert [layer for layer in sorted(layers) if re.sub(r"\dd$", "", layer) not in named] == []
