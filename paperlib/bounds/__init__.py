"""Bounds of layers over a box of their inputs: intervals, linear relaxations, rounding. Knows nothing of a VAE."""

# These modules register the rules of layers that are not in `interval`, `relaxation` and `rounding` themselves.
from paperlib.bounds import activations, normalization, piecewise, pooling, residual  # noqa: F401
