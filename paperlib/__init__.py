"""Variational auto-encoders with a certified lower bound of the ELBO (proVAE, arXiv 2004.10608)."""

__version__ = "0.1.0"
