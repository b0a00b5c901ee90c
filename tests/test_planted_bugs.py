"""The audit of `elbo` and `elbo_bounds` is itself on trial: it must fail for each planted bug, and pass without."""

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from oracles import CASES, LIKELIHOODS, TARGETS, audit, audit_case
from torch import Tensor
from torch.nn import functional as F

from paperlib import Bernoulli, Gaussian, Interval, LinfBall, gaussian, interval, likelihood

elbo = import_module("paperlib.elbo")  # the module: `paperlib.elbo` as an attribute is the function
Plant = Callable[[pytest.MonkeyPatch], None]

BUGS: dict[str, Plant] = {}


def bug(place: object, name: str) -> Callable[[Callable], Callable]:
    """The function below replaces `place.name`; its own name, in words, is the bug's."""

    def register(broken: Callable) -> Callable:
        BUGS[broken.__name__.replace("_", " ")] = lambda patch: patch.setattr(place, name, broken)
        return broken

    return register


def audit_all() -> None:
    for case in CASES:
        for likelihood_name in LIKELIHOODS:
            for target in TARGETS:
                vae, x, noise = audit_case(case, likelihood_name)
                audit(vae, x, 0.3, noise, target)


def test_the_audit_passes_without_a_bug() -> None:
    audit_all()


real_box, real_boxes, real_kl, real_kl_bounds = LinfBall.box, elbo.boxes, gaussian.kl, gaussian.kl_bounds
real_kl_upper, real_lower = gaussian.kl_upper, Bernoulli.lower


@bug(interval, "affine")
def the_radius_goes_through_w_instead_of_its_absolute_value(
    box: Interval, linear: Callable, absolute: Callable
) -> Interval:
    center, radius = linear(box.center), linear(box.radius) - linear(torch.zeros_like(box.radius))
    return Interval(center - radius, center + radius)


@bug(interval, "affine")
def the_ends_are_swapped(box: Interval, linear: Callable, absolute: Callable) -> Interval:
    center, radius = linear(box.center), absolute(box.radius)
    return Interval(center + radius, center - radius)


@bug(interval, "affine")
def both_ends_go_through_w(box: Interval, linear: Callable, absolute: Callable) -> Interval:
    return box.map(linear)


@bug(interval, "affine")
def the_bias_is_added_to_the_radius(box: Interval, linear: Callable, absolute: Callable) -> Interval:
    center, radius = linear(box.center), absolute(box.radius) + linear(torch.zeros_like(box.radius)).abs()
    return Interval(center - radius, center + radius)


@bug(interval, "affine")
def the_radius_is_forgotten(box: Interval, linear: Callable, absolute: Callable) -> Interval:
    return Interval(linear(box.center), linear(box.center))


@bug(LinfBall, "box")
def the_ball_has_the_diameter_eps(self: LinfBall, x: Tensor) -> Interval:
    return real_box(LinfBall(self.eps / 2, self.low, self.high), x)


@bug(LinfBall, "box")
def the_ball_is_clamped_inside_the_data_range(self: LinfBall, x: Tensor) -> Interval:
    return real_box(self, x).map(lambda end: end.clamp(self.low + self.eps, self.high - self.eps))


@bug(LinfBall, "box")
def pixels_on_the_edge_of_the_data_range_do_not_move(self: LinfBall, x: Tensor) -> Interval:
    edge = (x == self.low) | (x == self.high)
    return real_box(self, x).map(lambda end: torch.where(edge, x, end))


@bug(elbo, "boxes")
def the_box_of_the_target_is_ignored(vae: object, box: Interval, noise: Tensor, target: Interval) -> object:
    return real_boxes(vae, box, noise, Interval(target.center, target.center))


@bug(Interval, "chunk")
def mean_and_log_variance_are_exchanged(self: Interval, chunks: int, dim: int) -> list[Interval]:
    lower, upper = (end.chunk(chunks, dim) for end in (self.lower, self.upper))
    return [Interval(*ends) for ends in zip(lower, upper, strict=True)][::-1]


@bug(gaussian, "reparametrize_bounds")
def the_sign_of_the_noise_is_ignored(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    low, high = (torch.exp(end / 2) * noise for end in log_var)
    return Interval(mean.lower + low, mean.upper + high)


@bug(gaussian, "reparametrize_bounds")
def the_spread_of_the_posterior_does_not_move(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    return mean.map(lambda end: end + torch.exp(log_var.center / 2) * noise)


@bug(gaussian, "reparametrize")
def the_variance_is_taken_for_the_deviation(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(log_var) * noise


@bug(gaussian, "_nearest_to_zero")
def the_least_divergence_is_zero(interval: Interval) -> Tensor:
    return torch.zeros_like(interval.lower)


@bug(likelihood, "_total")
def pixels_are_averaged_instead_of_summed(terms: Tensor) -> Tensor:
    return terms.flatten(1).mean(1)


@bug(Bernoulli, "lower")
def the_worst_bernoulli_target_is_its_lower_end(self: Bernoulli, output: Interval, target: Interval) -> Tensor:
    return real_lower(self, output, Interval(target.lower, target.lower))


@bug(Bernoulli, "lower")
def the_worst_logit_is_its_lower_end(self: Bernoulli, output: Interval, target: Interval) -> Tensor:
    return real_lower(self, Interval(output.lower, output.lower), target)


@bug(Bernoulli, "upper")
def the_best_logit_is_an_end(self: Bernoulli, output: Interval, target: Interval) -> Tensor:
    corners = [t * l - F.softplus(l) for t in target for l in output]  # noqa: E741
    return torch.stack(corners).amax(0).flatten(1).sum(1)


@bug(Gaussian, "lower")
def the_farthest_mean_is_measured_from_centre_to_centre(self: Gaussian, output: Interval, target: Interval) -> Tensor:
    return self.log_prob(output.center, target.center)


@bug(Gaussian, "upper")
def the_nearest_mean_is_the_farthest(self: Gaussian, output: Interval, target: Interval) -> Tensor:
    return self.lower(output, target)


def everywhere(change: Callable[[Tensor, int], Tensor]) -> Plant:
    """Alters the divergence in the forward pass and in its bounds alike: only the reference can tell."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(gaussian, "kl", lambda mean, log_var: change(real_kl(mean, log_var), mean.shape[1]))
        patch.setattr(gaussian, "kl_upper", lambda m, v: change(real_kl_upper(m, v), m.lower.shape[1]))
        patch.setattr(
            gaussian, "kl_bounds", lambda m, v: real_kl_bounds(m, v).map(lambda end: change(end, m.lower.shape[1]))
        )

    return plant


def upper_end(broken: Callable[[Interval, Interval], Tensor]) -> Plant:
    """Alters the largest divergence in `kl_bounds` and `kl_upper` alike, so that only enclosure can tell."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(gaussian, "kl_upper", broken)
        patch.setattr(gaussian, "kl_bounds", lambda m, v: Interval(real_kl_bounds(m, v).lower, broken(m, v)))

    return plant


BUGS["the largest divergence is at the centre"] = upper_end(lambda m, v: real_kl(m.center, v.center))
BUGS["the largest divergence is at the upper ends"] = upper_end(lambda m, v: real_kl(m.upper, v.upper))
BUGS["the largest divergence is at the lower ends"] = upper_end(lambda m, v: real_kl(m.lower, v.lower))
BUGS["the least divergence is the largest"] = lambda patch: patch.setattr(
    gaussian, "kl_bounds", lambda m, v: Interval(real_kl_upper(m, v), real_kl_upper(m, v))
)
BUGS["the divergence is forgotten"] = everywhere(lambda kl, size: 0 * kl)
BUGS["the divergence is averaged over the latents"] = everywhere(lambda kl, size: kl / size)
BUGS["the divergence has the wrong sign"] = everywhere(lambda kl, size: -kl)


@pytest.mark.parametrize("name", BUGS)
def test_the_audit_fails_when(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[name](monkeypatch)
    with pytest.raises(AssertionError):
        audit_all()
