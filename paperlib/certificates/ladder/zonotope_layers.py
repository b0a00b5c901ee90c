"""Affine forms through layers: a transformer for each, which loses nothing at an affine layer.

At a nonlinear one each unit is replaced by two parallel lines. The distance between them is a new error, and what
becomes of it is what zonotopes differ in:

- DeepZ (Singh et al. 2018, "Fast and effective robustness certification"): a new symbol that all later units share;
- the hybrid zonotope (Mirman et al. 2018, "Differentiable abstract interpretation for provably robust neural networks",
  DiffAI): part of the unit's independent error, which later layers treat as intervals do. The symbols stay those of the
  input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from paperlib.bounds.box import Interval
from paperlib.bounds.curves import relu_chord
from paperlib.bounds.interval import interval_rule
from paperlib.bounds.linear import ParallelRelaxation, parallel
from paperlib.bounds.relaxation import Affine, relaxation_rule
from paperlib.bounds.rules import apply_rule, named_layers
from paperlib.certificates.ladder.affine_form import AffineForm
from paperlib.certificates.ladder.symbols import Term

ReluRule = Literal["parallel", "box", "switch", "smooth"]


@dataclass(frozen=True)
class Transformers:
    """How forms pass through layers.

    Args:
        shared: whether new errors are shared by later units.
        relu: the rule for ReLU layers, see `relu_lines`; other layers have the two lines of `parallel`.
    """

    shared: bool
    relu: ReluRule = "parallel"

    def propagate(
        self, module: nn.Module, form: AffineForm, name: str = "", boxes: Sequence[Interval] | None = None
    ) -> tuple[AffineForm, list[Interval]]:
        """The form of module(v), and the boxes of the input and of each layer's output.

        Args:
            form: of the module's input v.
            name: the module's place in a larger network, for messages.
            boxes: other boxes of the same quantities. Layers are relaxed over the intersection of these, the form's own
                and the images of those before. None: over the form's own alone.

        Raises UnsupportedLayerError or ValueError as `paperlib.bounds.interval.propagate`.
        """
        tighter = [form.box if boxes is None else boxes[0]]
        layers = list(named_layers(module, name))
        for number, (place, layer) in enumerate(layers, 1):
            relaxation = apply_rule(relaxation_rule, place, layer, tighter[-1])
            if isinstance(relaxation, Affine):
                form = self._affine(place, layer, relaxation, form)
            else:
                if boxes is not None:
                    tighter[-1] = tighter[-1].intersect(form.box)
                form = _nonlinear(self._parallel(place, layer, tighter[-1]), form)
            if boxes is None:
                tighter.append(form.box)
            else:
                tighter.append(apply_rule(interval_rule, place, layer, tighter[-1]).intersect(boxes[number]))
        return form, tighter if boxes is None else [*tighter[:-1], tighter[-1].intersect(form.box)]

    def _parallel(self, place: str, layer: nn.Module, box: Interval) -> ParallelRelaxation:
        if type(layer) is nn.ReLU:
            return relu_lines(self.relu, box)
        return parallel(apply_rule(relaxation_rule, place, layer, box), box)

    def _affine(self, place: str, layer: nn.Module, relaxation: Affine, form: AffineForm) -> AffineForm:
        if self.shared:
            form = form.share_errors()
        terms = tuple(Term(term.symbols, _image(layer, relaxation, term)) for term in form.terms)
        center = layer(form.center)
        if self.shared:
            return AffineForm(center, terms, torch.zeros_like(center))
        errors = apply_rule(interval_rule, place, layer, Interval(-form.error, form.error))
        return AffineForm(center, terms, errors.radius)


def relu_lines(rule: ReluRule, box: Interval) -> ParallelRelaxation:
    """Two parallel lines around ReLU over a box [l, u], elementwise, by DiffAI's rules (Mirman et al. 2018).

    Where l < 0 < u:

    - "box": 0 and u, so that the symbols are dropped;
    - "switch": those where u < -l, else v and v - l, which keep all symbols;
    - "smooth": a mixture of both pairs, of the shares -l / (u - l) and u / (u - l);
    - "parallel", which is not DiffAI's: slope and error of DeepZ. "smooth" has this slope with twice this error.

    Only the lines of "box" never leave [0, u]: with the others a form may be looser than intervals.
    """
    low, high = box
    active, crossing = (low >= 0).to(low), (low < 0) & (high > 0)
    if rule in ("parallel", "smooth"):
        slope, distance = relu_chord(box)
        error = distance / 2 if rule == "parallel" else distance
    else:
        keeps = (high >= -low) & (rule == "switch")
        slope, error = keeps.to(low), torch.where(keeps, -low, high) / 2
    slope, error = torch.where(crossing, slope, active), torch.where(crossing, error, torch.zeros_like(low))
    return ParallelRelaxation(slope, error, error)


def _nonlinear(relaxation: ParallelRelaxation, form: AffineForm) -> AffineForm:
    def times_slope(term: Term) -> Term:
        if relaxation.selection is None:
            return term.times(relaxation.slope)
        return Term(term.symbols, relaxation.slope_times(term.coefficients.expand(-1, *form.center.shape)))

    center = relaxation.slope_times(form.center) + relaxation.middle
    error = relaxation.spread(form.error) + relaxation.radius
    return AffineForm(center, tuple(times_slope(term) for term in form.terms), error)


def _image(layer: nn.Module, relaxation: Affine, term: Term) -> Tensor:
    """The coefficients of a layer's output, [symbols, batch or 1, *out_shape], from those of its input."""
    if isinstance(layer, nn.Linear) and term.rows.ndim == 3:
        if term.units is not None:
            return layer.weight.T[term.units].unsqueeze(1)
        if term.factor is not None and term.rows.shape[1] == 1 and len(layer.weight) < len(term.rows):
            # by way of the layer's few outputs, rather than of many coefficients for each example
            outputs = (layer.weight * term.factor.unsqueeze(1)) @ term.rows[:, 0].T
            return outputs.permute(2, 0, 1)
        return term.coefficients @ layer.weight.T
    image = layer(term.coefficients.flatten(0, 1)) - relaxation.offset
    return image.unflatten(0, term.coefficients.shape[:2])
