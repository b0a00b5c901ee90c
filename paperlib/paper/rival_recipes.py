"""The defences of notebook 7: each is a recipe for the same network, data and number of steps, tuned by as many trials.

The trials of a recipe differ in the one setting that rules how robust its models become. They are trained on the first
data set with the first seed and compared on held-out training images; the chosen one serves all seeds and data sets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from paperlib.models.likelihood import Bernoulli
from paperlib.models.vae import VAE, conv_vae
from paperlib.paper.mnist_training import EPS
from paperlib.rivals.lipschitz import lipschitz_vae
from paperlib.training.config import TrainConfig

STEPS = {"paper": 1_200, "smoke": 30}
HIDDEN = {"paper": 512, "smoke": 32}
SEEDS = {"paper": (0, 1, 2), "smoke": (0,)}
L2_EPS = 1.0  # radius of the recipe that is trained on an l2 ball
CHANNELS = {"paper": (8, 16), "smoke": (2, 4)}  # of the convolutional networks
LIPSCHITZ = {"b": 1.0, "c": 1.0}  # constants of the encoder's mean and sigma


@dataclass(frozen=True)
class Recipe:
    """One way to train. Settings are fields of TrainConfig, or `a`, the Lipschitz constant of a decoder.

    Attributes:
        trials: the settings among which is chosen.
        settings: of all trials.
    """

    name: str
    trials: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _one_of(name: str, *values: float | str) -> tuple[Mapping[str, Any], ...]:
    return tuple({name: value} for value in values)


PLAIN = {"kappa": 1.0, "eps": 0.0}
RECIPES = (
    Recipe("VAE", _one_of("lr", 1e-3, 1.5e-3, 3e-3), PLAIN),
    Recipe("beta-VAE", _one_of("beta", 2.0, 4.0, 8.0), PLAIN),
    Recipe("weight decay", _one_of("weight_decay", 0.1, 0.3, 1.0), PLAIN),
    Recipe("noise-trained VAE", _one_of("eps", 0.25, 0.5, 1.0), {"objective": "noise", "kappa": 0.0}),
    Recipe(
        "smooth encoder",
        _one_of("objective", *(f"smooth-encoder gamma={gamma}" for gamma in (1, 10, 100))),
        {"kappa": 0.5},
    ),
    Recipe("Lipschitz VAE", _one_of("a", 2.0, 5.0, 10.0), PLAIN),
    Recipe("adversarial training", _one_of("kappa", 0.0, 0.25, 0.5), {"objective": "adversarial"}),
    Recipe("CIVET", _one_of("kappa", 0.25, 0.5, 0.75), {"objective": "civet"}),
    Recipe("proVAE, intervals", _one_of("kappa", 0.25, 0.5, 0.75)),
    Recipe("proVAE, linear bound", _one_of("kappa", 0.25, 0.5, 0.75), {"bound": "crown-ibp"}),
    Recipe(
        "proVAE, linear bound, l2",
        _one_of("kappa", 0.25, 0.5, 0.75),
        {"bound": "crown-ibp", "threat": "l2", "eps": L2_EPS},
    ),
)
CONVOLUTIONAL = (
    Recipe("VAE, convolutional", ({},), PLAIN),
    Recipe("CIVET, convolutional", ({"kappa": 0.5},), {"objective": "civet"}),
    Recipe("proVAE, convolutional", ({"kappa": 0.5},)),
)


def recipe(name: str) -> Recipe:
    """The recipe of this name."""
    return {one.name: one for one in (*RECIPES, *CONVOLUTIONAL)}[name]


@dataclass(frozen=True)
class Run:
    """One training of one recipe: its configuration, and the model where the configuration does not say it."""

    recipe: str
    trial: int
    config: TrainConfig
    profile: str

    @classmethod
    def of(cls, name: str, trial: int, dataset: str, seed: int, profile: str) -> "Run":
        one = recipe(name)
        settings = {**one.settings, **one.trials[trial]}
        settings.pop("a", None)
        base = TrainConfig(
            dataset=dataset,
            hidden=(HIDDEN[profile],),
            batch_size=64,
            lr=1.5e-3,
            eps=EPS,
            steps=STEPS[profile],
            seed=seed,
        )
        return cls(name, trial, replace(base, **settings), profile)

    @property
    def tuned(self) -> str:
        """The setting that was tuned, as tables show it."""
        settings = recipe(self.recipe).trials[self.trial].items()
        return ", ".join(value if isinstance(value, str) else f"{name} {value:g}" for name, value in settings)

    @property
    def threat(self) -> str:
        """The norm that robustness is tuned for."""
        return "l2" if "l2" in self.recipe or "noise" in self.recipe else "linf"

    def as_dict(self) -> dict[str, Any]:
        """What the result depends on, in JSON types."""
        return {"recipe": self.recipe, "tuned": self.tuned, "config": self.config.as_dict()}

    def model(self) -> VAE | None:
        """The untrained model; None where the configuration builds it."""
        if "convolutional" in self.recipe:
            return _seeded(self.config, lambda: conv_vae((1, 28, 28), CHANNELS[self.profile], self.config.latent_dim))
        if self.recipe == "Lipschitz VAE":
            a = recipe(self.recipe).trials[self.trial]["a"]
            shape, hidden, latent = self.config.data_shape, self.config.hidden, self.config.latent_dim
            return _seeded(self.config, lambda: lipschitz_vae(shape, hidden, latent, Bernoulli(), a=a, **LIPSCHITZ))
        return None


def _seeded(config: TrainConfig, build: Callable[[], VAE]) -> VAE:
    """The weights are determined by the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build()


def datasets(dataset: str) -> tuple[str, ...]:
    """The data sets of the comparison beside this one; a subset stands alone."""
    return (dataset, "fashion-mnist") if dataset == "mnist" else (dataset,)


def rivals_config(dataset: str, profile: str) -> dict[str, Any]:
    """What every row of the comparison depends on."""
    runs = [Run.of(one.name, trial, dataset, 0, profile) for one in RECIPES for trial in range(len(one.trials))]
    convolutional = [Run.of(one.name, 0, dataset, 0, profile) for one in CONVOLUTIONAL]
    return {
        "trials": [run.as_dict() for run in (*runs, *convolutional)],
        "datasets": list(datasets(dataset)),
        "seeds": list(SEEDS[profile]),
        "lipschitz": LIPSCHITZ,
        "channels": list(CHANNELS[profile]),
    }
