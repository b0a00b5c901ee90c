"""From a configuration to a trained model on disk: objective, loop, checkpoints, sweeps."""
