"""Data sets are whole and what their name says, or there is one clear error; a subset never passes for the full set."""

import functools
import gzip
import hashlib
import inspect
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from paperlib import load_dataset
from paperlib.data import datasets as data_module
from paperlib.data import embedded as embedded_module
from paperlib.data.datasets import CHECKSUMS, DataError, Dataset, checksum, data_origin, data_root, resolve
from paperlib.data.toys import TOYS

PUBLISHED = """
    ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db  MNIST/raw/train-images-idx3-ubyte
    65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5  MNIST/raw/train-labels-idx1-ubyte
    0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7  MNIST/raw/t10k-images-idx3-ubyte
    ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2  MNIST/raw/t10k-labels-idx1-ubyte
    c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888  FashionMNIST/raw/train-images-idx3-ubyte
    bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9  FashionMNIST/raw/train-labels-idx1-ubyte
    5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b  FashionMNIST/raw/t10k-images-idx3-ubyte
    0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34  FashionMNIST/raw/t10k-labels-idx1-ubyte
"""
COUNTS = {"train": 5, "t10k": 3}
EMBEDDED = Path(data_module.__file__).with_name("mnist5k.npz")
EMBEDDED_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"  # pixels, then classes, as bytes


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No test touches the network or the user's data; returns the names of the sets whose download was tried."""
    tried: list[str] = []

    def offline(name: str) -> Any:
        def download(root: str, **_: object) -> None:
            tried.append(name)
            raise RuntimeError(f"no network for {name}")

        return download

    for name in ("MNIST", "FashionMNIST"):
        monkeypatch.setattr(torchvision.datasets, name, offline(name))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "data"))
    return tried


def write_idx(root: Path, name: str) -> dict[str, str]:
    """Tiny files in the true layout: 4 bytes of magic and 4 for each dimension, big-endian; returns their checksums."""
    sums = {}
    for file in CHECKSUMS[name]:
        count = COUNTS[Path(file).name.split("-")[0]]
        if "images" in file:
            content = struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28)
            content += bytes((31 * image + pixel) % 256 for image in range(count) for pixel in range(784))
        else:
            content = struct.pack(">4Bi", 0, 0, 8, 1, count) + bytes((3 * image + 7) % 10 for image in range(count))
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
        sums[file] = hashlib.sha256(content).hexdigest()
    return sums


@pytest.fixture(params=["mnist", "fashion-mnist"])
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A whole tiny copy of a full set, whose checksums are those expected."""
    name: str = request.param
    monkeypatch.setitem(CHECKSUMS, name, write_idx(data_root(), name))
    return name


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(data_root().rglob("*")) if path.is_file()}


def test_the_checksums_are_those_of_the_published_files() -> None:
    ours = {file: sha for name in ("mnist", "fashion-mnist") for file, sha in CHECKSUMS[name].items()}
    assert ours == {file: sha for sha, file in (line.split() for line in PUBLISHED.split("\n") if line.strip())}


@functools.cache
def embedded() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [5000, 784] and classes [5000], as the file stores them."""
    with np.load(EMBEDDED) as file:
        return file["pixels"], file["classes"]


def test_the_embedded_digits_are_those_that_all_results_were_made_with() -> None:
    pixels, classes = embedded()
    assert pixels.dtype == classes.dtype == np.uint8
    assert hashlib.sha256(pixels.tobytes() + classes.tobytes()).hexdigest() == EMBEDDED_SHA256
    assert list(CHECKSUMS["mnist5k"].values()) == [EMBEDDED_SHA256]
    assert np.bincount(classes).tolist() == [500] * 10
    assert EMBEDDED.name in EMBEDDED.with_name("LICENSES.md").read_text(encoding="utf-8"), "its licence lies beside it"


def test_the_embedded_digits_have_a_fixed_split_of_4000_and_1000() -> None:
    train, test = (load_dataset("mnist5k", split) for split in ("train", "test"))
    assert train.x.shape == (4_000, 784) and test.x.shape == (1_000, 784)
    assert train.y.shape == (4_000,) and test.y.shape == (1_000,)
    together = torch.cat([train.x, test.x])
    order = np.random.default_rng(0).permutation(5000)
    for dataset, rows in ((train, order[:4000]), (test, order[4000:])):
        assert torch.equal(dataset.x, torch.from_numpy(embedded()[0][rows].astype(np.float32)) / 255)
        assert dataset.y.tolist() == embedded()[1][rows].tolist()
    original = torch.from_numpy(embedded()[0] / 255).float()

    def ordered(x: torch.Tensor) -> np.ndarray:
        return np.sort(np.ascontiguousarray((x * 255).round().byte().numpy()).view("V784").ravel().tolist())

    assert (ordered(together) == ordered(original)).all(), "every digit is in exactly one half"
    for split, dataset in (("train", train), ("test", test)):
        assert dataset.name == "mnist5k"
        again = load_dataset("mnist5k", split)  # type: ignore[arg-type]
        assert torch.equal(dataset.x, again.x) and torch.equal(dataset.y, again.y)
        assert dataset.y.bincount(minlength=10).min() > 0.07 * len(dataset.y), "each class in each half"


@pytest.mark.parametrize("split", ["train", "test"])
def test_embedded_pixels_are_floats_from_zero_to_one(split: Any) -> None:
    dataset = load_dataset("mnist5k", split)
    assert dataset.x.dtype == torch.float32 and dataset.y.dtype == torch.int64
    assert dataset.x.min() == 0 and dataset.x.max() == 1
    assert set(dataset.y.tolist()) == set(range(10))
    assert (dataset.low, dataset.high, dataset.shape) == (0.0, 1.0, (784,))


def test_each_embedded_digit_keeps_its_label() -> None:
    label_of = {row.tobytes(): int(label) for row, label in zip(*embedded(), strict=True)}
    test = load_dataset("mnist5k", "test")
    rows = (test.x * 255).round().byte().numpy()
    assert [label_of[row.tobytes()] for row in rows] == test.y.tolist()


@pytest.fixture
def own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library whose embedded digits the test may damage."""
    monkeypatch.setattr(embedded_module, "__file__", str(tmp_path / "library" / "embedded.py"))
    path = tmp_path / "library" / EMBEDDED.name
    path.parent.mkdir()
    path.write_bytes(EMBEDDED.read_bytes())
    assert len(load_dataset("mnist5k", "test").x) == 1_000
    return path


@pytest.mark.parametrize("part", ["pixels", "classes"])
def test_altered_embedded_digits_are_refused(own_copy: Path, part: str) -> None:
    pixels, classes = (array.copy() for array in embedded())
    if part == "pixels":
        pixels[17, 300] += 1
    else:
        classes[17] += 1
    np.savez_compressed(own_copy, pixels=pixels, classes=classes)
    actual = hashlib.sha256(pixels.tobytes() + classes.tobytes()).hexdigest()
    with pytest.raises(DataError, match=rf"expected SHA-256 {EMBEDDED_SHA256}, found {actual}") as caught:
        load_dataset("mnist5k")
    assert str(own_copy) in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "of another kind"])
def test_a_damaged_file_of_embedded_digits_is_named_and_left_alone(own_copy: Path, damage: str) -> None:
    if damage == "missing":
        own_copy.unlink()
    elif damage == "of another kind":
        np.savez_compressed(own_copy, digits=np.zeros(3))
    else:
        own_copy.write_bytes(own_copy.read_bytes()[:100_000] if damage == "truncated" else b"")
    before = own_copy.read_bytes() if own_copy.exists() else None
    with pytest.raises(DataError, match=rf"mnist5k\.npz.*expected SHA-256 {EMBEDDED_SHA256}"):
        load_dataset("mnist5k")
    assert (own_copy.read_bytes() if own_copy.exists() else None) == before


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_set_is_fixed_and_lies_in_its_range(name: str) -> None:
    train, test = (load_dataset(name, split) for split in ("train", "test"))
    assert train.x.shape == (4_096, 2) and test.x.shape == (1_024, 2) and train.x.dtype == torch.float32
    assert train.name == name and (train.low, train.high) == (-4.0, 4.0)
    assert torch.equal(train.x, load_dataset(name).x)
    assert not torch.equal(train.x[:1_024], test.x)
    for dataset in (train, test):
        dataset.ball(0.1).check(dataset.x)
        assert dataset.x.abs().max() > 1 and (dataset.x.abs() == 4).float().mean() < 0.01, "hardly anything is cut"
        assert dataset.y.dtype == torch.int64
    assert len(train.y.unique()) == {"two-moons": 2, "eight-gaussians": 8, "pinwheel": 5}[name]


def test_the_eight_gaussians_are_where_they_should_be() -> None:
    dataset = load_dataset("eight-gaussians")
    for kind in range(8):
        part = dataset.x[dataset.y == kind].double()
        centre = 2.4 * torch.tensor([np.cos(kind * np.pi / 4), np.sin(kind * np.pi / 4)])
        torch.testing.assert_close(part.mean(0), centre, rtol=0, atol=0.05)
        torch.testing.assert_close(part.std(0), torch.full((2,), 0.2).double(), rtol=0, atol=0.03)


@pytest.mark.parametrize("split", ["train", "test"])
def test_idx_files_are_parsed_to_the_byte(tiny: str, split: Any, downloads: list[str]) -> None:
    dataset = load_dataset(tiny, split)
    count = {"train": 5, "test": 3}[split]
    expected = torch.tensor([[(31 * image + pixel) % 256 for pixel in range(784)] for image in range(count)])
    assert torch.equal((dataset.x * 255).round().long(), expected)
    assert dataset.x.max() == 1.0 and dataset.x.dtype == torch.float32
    assert dataset.y.tolist() == [(3 * image + 7) % 10 for image in range(count)] and dataset.y.dtype == torch.int64
    assert dataset.name == tiny and downloads == []


@pytest.mark.parametrize("file", range(4))
@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_file_is_named_with_both_checksums_and_left_alone(
    tiny: str, file: int, damage: str, split: Any, downloads: list[str]
) -> None:
    path = data_root() / list(CHECKSUMS[tiny])[file]
    whole = path.read_bytes()
    expected = hashlib.sha256(whole).hexdigest()
    path.write_bytes({"truncated": whole[:-1], "altered": whole[:-1] + b"\xff", "emptied": b""}[damage])
    actual, before = hashlib.sha256(path.read_bytes()).hexdigest(), contents()
    with pytest.raises(DataError) as caught:
        load_dataset(tiny, split)
    assert all(part in str(caught.value) for part in (str(path), expected, actual))
    assert contents() == before and downloads == []


def test_a_damaged_full_set_is_not_silently_replaced_by_the_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(data_root(), "mnist")  # whole files, but not those of MNIST
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
        resolve("auto")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_missing_set_that_cannot_be_downloaded_is_named(name: str, downloads: list[str]) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is missing and cannot be downloaded.*PAPERLIB_DATA"):
        load_dataset(name)
    assert len(downloads) == 1


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_download_without_torchvision_says_what_is_not_installed(name: str) -> None:
    words = (
        "-images-idx3-ubyte is missing, and torchvision, which would download it, is not installed; set PAPERLIB_DATA"
    )
    with pytest.raises(DataError, match=words):
        load_dataset(name)


@pytest.mark.usefixtures("no_torchvision")
def test_without_torchvision_auto_falls_back_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert load_dataset("auto").name == "mnist5k"
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("WARNING: full MNIST is not available") and "torchvision" in err and "not installed" in err


@pytest.mark.usefixtures("no_torchvision")
def test_files_that_are_there_need_no_torchvision(tiny: str) -> None:
    assert [len(load_dataset(tiny, split).x) for split in ("train", "test")] == [5, 3]
    assert [len(load_dataset("mnist5k", split).x) for split in ("train", "test")] == [4_000, 1_000]


def test_a_full_set_is_downloaded_once_into_the_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def download(root: str, download: bool = False) -> None:
        asked.append((root, download))
        write_idx(Path(root), "mnist")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    monkeypatch.setitem(CHECKSUMS, "mnist", write_idx(tmp_path / "elsewhere", "mnist"))
    assert len(load_dataset("auto").x) == 5 and len(load_dataset("mnist", "test").x) == 3
    assert [download for _, download in asked] == [True]
    assert sorted(contents()) == sorted(str(data_root() / file) for file in CHECKSUMS["mnist"]), "and nothing else"


@pytest.mark.parametrize("missing", range(4))
def test_what_is_missing_beside_whole_files_is_downloaded(missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an interrupted download of an earlier version has left them."""
    monkeypatch.setitem(CHECKSUMS, "mnist", write_idx(data_root(), "mnist"))
    whole = contents()
    file = data_root() / list(CHECKSUMS["mnist"])[missing]
    file.unlink()
    times = {path: Path(path).stat().st_mtime_ns for path in contents()}
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, **_: write_idx(Path(root), "mnist"))
    assert len(load_dataset("mnist").x) == 5 and contents() == whole
    assert times.items() <= {path: Path(path).stat().st_mtime_ns for path in whole}.items(), "the others are untouched"


def test_a_download_that_is_not_what_was_published_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, **_: write_idx(Path(root), "mnist"))
    with pytest.raises(DataError, match=r"cannot be downloaded \(the download has SHA-256 \w+, expected ba891046"):
        load_dataset("mnist")
    assert contents() == {}


SERVED = """
import gzip, hashlib, json, pathlib, sys
import torchvision
from paperlib.data.datasets import CHECKSUMS, DataError, load_dataset
address, folder = sys.argv[1:]
kind = torchvision.datasets.MNIST
kind.mirrors = [address]
files = [pathlib.Path(folder, pathlib.Path(file).name + ".gz") for file in CHECKSUMS["mnist"]]
kind.resources = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in files]
plain = [gzip.decompress(file.read_bytes()) for file in files]
CHECKSUMS["mnist"] = {name: hashlib.sha256(content).hexdigest() for name, content in zip(CHECKSUMS["mnist"], plain)}
print("ready", flush=True)
sys.stdin.readline()
try:
    print(len(load_dataset("mnist").x), len(load_dataset("mnist", "test").x))
except DataError as error:
    print(error)
"""


class Mirror:
    """A server of a tiny MNIST, on this machine; of the second file it sends a part, and no more while `stalls`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stalls, self.stalled = folder, threading.Event(), threading.Event()
        for file in write_idx(folder / "plain", "mnist"):
            plain = folder / "plain" / file
            (folder / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = (mirror.folder / Path(self.path).name).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if "train-labels" in self.path and mirror.stalls.is_set():
                    self.wfile.write(content[:10])
                    mirror.stalled.set()
                    while mirror.stalls.is_set():
                        time.sleep(0.01)
                else:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def client(self) -> subprocess.Popen[str]:
        """A process that loads the data as soon as it gets a line."""
        address = f"http://127.0.0.1:{self.server.server_port}/"
        command = [sys.executable, "-c", SERVED, address, str(self.folder)]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "no_proxy": "127.0.0.1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    mirror = Mirror(tmp_path / "mirror")
    yield mirror
    mirror.stalls.clear()
    mirror.server.shutdown()
    mirror.server.server_close()


def ready(client: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    return client


def test_processes_that_download_at_the_same_time_all_get_the_data(mirror: Mirror) -> None:
    clients = [ready(client) for client in [mirror.client() for _ in range(3)]]
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    assert [client.communicate(timeout=120)[0] for client in clients] == ["5 3\n"] * 3
    assert sorted(contents()) == sorted(str(data_root() / file) for file in CHECKSUMS["mnist"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_download_that_is_interrupted_in_its_second_file_is_made_again(
    mirror: Mirror, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    mirror.stalls.set()
    client = ready(mirror.client())
    assert client.stdin is not None
    client.stdin.write("go\n")
    client.stdin.flush()
    assert mirror.stalled.wait(120)
    client.send_signal(number)
    assert client.communicate(timeout=120)[0] == "" and client.returncode != 0
    assert contents() == {}, "nothing of it"
    assert number == signal.SIGKILL or list((tmp_path / "temporary").iterdir()) == []
    mirror.stalls.clear()
    assert ready(mirror.client()).communicate("go\n", timeout=120)[0] == "5 3\n"


def test_a_folder_of_data_that_cannot_be_written_is_the_cause_that_is_told(downloads: list[str]) -> None:
    data_root().parent.mkdir(exist_ok=True)
    data_root().write_text("no folder")
    with pytest.raises(DataError, match=r"cannot be downloaded \(cannot write into .*data"):
        load_dataset("mnist")
    assert downloads == [], "and it is found out before the download"


@pytest.mark.parametrize("missing", range(4))
def test_files_already_there_are_never_overwritten(missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one file of four missing torchvision fetches all four again, over those that are there."""
    good = write_idx(data_root(), "mnist")
    monkeypatch.setitem(CHECKSUMS, "mnist", good)
    files = [data_root() / file for file in good]
    files[missing].unlink()
    damaged = files[(missing + 1) % 4]
    damaged.write_bytes(b"the user's only copy, cut short")

    def download(root: str, **_: object) -> None:
        write_idx(Path(root), "mnist")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    with pytest.raises(DataError, match=r"ubyte"):
        load_dataset("mnist")
    assert damaged.read_bytes() == b"the user's only copy, cut short"


def test_auto_falls_back_to_the_subset_with_one_loud_line(
    capfd: pytest.CaptureFixture[str], downloads: list[str]
) -> None:
    assert resolve("auto") == "mnist5k"
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("WARNING: full MNIST is not available") and "mnist5k" in err and "5,000" in err
    assert downloads == ["MNIST"]
    dataset = load_dataset("auto", "test")
    assert dataset.name == "mnist5k" and len(dataset.x) == 1_000


def test_auto_takes_the_full_set_where_it_is_present(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CHECKSUMS, "mnist", write_idx(data_root(), "mnist"))
    assert resolve("auto") == "mnist" and load_dataset("auto").name == "mnist"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["MNIST", "cifar10", "", "two moons"])
def test_an_unknown_name_is_an_error_that_lists_all_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown data set .*mnist.*fashion-mnist.*mnist5k.*auto.*two-moons"):
        load_dataset(name)


@pytest.mark.parametrize("split", ["validation", "Train", ""])
def test_an_unknown_split_is_an_error(split: str) -> None:
    # unwrapped, as for users: the suite's type checks would stop a wrong word before the library sees it
    with pytest.raises(ValueError, match=r'split must be "train" or "test"'):
        inspect.unwrap(load_dataset)("mnist5k", split)


def test_the_root_is_the_variable_or_a_cache_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data_root() == tmp_path / "data"
    monkeypatch.setenv("PAPERLIB_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "paperlib"
    monkeypatch.delenv("PAPERLIB_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert data_root() == tmp_path / "me" / ".cache" / "paperlib"


def test_each_set_has_its_own_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*CHECKSUMS, *TOYS]
    sums = [checksum(name) for name in names]
    assert len(set(sums)) == len(names) and all(len(one) == 64 for one in sums)
    monkeypatch.setitem(CHECKSUMS, "mnist5k", {"mnist5k.npz": "0" * 64})
    assert checksum("mnist5k") not in sums


def test_a_data_set_makes_balls_in_its_own_range() -> None:
    ball = Dataset("own", torch.zeros(3, 2), torch.zeros(3).long(), low=-2.0, high=5.0).ball(0.5)
    assert (ball.eps, ball.low, ball.high) == (0.5, -2.0, 5.0)


def test_the_origin_of_rows_is_the_name_and_the_checksum() -> None:
    assert data_origin("mnist5k") == {"dataset": "mnist5k", "checksum": checksum("mnist5k")}


def test_importing_the_library_loads_no_data() -> None:
    source = inspect.getsource(data_module)
    top = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert not any("torchvision" in line or "mlxtend" in line for line in top)


def test_a_tilde_in_the_root_of_the_data_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_DATA", "~/digits")
    assert data_root() == tmp_path / "digits"


def test_without_a_home_the_root_of_the_data_is_in_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)  # as for a user without a name, where HOME is not set
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_root() == tmp_path / "data", "which needs no home"
    monkeypatch.delenv("PAPERLIB_DATA")
    assert data_root() == Path(tempfile.gettempdir()) / "paperlib"
    monkeypatch.setenv("PAPERLIB_DATA", "~nobody-of-this-name/digits")
    with pytest.raises(DataError, match="PAPERLIB_DATA is '~nobody-of-this-name/digits', and this user has no home"):
        data_root()
