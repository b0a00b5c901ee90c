"""Bounds of layers over a box of their inputs: intervals, linear relaxations, rounding. Knows nothing of a VAE."""
