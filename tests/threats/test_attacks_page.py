"""The example of docs/attacks.md runs as it stands, and makes each call of the page's table."""

import re
from pathlib import Path
from typing import Any

from paperlib import LinfBall

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_example_runs_and_its_results_have_the_shapes_that_it_says() -> None:
    names: dict[str, Any] = {"__name__": __name__}
    exec(CODE, names)
    assert all(names[name].shape == (8,) for name in ("moved", "damaged", "poisoned", "area"))
    assert names["poison"].shape == (4,) and names["shift"].shape == (49,)
    box = LinfBall(0.1).box(names["x"])
    for point in (*names["lowered"], *names["near"], names["away"], names["x_adv"]):
        assert box.contains(point).all()
    assert names["held_out"].columns.tolist() == ["index", "clean", "attacked"] and len(names["held_out"]) == 4


def test_the_example_calls_each_attack_of_the_table() -> None:
    called = {name for row in PAGE.splitlines() if row.startswith("| ") for name in re.findall(r"`(\w+)\(", row)}
    assert len(called) == 11
    assert {name for name in called if f"{name}(" in CODE} == called
