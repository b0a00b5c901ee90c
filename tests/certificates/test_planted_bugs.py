"""The audit of `elbo` and `elbo_bounds` is itself on trial: it must fail for each planted bug, and pass without."""

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch

import pytest
import torch
from oracles import CASES, LIKELIHOODS, TARGETS, audit, audit_case
from torch import Tensor
from torch.nn import functional as F

from paperlib import Crown, CrownIBP, Interval, LinfBall, relaxation_rule
from paperlib.bounds import interval, relaxation
from paperlib.bounds.curves import chord_above, tangent
from paperlib.bounds.linear import (
    AlphaRelaxation,
    AlphaSelector,
    JointLinearFunction,
    LinearFunction,
    LinearRelaxation,
    ParallelRelaxation,
    initial_alpha,
)
from paperlib.bounds.relaxation import Affine
from paperlib.certificates import (
    backward,
    exponential_bounds,
    gaussian_bounds,
    posterior_bounds,
    refinement,
    relaxed_layer,
    unit_bounds,
)
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.bernoulli_bounds import BernoulliBounds
from paperlib.certificates.gaussian_bounds import GaussianBounds
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.latent_zonotope import Zonotope
from paperlib.certificates.relaxed_layer import RelaxedLayer
from paperlib.certificates.unit_bounds import DecoderPass, EncoderPass
from paperlib.models import gaussian, likelihood
from paperlib.threats import perturbation
from paperlib.threats.perturbation import BoxRegion

Plant = Callable[[pytest.MonkeyPatch], None]

BUGS: dict[str, Plant] = {}


def bug(name: str, *places: object) -> Callable[[Callable], Callable]:
    """The function below replaces `name` in each module or class that uses it; its own name, in words, is the bug's."""
    return planted_in(BUGS, name, *places)


def planted_in(bugs: dict[str, Plant], name: str, *places: object) -> Callable[[Callable], Callable]:
    def register(broken: Callable) -> Callable:
        def plant(patch: pytest.MonkeyPatch) -> None:
            for place in places:
                patch.setattr(place, name, broken)

        bugs[broken.__name__.replace("_", " ")] = plant
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


real_region, real_bounds, real_lower = LinfBall.unchecked_region, IntervalBounds.of, BernoulliBounds.lower
real_kl, real_kl_upper, real_kl_bounds = gaussian.kl, posterior_bounds.kl_upper, posterior_bounds.kl_bounds


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


@bug("unchecked_region", LinfBall)
def the_ball_has_the_diameter_eps(self: LinfBall, x: Tensor) -> BoxRegion:
    return real_region(LinfBall(self.eps / 2, self.low, self.high), x)


@bug("unchecked_region", LinfBall)
def the_ball_is_clamped_inside_the_data_range(self: LinfBall, x: Tensor) -> BoxRegion:
    return BoxRegion(real_region(self, x).box.map(lambda end: end.clamp(self.low + self.eps, self.high - self.eps)))


@bug("unchecked_region", LinfBall)
def pixels_on_the_edge_of_the_data_range_do_not_move(self: LinfBall, x: Tensor) -> BoxRegion:
    edge = (x == self.low) | (x == self.high)
    return BoxRegion(real_region(self, x).box.map(lambda end: torch.where(edge, x, end)))


@bug("of", IntervalBounds)
def the_box_of_the_target_is_ignored(vae: object, box: Interval, noise: Tensor, target: Interval) -> IntervalBounds:
    return real_bounds(vae, box, noise, Interval(target.center, target.center))


@bug("chunk", Interval)
def mean_and_log_variance_are_exchanged(self: Interval, chunks: int, dim: int) -> list[Interval]:
    lower, upper = (end.chunk(chunks, dim) for end in (self.lower, self.upper))
    return [Interval(*ends) for ends in zip(lower, upper, strict=True)][::-1]


@bug("reparametrize_bounds", posterior_bounds)
def the_sign_of_the_noise_is_ignored(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    low, high = (torch.exp(end / 2) * noise for end in log_var)
    return Interval(mean.lower + low, mean.upper + high)


@bug("reparametrize_bounds", posterior_bounds)
def the_spread_of_the_posterior_does_not_move(mean: Interval, log_var: Interval, noise: Tensor) -> Interval:
    return mean.map(lambda end: end + torch.exp(log_var.center / 2) * noise)


@bug("reparametrize", gaussian)
def the_variance_is_taken_for_the_deviation(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(log_var) * noise


@bug("_nearest_to_zero", posterior_bounds)
def the_least_divergence_is_zero(interval: Interval) -> Tensor:
    return torch.zeros_like(interval.lower)


@bug("sum_per_example", likelihood, exponential_bounds, gaussian_bounds)
def pixels_are_averaged_instead_of_summed(terms: Tensor) -> Tensor:
    return terms.flatten(1).mean(1)


@bug("lower", BernoulliBounds)
def the_worst_bernoulli_target_is_its_lower_end(self: BernoulliBounds, output: Interval, target: Interval) -> Tensor:
    return real_lower(self, output, Interval(target.lower, target.lower))


@bug("lower", BernoulliBounds)
def the_worst_logit_is_its_lower_end(self: BernoulliBounds, output: Interval, target: Interval) -> Tensor:
    return real_lower(self, Interval(output.lower, output.lower), target)


@bug("upper", BernoulliBounds)
def the_best_logit_is_an_end(self: BernoulliBounds, output: Interval, target: Interval) -> Tensor:
    corners = [t * l - F.softplus(l) for t in target for l in output]  # noqa: E741
    return torch.stack(corners).amax(0).flatten(1).sum(1)


@bug("lower", GaussianBounds)
def the_farthest_mean_is_measured_from_centre_to_centre(
    self: GaussianBounds, output: Interval, target: Interval
) -> Tensor:
    return self.likelihood.log_prob(output.center, target.center)


@bug("upper", GaussianBounds)
def the_nearest_mean_is_the_farthest(self: GaussianBounds, output: Interval, target: Interval) -> Tensor:
    return self.lower(output, target)


def everywhere(change: Callable[[Tensor, int], Tensor]) -> Plant:
    """Alters the divergence in the forward pass and in its bounds alike: only the reference can tell."""

    def changed_bounds(mean: Interval, log_var: Interval) -> Interval:
        ends = real_kl_bounds(mean, log_var).lower, real_kl_upper(mean, log_var)
        return Interval(*(change(end, mean.lower.shape[1]) for end in ends))

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(gaussian, "kl", lambda mean, log_var: change(real_kl(mean, log_var), mean.shape[1]))
        patch.setattr(posterior_bounds, "kl_upper", lambda mean, log_var: changed_bounds(mean, log_var).upper)
        patch.setattr(posterior_bounds, "kl_bounds", changed_bounds)

    return plant


def upper_end(broken: Callable[[Interval, Interval], Tensor]) -> Plant:
    """Alters the largest divergence in `kl_upper`, and so in `kl_bounds`, alike: only enclosure can tell."""
    return lambda patch: patch.setattr(posterior_bounds, "kl_upper", broken)


BUGS["the largest divergence is at the centre"] = upper_end(lambda m, v: real_kl(m.center, v.center))
BUGS["the largest divergence is at the upper ends"] = upper_end(lambda m, v: real_kl(m.upper, v.upper))
BUGS["the largest divergence is at the lower ends"] = upper_end(lambda m, v: real_kl(m.lower, v.lower))
BUGS["the least divergence is the largest"] = lambda patch: patch.setattr(
    posterior_bounds, "kl_bounds", lambda m, v: Interval(real_kl_upper(m, v), real_kl_upper(m, v))
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
# than the gap that a relaxation leaves; the audit also looks at the boxes over which CROWN relaxes the layers.

LINEAR_BUGS: dict[str, Plant] = {}


def linear_bug(name: str, *places: object) -> Callable[[Callable], Callable]:
    return planted_in(LINEAR_BUGS, name, *places)


def audit_linear(method: type[CrownIBP]) -> None:
    for case in ("chain", "bend", "spread", "flat", "mlp", "smooth", "conv"):
        for likelihood_name in ("gaussian", "bernoulli"):
            for target in TARGETS:
                vae, x, noise = audit_case(case, likelihood_name)
                audit(vae, x, 0.2, noise, target, [method(), method(alpha_steps=3)])


@pytest.mark.parametrize("method", [CrownIBP, Crown])
def test_the_audit_of_linear_bounds_passes_without_a_bug(method: type[CrownIBP]) -> None:
    audit_linear(method)


def test_the_audit_of_linear_bounds_passes_with_passes_for_all_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "LOST", -1.0)
    audit_linear(Crown)


real_relax, real_substitute = RelaxedVAE.of, backward.backward_substitute
real_encoder_pass, real_decoder_pass = EncoderPass.__call__, DecoderPass.__call__
real_rows = unit_bounds._rows_of
real_parallel, real_zonotope = refinement.parallel, refinement._backward_zonotope
real_mccormick, real_kl_below = exponential_bounds._mccormick, posterior_bounds.negative_kl_below
real_below = GaussianBounds.linear_below


@linear_bug("backward_substitute", backward)
def the_lower_and_the_upper_bound_are_exchanged(
    coefficients: Tensor, relaxation: LinearRelaxation, select_alpha: AlphaSelector = initial_alpha
) -> tuple[Tensor, Tensor]:
    return real_substitute(coefficients, LinearRelaxation(relaxation.upper, relaxation.lower), select_alpha)


@linear_bug("backward_substitute", backward)
def the_lower_bound_serves_both_signs(
    coefficients: Tensor, relaxation: LinearRelaxation, select_alpha: AlphaSelector = initial_alpha
) -> tuple[Tensor, Tensor]:
    return real_substitute(coefficients, LinearRelaxation(relaxation.lower, relaxation.lower), select_alpha)


@linear_bug("backward_substitute", backward)
def the_offset_of_a_bound_is_forgotten(
    coefficients: Tensor, relaxation: LinearRelaxation, select_alpha: AlphaSelector = initial_alpha
) -> tuple[Tensor, Tensor]:
    substituted, offset = real_substitute(coefficients, relaxation, select_alpha)
    return substituted, 0 * offset


@linear_bug("concretize", perturbation)
def the_radius_of_the_input_is_forgotten(coefficients: Tensor, box: Interval) -> Tensor:
    return (coefficients * box.center).flatten(1).sum(1)


@linear_bug("concretize", perturbation)
def every_coefficient_is_taken_for_positive(coefficients: Tensor, box: Interval) -> Tensor:
    return (coefficients * box.lower).flatten(1).sum(1)


@linear_bug("of", RelaxedVAE)
def the_noise_has_the_wrong_sign(vae: object, bounds: object, noise: Tensor, *more: object) -> RelaxedVAE:
    return replace(real_relax(vae, bounds, noise, *more), noise=-noise)


def nothing(box: Interval) -> LinearFunction:
    return LinearFunction(torch.zeros_like(box.lower), torch.zeros_like(box.lower))


@linear_bug("negative_kl_below", posterior_bounds)
def the_divergence_has_no_linear_bounds(mean: Interval, log_var: Interval) -> tuple[LinearFunction, LinearFunction]:
    return nothing(mean), nothing(log_var)


@linear_bug("negative_kl_below", posterior_bounds)
def the_divergence_of_the_log_variance_is_forgotten(
    mean: Interval, log_var: Interval
) -> tuple[LinearFunction, LinearFunction]:
    return real_kl_below(mean, log_var)[0], nothing(log_var)


@linear_bug("negative_kl_above", posterior_bounds)
def the_divergence_has_its_chords_above(mean: Interval, log_var: Interval) -> tuple[LinearFunction, LinearFunction]:
    return real_kl_below(mean, log_var)


@linear_bug("chord_below", posterior_bounds)
def a_concave_term_has_its_tangent_below(function: Callable, derivative: Callable, box: Interval) -> LinearFunction:
    return tangent(function, derivative, box.center)


@linear_bug("chord_above", posterior_bounds)
def the_scale_has_its_tangent_above(function: Callable, derivative: Callable, box: Interval) -> LinearFunction:
    return tangent(function, derivative, box.center)


@linear_bug("_mccormick", exponential_bounds)
def the_planes_of_a_product_meet_at_the_wrong_corners(
    function: LinearFunction, output: Interval, at_low: Tensor, at_high: Tensor, base: LinearFunction | None
) -> AlphaRelaxation[JointLinearFunction]:
    return real_mccormick(function, output, at_high, at_low, base)


@linear_bug("linear_below", GaussianBounds)
def the_target_moves_the_density_the_wrong_way(
    self: GaussianBounds, output: Interval, target: Interval
) -> JointLinearFunction:
    function = real_below(self, output, target).initial
    return replace(function, target_slope=-function.target_slope)


@linear_bug("linear_below", GaussianBounds)
def the_chord_of_the_density_ignores_the_target(
    self: GaussianBounds, output: Interval, target: Interval
) -> AlphaRelaxation[JointLinearFunction]:
    return real_below(self, output, Interval(target.center, target.center))


@linear_bug("linear_above", GaussianBounds)
def the_chord_of_the_density_is_above(
    self: GaussianBounds, output: Interval, target: Interval
) -> AlphaRelaxation[JointLinearFunction]:
    return real_below(self, output, target)


@linear_bug("sigmoidal", relaxation)
def a_sigmoidal_layer_has_its_chord_on_both_sides(
    function: Callable, derivative: Callable, box: Interval
) -> LinearRelaxation:
    chord = chord_above(function, derivative, box)
    return LinearRelaxation(chord, chord)


@linear_bug("parallel", refinement)
def the_radius_of_a_parallel_relaxation_is_halved(relaxation: LinearRelaxation, box: Interval) -> ParallelRelaxation:
    both = real_parallel(relaxation, box)
    return replace(both, radius=both.radius / 2)


@linear_bug("parallel", refinement)
def the_middle_of_a_parallel_relaxation_is_its_top(relaxation: LinearRelaxation, box: Interval) -> ParallelRelaxation:
    both = real_parallel(relaxation, box)
    return replace(both, middle=both.middle + both.radius)


@linear_bug("_backward_zonotope", refinement)
def the_generators_of_a_zonotope_are_dropped(layers: object, box: Interval, coefficients: Tensor) -> Zonotope:
    real = real_zonotope(layers, box, coefficients)
    return replace(real, generators=0 * real.generators)


@linear_bug("_backward_zonotope", refinement)
def only_the_generators_of_the_input_are_kept(layers: object, region: BoxRegion, coefficients: Tensor) -> Zonotope:
    real = real_zonotope(layers, region, coefficients)
    return replace(real, generators=real.generators[..., -region.box.lower[0].numel() :])


@linear_bug("_backward_zonotope", refinement)
def the_center_of_a_zonotope_is_zero(layers: object, region: BoxRegion, coefficients: Tensor) -> Zonotope:
    real = real_zonotope(layers, region, coefficients)
    return replace(real, center=0 * real.center)


@linear_bug("__call__", EncoderPass)
def the_pass_of_a_unit_forgets_what_the_decoder_added(
    self: EncoderPass, coefficients: Tensor, constant: Tensor, select_alpha: AlphaSelector
) -> Tensor:
    return real_encoder_pass(self, coefficients, 0 * constant, select_alpha)


@linear_bug("__call__", EncoderPass)
def the_pass_of_a_unit_ends_at_the_middle_of_the_region(
    self: EncoderPass, coefficients: Tensor, constant: Tensor, select_alpha: AlphaSelector
) -> Tensor:
    point = BoxRegion(Interval(self.region.box.center, self.region.box.center))
    return real_encoder_pass(replace(self, region=point), coefficients, constant, select_alpha)


@linear_bug("__call__", DecoderPass)
def the_pass_of_a_unit_takes_the_noise_of_the_prior_mean(
    self: DecoderPass, coefficients: Tensor, constant: Tensor, select_alpha: AlphaSelector
) -> Tensor:
    return real_decoder_pass(replace(self, noise=0 * self.noise), coefficients, constant, select_alpha)


@linear_bug("_rows_of", unit_bounds)
def a_unit_and_its_negative_have_one_constant(
    affine: tuple[RelaxedLayer, ...], units: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    coefficients, constant = real_rows(affine, units, like)
    return coefficients, torch.cat([constant[: len(constant) // 2]] * 2)


@linear_bug("reduce_order", refinement)
def the_small_errors_of_a_zonotope_are_dropped(generators: Tensor) -> Tensor:
    sizes = generators.abs().sum(0)
    return generators[:, sizes >= sizes.mean()]


@linear_bug("_radius", refinement)
def generators_cancel_instead_of_adding_up(coefficients: Tensor, generators: list[Tensor], wanted: Tensor) -> Tensor:
    units = coefficients.flatten(2).permute(1, 2, 0)
    return torch.stack([(part @ own).sum(1).abs() for part, own in zip(units, generators, strict=True)])


def relu_without_its_offset(patch: pytest.MonkeyPatch) -> None:
    """The chord's slope through the origin: it passes below relu at the lower end, and above it at no end."""
    real = relaxation_rule.dispatch(torch.nn.ReLU)

    def broken(layer: torch.nn.Module, box: Interval) -> LinearRelaxation:
        correct = real(layer, box)
        return replace(correct, upper=replace(correct.upper, offset=0 * correct.upper.offset))

    patch.setattr(relaxed_layer, "relaxation_rule", with_rule(torch.nn.ReLU, broken))


def affine_without_its_bias(patch: pytest.MonkeyPatch) -> None:
    real = relaxation_rule.dispatch(torch.nn.Linear)

    def broken(layer: torch.nn.Module, box: Interval) -> Affine:
        correct = real(layer, box)
        return replace(correct, offset=0 * correct.offset)

    patch.setattr(relaxed_layer, "relaxation_rule", with_rule(torch.nn.Linear, broken))


def with_rule(kind: type, rule: Callable) -> Callable:
    """A copy of `relaxation_rule` with one other rule, so that the patch can be taken back."""

    @singledispatch
    def relaxation_rule_with_a_bug(layer: torch.nn.Module, box: Interval) -> object:
        raise NotImplementedError

    for registered, function in relaxation_rule.registry.items():
        relaxation_rule_with_a_bug.register(registered, function)
    relaxation_rule_with_a_bug.register(kind, rule)
    return relaxation_rule_with_a_bug


LINEAR_BUGS["the chord above relu passes through the origin"] = relu_without_its_offset
LINEAR_BUGS["the bias of an affine layer is forgotten"] = affine_without_its_bias


@pytest.mark.parametrize("name", LINEAR_BUGS)
def test_the_audit_of_linear_bounds_fails_when(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    LINEAR_BUGS[name](monkeypatch)
    monkeypatch.setattr(refinement, "LOST", -1.0)  # units have passes of their own in every example
    with pytest.raises((AssertionError, ArithmeticError)):  # the audit sees it, or bounds that contradict each other
        audit_linear(Crown)
