"""What holds for every figure: its caption in full, units at its axes, a legend, and the same picture each time."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from handmade import (
    CAPTION,
    DIGITS,
    METHODS,
    NAMES,
    SHOWN,
    attacked_rows,
    caption,
    ceiling_rows,
    certified_rows,
    cost_rows,
    cost_targets,
    fields,
    front_rows,
    growth,
    histories,
    legend_texts,
    loose_rows,
    method_rows,
    strength_rows,
    tradeoff_rows,
    truth,
)
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from paperlib.paper.plots import attacks as attack_plots
from paperlib.paper.plots import certification as certification_plots
from paperlib.paper.plots import cost as cost_plots
from paperlib.paper.plots import front as front_plots
from paperlib.paper.plots import linear_bounds as method_plots
from paperlib.paper.plots import mnist_training as training_plots
from paperlib.paper.plots import style as plots
from paperlib.paper.plots import tighter_training as tighter_plots
from paperlib.paper.plots import toy_2d as toy_plots
from paperlib.paper.words import Axis

FIGURES: dict[str, Any] = {
    "learning_curves": lambda: training_plots.learning_curves(histories(), CAPTION),
    "digit_grid": lambda: training_plots.digit_grid([("original", DIGITS), ("sample", DIGITS.flip(0))], CAPTION),
    "attacked_digits": lambda: attack_plots.attacked_digits(DIGITS, {"VAE": 1 - DIGITS}, {"VAE": DIGITS}, CAPTION),
    "elbo_against_eps": lambda: attack_plots.elbo_against_eps(attacked_rows(), ceiling_rows(), CAPTION),
    "attack_strength": lambda: attack_plots.attack_strength(strength_rows(), CAPTION),
    "sandwich": lambda: certification_plots.sandwich(certified_rows(), attacked_rows(), ceiling_rows(), CAPTION),
    "gap_distribution": lambda: certification_plots.gap_distribution(
        attacked_rows()[lambda r: r["eps"] == 0.1], CAPTION
    ),
    "looseness": lambda: certification_plots.looseness(loose_rows(), CAPTION),
    "landscapes": lambda: toy_plots.landscapes(fields(), {t: torch.zeros(4, 2) for t in fields()}, CAPTION),
    "ball": lambda: toy_plots.ball({"VAE": truth(0.0), "proVAE": truth(1.0)}, CAPTION),
    "box_growth": lambda: toy_plots.box_growth(growth(), CAPTION),
    "gaps": lambda: method_plots.gaps(method_rows(), attacked_rows(), CAPTION),
    "tradeoff": lambda: tighter_plots.tradeoff(tradeoff_rows(), CAPTION),
    "front": lambda: front_plots.front(
        front_rows(), tradeoff_rows().assign(clean=-160.0, crown_ibp=-350.0), -279.5, CAPTION
    ),
    "cost": lambda: cost_plots.cost(cost_rows(), cost_targets(), CAPTION),
}
PICTURES = {"digit_grid", "attacked_digits", "landscapes"}
MODULES = (attack_plots, certification_plots, cost_plots, front_plots, training_plots, tighter_plots, toy_plots)


def test_every_figure_is_tried_here() -> None:
    drawn = {
        name
        for module in MODULES
        for name, thing in vars(module).items()
        if callable(thing) and getattr(thing, "__annotations__", {}).get("return") is Figure
    }
    others = {"gaps"}  # of notebook 5, whose other figures have tests of their own
    assert (drawn - {"finish", "tiled"}) | others == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_shows_its_caption_at_paper_width_and_closes(name: str) -> None:
    figure = FIGURES[name]()
    assert caption(figure) == CAPTION
    assert 2 <= figure.get_figwidth() <= plots.PAGE
    figure.canvas.draw()
    longest = figure._supxlabel.get_window_extent()
    assert longest.x0 >= 0 and longest.x1 <= figure.bbox.x1, "the caption is not cut"
    plt.close(figure)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_long_caption_is_wrapped_and_not_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = " ".join([CAPTION] * 5)
    monkeypatch.setitem(globals(), "CAPTION", long)
    figure = FIGURES[name]()
    assert caption(figure) == long
    figure.canvas.draw()
    extent = figure._supxlabel.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1 and extent.y0 >= 0


@pytest.mark.parametrize("name", sorted(set(FIGURES) - PICTURES))
def test_each_axis_says_what_it_shows_in_which_unit(name: str) -> None:
    figure = FIGURES[name]()
    labels = {label for axis in figure.axes for label in (axis.get_xlabel(), axis.get_ylabel())} - {""}
    assert labels and all(label.split("\n")[-1] in list(Axis) for label in labels), "its wording has its unit"


@pytest.mark.parametrize("name", sorted(set(FIGURES) - PICTURES))
def test_no_legend_is_missing(name: str) -> None:
    figure = FIGURES[name]()
    expected = {
        "attack_strength": {"PGD, 1 start", "PGD, 4 starts", "$+\\epsilon$ on all pixels", "FGSM"},
        "elbo_against_eps": {*SHOWN, "ceiling of any model"},
        "sandwich": {"clean", "attacked", "certified", "the worst case lies here", "ceiling of any model"},
        "ball": {"exact worst", "PGD"},
        "box_growth": {"VAE, box", "VAE, exact", "proVAE, box", "proVAE, exact"},
        "gaps": set(METHODS.values()),
        "looseness": {*SHOWN, "an exact box"},
        "tradeoff": {
            f"trained on {bound}, {mark}"
            for bound in ("intervals", "the linear bound")
            for mark in ("one seed", "mean of the seeds")
        },
        "front": {"notebook 2", "notebook 6", "trained longer", "ceiling of any model"},
        "cost": {"target", "all of the step", "its bare matrix products"},
    }.get(name, set(SHOWN))
    assert sorted(legend_texts(figure)) == sorted(expected)


def test_each_model_has_a_colour_and_marker_of_its_own() -> None:
    assert len({to_rgb(plots.COLORS[name]) for name in NAMES}) == len({plots.MARKERS[name] for name in NAMES}) == 3
    assert to_rgb(plots.COLORS["VAE"]) != to_rgb(plots.COLORS["proVAE"])
    kinds = ("clean", "attacked", "certified")
    assert len({to_rgb(plots.COLORS[kind]) for kind in kinds}) == len({plots.MARKERS[kind] for kind in kinds}) == 3


def test_any_name_has_a_look_of_its_own_and_known_names_keep_theirs() -> None:
    names = [f"model {number}" for number in range(20)]
    looks = plots.model_looks(["VAE", *names])
    assert looks["VAE"] == {"color": plots.COLORS["VAE"], "marker": plots.MARKERS["VAE"], "label": "VAE"}
    assert [look["label"] for look in looks.values()] == ["VAE", *names]
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)


@pytest.mark.parametrize("draw", [
    lambda rows: attack_plots.elbo_against_eps(rows, ceiling_rows(), CAPTION),
    lambda rows: certification_plots.gap_distribution(rows[rows["eps"] == 0.1], CAPTION),
    lambda rows: certification_plots.sandwich(certified_rows().replace("VAE", "mine"), rows, ceiling_rows(), CAPTION),
    lambda _: certification_plots.looseness(loose_rows().replace("VAE", "mine"), CAPTION),
    lambda _: attack_plots.attack_strength(strength_rows().replace("VAE", "mine"), CAPTION),
    lambda _: toy_plots.box_growth(growth().replace("VAE", "mine"), CAPTION),
])  # fmt: skip
def test_figures_of_models_draw_own_names(draw: Callable[[pd.DataFrame], Figure]) -> None:
    figure = draw(attacked_rows().replace("VAE", "mine"))
    shown = [*legend_texts(figure), *(axis.get_title() for axis in figure.axes)]
    assert any(text.startswith("mine") for text in shown)


@pytest.mark.parametrize("name", FIGURES)
def test_drawing_twice_gives_the_same_picture(name: str) -> None:
    drawn = []
    for _ in range(2):  # any draw in between would leave the generators in another state
        figure = FIGURES[name]()
        figure.canvas.draw()
        drawn.append(np.asarray(figure.canvas.buffer_rgba()).copy())
    np.testing.assert_array_equal(*drawn)
