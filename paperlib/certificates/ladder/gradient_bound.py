"""The bound by the gradient of a decoder with one hidden layer, relaxed to a semidefinite program (Raghunathan,
Steinhardt & Liang 2018, "Certified defenses against adversarial examples", arXiv 1801.09344).

Let the chords of a cost make it the linear function  w . max(W z + b, 0) + constant  of the hidden units, f. For z of a
box with the centre m and the sides 2 r,

    f(z)  <=  f(m) + max over t in [-1, 1] and s of  sum over units i of  w_i s_i (W r t)_i,

as the mean value theorem has it with s_i the slope of a ReLU: 0 or 1 where the sign of the unit is fixed, and somewhere
in [0, 1] where it is not. The maximum is that of a quadratic function, a `MomentProblem`.
"""

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.relaxation import Affine
from paperlib.bounds.rules import UnsupportedLayerError
from paperlib.certificates.ladder.latent_range import RelaxedDecoder, check_latents, each_box
from paperlib.certificates.ladder.moment_problem import STEPS, MomentProblem, product
from paperlib.certificates.ladder.output_cost import OutputCost
from paperlib.certificates.ladder.semidefinite import affine_rows, array, latent_rows


@torch.no_grad()
def gradient_upper(decoder: nn.Module, latent: Interval, cost: OutputCost, steps: int = STEPS) -> Tensor:
    """Above the cost of every output that latents of the box have, [batch], in real arithmetic; it is evaluated in
    float64.

    Arguments and errors as for `semidefinite_upper`; a second ReLU is a layer of another kind, too.
    """
    check_latents(decoder, latent, cost)
    bounds = [_upper(decoder, box, cost.of(row), steps) for row, box in each_box(latent)]
    return torch.tensor(bounds, dtype=latent.lower.dtype, device=latent.lower.device)


def _upper(decoder: nn.Module, latent: Interval, cost: OutputCost, steps: int) -> float:
    relaxed = RelaxedDecoder.by_linear_bounds(decoder, latent)
    bent = [place for place, layer in enumerate(relaxed.layers) if not isinstance(layer.relaxation, Affine)]
    if [type(relaxed.layers[place].layer) for place in bent] != [nn.ReLU]:
        places = ", ".join(relaxed.layers[place].place for place in bent) or "none"
        raise UnsupportedLayerError(
            f"the bound by the gradient is for affine layers and one ReLU, but what is not affine is: {places}"
        )
    before, relu, after = relaxed.layers[: bent[0]], relaxed.layers[bent[0]], relaxed.layers[bent[0] + 1 :]
    chord = cost.quadratic(relaxed.output).chord(relaxed.output)
    low, high = ((array(end) > 0) * 1.0 for end in relu.box)  # of a ReLU's slope
    size = 1 + latent.lower.shape[1] + len(low)
    rows, weights = latent_rows(latent, size), chord.slope
    rows[:, 0] = 0.0  # of the distance from the centre, which no offset changes
    for layer in before:
        assert isinstance(layer.relaxation, Affine)
        rows = affine_rows(layer, layer.relaxation, rows)
        rows[:, 0] = 0.0
    for layer in reversed(after):
        assert isinstance(layer.relaxation, Affine)
        weights = layer.relaxation.transpose(weights)
    slopes = np.zeros((len(low), size))
    slopes[:, 0] = (low + high) / 2
    slopes[:, -len(low) :] = np.diag((high - low) / 2)
    objective = product(array(weights)[:, None] * rows, slopes)
    center = decoder(latent.center)
    at_center = (chord.slope * center + chord.offset).sum().item()
    gradient = at_center + MomentProblem.of(objective, [], []).upper(steps)
    return min(cost.upper(relaxed.output).item(), gradient)  # the box of outputs alone may say more, or a NaN nothing
