"""From a configuration to a trained model on disk."""

# This module registers the objective that configurations name by default.
from paperlib.training import loss  # noqa: F401
