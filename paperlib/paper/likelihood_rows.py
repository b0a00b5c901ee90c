"""The experiments of notebook 11: what is certified of the likelihood itself, beside what is certified of the ELBO."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.certificates.api import certificate
from paperlib.certificates.certified_likelihood import certify_likelihood
from paperlib.certificates.expected import certify_expected
from paperlib.certificates.log_weights import iwae_bounds
from paperlib.certificates.proposals import EncoderProposal, FittedProposal, Proposal, fit_posterior
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.gaussian import reparametrize
from paperlib.models.iwae import iwae, log_likelihoods, log_mean_exp, log_ratio
from paperlib.models.vae import VAE
from paperlib.paper.mnist_training import EPS, ModelAtRadius, digit_models, file_name, models_at_radii, models_config
from paperlib.paper.tighter_training import released_models
from paperlib.runtime.parallel import in_parallel
from paperlib.threats.attacks import descend, pgd
from paperlib.training.config import TrainConfig

DRAWS = (1, 10, 50)  # K
CONFIDENCE = 0.999
METHOD = "crown-ibp"  # of all certificates that bound the network
ON_LINEAR = "proVAE kappa=0.5, on CROWN-IBP"  # the model of notebook 6
WAYS: dict[str, Proposal] = {  # of proposing latents
    "the encoder's, which moves with x'": EncoderProposal(METHOD),
    "one for the set, from the encoder": FittedProposal(0),
    "one for the set, fitted": FittedProposal(),
}


@dataclass(frozen=True)
class LikelihoodSizes:
    """How much of everything in a profile."""

    images: int  # the first of the test set
    latents: int  # that are drawn for each image, in groups of K
    compared: int  # images of the comparison of proposals
    groups: int  # of K draws, in that comparison
    expected_samples: int  # of the certified expectation beside it
    attack_steps: int
    attack_draws: int


SIZES = {
    "paper": LikelihoodSizes(30, 2000, 20, 20, 1000, 40, 200),
    "smoke": LikelihoodSizes(4, 100, 2, 3, 20, 5, 20),
}


def likelihood_models(dataset: str, profile: str) -> dict[str, tuple[str, TrainConfig]]:
    """File name and configuration of each model, by the name that rows and legends use."""
    models = {name: (file_name(name), config) for name, config in digit_models(dataset, profile).items()}
    on_linear = "06_provae_kappa_0.5"
    return models | {ON_LINEAR: (on_linear, released_models(dataset, profile)[on_linear])}


def bounds_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `bounds_rows` and of `ways_rows` depend on."""
    _, on_linear = likelihood_models(dataset, profile)[ON_LINEAR]
    return {
        **models_config(dataset, profile),
        "on_linear": on_linear.as_dict(),
        "eps": [0.0, EPS],
        "draws": list(DRAWS),
        "confidence": CONFIDENCE,
        "method": METHOD,
        "ways": [repr(way) for way in WAYS.values()],
        **asdict(SIZES[profile]),
    }


def bounds_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """One row for each model, radius, K and image, in nats.

    Columns: model, eps, draws (K), index; elbo, attacked_elbo and certified_elbo at one noise draw; iwae at K draws of
    the encoder's posterior and certified_iwae at the same; certified (the likelihood, at CONFIDENCE for each row by
    itself) and width (the part of it that pays for chance); met (an estimate of log p at the worst input that was met).
    """
    every = models_at_radii(models, test, SIZES[profile].images, (0.0, EPS))
    frames = in_parallel(partial(_bounds, sizes=SIZES[profile]), every, name="models and radii")
    return pd.concat([f.assign(model=m.name, eps=m.ball.size) for m, f in zip(every, frames, strict=True)])


def ways_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """One row for each model and proposal at EPS and the largest K: model, way, images, and the means over images of
    bound and width; beside them that of the expected ELBO (notebook 4), all at CONFIDENCE for each image.
    """
    every = models_at_radii(models, test, SIZES[profile].compared, (EPS,))
    frames = in_parallel(partial(_ways, sizes=SIZES[profile]), every, name="models")
    return pd.concat([f.assign(model=m.name) for m, f in zip(every, frames, strict=True)], ignore_index=True)


def _bounds(one: ModelAtRadius, sizes: LikelihoodSizes) -> pd.DataFrame:
    vae, x, ball = one.vae.in_float64(), one.x.double(), one.ball
    noise = one.noise(max(DRAWS)).double()
    with torch.no_grad():
        elbos = {
            "elbo": elbo(vae, x, noise[0]),
            "attacked_elbo": elbo(vae, pgd(vae, x, ball, noise[0], steps=sizes.attack_steps), noise[0]),
            "certified_elbo": certificate(vae, x, ball, noise[0], METHOD),
            "met": _met(one, sizes),
        }
        frames = []
        for draws in DRAWS:
            rows = _certified(one, x, draws, sizes.latents // draws, WAYS["one for the set, fitted"])
            values = elbos | {
                "iwae": iwae(vae, x, noise[:draws]),
                "certified_iwae": iwae_bounds(vae, x, ball, noise[:draws], METHOD).lower,
            }
            columns = {name: value.cpu().numpy() for name, value in values.items()}
            frames.append(rows[["draws", "index", "width"]].assign(certified=rows["bound"], **columns))
    return pd.concat(frames)


def _met(one: ModelAtRadius, sizes: LikelihoodSizes) -> Tensor:
    """An estimate of log p at the input of least log p that a search meets, [batch].

    The search lowers the mean weight of draws from the fitted proposal, whose latents do not move: it sees the decoder
    and no encoder. The estimate at its end has a proposal of its own. It is not rigorous, and in expectation too low.
    """
    vae, x, ball = one.vae.in_float64(), one.x.double(), one.ball
    generator = torch.Generator().manual_seed(1)
    mean, log_var = fit_posterior(vae, x, ball, FittedProposal().steps, generator)
    noise = torch.randn(sizes.attack_draws, *mean.shape, generator=generator, dtype=x.dtype)
    z = reparametrize(mean, log_var, noise)
    ratio = log_ratio(z, log_var, noise)
    worst, _ = descend(
        lambda at: log_mean_exp(log_likelihoods(vae, z, at) + ratio), x, ball, x, steps=sizes.attack_steps
    )
    at = ModelAtRadius(one.name, ball.scaled(0.0), one.vae, worst)
    rows = _certified(at, worst, max(DRAWS), sizes.groups, FittedProposal())
    return torch.from_numpy(rows["mean"].to_numpy(copy=True))  # which would not be writable


def _certified(one: ModelAtRadius, x: Tensor, draws: int, samples: int, proposal: Proposal) -> pd.DataFrame:
    return certify_likelihood(
        one.vae,
        x,
        one.ball,
        draws=draws,
        samples=samples,
        confidence=CONFIDENCE,
        proposal=proposal,
        generator=torch.Generator().manual_seed(0),
    )


def _ways(one: ModelAtRadius, sizes: LikelihoodSizes) -> pd.DataFrame:
    rows = []
    for way, proposal in WAYS.items():
        frame = _certified(one, one.x, max(DRAWS), sizes.groups, proposal)
        rows.append({"way": way, "images": len(frame), "bound": frame["bound"].mean(), "width": frame["width"].mean()})
    frame = certify_expected(
        one.vae,
        one.x,
        one.ball,
        confidence=CONFIDENCE,
        samples=sizes.expected_samples,
        method=METHOD,
        generator=torch.Generator().manual_seed(0),
    )
    expected = {"way": "expected ELBO", "images": len(frame), "bound": frame["bound"].mean()}
    return pd.DataFrame([expected | {"width": frame["width"].mean()}, *rows])
