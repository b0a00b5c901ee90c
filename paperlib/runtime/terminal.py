"""Text for whatever terminal there is."""

import io
import sys


def escape_unprintable() -> None:
    """From now on a character that the terminal's encoding lacks is printed as an escape, and no longer an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
