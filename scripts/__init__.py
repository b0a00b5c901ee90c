"""Commands of this repository: `python -m scripts.figures`, `python -m scripts.html` (the Makefile calls them)."""
