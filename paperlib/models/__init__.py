"""Densities and networks: the posterior, likelihoods, the VAE and its ELBO. Knows no bound."""
