"""The example of docs/detection.md runs, with less training, and its commands and columns are those that there are."""

import re
from pathlib import Path
from typing import Any

import pytest

from paperlib.__main__ import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's example defines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paperlib.detection.verdicts.ATTACK_STEPS", 2)
    defined: dict[str, Any] = {"__name__": __name__}
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    assert code.count("(low=0.0)") == 2
    exec(code.replace("(low=0.0)", "(low=0.0, steps=20)"), defined)
    return defined


def test_the_example_runs_and_the_page_names_all_columns(names: dict[str, Any]) -> None:
    verdicts = names["verdicts"]
    assert len(verdicts) == len(names["alarms"]) == 354 and len(names["why"]) == 31
    assert names["same"].offset_ == names["detector"].offset_
    assert len(names["rows"]) == 177 and {"prediction", "margin", "certified"} <= set(names["rows"])
    assert [name for name in ("line", *verdicts) if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if line.startswith("python -m paperlib detect")])
def test_the_commands_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(line.split()[3:])
    assert ended.value.code == 2 and "error: no such file" in capsys.readouterr().err, "it comes as far as its tables"
