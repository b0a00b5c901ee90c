"""What a method of certification is, and the words that name the methods.

A method is a small frozen object that carries its own options, such as `Crown(alpha_steps=10)`. A new one is one file
that subclasses `Method` and ends with `METHODS["its-word"] = MyMethod()`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paperlib.bounds.box import Interval
from paperlib.certificates.float_sound import SoundBounds
from paperlib.certificates.interval_elbo import elbo_lower, elbo_upper
from paperlib.certificates.intervals import IntervalBounds, target_box
from paperlib.models.elbo import Target, check_inputs, check_target, check_targets, explain_misfit
from paperlib.models.vae import VAE
from paperlib.threats.perturbation import PerturbationSet


@dataclass(frozen=True)
class MemoryUse:
    """What a method holds at its peak, in float64 numbers; beside it stand the model, the images and the rows."""

    per_image: int
    fixed: int = 0  # for any number of images
    largest_batch: int = 500  # more images at a time are not faster


class Method(ABC):
    """A way to bound the ELBO over a perturbation set from both sides."""

    @property
    def differentiable(self) -> bool:
        """Whether `lower` has the gradient in the model's parameters that training needs."""
        return False

    @abstractmethod
    def bounds(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Interval:
        """Certified: every x' in the ball has lower <= ELBO(x'; noise) <= upper, [batch]. See `elbo_bounds`."""

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        """The lower end of `bounds`, [batch]; methods for which one end costs less than both override it."""
        return self.bounds(vae, x, ball, noise, target, sound).lower

    def memory(self, vae: VAE, layer_sizes: Sequence[int]) -> MemoryUse:
        """What `bounds` holds at its peak, from the numbers that each layer puts out for an image: a generous guess."""
        return MemoryUse(per_image=64 * sum(layer_sizes), largest_batch=100)


class TrainableMethod(Method):
    """A method that can bound the ELBO over boxes that are given, as the inner loop of training does.

    It is trained on where it says that it is `differentiable`.
    """

    def lower(
        self,
        vae: VAE,
        x: Tensor,
        ball: PerturbationSet,
        noise: Tensor,
        target: Target = "perturbed",
        sound: bool = False,
    ) -> Tensor:
        return self.lower_over(Problem.checked(vae, x, ball, noise, target, sound))

    @abstractmethod
    def lower_over(self, problem: "Problem") -> Tensor:
        """A lower bound of  log p - problem.beta * KL  over boxes that are made already, [batch], so at beta = 1 of the
        ELBO: for inner loops, which check nothing.
        """


METHODS: dict[str, Method] = {}  # by the word that stands for each wherever a method is asked for


def find_method(method: str | Method) -> Method:
    """The method itself, or the one that a word stands for, with its default options.

    Raises ValueError for an unknown word.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; use one of {', '.join(map(repr, sorted(METHODS)))}")
    return METHODS[method]


@dataclass(frozen=True)
class Problem:
    """A model at a noise draw, and interval bounds of all its quantities over the boxes of inputs and targets."""

    vae: VAE
    noise: Tensor  # [batch, latent_dim]
    bounds: IntervalBounds
    sound: SoundBounds | None = None  # None: real arithmetic; else `vae` and `noise` are in float64
    beta: float = 1.0  # weight of the KL, not negative; only training asks for another than 1, and never with `sound`

    @property
    def interval_elbo(self) -> Interval:
        """Interval bounds of the ELBO, [batch], nats: no method need be looser."""
        bounds = Interval(elbo_lower(self.vae, self.bounds), elbo_upper(self.vae, self.bounds))
        return bounds if self.sound is None else bounds.widen(self.sound.value_rounding)

    @property
    def interval_elbo_lower(self) -> Tensor:
        """The lower end of `interval_elbo` alone, [batch], nats: all that training needs."""
        lower = elbo_lower(self.vae, self.bounds, self.beta)
        return lower if self.sound is None else lower - self.sound.value_rounding

    @classmethod
    def checked(
        cls, vae: VAE, x: Tensor, ball: PerturbationSet, noise: Tensor, target: Target, sound: bool
    ) -> "Problem":
        """The problem of `elbo_bounds` with its arguments. Raises as documented there."""
        check_target(target)
        check_inputs(vae, x, noise)
        region = ball.region(x)
        targets = target_box(target, region.box, x)
        check_targets(vae, *targets)
        with explain_misfit(x):
            if sound:
                deployed = SoundBounds.of(vae, x, ball, noise, target)
                return cls(deployed.network, noise.double(), deployed.bounds, deployed)
            return cls(vae, noise, IntervalBounds.of(vae, region, noise, targets))
