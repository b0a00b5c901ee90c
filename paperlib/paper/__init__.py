"""The experiments and figures of this repository. Nothing else in the library imports them."""
