"""Users' own data: what is taken, what becomes of its precision and range, and what is refused in which words."""

import hashlib
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paperlib import Dataset, LinfBall
from paperlib.data import arrays
from paperlib.data.arrays import DataError, file_checksum, load_array

TABLE = np.random.default_rng(0).normal(50, 20, (30, 5))  # float64, as numpy makes it


def test_an_array_becomes_float32_and_a_tensor_of_floats_stays_as_it_is() -> None:
    table = Dataset("table", TABLE, low=TABLE.min(), high=TABLE.max())
    assert table.x.dtype == torch.float32 and table.shape == (5,) and table.y is None
    np.testing.assert_allclose(table.x.numpy(), TABLE, rtol=1e-6)
    for tensor in (torch.rand(3, 8, 8), torch.rand(3, 4).double()):
        assert Dataset("own", tensor).x is tensor


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool, torch.uint8, torch.long, torch.bool])
def test_whole_numbers_become_float32_and_are_not_scaled(kind: Any) -> None:
    values = [[0, 1], [1, 0], [1, 1]]
    x = torch.tensor(values, dtype=kind) if isinstance(kind, torch.dtype) else np.array(values, dtype=kind)
    data = Dataset("grey", x, y=np.array([2, 0, 1], dtype=np.uint8))
    assert torch.equal(data.x, torch.tensor(values).float()) and data.x.dtype == torch.float32
    assert data.y is not None and data.y.tolist() == [2, 0, 1] and data.y.dtype == torch.int64


def test_an_array_that_cannot_be_written_is_copied() -> None:
    frozen = np.zeros((3, 2), dtype=np.float32)
    classes = np.zeros(3, dtype=np.int64)
    frozen.flags.writeable = classes.flags.writeable = False
    data = Dataset("frozen", frozen, classes)
    for tensor in (data.x, data.y):
        assert tensor is not None
        tensor.fill_(1)
    assert not frozen.any() and not classes.any()


def test_a_ball_is_made_by_the_word_of_its_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BALLS", {"linf": LinfBall, "l2": lambda eps, low, high: LinfBall(2 * eps, low, high)})
    data = Dataset("own", torch.zeros(3, 2), low=-1.0, high=2.0)
    assert data.ball(0.5) == data.ball(0.5, "linf") == LinfBall(0.5, -1.0, 2.0)
    assert data.ball(0.5, "l2") == LinfBall(1.0, -1.0, 2.0)
    with pytest.raises(ValueError, match="there is no ball in the norm 'l1'; use one of 'linf', 'l2'"):
        data.ball(0.5, "l1")


def test_the_ends_of_a_float64_array_are_its_range_in_every_precision() -> None:
    """The largest value, rounded up to float32, is inside the range that it names."""
    low, high = float(np.nextafter(0.1, 0)), 0.3
    data = Dataset("own", np.array([[low, high], [0.2, 0.2]]), low=low, high=high)
    assert data.x.max().double() > high, "else nothing is tried"
    for x in (data.x, data.x.double()):
        data.ball(0.1).check(x)
        assert data.ball(0.0).box(x).contains(x).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.array([[0.5, 2.0]]),
            r"^own: x must be finite and in \[0.0, 1.0\], got 2.0 at .*\[0, 1\]; scale the data, or",
        ),
        (np.array([[np.nan, 0.5]]), r"index \[0, 0\]"),
        (torch.tensor([[-0.1]]), r"in \[0.0, 1.0\], got -0.1"),
        (torch.rand(5), r"the examples of own must be \[count, \*shape\], got \[5\]"),
        (np.zeros((0, 4)), r"got \[0, 4\]"),
        (np.array([["a", "b"]]), "must be numbers, got an array of <U1"),
        (np.array([[1 + 1j]]), "must be numbers, got an array of complex128"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset("own", x)


def test_a_range_or_classes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        Dataset("own", torch.rand(3, 2), low=1.0, high=1.0)
    with pytest.raises(ValueError, match="own has 3 examples and 2 classes"):
        Dataset("own", torch.rand(3, 2), torch.zeros(2))


def test_a_data_set_is_replaced_in_parts_and_never_changed() -> None:
    data = Dataset("own", torch.rand(3, 2), torch.arange(3), low=-1.0)
    other = replace(data, x=torch.rand(3, 4))
    assert (other.name, other.low, other.high, other.shape) == ("own", -1.0, 1.0, (4,)) and other.y is data.y
    with pytest.raises(FrozenInstanceError):
        data.low = 0.0  # type: ignore[misc]


def test_a_file_is_named_by_its_name_its_range_and_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    np.save(path, TABLE)
    data = load_array(path, -100.0, 200.0)
    assert data.x.shape == (30, 5) and (data.low, data.high) == (-100.0, 200.0)
    assert file_checksum(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.name == f"table.npy [-100.0, 200.0] {file_checksum(path)[:12]}"
    np.save(path, TABLE + 1e-9)
    assert len({data.name, load_array(path, -100.0, 200.0).name, load_array(path, -100.0, 201.0).name}) == 3


def test_a_file_without_an_array_is_refused_and_a_pickle_never_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone\.npy"):
        load_array(tmp_path / "gone.npy")
    np.save(tmp_path / "objects.npy", np.array([[None, print]]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=TABLE, b=TABLE)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "table.csv").write_text("1,2\n3,4\n")
    np.save(tmp_path / "whole.npy", TABLE)
    (tmp_path / "half.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-100])
    for name in ("objects.npy", "several.npz", "empty.npy", "table.csv", "half.npy"):
        with pytest.raises(DataError, match=rf"{name} holds no array \(.*\): write one by numpy\.save"):
            load_array(tmp_path / name, -1e3, 1e3)
