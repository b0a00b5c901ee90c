"""Data sets in memory: images, tables for anomaly detection, and three toy sets in the plane.

`PAPERLIB_DATA` names the root folder of the sets that the library does not bring, in torchvision's layout; default is a
cache folder in the home.
Raw files are checked against their SHA-256 before use and are never overwritten.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from paperlib.data.anomalies import heartbeats, tumours
from paperlib.data.arrays import DataError, Dataset
from paperlib.data.counts import digit_counts
from paperlib.data.embedded import embedded_arrays
from paperlib.data.letters import download_letters
from paperlib.data.toys import TOYS, toy_points
from paperlib.runtime.files import atomic, check_folder

CHECKSUMS = {
    "mnist": {
        "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "FashionMNIST/raw/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "FashionMNIST/raw/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "FashionMNIST/raw/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    "notmnist": {
        "notMNIST/raw/t10k-images-idx3-ubyte": "8e7f38ae95cc8f48e0986175ffc9137e5007ebcf3d8fdf6656c904eb9dab198b",
        "notMNIST/raw/t10k-labels-idx1-ubyte": "5f8e6012f2ce730700d8d05fca098bc47f71d25b890e4bec7ac5ebfd614a4001",
    },
    # of the arrays, one after the other
    "mnist5k": {"mnist5k.npz": "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"},
    "ecg5000": {"ecg5000.npz": "7315c131ffd1ac02069bb4169bfd1203f4857b586a4cf4590fc061cf9ab601a3"},
    "wdbc": {"scikit-learn": "3a54a12ffd3db348fbe319a9056329cde28da5b2e5ecc26ff7fb9f54aa7cc9f4"},
    "digit-counts": {"scikit-learn": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"},
}

Split = Literal["train", "test"]


def load_dataset(name: str, split: Split = "train") -> Dataset:
    """The data set of this name, [count, features]; images flat, in [0, 1].

    Args:
        name: "mnist", "fashion-mnist", "mnist5k", "auto" (see `resolve`); for detectors "ecg5000" and "wdbc" (see
            `paperlib.data.anomalies`) and the letters "notmnist"; the table of counts "digit-counts", in [0, 16] (see
            `paperlib.data.counts`); "two-moons", "eight-gaussians" or "pinwheel".
        split: "train" or "test"; of "notmnist" there is a test set only.

    Raises:
        DataError: a file is missing and cannot be downloaded, or its checksum differs; nothing is overwritten.
        ModuleNotFoundError: "wdbc" or "digit-counts" without scikit-learn, which brings them.
        ValueError: an unknown name or split.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    name = resolve(name)
    if name in TOYS:
        return _toy(name, split)
    if name == "mnist5k":
        return _embedded_digits(split)
    if name == "ecg5000":
        return heartbeats(split, CHECKSUMS[name]["ecg5000.npz"])
    if name == "wdbc":
        return tumours(split, CHECKSUMS[name]["scikit-learn"])
    if name == "digit-counts":
        return digit_counts(split, CHECKSUMS[name]["scikit-learn"])
    if name == "notmnist" and split == "train":
        raise ValueError("notmnist has a test set only: its letters are outliers for models of digits")
    if name in ("mnist", "fashion-mnist", "notmnist"):
        return _idx(name, split)
    raise ValueError(f"unknown data set {name!r}; use one of {[*CHECKSUMS, 'auto', *TOYS]}")


def resolve(name: str) -> str:
    """The name itself, but for "auto": "mnist" if it is present or can be downloaded, else "mnist5k" with a loud line.

    Raises DataError if the full set is present but damaged: then it is to be mended, not silently replaced.
    """
    if name != "auto":
        return name
    try:
        _ensure_files("mnist")
    except FileNotFoundError as error:
        line = f"WARNING: full MNIST is not available ({error}); using the 5,000 embedded digits, mnist5k, instead."
        print(line, file=sys.stderr, flush=True)
        return "mnist5k"
    return "mnist"


def data_root() -> Path:
    """`PAPERLIB_DATA`, else the folder `paperlib` in the user's cache, which without a home is the temporary folder.

    Raises DataError where `PAPERLIB_DATA` begins with ~ and there is no home.
    """
    named = os.environ.get("PAPERLIB_DATA")
    try:
        if named:
            return Path(named).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "paperlib"
    except RuntimeError as error:  # HOME is not set, and the system knows of none: a container's user without a name
        if named:
            raise DataError(
                f"PAPERLIB_DATA is {named!r}, and this user has no home: name the folder in full"
            ) from error
        return Path(tempfile.gettempdir()) / "paperlib"


def checksum(name: str) -> str:
    """One SHA-256 that stands for all files of a data set, or for the recipe of a toy set."""
    parts = CHECKSUMS.get(name) or {name: f"generated: {name}"}
    return hashlib.sha256("".join(parts.values()).encode()).hexdigest()


def data_origin(name: str) -> dict[str, Any]:
    """What the header of a row file says of the data behind the rows: name and checksum."""
    return {"dataset": name, "checksum": checksum(name)}


def _ensure_files(name: str) -> Path:
    """The root with all files of the set present and whole; downloads those that are absent.

    Raises FileNotFoundError when a download is needed and fails, and DataError when a file differs.
    """
    root = data_root()
    missing = [file for file in CHECKSUMS[name] if not (root / file).is_file()]
    for file, expected in CHECKSUMS[name].items():
        if file not in missing and (actual := _sha256(root / file)) != expected:
            raise DataError(
                f"{root / file} is damaged: expected SHA-256 {expected}, found {actual}. "
                "Move it away to have it downloaded again."
            )
    if missing:
        _download(name, root, missing)
    return root


def _download(name: str, root: Path, files: list[str]) -> None:
    """Put these files of the set into the root, each of them whole and none before all are there.

    An interrupt leaves nothing behind, and several processes at once each download for themselves. Raises
    FileNotFoundError.
    """
    try:
        fetch = download_letters if name == "notmnist" else _torchvision(name)
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"{root / files[0]} is missing, and torchvision, which would download it, is not installed"
        ) from error
    try:
        check_folder(root)
        with tempfile.TemporaryDirectory(prefix="paperlib-") as folder:
            fetch(Path(folder))
            came = {file: Path(folder) / file for file in files}
            for file, path in came.items():
                if (actual := _sha256(path)) != CHECKSUMS[name][file]:
                    raise OSError(f"the download has SHA-256 {actual}, expected {CHECKSUMS[name][file]}")
            for file, path in came.items():
                with atomic(root / file) as temporary:
                    shutil.copyfile(path, temporary)
    except (OSError, RuntimeError) as error:
        cause = " ".join(str(error).split())
        raise FileNotFoundError(f"{root / files[0]} is missing and cannot be downloaded ({cause})") from error


def _torchvision(name: str) -> Callable[[Path], object]:
    from torchvision import datasets  # here, as only a download needs it

    kind = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
    return lambda folder: kind(str(folder), download=True)


def _sha256(path: Path) -> str:
    about = path.stat()
    return _sha256_of_version(path, about.st_mtime_ns, about.st_size)


@cache
def _sha256_of_version(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _idx(name: str, split: Split) -> Dataset:
    try:
        root = _ensure_files(name)
    except FileNotFoundError as error:
        instead = "" if name == "notmnist" else ", or use mnist5k"
        raise DataError(f"{error}; set PAPERLIB_DATA to a folder in torchvision's layout{instead}") from error
    prefix = "train" if split == "train" else "t10k"
    images, labels = (f for f in CHECKSUMS[name] if Path(f).name.startswith(prefix))
    # idx files: a header of 4 bytes and 4 for each dimension, then one byte for each value
    pixels = np.fromfile(root / images, dtype=np.uint8, offset=16).reshape(-1, 784)
    classes = np.fromfile(root / labels, dtype=np.uint8, offset=8)
    return Dataset(name, torch.from_numpy(pixels).float() / 255, torch.from_numpy(classes).long())


def _embedded_digits(split: Split) -> Dataset:
    # uint8 [5000, 784] and [5000], sorted by class
    pixels, classes = embedded_arrays("mnist5k.npz", ("pixels", "classes"), *CHECKSUMS["mnist5k"].values())
    order = np.random.default_rng(0).permutation(len(pixels))
    order = order[:4_000] if split == "train" else order[4_000:]
    x = torch.from_numpy(pixels[order].astype(np.float32)) / 255
    return Dataset("mnist5k", x, torch.from_numpy(classes[order].astype(np.int64)))


def _toy(name: str, split: Split) -> Dataset:
    # The plane is cut to [-4, 4]^2, far outside the data: a ball needs a range to be clipped to.
    points, kind = toy_points(name, 4_096 if split == "train" else 1_024, seed=0 if split == "train" else 1)
    x = torch.from_numpy(points.astype(np.float32)).clamp(-4, 4)
    return Dataset(name, x, torch.from_numpy(kind), low=-4.0, high=4.0)
