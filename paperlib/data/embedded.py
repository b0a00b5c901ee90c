"""The arrays that the library brings as files, each checked against its SHA-256 when it is loaded."""

import hashlib
import io
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from paperlib.data.arrays import DataError


def embedded_arrays(name: str, keys: tuple[str, ...], expected: str) -> list[np.ndarray]:
    """The arrays of these keys in the embedded file `name`, whose bytes in this order have the SHA-256 `expected`.

    Raises DataError, naming the file and both checksums, if it is missing, damaged or altered.
    """
    path = Path(__file__).with_name(name)
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            arrays = [file[key] for key in keys]
    except (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected SHA-256 {expected}, found none; install the library anew"
        ) from error
    actual = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    if actual != expected:
        raise DataError(f"{path} is damaged: expected SHA-256 {expected}, found {actual}; install the library anew")
    return arrays
