"""The audit of `elbo` and `elbo_bounds` is itself on trial: it must fail for each planted bug, and pass without."""

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch
from importlib import import_module

import pytest
import torch
from oracles import CASES, LIKELIHOODS, TARGETS, audit, audit_case
from torch import Tensor
from torch.nn import functional as F

from paperlib import Bernoulli, Gaussian, Interval, LinfBall, relaxation_rule
from paperlib.bounds import interval, relaxation
from paperlib.bounds import linear as lines
from paperlib.bounds.linear import (
    AlphaRelaxation,
    JointLinearFunction,
    LinearFunction,
    LinearRelaxation,
    ParallelRelaxation,
)
from paperlib.bounds.relaxation import Affine
from paperlib.certificates import backward as crown
from paperlib.certificates import zonotope as refine
from paperlib.models import gaussian, likelihood

elbo = import_module("paperlib.elbo")  # the module: `paperlib.elbo` as an attribute is the function
Plant = Callable[[pytest.MonkeyPatch], None]

BUGS: dict[str, Plant] = {}


def bug(place: object, name: str) -> Callable[[Callable], Callable]:
    """The function below replaces `place.name`; its own name, in words, is the bug's."""

    def register(broken: Callable) -> Callable:
        BUGS[broken.__name__.replace("_", " ")] = lambda patch: patch.setattr(place, name, broken)
        return broken

    return register


def affine_bug(broken: Callable) -> Callable:
    """The function below replaces both primitives of affine layers, that of linear ones and that of all others."""

    def linear_box(_: object, low: Tensor, high: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        box = broken(Interval(low, high), lambda c: F.linear(c, weight, bias), lambda r: F.linear(r, weight.abs()))
        return box.lower, box.upper

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(interval, "affine", broken)
        patch.setattr(interval._LinearBox, "forward", linear_box)

    BUGS[broken.__name__.replace("_", " ")] = plant
    return broken


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


@affine_bug
def the_radius_goes_through_w_instead_of_its_absolute_value(
    box: Interval, linear: Callable, absolute: Callable
) -> Interval:
    center, radius = linear(box.center), linear(box.radius) - linear(torch.zeros_like(box.radius))
    return Interval(center - radius, center + radius)


@affine_bug
def the_ends_are_swapped(box: Interval, linear: Callable, absolute: Callable) -> Interval:
    center, radius = linear(box.center), absolute(box.radius)
    return Interval(center + radius, center - radius)


@affine_bug
def both_ends_go_through_w(box: Interval, linear: Callable, absolute: Callable) -> Interval:
    return box.map(linear)


@affine_bug
def the_bias_is_added_to_the_radius(box: Interval, linear: Callable, absolute: Callable) -> Interval:
    center, radius = linear(box.center), absolute(box.radius) + linear(torch.zeros_like(box.radius)).abs()
    return Interval(center - radius, center + radius)


@affine_bug
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


# The linear bounds. They are on trial with bounds that are no tighter than they have to be, thus each bug must be worse
# than the gap that a relaxation leaves; the audit also looks at the boxes that "crown" finds on the way.

LINEAR: dict[str, Plant] = {}


def linear_bug(place: object, name: str) -> Callable[[Callable], Callable]:
    def register(broken: Callable) -> Callable:
        LINEAR[broken.__name__.replace("_", " ")] = lambda patch: patch.setattr(place, name, broken)
        return broken

    return register


def audit_linear(method: str) -> None:
    for case in ("chain", "bend", "spread", "flat", "mlp", "smooth", "conv"):
        for likelihood_name in ("gaussian", "bernoulli"):
            for target in TARGETS:
                vae, x, noise = audit_case(case, likelihood_name)
                audit(vae, x, 0.2, noise, target, method, steps=(0, 3))


@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
def test_the_audit_of_linear_bounds_passes_without_a_bug(method: str) -> None:
    audit_linear(method)


real_relax, real_pull, real_strip, real_zonotope = crown.relax, crown.pull, refine.strip, refine._zonotope
real_mccormick, real_kl_below, real_below = likelihood._mccormick, gaussian.kl_below, Gaussian.linear_below


@linear_bug(crown, "pull")
def the_lower_and_the_upper_line_are_exchanged(
    form: Tensor, band: LinearRelaxation, settle: Callable = lines.start
) -> tuple:
    return real_pull(form, LinearRelaxation(band.upper, band.lower), settle)


@linear_bug(crown, "pull")
def the_lower_line_serves_both_signs(form: Tensor, band: LinearRelaxation, settle: Callable = lines.start) -> tuple:
    return real_pull(form, LinearRelaxation(band.lower, band.lower), settle)


@linear_bug(crown, "pull")
def the_offset_of_a_line_is_forgotten(form: Tensor, band: LinearRelaxation, settle: Callable = lines.start) -> tuple:
    pulled, offset = real_pull(form, band, settle)
    return pulled, 0 * offset


@linear_bug(crown, "_least")
def the_radius_of_the_input_is_forgotten(form: Tensor, box: Interval) -> Tensor:
    return (form * box.center).flatten(1).sum(1)


@linear_bug(crown, "_least")
def the_radius_goes_through_the_form_and_not_its_size(form: Tensor, box: Interval) -> Tensor:
    return (form * box.lower).flatten(1).sum(1)


@linear_bug(crown, "relax")
def the_noise_has_the_wrong_sign(vae: object, known: object, noise: Tensor, *more: object) -> object:
    return replace(real_relax(vae, known, noise, *more), noise=-noise)


def nothing(box: Interval) -> LinearFunction:
    return LinearFunction(torch.zeros_like(box.lower), torch.zeros_like(box.lower))


@linear_bug(gaussian, "kl_below")
def the_divergence_has_no_lines(mean: Interval, log_var: Interval) -> tuple[LinearFunction, LinearFunction]:
    return nothing(mean), nothing(log_var)


@linear_bug(gaussian, "kl_below")
def the_divergence_of_the_log_variance_is_forgotten(
    mean: Interval, log_var: Interval
) -> tuple[LinearFunction, LinearFunction]:
    return real_kl_below(mean, log_var)[0], nothing(log_var)


@linear_bug(gaussian, "kl_above")
def the_divergence_has_its_chords_above(mean: Interval, log_var: Interval) -> tuple[LinearFunction, LinearFunction]:
    return real_kl_below(mean, log_var)


@linear_bug(gaussian, "chord_below")
def a_concave_term_has_its_tangent_below(function: Callable, derivative: Callable, box: Interval) -> LinearFunction:
    return lines.tangent(function, derivative, box.center)


@linear_bug(gaussian, "chord_above")
def the_spread_has_its_tangent_above(function: Callable, derivative: Callable, box: Interval) -> LinearFunction:
    return lines.tangent(function, derivative, box.center)


@linear_bug(likelihood, "_mccormick")
def the_planes_of_a_product_meet_at_the_wrong_corners(
    line: LinearFunction, output: Interval, at_low: Tensor, at_high: Tensor
) -> AlphaRelaxation[JointLinearFunction]:
    return real_mccormick(line, output, at_high, at_low)


@linear_bug(Gaussian, "linear_below")
def the_target_moves_the_density_the_wrong_way(
    self: Gaussian, output: Interval, target: Interval
) -> JointLinearFunction:
    plane = real_below(self, output, target)
    return replace(plane, target_slope=-plane.target_slope)


@linear_bug(Gaussian, "linear_below")
def the_chord_of_the_density_ignores_the_target(
    self: Gaussian, output: Interval, target: Interval
) -> JointLinearFunction:
    return real_below(self, output, Interval(target.center, target.center))


@linear_bug(Gaussian, "linear_above")
def the_chord_of_the_density_is_above(self: Gaussian, output: Interval, target: Interval) -> JointLinearFunction:
    return real_below(self, output, target)


@linear_bug(relaxation, "sigmoidal")
def a_bent_layer_has_its_chord_on_both_sides(
    function: Callable, derivative: Callable, box: Interval
) -> LinearRelaxation:
    chord = lines.chord_above(function, derivative, box)
    return LinearRelaxation(chord, chord)


@linear_bug(refine, "strip")
def the_radius_of_a_strip_is_halved(band: LinearRelaxation, box: Interval) -> ParallelRelaxation:
    found = real_strip(band, box)
    return replace(found, radius=found.radius / 2)


@linear_bug(refine, "strip")
def the_middle_of_a_strip_is_its_top(band: LinearRelaxation, box: Interval) -> ParallelRelaxation:
    found = real_strip(band, box)
    return replace(found, middle=found.middle + found.radius)


@linear_bug(refine, "_zonotope")
def the_errors_of_a_zonotope_are_dropped(stages: object, box: Interval, forms: Tensor) -> object:
    found = real_zonotope(stages, box, forms)
    return replace(found, errors=0 * found.errors)


@linear_bug(refine, "_zonotope")
def only_the_errors_of_the_input_are_kept(stages: object, box: Interval, forms: Tensor) -> object:
    found = real_zonotope(stages, box, forms)
    return replace(found, errors=found.errors[..., -box.lower[0].numel() :])


@linear_bug(refine, "_zonotope")
def the_center_of_a_zonotope_is_that_of_one_with_no_bias(stages: object, box: Interval, forms: Tensor) -> object:
    found = real_zonotope(stages, box, forms)
    return replace(found, center=(found.errors * 0).sum(2))


@linear_bug(refine, "_reach")
def errors_cancel_instead_of_adding_up(forms: Tensor, errors: Tensor) -> Tensor:
    return torch.einsum("lbu,ble->bu", forms.flatten(2), errors).abs()


def relu_without_its_cut(patch: pytest.MonkeyPatch) -> None:
    """The chord's slope through the origin: it passes below relu at the lower end, and above it at no end."""
    real = relaxation_rule.dispatch(torch.nn.ReLU)

    def broken(layer: torch.nn.Module, box: Interval) -> LinearRelaxation:
        band = real(layer, box)
        return replace(band, upper=replace(band.upper, offset=0 * band.upper.offset))

    patch.setattr(crown, "relaxation_rule", with_rule(torch.nn.ReLU, broken))


def affine_without_its_bias(patch: pytest.MonkeyPatch) -> None:
    real = relaxation_rule.dispatch(torch.nn.Linear)

    def broken(layer: torch.nn.Module, box: Interval) -> Affine:
        found = real(layer, box)
        return replace(found, offset=0 * found.offset)

    patch.setattr(crown, "relaxation_rule", with_rule(torch.nn.Linear, broken))


def with_rule(kind: type, rule: Callable) -> Callable:
    """A copy of `relaxation_rule` with one other rule, so that the patch can be taken back."""

    @singledispatch
    def relaxation_rule_with_a_bug(layer: torch.nn.Module, box: Interval) -> object:
        raise NotImplementedError

    for registered, function in relaxation_rule.registry.items():
        relaxation_rule_with_a_bug.register(registered, function)
    relaxation_rule_with_a_bug.register(kind, rule)
    return relaxation_rule_with_a_bug


LINEAR["the chord above relu passes through the origin"] = relu_without_its_cut
LINEAR["the bias of an affine layer is forgotten"] = affine_without_its_bias


@pytest.mark.parametrize("name", LINEAR)
def test_the_audit_of_linear_bounds_fails_when(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    LINEAR[name](monkeypatch)
    with pytest.raises(AssertionError):
        audit_linear("crown")
