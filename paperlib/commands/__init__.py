"""The commands of `python -m paperlib`: each is a dataclass, its fields are flags, their docstrings the help."""
