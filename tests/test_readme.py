"""The prose files say what the rows say, their links lead somewhere and their examples run."""

import re

import pytest
import torch
from torch import nn

from paperlib import Interval, LinfBall, elbo, propagate
from paperlib.interval import interval_rule
from paperlib.results import ROOT
from scripts.readme import BLOCKS, PAGES, filled

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_generated_blocks_are_those_of_the_committed_rows(page: str) -> None:
    text = (ROOT / page).read_text()
    assert filled(text) == text, f"{page} differs from the rows: run `make readme`"


def test_every_block_is_used_and_a_wrong_number_is_noticed() -> None:
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    assert all(f"<!-- {name} -->" in pages for name in BLOCKS)
    altered = README.replace("**certified**", "").replace("| -", "| -9", 1)
    assert altered != README
    assert filled(altered) != altered


def test_an_unknown_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="names no block"):
        filled("<!-- nothing -->\n<!-- /nothing -->")


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_to_files(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_example_for_ones_own_vae_runs_and_its_bounds_hold() -> None:
    names: dict = {}
    exec(EXAMPLES[0], names)
    inside = names["digits"].ball(0.01).sample(names["x"])
    with torch.no_grad():
        values = elbo(names["vae"], inside, names["noise"])
    assert (names["bounds"].lower <= values).all()
    assert (values <= names["bounds"].upper).all()
    assert list(names["rows"][["clean", "attacked", "certified"]].count()) == [100, 100, 100]


def test_the_example_of_an_own_rule_registers_it() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    exec(EXAMPLES[1], {"Doubling": Doubling, "Interval": Interval, "interval_rule": interval_rule})
    box = LinfBall(0.1).box(torch.full((1, 3), 0.5))
    assert torch.equal(propagate(Doubling(), box).upper, 2 * box.upper)


def test_every_supported_layer_is_named() -> None:
    named = README.partition("Supported are")[2].partition("A layer of your own")[0]
    layers = {layer.__name__ for layer in interval_rule.registry if layer.__module__.startswith("torch")} - {"Module"}
    assert [layer for layer in sorted(layers) if re.sub(r"\dd$", "", layer) not in named] == []
