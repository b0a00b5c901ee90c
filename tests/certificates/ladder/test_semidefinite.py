"""The semidefinite bound of a decoder over a box of latents: by hand, and against exact values and a linear program."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from decoders import absolute, attained, cube, hexagon, points, random_decoder
from oracles import ROUNDING
from scipy.optimize import linprog
from torch import Tensor, nn

from paperlib import Bernoulli, Gaussian, Interval, conv_vae
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.ladder.latent_range import RelaxedDecoder, exact_upper
from paperlib.certificates.ladder.moment_problem import STEPS
from paperlib.certificates.ladder.output_cost import NegativeLogLikelihood, OutputCost, SquaredDistance
from paperlib.certificates.ladder.semidefinite import moment_problem, semidefinite_upper

TOL = 1e-3  # of exact values
ACCURACY = 1e-5  # of the solver, relative
ROW = torch.tensor([0])


def test_the_hexagon_by_hand() -> None:
    """||y||^2 = z' A z  with 1 on the diagonal of A and cos(120 degrees) = -1/2 beside it, and so is
    3/2 sum z_k^2 - (sum z_k)^2 / 2.

    At the corners of the cube the sum is odd: 9/2 - 1/2 = 4. The relaxation takes E[z_k^2] = 1 with E[(sum z_k)^2] = 0,
    by correlations of -1/2: 9/2. That is between the exact 4 and the 7 of linear bounds, and products do not change it,
    as the correlations meet them.
    """
    cost = SquaredDistance(torch.zeros(1, 2).double())
    assert semidefinite_upper(hexagon(), cube(3), cost).item() == pytest.approx(4.5, rel=ACCURACY)
    assert semidefinite_upper(hexagon(), cube(3), cost, products=True).item() == pytest.approx(4.5, rel=ACCURACY)


def test_an_absolute_value_by_hand() -> None:
    """(z, |z|) to (0, 1): with v = max(z, 0) and w = max(-z, 0) the cost is  (v - w)^2 + (v + w - 1)^2 =
    2 v^2 - 2 v + 2 w^2 - 2 w + 1.  v (1 - v) >= 0  and  w (1 - w) >= 0  leave 1, which is attained. Linear bounds
    give 2.
    """
    cost = SquaredDistance(torch.tensor([[0.0, 1.0]]).double())
    assert semidefinite_upper(absolute(), cube(1), cost).item() == pytest.approx(1, rel=ACCURACY)


def costs(x: Tensor) -> dict[str, OutputCost]:
    return {
        "squared distance": SquaredDistance(x),
        "bernoulli": NegativeLogLikelihood(x, Bernoulli()),
        "gaussian": NegativeLogLikelihood(x, Gaussian(0.5).double()),
    }


CASES = [((2, 6, 6, 5), 0.3), ((2, 6, 6, 5), 1.0), ((3, 8, 4), 0.7)]


@pytest.mark.parametrize("name", costs(torch.zeros(0)))
@pytest.mark.parametrize(("widths", "radius"), CASES, ids=str)
def test_linear_program_above_semidefinite_above_products_above_exact(
    widths: tuple[int, ...], radius: float, name: str
) -> None:
    decoder, z = random_decoder(*widths), torch.randn(1, widths[0]).double()
    box, cost = Interval(z - radius, z + radius), costs(torch.rand(1, widths[-1]).double())[name]
    relaxed = RelaxedDecoder.by_linear_bounds(decoder, box)
    problem = moment_problem(relaxed, cost)
    semidefinite, products = problem.upper(STEPS), problem.with_products().upper(STEPS)
    exact = exact_upper(decoder, box, cost, TOL).item()
    program, slack = linear_program(relaxed, cost), ACCURACY * (1 + abs(exact))
    assert exact - TOL <= products <= semidefinite + slack
    assert semidefinite <= program + slack and program <= relaxed.upper(cost).item() + slack
    assert semidefinite < program - 0.01 or radius < 1
    # what the public function adds to the problem is the linear bound, should the solver fail
    assert semidefinite_upper(decoder, box, cost).item() == min(semidefinite, relaxed.upper(cost).item())
    for steps in (1, 4):
        assert exact - TOL <= problem.upper(steps)


def linear_program(relaxed: RelaxedDecoder, cost: OutputCost) -> float:
    """The largest sum of the cost's chords where each ReLU is relaxed to its triangle, by scipy."""
    latents = relaxed.latent.lower.shape[1]
    bounds = list(zip(relaxed.latent.lower[0].tolist(), relaxed.latent.upper[0].tolist(), strict=True))
    matrix, offset = np.eye(latents), np.zeros(latents)  # of the layer's values in the variables, to be padded
    rows, limits = [], []
    for layer in relaxed.layers:
        if isinstance(layer.layer, nn.Linear):
            weight, bias = layer.layer.weight.detach().numpy(), layer.layer.bias.detach().numpy()
            matrix, offset = weight @ matrix, weight @ offset + bias
            continue
        low, high = (end[0].numpy() for end in layer.box)
        before, count = matrix, len(bounds)
        bounds += [(0.0, max(0.0, end)) for end in high]
        matrix = np.eye(len(low), count + len(low), count)
        for unit, (least, most) in enumerate(zip(low, high, strict=True)):
            a = np.pad(before[unit], (0, count + len(low) - before.shape[1]))
            rows.append(a - matrix[unit])  # v >= a
            limits.append(-offset[unit])
            slope = 1.0 if least >= 0 else 0.0 if most <= 0 else most / (most - least)
            rows.append(matrix[unit] - slope * a)  # v <= slope * (a - min(low, 0))
            limits.append(slope * (offset[unit] - min(least, 0.0)))
        offset = np.zeros(len(low))
    chord = cost.quadratic(relaxed.output).chord(relaxed.output)
    slope = chord.slope.flatten().numpy()
    size = len(bounds)
    result = linprog(
        -np.pad(slope @ matrix, (0, size - matrix.shape[1])),
        A_ub=np.array([np.pad(row, (0, size - len(row))) for row in rows]),
        b_ub=np.array(limits),
        bounds=bounds,
    )
    assert result.status == 0
    return float(-result.fun + slope @ offset + chord.offset.sum())


def small_conv() -> nn.Module:
    vae = conv_vae((1, 4, 4), (2, 3), 2).double().requires_grad_(False)
    return vae.decoder


@pytest.mark.parametrize("build", [lambda: random_decoder(2, 6, 6, 5), small_conv], ids=["mlp", "conv"])
def test_each_latent_is_a_point_of_the_problem(build: Callable[[], nn.Module]) -> None:
    """With p = (1, s) of a latent and the units of its image the objective is the quadratic above the cost, and all
    constraints hold.
    """
    decoder, box = build(), Interval(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
    relaxed = RelaxedDecoder.by_linear_bounds(decoder, box)
    cost = SquaredDistance(torch.rand(relaxed.output.lower.shape).double())
    problem = moment_problem(relaxed, cost)
    for z in points(box, 20):
        p, value = [1.0, *z[0].tolist()], z
        for layer in relaxed.layers:
            value = layer.layer(value)
            if not isinstance(layer.relaxation, Affine):
                bent = (layer.box.lower < 0) & (layer.box.upper > 0)
                p += (2 * value[bent] / layer.box.upper[bent] - 1).tolist()
        assert max(map(abs, p)) <= 1 + ROUNDING
        p = np.array(p)
        assert p @ problem.objective @ p == pytest.approx(cost.value(value).item())
        assert (np.einsum("i,kij,j->k", p, problem.nonnegative, p) >= -1e-9).all()
        np.testing.assert_allclose(np.einsum("i,kij,j->k", p, problem.zero, p), 0, atol=1e-9)
    assert len(p) > 3 + 4 and len(problem.zero) == len(p) - 3


def test_a_convolutional_decoder_is_bounded_whose_shape_is_kept() -> None:
    decoder, z = small_conv(), torch.randn(2, 2).double()
    box, cost = Interval(z - 1, z + 1), NegativeLogLikelihood(torch.rand(2, 1, 4, 4).double(), Bernoulli())
    upper = semidefinite_upper(decoder, box, cost)
    reached = attained(decoder, box, cost)
    assert upper.shape == (2,) and upper.dtype == torch.float64
    assert (reached <= upper).all() and (upper <= reached + 0.5).all()


def test_a_box_of_one_point_has_its_value() -> None:
    decoder, z = random_decoder(2, 6, 5), torch.randn(1, 2).double()
    cost = SquaredDistance(torch.rand(1, 5).double())
    assert semidefinite_upper(decoder, Interval(z, z), cost).item() == pytest.approx(cost.value(decoder(z)).item())


def test_what_is_refused() -> None:
    decoder, cost = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).double(), SquaredDistance(torch.zeros(1, 3).double())
    with pytest.raises(UnsupportedLayerError, match=r"affine layers and ReLUs, not for Tanh at 'decoder\.1'"):
        semidefinite_upper(decoder, cube(2), cost)
    with pytest.raises(ValueError, match=r"images must be \[1, 3\]"):
        semidefinite_upper(decoder, cube(2), SquaredDistance(torch.zeros(1, 4).double()))
