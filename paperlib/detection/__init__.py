"""What bounds of a density are good for: verdicts that no small perturbation can change."""
