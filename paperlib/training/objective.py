"""What a step of training minimises: an objective, and the words that name the objectives.

An objective is a frozen dataclass that carries its own options, such as `Adversarial(steps=10)`. A new one is one file
that subclasses `Objective` and ends with `OBJECTIVES["its-word"] = MyObjective()`; the word then works in
`TrainConfig.objective` and on the command line, alone or with options: "its-word steps=10".
"""

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from paperlib.certificates.method import Method
from paperlib.models.elbo import Target, unchecked_elbo
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


@dataclass(frozen=True)
class TrainingStep:
    """A batch, and the settings at which a step trains on it. Nothing is checked, so that a device is never waited for.

    Args:
        x: [batch, *data_shape] in the data range.
        start: what `Objective.draw` made of x, of the shape of x.
        noise: [batch, latent_dim].
        kappa: weight of the clean ELBO, in [0, 1].
        method: of the certificate, for objectives that have one.
        beta: weight of the KL, not negative.
        ramp: how far eps and kappa are on the way to their last values, in [0, 1].
    """

    x: Tensor
    start: Tensor
    ball: PerturbationSet
    noise: Tensor
    kappa: float
    method: str | Method = "ibp"
    target: Target = "perturbed"
    beta: float = 1.0
    ramp: float = 1.0

    def target_of(self, point: Tensor) -> Tensor:
        """What the decoder must explain at a perturbed input: that input itself, or x."""
        return point if self.target == "perturbed" else self.x


class Objective(ABC):
    """A way to train: the clean ELBO, and beside it a term that makes the model robust."""

    @property
    def bounds_layers(self) -> bool:
        """Whether the robust term is a bound made by rules for each layer, which speak of no layer that is random or
        that mixes the examples of a batch: such layers are refused before training, where kappa is below 1.
        """
        return False

    def draw(self, x: Tensor, ball: PerturbationSet, generator: torch.Generator) -> Tensor:
        """The random inputs that the robust term begins with, of the shape of x; x itself if it needs none.

        Apart from `loss`, as each of several processes draws for the whole batch and takes its part of both.
        """
        return x

    @abstractmethod
    def robust_term(self, vae: VAE, step: TrainingStep) -> Tensor:
        """What is maximised beside the clean ELBO, [batch], in nats, with its gradient in the weights."""

    def loss(self, vae: VAE, step: TrainingStep) -> Tensor:
        """minus the batch mean of  kappa * ELBO + (1 - kappa) * robust term,  a scalar, in nats.

        At kappa = 1 no robust term is computed, at kappa = 0 no clean ELBO.
        """
        value = torch.zeros(len(step.x), dtype=step.x.dtype, device=step.x.device)
        if step.kappa > 0:
            value = value + step.kappa * unchecked_elbo(vae, step.x, step.noise, step.x, step.beta)
        if step.kappa < 1:
            value = value + (1 - step.kappa) * self.robust_term(vae, step)
        return -value.mean()


OBJECTIVES: dict[str, Objective] = {}  # by the word that stands for each in a configuration


def find_objective(name: str) -> Objective:
    """The objective that a word stands for, with its default options or with those after it: "civet delta=0.01".

    Raises ValueError for an unknown word or option, and for a value that the option does not take.
    """
    word, *options = name.split() or [""]
    if word not in OBJECTIVES:
        raise ValueError(f"unknown objective {word!r}; use one of {', '.join(map(repr, sorted(OBJECTIVES)))}")
    kinds = {field.name: type(getattr(OBJECTIVES[word], field.name)) for field in _fields(OBJECTIVES[word])}
    given = {}
    for option, _, value in (each.partition("=") for each in options):
        if option not in kinds or option in given:
            raise ValueError(f"{word} takes each of the options [{', '.join(kinds)}] once, as in {word} option=1")
        try:
            given[option] = kinds[option](value)
        except ValueError:
            raise ValueError(f"the option {option} of {word} is a {kinds[option].__name__}, got {value!r}") from None
    return replace(OBJECTIVES[word], **given)  # type: ignore[type-var]


def full_name(name: str) -> str:
    """The one name of what `find_objective` finds by it: the word, and the options that are not the defaults, in order.

    Raises ValueError as `find_objective`.
    """
    word, objective = (name.split() or [""])[0], find_objective(name)
    values = {field.name: getattr(objective, field.name) for field in _fields(objective)}
    options = [f"{key}={value}" for key, value in values.items() if value != getattr(OBJECTIVES[word], key)]
    return " ".join([word, *options])


def _fields(objective: Objective) -> tuple[Field[Any], ...]:
    return fields(objective)  # type: ignore[arg-type]
