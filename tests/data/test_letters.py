"""notMNIST: its files are used as they are, downloaded whole or not at all, and checked before they are unpacked."""

import gzip
import hashlib
import struct
from pathlib import Path

import pytest
import torch

from paperlib import load_dataset
from paperlib.data import letters
from paperlib.data.datasets import CHECKSUMS, DataError, data_root

PLAIN = {
    "t10k-images-idx3-ubyte": struct.pack(">4B3i", 0, 0, 8, 3, 2, 28, 28) + bytes(i % 256 for i in range(2 * 784)),
    "t10k-labels-idx1-ubyte": struct.pack(">4Bi", 0, 0, 8, 1, 2) + bytes([9, 0]),
}


@pytest.fixture(autouse=True)
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the server, with two letters; and an empty root of data."""
    folder = tmp_path / "server"
    folder.mkdir()
    for name, content in PLAIN.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    packed = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    plain = {f"notMNIST/raw/{name}": hashlib.sha256(content).hexdigest() for name, content in PLAIN.items()}
    monkeypatch.setattr(letters, "SOURCE", folder.as_uri())
    monkeypatch.setattr(letters, "PACKED", packed)
    monkeypatch.setitem(CHECKSUMS, "notmnist", plain)
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "data"))
    return folder


def contents() -> dict[str, bytes]:
    root = data_root()
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_letters_are_downloaded_once_into_the_data_root(source: Path) -> None:
    for _ in range(2):
        data = load_dataset("notmnist", "test")
        assert data.name == "notmnist" and data.y is not None and data.y.tolist() == [9, 0]
        assert torch.equal(data.x * 255, torch.arange(2 * 784.0).remainder(256).view(2, 784))
        assert contents() == {f"notMNIST/raw/{name}": content for name, content in PLAIN.items()}, "and nothing else"
        for path in source.iterdir():
            path.unlink()


@pytest.mark.parametrize("damage", ["altered", "missing"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_download_that_fails_leaves_nothing_and_says_why(source: Path, name: str, damage: str) -> None:
    path = source / f"{name}.gz"
    words = rf"{name}.gz"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(gzip.compress(b"other letters", mtime=0))
        words = rf"the download of {name}.gz has SHA-256 \w{{64}}, expected {letters.PACKED[path.name]}"
    line = rf"raw/t10k-images-idx3-ubyte is missing and cannot be downloaded \(.*{words}.*\); set PAPERLIB_DATA"
    with pytest.raises(DataError, match=line):
        load_dataset("notmnist", "test")
    assert contents() == {}


def test_a_damaged_file_is_named_and_left_alone() -> None:
    load_dataset("notmnist", "test")
    path = data_root() / "notMNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is damaged: expected SHA-256"):
        load_dataset("notmnist", "test")
    assert path.read_bytes() == b"mine"


def test_there_are_no_letters_to_train_on() -> None:
    with pytest.raises(ValueError, match="notmnist has a test set only"):
        load_dataset("notmnist")
    assert contents() == {}
