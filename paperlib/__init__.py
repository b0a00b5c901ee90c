"""Variational auto-encoders with a certified lower bound of the ELBO (proVAE, arXiv 2004.10608)."""

import warnings

from paperlib.attack import fgsm, pgd
from paperlib.certify import certify
from paperlib.checkpoint import load, save
from paperlib.config import TrainConfig
from paperlib.data import load_dataset
from paperlib.elbo import elbo, elbo_bounds
from paperlib.expected import certify_expected
from paperlib.interval import Interval, LinfBall, interval_rule, propagate
from paperlib.likelihood import Bernoulli, Gaussian
from paperlib.relaxation import relaxation_rule
from paperlib.rounding import rounding_rule
from paperlib.train import train
from paperlib.vae import VAE, conv_vae, mlp_vae

# `python -m paperlib.train` runs a module that this file has imported: harmless, as it holds nothing but its command.
warnings.filterwarnings(
    "ignore", r"'paperlib\.\w+' found in sys\.modules after import of package 'paperlib'", RuntimeWarning
)

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Bernoulli",
    "Gaussian",
    "Interval",
    "LinfBall",
    "TrainConfig",
    "certify",
    "certify_expected",
    "conv_vae",
    "elbo",
    "elbo_bounds",
    "fgsm",
    "interval_rule",
    "load",
    "load_dataset",
    "mlp_vae",
    "pgd",
    "propagate",
    "relaxation_rule",
    "rounding_rule",
    "save",
    "train",
]
