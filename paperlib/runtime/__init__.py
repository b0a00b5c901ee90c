"""What a computation runs on: devices, processes, files, progress. Knows nothing of bounds or models."""
