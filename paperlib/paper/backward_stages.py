"""Backward substitution seen stage by stage: the bound if it ended there, and the coefficients at the pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.bounds.linear import backward_substitute, concretize, initial_alpha
from paperlib.certificates import posterior_bounds
from paperlib.certificates.backward import RelaxedVAE, backward_pass
from paperlib.certificates.crown import Crown, CrownIBP
from paperlib.certificates.likelihood_bounds import bounds_of
from paperlib.certificates.method import Problem
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.data.arrays import Dataset
from paperlib.models.elbo import elbo
from paperlib.models.likelihood import sum_per_example
from paperlib.models.vae import VAE
from paperlib.paper.linear_bounds import VACUOUS
from paperlib.paper.mnist_training import EPS, SIZES, ModelAtRadius, models_config
from paperlib.threats.attacks import pgd

METHODS: dict[str, CrownIBP] = {"crown-ibp": CrownIBP(), "crown": Crown()}  # with the initial alphas, by name in rows
STAGED = (("VAE", VACUOUS), ("proVAE kappa=0", EPS), ("proVAE kappa=0.5", EPS))  # models and radii of `stage_rows`
PICTURED = (("VAE", VACUOUS), ("VAE", EPS), ("proVAE kappa=0.5", EPS))  # models and radii of `coefficient_pictures`
IMAGE = 1  # the test image of `coefficient_pictures`


@dataclass(frozen=True)
class Stage:
    """A lower bound of the ELBO that is linear in one quantity between the decoder's output and the pixels."""

    quantity: str
    coefficients: Tensor  # [batch, *shape] of the quantity
    constant: Tensor  # [batch], nats: with the minimum of each term that does not depend on this quantity
    box: Interval  # of the quantity

    @property
    def bound(self) -> Tensor:
        """The certificate if backward substitution ended here, [batch], in nats."""
        return self.constant + concretize(self.coefficients, self.box)

    @property
    def worst_point(self) -> Tensor:
        """Where in its box the linear function is smallest."""
        return torch.where(self.coefficients > 0, self.box.lower, self.box.upper)


def backward_stages(relaxed: RelaxedVAE) -> list[Stage]:
    """The stages of `backward_elbo_bound` with the initial alphas, for the target "perturbed", from the output to the
    pixels. The last one is the bound `linear_lower(relaxed)`; in the one before it each pixel still has one worst value
    as the encoder's input and another one as the target.
    """
    bounds = relaxed.bounds
    fit = initial_alpha(bounds_of(relaxed.vae.likelihood).linear_below(bounds.output, bounds.target))
    mean_term, log_var_term = posterior_bounds.negative_kl_below(bounds.mean, bounds.log_var)
    kl_offset = sum_per_example(mean_term.offset + log_var_term.offset)
    kl_part = concretize(mean_term.slope, bounds.mean) + concretize(log_var_term.slope, bounds.log_var) + kl_offset
    target_part = concretize(fit.target_slope, bounds.target)

    coefficients, constant = fit.output_slope, sum_per_example(fit.offset)
    stages = [Stage("decoder output", coefficients, constant + kl_part + target_part, bounds.output)]
    for quantity, layer in _backward("decoder", relaxed.decoder, "latent"):
        coefficients, constant = backward_pass((layer,), coefficients, constant, initial_alpha)
        stages.append(Stage(quantity, coefficients, constant + kl_part + target_part, layer.box))

    scale_coefficients, offset = backward_substitute(coefficients * relaxed.noise, relaxed.scale)
    coefficients = torch.cat([coefficients + mean_term.slope, scale_coefficients + log_var_term.slope], 1)
    constant = constant + sum_per_example(offset) + kl_offset
    posterior = Interval(*(torch.cat(ends, 1) for ends in zip(bounds.mean, bounds.log_var, strict=True)))
    stages.append(Stage("mean, log-variance", coefficients, constant + target_part, posterior))
    for quantity, layer in _backward("encoder", relaxed.encoder, "pixels as input"):
        coefficients, constant = backward_pass((layer,), coefficients, constant, initial_alpha)
        stages.append(Stage(quantity, coefficients, constant + target_part, layer.box))

    stages.append(Stage("pixels as input and target", coefficients + fit.target_slope, constant, bounds.input))
    return stages


def _backward(part: str, layers: Sequence[RelaxedLayer], first: str) -> list[tuple[str, RelaxedLayer]]:
    """The layers of encoder or decoder, the last one first, each with the name of its input."""
    inputs = [first, *(f"{part}, after {type(layer.layer).__name__}" for layer in layers[:-1])]
    return list(zip(inputs, layers, strict=True))[::-1]


def stages_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the rows of `stage_rows` depend on."""
    return {**models_config(dataset, profile), "at": [list(one) for one in STAGED], "images": SIZES[profile].strength}


def stage_rows(models: Mapping[str, VAE], test: Dataset, profile: str) -> pd.DataFrame:
    """The mean bound at each stage over the first test images: a row for each model, method and stage, in order."""
    rows = []
    for name, eps in STAGED:
        one = ModelAtRadius(name, test.ball(eps), models[name], test.x[: SIZES[profile].strength])
        for method, stages in _stages_by_method(one).items():
            about = {"model": name, "eps": eps, "images": len(one.x), "method": method}
            rows += [{**about, "stage": stage.quantity, "bound": stage.bound.mean().item()} for stage in stages]
    return pd.DataFrame(rows)


@torch.no_grad()
def _stages_by_method(one: ModelAtRadius) -> dict[str, list[Stage]]:
    noise = one.noise()[0].double()
    problem = Problem.checked(one.vae.in_float64(), one.x.double(), one.ball, noise, "perturbed", sound=False)
    return {name: backward_stages(method.relax(problem)) for name, method in METHODS.items()}


def stage_gaps(stages: pd.DataFrame, attacked: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stage_rows` with a column `gap`: mean attacked ELBO of the same images minus the bound, in nats."""
    shown = attacked[attacked["index"] < stages["images"].max()]
    reached = shown.groupby(["model", "eps"])["attacked"].mean().reset_index()
    both = stages.merge(reached, on=["model", "eps"], how="left")
    return both.assign(gap=both["attacked"] - both["bound"])


def pictures_config(dataset: str, profile: str) -> dict[str, Any]:
    """What the tensors of `coefficient_pictures` depend on."""
    at = [list(one) for one in PICTURED]
    return {**models_config(dataset, profile), "at": at, "image": IMAGE, "attack_steps": SIZES[profile].attack_steps}


def coefficient_pictures(models: Mapping[str, VAE], test: Dataset, profile: str) -> dict[str, Tensor]:
    """CROWN's linear bound of one test image, a row for each model and radius of `PICTURED`.

    Returns:
        [rows, *data_shape]: the points x, worst (lowest of the linear bound) and attacked (where PGD ends); as_input
        and as_target, the parts of each pixel's coefficient, in nats per unit of the pixel.
        [rows]: bound, elbo_x, elbo_worst and elbo_attacked, in nats.
    """
    rows = []
    for name, eps in PICTURED:
        one = ModelAtRadius(name, test.ball(eps), models[name], test.x[: IMAGE + 1])  # at their draws in all other rows
        *_, before, last = _stages_by_method(one)["crown"]
        vae, x, noise = one.vae.in_float64(), one.x.double(), one.noise()[0].double()
        points = {"x": x, "worst": last.worst_point}
        points["attacked"] = pgd(vae, x, one.ball, noise, SIZES[profile].attack_steps)
        with torch.no_grad():
            values = {f"elbo_{key}": elbo(vae, point, noise) for key, point in points.items()}
        slopes = {"as_input": before.coefficients, "as_target": last.coefficients - before.coefficients}
        rows.append({**points, **slopes, **values, "bound": last.bound})
    return {key: torch.stack([row[key][IMAGE] for row in rows]) for key in rows[0]}
