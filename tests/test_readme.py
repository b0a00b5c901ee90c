"""The prose files say what the rows say, their links lead somewhere and their examples run."""

import hashlib
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from torch import nn

from paperlib import METHODS, LinfBall, certificate, elbo, interval_rule, mlp_vae, propagate, relaxation_rule
from paperlib.bounds.linear import backward_substitute
from paperlib.paper.results import ROOT
from paperlib.paper.tables import by_method, markdown
from paperlib.paper.tighter_training import tradeoff_models
from paperlib.runtime.rows import read_header, read_rows, write_rows
from scripts import readme
from scripts.readme import BLOCKS, PAGES, filled

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


needs_rows = pytest.mark.skipif(
    not all(
        (readme.DATA / f"{name}.csv").exists()
        for name in ("03_ceiling", "04_certified", "05_linear", "06_tradeoff", "07_rivals")
    ),
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
    tradeoff = [
        {"bound": bound, "kappa": 0.5, "train_eps": 0.1, "steps": 1_234, "seed": seed, "clean": -160.0}
        | {"ibp": -370.01, "crown_ibp": -350.01 - seed, "kl": 18.0}
        for bound in ("ibp", "crown-ibp")
        for seed in range(3)
    ]
    rivals = [
        {"dataset": dataset, "recipe": recipe, "seed": seed, "norm": norm, "eps": eps, "clean": -100.0, "kl": 20.0}
        | {"attacked": -300.0 - seed, "certified": -400.01 - seed}
        for dataset in ("mnist", "fashion-mnist")
        for recipe in ("CIVET", "proVAE, linear bound", "VAE, convolutional")
        for seed in (0, 1)
        for norm, eps in (("linf", 0.05), ("linf", 0.1), ("l2", 1.0))
    ]
    ceiling = [{"eps": eps, "ceiling": -200.01 - 100 * eps, "attacked_ceiling": -199.0} for eps in (0.1, 0.2)]
    models = [config.as_dict() for config in tradeoff_models("mnist", "smoke")]
    config = {"models": models, "eps": 0.1, "images": 7_000}
    for name, rows, about in (
        ("04_certified", certified, {}), ("03_attacked", attacked, {"steps": 33}),
        ("03_ceiling", ceiling, {}), ("05_linear", linear, {}), ("06_tradeoff", tradeoff, config),
        ("07_rivals", rivals, {"seeds": [0, 1], "images": 50, "datasets": ["mnist", "fashion-mnist"]}),
    ):  # fmt: skip
        write_rows(tmp_path / f"{name}.csv", pd.DataFrame(rows), about, {"dataset": "mnist"}, seconds=1.0)
    monkeypatch.setattr(readme, "DATA", tmp_path)
    return tmp_path


def test_the_headline_says_what_it_was_measured_on(data: Path) -> None:
    table, note = readme.headline_block().split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0][-4:] == ["ceiling", "attacked", "certified: intervals", "linear bound"]
    assert [line[0] for line in cells[2:]] == MODELS
    assert cells[3][-2:] == ["-4521.1 ± 0.2", "-901.1 ± 0.2"], "certificates are rounded down"
    assert [line[-4] for line in cells[2:]] == ["-210.0"] * 3, "the ceiling is rounded up"
    for words in (
        "`mnist`",
        "radius 0.1",
        "9,000 test images, 7 noise draws",
        "33 steps",
        "1,200 test images",
        "no model whatever",
    ):
        assert words in note


def test_the_sentence_rounds_certificates_down_and_quotes_the_linear_one(data: Path) -> None:
    text = readme.reading_block()
    assert "plain VAE from -100 to -1100 nats" in text  # -500.4 less the mean of 0 to 1199
    assert "by intervals (-4,422)" in text
    assert "driven from -300 to -1300" in text
    assert "below -903 (intervals: -4622)" in text


def test_methods_are_compared_at_every_radius_of_the_rows(data: Path) -> None:
    rows, attacked = (pd.read_csv(data / f"{name}.csv") for name in ("05_linear", "03_attacked"))
    assert readme.methods_block() == markdown(by_method(rows, attacked))
    assert readme.methods_block().count("\n") == 1 + 6


def test_the_tradeoff_says_over_how_many_seeds_images_and_steps(data: Path) -> None:
    table, note = readme.tradeoff_block().split("\n\n")
    assert table.count("\n") == 1 + 2 and "-351.1 [-352.1, -350.1]" in table and " 1,234 " in table
    for words in ("Means of 3 seeds", "7,000 test images", "radius 0.1", "rounded down"):
        assert words in note


def test_the_rivals_stand_in_one_table_with_their_seeds(data: Path) -> None:
    table, note = readme.rivals_block().split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0][3:] == ["l∞ 0.1: attacked", "l∞ 0.1: certified", "l2 1: attacked", "l2 1: certified"]
    assert [line[0] for line in cells[2:]] == ["CIVET", "proVAE, linear bound"]
    assert cells[2][3:5] == ["-300.5 [-301.0, -300.0]", "-400.6 [-401.1, -400.1]"], "certificates are rounded down"
    for words in ("Means of 2 seeds", "50 test images of `mnist`", "rounded down"):
        assert words in note


def test_each_released_model_has_its_configuration_and_checksum(data: Path) -> None:
    names = ["02_vae", "02_provae_kappa_0", "02_provae_kappa_0.5", "06_provae_kappa_0", "06_provae_kappa_0.5"]
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
    links = re.findall(r"\]\((?!https?:|\.\./\.\./actions/)([^)#]+)", path.read_text())
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def example(word: str) -> str:
    """The one code block of the README that has this word."""
    (code,) = [code for code in EXAMPLES if word in code]
    return code


def test_each_example_is_tried_here() -> None:
    words = (
        *("certified = certificate(", "certify_expected(", "interval_rule.register", "METHODS[", "GaussianHeads("),
        *("attack_picture(", "PatchSet(height", "CertifiedDetector("),
    )
    assert sorted(map(example, words)) == sorted(EXAMPLES)


def test_the_first_example_certifies_a_released_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(example("certified = certificate("), names)
    assert names["x"].shape == (1, 784)
    assert (names["certified"] <= names["attacked"]).all() and (names["attacked"] < names["clean"]).all()


def test_the_example_of_a_detector_gives_verdicts_in_a_shorter_run() -> None:
    code, full = example("CertifiedDetector("), {"eps=0.15,": "eps=0.15, steps=60,", ".x, 0.05": ".x[::50], 0.05"}
    for words, fewer in full.items():
        assert code.count(words) == 1
        code = code.replace(words, fewer)
    names: dict = {}
    exec(code, names)
    assert len(names["verdicts"]) == 65
    assert set(names["verdicts"]["verdict"]) <= {"alarm", "calm", "undecided"}
    assert (names["verdicts"]["verdict"] == "alarm").any()


def test_the_example_for_ones_own_vae_runs_and_its_bounds_hold() -> None:
    names: dict = {}
    exec(example("certify_expected("), names)
    inside = names["ball"].sample(names["x"])
    with torch.no_grad():
        values = elbo(names["vae"], inside, names["noise"])
    for bounds in (names["bounds"], names["tight"]):
        assert (bounds.lower <= values).all()
        assert (values <= bounds.upper).all()
    assert (names["tight"].lower > names["bounds"].lower).all()
    assert list(names["rows"][["clean", "attacked", "certified"]].count()) == [100, 100, 100]
    assert len(names["worst"]) == 3 and (names["worst"]["bound"] < names["worst"]["mean"]).all()


def test_the_examples_of_attacks_and_sets_follow_that_of_ones_own_vae(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for word in ("certify_expected(", "attack_picture(", "PatchSet(height"):
        exec(example(word), names)
    assert (tmp_path / "attack.png").read_bytes().startswith(b"\x89PNG")
    with torch.no_grad():
        clean, attacked = (elbo(names["vae"], x[:6], names["noise"][:6]) for x in (names["x"], names["x_adv"]))
        inside = names["ball"].project(names["x"][:2] + 0.05, names["x"][:2])  # of the last set
        value = elbo(names["vae"], inside, names["noise"][:2])
    assert (attacked < clean).all()
    assert (names["bounds"].lower <= value).all() and (value <= names["bounds"].upper).all()


def test_the_example_for_ones_own_data_trains_an_own_model_and_certifies_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example("GaussianHeads("), names)
    assert names["same"] is names["vae"] and names["reconstruction"].shape == names["x"].shape == (20, 30)
    trained, same = names["trained"].state_dict(), names["same"].state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in trained.items())
    assert (names["rows"]["certified"] <= names["rows"]["clean"]).all()


def test_the_example_of_an_own_rule_registers_both() -> None:
    class Exp(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

    exec(example("interval_rule.register"), {"Exp": Exp, "torch": torch})
    assert interval_rule.dispatch(Exp) is not interval_rule.dispatch(nn.Module)
    box = LinfBall(0.1).box(torch.full((1, 3), 0.5).double())
    assert torch.equal(propagate(Exp(), box).upper, box.upper.exp())
    relaxation = relaxation_rule(Exp(), box)
    for sign in (1.0, -1.0):
        slope, offset = backward_substitute(torch.full((1, 3), sign).double(), relaxation)
        for v in torch.linspace(0, 1, 11):
            point = torch.lerp(box.lower, box.upper, v.double())
            assert (slope * point + offset <= sign * point.exp() + 1e-12).all()


def test_the_example_of_an_own_method_is_asked_for_by_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "tighter", METHODS["ibp"])  # the example's word is gone after the test
    exec(example("METHODS["), {"__name__": __name__})
    vae, x, noise = mlp_vae((6,), (5,), 2).double(), torch.rand(4, 6).double(), torch.randn(4, 2).double()
    ball = LinfBall(0.1)
    with torch.no_grad():
        tighter = certificate(vae, x, ball, noise, "tighter")
        for word in ("ibp", "crown-ibp", "crown"):
            assert (tighter >= certificate(vae, x, ball, noise, word) - 1e-12).all()
        assert (tighter <= elbo(vae, ball.sample(x), noise)).all()


def test_every_supported_layer_is_named() -> None:
    named = README.partition("Supported are")[2].partition("A layer of your own")[0]
    layers = {layer.__name__ for layer in interval_rule.registry if layer.__module__.startswith("torch")} - {"Module"}
    assert [layer for layer in sorted(layers) if re.sub(r"\dd$", "", layer) not in named] == []


# The folder of rows


def described() -> list[str]:
    """The patterns of files in figures/data/README.md: the first columns of its tables, but for the released models."""
    text = (ROOT / "figures" / "data" / "README.md").read_text().partition("## The released models")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [pattern for cell in cells for pattern in re.findall(r"`([^`]+)`", cell)]


@needs_rows
def test_every_file_of_rows_is_described() -> None:
    files = {path.name for path in readme.DATA.iterdir() if path.name[0] != "."} - {"README.md"}
    patterns = described()
    assert sorted(name for name in files if not any(fnmatchcase(name, pattern) for pattern in patterns)) == []
    assert [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in files)] == []


@needs_rows
def test_each_table_is_read_by_plain_pandas_as_it_was_written_and_has_its_header() -> None:
    tables = sorted(readme.DATA.glob("*.csv"))
    for path in tables:
        pd.testing.assert_frame_equal(pd.read_csv(path), read_rows(path), check_exact=True)
        assert {"config", "commit", "packages", "sha256", "seconds"} <= read_header(path).keys()
    headers = {path.stem for path in readme.DATA.glob("*.json")} - {"runs"}
    assert headers == {path.stem for path in tables}


@needs_rows
def test_the_columns_that_the_description_names_are_there() -> None:
    tradeoff, ceiling = (pd.read_csv(readme.DATA / f"{name}.csv") for name in ("06_tradeoff", "03_ceiling"))
    assert {"subset_clean", "subset_crown", "subset_attacked"} <= set(tradeoff)
    assert {"ceiling", "attacked_ceiling"} <= set(ceiling)


# The map


def test_the_map_has_a_row_for_each_notebook_even_before_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    for name, figures in (("00_scratch", ["00_a"]), ("01_run", ["01_b", "01_c"]), ("05_new", [])):
        nb = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell(f"# T\n\n**Claim.** It is {name}.\n\nMore.")]
        )
        nb.metadata.paperlib = {"needs": [], "figures": figures}
        nbformat.write(nb, tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "runs.json").write_text(json.dumps({"01": {"seconds": 90, "peak_gib": 1.24, "cores": 2}}))
    write_rows(tmp_path / "04_certified.csv", pd.DataFrame({"eps": [0.1]}), {}, {"dataset": "mnist"}, seconds=1.0)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "DATA", tmp_path)
    table, note = readme.map_block().split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert rows == [
        ["[00_scratch](notebooks/00_scratch.ipynb)", "It is 00_scratch.", "[a](figures/00_a.png)", "", ""],
        ["[01_run](notebooks/01_run.ipynb)", "It is 01_run.", "[b](figures/01_b.png), [c](figures/01_c.png)",
         "1.5 min", "1.2 GiB"],
        ["[05_new](notebooks/05_new.ipynb)", "It is 05_new.", "", "", ""],
    ]  # fmt: skip
    assert "2 CPU cores" in note and "2 min in all" in note
