"""Notebook 5 at tiny size: lines on their side, each stage of backward substitution a certificate, the figures."""

import math
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import NAMES, TINY
from torch import nn

from paperlib import VAE, Crown, Gaussian, LinfBall, certificate, elbo
from paperlib.certificates.backward import linear_lower
from paperlib.certificates.crown import CrownIBP
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.certificates.method import Problem
from paperlib.data.datasets import Dataset
from paperlib.paper import backward_stages, linear_bounds, relaxation_curves
from paperlib.paper.mnist_training import EPS
from paperlib.paper.plots import linear_bounds as plots

CURVES = (relaxation_curves.relu_curve, relaxation_curves.likelihood_curve, relaxation_curves.scale_curve)
ROUNDING = 1e-10  # relative, of sums of a thousand float64 numbers


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    yield
    plt.close("all")


def stages_of(model: VAE, x: torch.Tensor, ball: LinfBall, method: CrownIBP) -> list[backward_stages.Stage]:
    with torch.no_grad():
        noise = evaluation_noise(len(x), model.latent_dim)[0].double()
        problem = Problem.checked(model.in_float64(), x.double(), ball, noise, "perturbed", sound=False)
        return backward_stages.backward_stages(method.relax(problem))


@pytest.mark.parametrize("make", [*CURVES, relaxation_curves.product_curve])
def test_each_drawn_line_touches_its_curve_from_its_own_side(make) -> None:
    curve = make()
    for lines, sign in ((curve.below, 1), (curve.above, -1)):
        for line in lines.values():
            distance = sign * (curve.exact - line)
            assert distance.min() > -1e-12
            # a mixture of planes touches only where both of them do
            assert distance.min() < 1e-5
    assert abs(curve.margin) < 1e-12


def test_a_line_on_the_wrong_side_has_a_negative_margin() -> None:
    v = torch.linspace(-1, 1, 11)
    for below, above in (({"line": v + 0.25}, {}), ({}, {"line": v - 0.25})):
        assert relaxation_curves.RelaxedCurve("", ("", ""), (v,), v, below, above).margin == -0.25


def test_the_planes_leave_the_products_of_mccormick() -> None:
    curve = relaxation_curves.product_curve()
    target, logit = curve.axes
    (low, high), (target_low, target_high) = relaxation_curves.LOGIT, relaxation_curves.TARGET
    first = (logit - low) * (target[:, None] - target_low)
    second = (high - logit) * (target_high - target[:, None])
    share = -low / (high - low)
    expected = {"first plane": first, "second plane": second, "initial mixture": (1 - share) * first + share * second}
    for name, gap in expected.items():
        torch.testing.assert_close(curve.exact - curve.below[name], gap, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [CrownIBP(), Crown()])
def test_each_stage_is_a_certificate_and_the_last_is_the_linear_bound(
    models: dict[str, VAE], test: Dataset, method: CrownIBP
) -> None:
    x, ball = test.x[:3].double(), test.ball(EPS)
    for model in models.values():
        vae, noise = model.in_float64(), evaluation_noise(3, model.latent_dim)[0].double()
        stages = stages_of(model, x, ball, method)
        with torch.no_grad():
            relaxed = method.relax(Problem.checked(vae, x, ball, noise, "perturbed", sound=False))
            torch.testing.assert_close(stages[-1].bound, linear_lower(relaxed), rtol=ROUNDING, atol=0)
            generator = torch.Generator().manual_seed(0)
            points = [ball.sample(x, generator) for _ in range(5)]
            points += [
                torch.where(torch.rand(x.shape, generator=generator) < 0.5, *ball.box(x)),
                stages[-1].worst_point,
            ]
            for point in points:
                value = elbo(vae, point, noise)
                linear = (stages[-1].coefficients * point).sum(1) + stages[-1].constant
                assert (linear <= value + 1e-9).all()
                assert (stages[-1].bound <= linear + 1e-9).all()
                assert all((stage.bound <= value + 1e-9).all() for stage in stages)
        assert ball.box(x).contains(stages[-1].worst_point).all()


def test_stages_begin_with_the_interval_bound_and_gain_at_each_affine_layer(
    models: dict[str, VAE], test: Dataset
) -> None:
    x, ball = test.x[:3].double(), test.ball(EPS)
    for model in models.values():
        stages = {stage.quantity: stage.bound for stage in stages_of(model, x, ball, CrownIBP())}
        assert list(stages) == [
            "decoder output",
            "decoder, after ReLU",
            "decoder, after Linear",
            "latent",
            "mean, log-variance",
            "encoder, after ReLU",
            "encoder, after Linear",
            "pixels as input",
            "pixels as input and target",
        ]
        with torch.no_grad():
            noise = evaluation_noise(3, model.latent_dim)[0].double()
            intervals = certificate(model.in_float64(), x, ball, noise, "ibp")
        torch.testing.assert_close(stages["decoder output"], intervals, rtol=ROUNDING, atol=0)
        for before, after in (
            ("decoder output", "decoder, after ReLU"),
            ("decoder, after Linear", "latent"),
            ("mean, log-variance", "encoder, after ReLU"),
            ("encoder, after Linear", "pixels as input"),
            ("pixels as input", "pixels as input and target"),
        ):
            assert (stages[after] >= stages[before] - 1e-9).all(), (before, after)


def test_the_stages_of_the_hand_worked_network() -> None:
    # see the notebook: -d^2 / 2 >= -d + 3/8 and -mean^2 / 2 >= -mean / 2 + 3/32, d = output - target, x' in [1/4, 3/4]
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    encoder.weight.data, encoder.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    decoder.weight.data, decoder.bias.data = torch.ones(1, 1), torch.ones(1)
    vae, constant = VAE(encoder, decoder, Gaussian(), latent_dim=1), math.log(2 * math.pi) / 2
    x = torch.tensor([[0.5]]).double()
    with torch.no_grad():
        problem = Problem.checked(vae.double(), x, LinfBall(0.25), torch.zeros(1, 1).double(), "perturbed", sound=False)
        stages = backward_stages.backward_stages(CrownIBP().relax(problem))
    slopes = [stage.coefficients[0, 0].item() for stage in stages]
    assert slopes == pytest.approx([-1, -1, -3 / 2, -3 / 2, -1 / 2], rel=1e-12)
    # until the last stage the target is 1/4 at worst; until the third the KL is at its own worst, -9/32
    worst = [-45 / 32, -45 / 32, -45 / 32, -45 / 32, -29 / 32]
    assert [stage.bound.item() + constant for stage in stages] == pytest.approx(worst, rel=1e-12)
    assert stages[-1].worst_point.item() == 0.75


def test_stage_rows_are_the_means_of_the_stages(models: dict[str, VAE], test: Dataset) -> None:
    rows = backward_stages.stage_rows(models, test, "smoke")
    assert list(rows[["model", "eps"]].drop_duplicates().itertuples(index=False, name=None)) == list(
        backward_stages.STAGED
    )
    assert (rows["images"] == TINY.strength).all() and len(rows) == 3 * 2 * 9
    for (name, eps, method), part in rows.groupby(["model", "eps", "method"], sort=False):
        made = {"crown-ibp": CrownIBP(), "crown": Crown()}[str(method)]
        stages = stages_of(models[str(name)], test.x[: TINY.strength], test.ball(float(eps)), made)
        assert part["stage"].tolist() == [stage.quantity for stage in stages]
        np.testing.assert_allclose(part["bound"], [stage.bound.mean().item() for stage in stages], rtol=ROUNDING)


def test_a_stage_gap_is_that_of_the_same_images_at_the_same_radius() -> None:
    stages = pd.DataFrame({"model": ["VAE"], "eps": [0.1], "images": [2], "method": ["crown"], "stage": ["latent"]})
    attacked = pd.DataFrame(
        {"model": "VAE", "eps": [0.1, 0.1, 0.1, 0.2], "index": [0, 1, 2, 0], "attacked": [-10.0, -20.0, -90.0, -900.0]}
    )
    gaps = backward_stages.stage_gaps(stages.assign(bound=-40.0), attacked)
    assert gaps["gap"].tolist() == [25.0]


def test_coefficient_pictures_belong_to_the_bound(models: dict[str, VAE], test: Dataset) -> None:
    pictures = backward_stages.coefficient_pictures(models, test, "smoke")
    index = backward_stages.IMAGE
    for row, (name, eps) in enumerate(backward_stages.PICTURED):
        vae, ball, x = models[name].in_float64(), test.ball(eps), test.x[index : index + 1].double()
        noise = evaluation_noise(index + 1, vae.latent_dim)[0][index:].double()
        assert torch.equal(pictures["x"][row], x[0])
        slope = pictures["as_input"][row] + pictures["as_target"][row]
        assert ((pictures["worst"][row] == ball.box(x).lower[0]) == (slope > 0))[x[0] > 0].all()
        with torch.no_grad():
            for key in ("x", "worst", "attacked"):
                assert ball.box(x).contains(pictures[key][row]).all()
                value = elbo(vae, pictures[key][row][None], noise)
                torch.testing.assert_close(pictures[f"elbo_{key}"][row], value[0], rtol=ROUNDING, atol=0)
        assert pictures["bound"][row] <= pictures["elbo_worst"][row]
        bound = certificate(vae, x, ball, noise, Crown())
        assert pictures["bound"][row].item() == pytest.approx(bound.item(), rel=1e-9)


def test_mean_gaps_pair_each_certificate_with_its_attack() -> None:
    at = {"model": "VAE", "eps": 0.1, "index": [1, 0]}
    rows = pd.DataFrame({**at, "ibp": [-50.0, -40.0], "crown-ibp": [-30.0, -30.0], "crown": [-21.0, -12.0]})
    attacked = pd.DataFrame({"model": "VAE", "eps": [0.1, 0.1, 0.2], "index": [0, 1, 0], "attacked": [-10.0, -20, -9]})
    gaps = linear_bounds.mean_gaps(rows, attacked)
    assert gaps.loc[("VAE", 0.1)].to_dict() == {"ibp": 30.0, "crown-ibp": 15.0, "crown": 1.5}


def test_relaxations_draw_each_line_and_say_what_it_is() -> None:
    curves, product = [make() for make in CURVES], relaxation_curves.product_curve()
    figure = plots.relaxations(curves, product, "a caption")
    assert figure.get_supxlabel() == "a caption" and len(figure.axes) == 6
    for axis, curve in zip(figure.axes, curves, strict=False):
        drawn = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
        for name, values in {**curve.below, **curve.above}.items():
            np.testing.assert_array_equal(drawn[name], values)
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [*curve.below, *curve.above]
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in figure.axes)


def test_stages_are_drawn_from_output_to_pixels_for_each_method(models: dict[str, VAE], test: Dataset) -> None:
    rows = backward_stages.stage_rows(models, test, "smoke").assign(gap=lambda r: -r["bound"])
    figure = plots.stages(rows, "a caption")
    assert len(figure.axes) == len(NAMES)
    for axis, (name, eps) in zip(figure.axes, backward_stages.STAGED, strict=True):
        assert axis.get_title().endswith(f"radius {eps:g}")
        part = rows[rows["model"] == name]
        drawn = {line.get_label(): list(line.get_xdata()) for line in axis.get_lines()}
        assert drawn == {
            plots.METHOD_LABELS[str(method)]: own["gap"].tolist() for method, own in part.groupby("method", sort=False)
        }
        assert axis.yaxis_inverted() and "nats" in axis.get_xlabel()


def test_coefficients_are_drawn_with_their_values(models: dict[str, VAE], test: Dataset) -> None:
    pictures = backward_stages.coefficient_pictures(models, test, "smoke")
    figure = plots.coefficients(pictures, backward_stages.PICTURED, "a caption")
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 5 * len(backward_stages.PICTURED)
    for row, (_, eps) in enumerate(backward_stages.PICTURED):
        images = [axis.images[0].get_array().data.reshape(-1) for axis in panels[5 * row : 5 * row + 5]]
        expected = [pictures[key][row] for key in ("x", "as_input", "as_target")]
        expected += [(pictures[key][row] - pictures["x"][row]) / eps for key in ("worst", "attacked")]
        for image, values in zip(images, expected, strict=True):
            np.testing.assert_array_equal(image, values)
    labels = {axis.get_ylabel() for axis in figure.axes}
    assert {"nats per unit of $x$", "(x' − x) / ε"} <= labels
