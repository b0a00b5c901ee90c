"""Bounds of the ELBO that no input of a perturbation set can pass."""

# These modules register what they define: bounds of likelihoods, and methods with the words that stand for them.
from paperlib.certificates import (  # noqa: F401
    auto,
    bernoulli_bounds,
    branch_and_bound,
    crown,
    discretized_logistic_bounds,
    gaussian_bounds,
    gaussian_heads,
    ibp,
    poisson_bounds,
)
from paperlib.certificates.ladder import beta_crown, dual_network, lagrangian, zonotope  # noqa: F401
