"""What every test shares: type hints of paperlib are checked at each call, chance is seeded, figures need no screen."""

import ast
import os
import re
import signal
from pathlib import Path
from typing import Literal

import matplotlib
import pytest
from beartype import BeartypeConf, FrozenDict
from beartype.claw import beartype_package
from hypothesis import settings

# Before torch is loaded: threads that wait sleep, as make has it, so that the suite is quick beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# A job in the background of a script is started with SIGINT ignored, and so would all be that it starts: tests that
# press Ctrl-C need it to interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes that tests start import this checkout's library, and not that of the checkout which was installed last.
_PATH = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATH))

# A wrong word must meet the library's own message, so beartype takes any string for each Literal in the sources.
_SOURCES = (Path(__file__).parents[1] / "paperlib").rglob("*.py")
_LITERALS = [
    words
    for source in _SOURCES
    for words in re.findall(r"Literal\[(.*?)\]", source.read_text(encoding="utf-8"), re.DOTALL)
]
_WORDS = FrozenDict({Literal[tuple(ast.literal_eval(f"[{words}]"))]: str for words in _LITERALS})
beartype_package(
    "paperlib", conf=BeartypeConf(hint_overrides=_WORDS, is_pep484_tower=True)
)  # before the first import of paperlib

matplotlib.use("Agg")

settings.register_profile("paperlib", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("paperlib")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first: one that begins last leaves all other processes waiting for it."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch  # here, so that tests of scripts alone do not wait for it

    torch.manual_seed(0)
