"""Variational auto-encoders with a certified lower bound of the ELBO (proVAE, arXiv 2004.10608)."""

from paperlib.bounds.box import Interval
from paperlib.bounds.check import check_rules
from paperlib.bounds.curves import concave, convex
from paperlib.bounds.interval import interval_rule, propagate
from paperlib.bounds.linear import LinearFunction, LinearRelaxation
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.residual import Residual
from paperlib.bounds.rounding import Rounding, rounding_rule
from paperlib.bounds.smooth import SmoothCurve, smooth
from paperlib.certificates.api import certificate, elbo_bounds
from paperlib.certificates.auto import Auto
from paperlib.certificates.branch_and_bound import BranchAndBound
from paperlib.certificates.certified_likelihood import certify_likelihood
from paperlib.certificates.crown import Crown, CrownIBP
from paperlib.certificates.evaluation import certify
from paperlib.certificates.expected import certify_expected
from paperlib.certificates.ibp import IBP
from paperlib.certificates.ladder.beta_crown import BetaCrown
from paperlib.certificates.ladder.dual_network import DualNetwork
from paperlib.certificates.ladder.lagrangian import Lagrangian
from paperlib.certificates.ladder.random_projection import ProbableBound, random_projection_bound
from paperlib.certificates.ladder.zonotope import DeepZ, HybridZonotope
from paperlib.certificates.likelihood_bounds import LikelihoodBounds, likelihood_bounds
from paperlib.certificates.log_weights import iwae_bounds
from paperlib.certificates.method import METHODS, Method
from paperlib.certificates.proposals import EncoderProposal, FittedProposal
from paperlib.data.arrays import Dataset
from paperlib.data.datasets import load_dataset
from paperlib.models.discretized_logistic import DiscretizedLogistic
from paperlib.models.elbo import elbo
from paperlib.models.exponential import ContinuousBernoulli, Poisson
from paperlib.models.iwae import iwae, log_weights
from paperlib.models.likelihood import Bernoulli, Gaussian, Likelihood
from paperlib.models.vae import VAE, GaussianHeads, conv_vae, mlp_vae
from paperlib.rivals.civet import civet_error
from paperlib.threats.apgd import apgd
from paperlib.threats.attacks import fgsm, pgd
from paperlib.threats.balls import LinfBall
from paperlib.threats.directions import lighting, low_frequencies
from paperlib.threats.l1_ball import L1Ball
from paperlib.threats.l2_ball import L2Ball
from paperlib.threats.latent import latent_attack
from paperlib.threats.linear_set import LinearSet
from paperlib.threats.output import damage_attack
from paperlib.threats.patch import PatchSet
from paperlib.threats.picture import attack_picture
from paperlib.threats.suite import strongest
from paperlib.training.checkpoint import load, save
from paperlib.training.config import TrainConfig
from paperlib.training.loop import train
from paperlib.training.loss import robust_loss
from paperlib.training.objective import OBJECTIVES, Objective, TrainingStep

__version__ = "0.1.0"

__all__ = [
    "IBP",
    "METHODS",
    "OBJECTIVES",
    "VAE",
    "Affine",
    "Auto",
    "Bernoulli",
    "BetaCrown",
    "BranchAndBound",
    "ContinuousBernoulli",
    "Crown",
    "CrownIBP",
    "Dataset",
    "DeepZ",
    "DiscretizedLogistic",
    "DualNetwork",
    "EncoderProposal",
    "FittedProposal",
    "Gaussian",
    "GaussianHeads",
    "HybridZonotope",
    "Interval",
    "L1Ball",
    "L2Ball",
    "Lagrangian",
    "Likelihood",
    "LikelihoodBounds",
    "LinearFunction",
    "LinearRelaxation",
    "LinearSet",
    "LinfBall",
    "Method",
    "Objective",
    "PatchSet",
    "Poisson",
    "ProbableBound",
    "Residual",
    "Rounding",
    "SmoothCurve",
    "TrainConfig",
    "TrainingStep",
    "apgd",
    "attack_picture",
    "certificate",
    "certify",
    "certify_expected",
    "certify_likelihood",
    "check_rules",
    "civet_error",
    "concave",
    "conv_vae",
    "convex",
    "damage_attack",
    "elbo",
    "elbo_bounds",
    "fgsm",
    "interval_rule",
    "iwae",
    "iwae_bounds",
    "latent_attack",
    "lighting",
    "likelihood_bounds",
    "load",
    "load_dataset",
    "log_weights",
    "low_frequencies",
    "mlp_vae",
    "pgd",
    "propagate",
    "random_projection_bound",
    "relaxation_rule",
    "robust_loss",
    "rounding_rule",
    "save",
    "smooth",
    "strongest",
    "train",
]
