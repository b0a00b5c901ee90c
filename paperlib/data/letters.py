"""The download of notMNIST: 10,000 letters A to J from many fonts, in MNIST's format, of which only a test set is used.

They were made by Y. Bulatov and posted in this format, with his permission, by D. Flanagan on GitHub.
"""

import gzip
import hashlib
from pathlib import Path
from urllib.request import urlopen

SOURCE = "https://raw.githubusercontent.com/davidflanagan/notMNIST-to-MNIST/HEAD"
PACKED = {
    "t10k-images-idx3-ubyte.gz": "70ae9e06201f2827e5b0a3781a3169d735dd2efc69996b9eeaee7f10ed4044d7",
    "t10k-labels-idx1-ubyte.gz": "1fa03836e01c862542f8eb83463bb951bebec6fcb3efa28dad748c6b38a9021b",
}
PATIENCE = 60  # seconds that a server may be silent


def download_letters(folder: Path) -> None:
    """Put the unpacked files into notMNIST/raw of a folder. Raises OSError for what does not come, or comes altered."""
    raw = folder / "notMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, expected in PACKED.items():
        with urlopen(f"{SOURCE}/{name}", timeout=PATIENCE) as response:
            packed = response.read()
        # before it is unpacked: what was altered may unpack to anything
        if (actual := hashlib.sha256(packed).hexdigest()) != expected:
            raise OSError(f"the download of {name} has SHA-256 {actual}, expected {expected}")
        (raw / name.removesuffix(".gz")).write_bytes(gzip.decompress(packed))
