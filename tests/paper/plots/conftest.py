"""What the tests of the figures share: the style of all figures, and no figure left open."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from paperlib.paper.plots.style import style


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    with plt.rc_context():
        style()
        yield
    plt.close("all")
