"""Figures of notebook 3 by the data that they plot."""

import numpy as np
import pytest
import torch
from handmade import CAPTION, EPS, NAMES, SHOWN, attacked_rows, ceiling_rows, lines, strength_rows, xy

from paperlib.paper.plots import attacks as attack_plots
from paperlib.paper.words import Axis


def test_attacked_digits_show_clean_attacked_perturbation_and_reconstruction() -> None:
    x = torch.full((2, 784), 0.5)
    x_adv = x.clone()
    x_adv[:, 0], x_adv[:, 1] = 0.6, 0.4
    figure = attack_plots.attacked_digits(x, {NAMES[2]: x_adv}, {NAMES[2]: torch.zeros(2, 784)}, CAPTION)
    sheet = np.asarray(figure.axes[0].get_images()[0].get_array())
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["clean", f"{SHOWN[2]}\nattacked", "perturbation", "reconstruction"]
    first, second = sheet[1::30, 1][:4], sheet[1::30, 2][:4]
    np.testing.assert_allclose(first, [0.5, 0.6, np.nan, 0.0], atol=1e-6)
    np.testing.assert_allclose(second, [0.5, 0.4, np.nan, 0.0], atol=1e-6)
    shown = figure.axes[0].get_images()[1]
    signs = np.ma.filled(shown.get_array(), np.nan)
    np.testing.assert_allclose(signs[61, 1:4], [0.1, -0.1, 0.0], atol=1e-6)
    assert np.isfinite(signs).sum() == 2 * 784, "of the perturbation alone"
    low, high = shown.get_clim()
    assert low == -high and high > 0.1
    assert figure.axes[1].get_xlabel() == Axis.CHANGE
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["−0.1", "0", "0.1"]


def test_an_attack_that_changes_nothing_is_drawn_too() -> None:
    x = torch.rand(2, 8, 8)
    figure = attack_plots.attacked_digits(x, {"my model": x}, {"my model": x}, CAPTION)
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][1] == "my model\nattacked"


def test_signs_of_colour_images_are_refused() -> None:
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"grey images are needed, got \[2, 3, 8, 8\]"):
        attack_plots.attacked_digits(x, {"VAE": 1 - x}, {"VAE": x}, CAPTION)


def test_elbo_against_eps_plots_means_and_promises_no_error_bars() -> None:
    rows = attacked_rows()
    figure = attack_plots.elbo_against_eps(rows, ceiling_rows(), CAPTION)
    for name, shown in zip(NAMES, SHOWN, strict=True):
        part = rows[rows["model"] == name].groupby("eps")
        for axis, column in zip(figure.axes, ("attacked", "attacked_kl"), strict=True):
            (line,) = lines(axis, name, label=shown)
            np.testing.assert_allclose(xy(line), list(zip(EPS, part[column].mean(), strict=True)))
            assert not axis.containers, "bars that are smaller than a mark"
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "ceiling of any model"]
    assert xy(line) == ceiling_rows()[["eps", "attacked_ceiling"]].to_numpy().tolist()


def test_attack_strength_plots_each_setting_and_the_simple_attacks() -> None:
    rows = strength_rows()
    figure = attack_plots.attack_strength(rows, CAPTION)
    assert [axis.get_title() for axis in figure.axes] == SHOWN
    for axis, name in zip(figure.axes, NAMES, strict=True):
        part = rows[rows["model"] == name]
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        for restarts, label in ((1, "PGD, 1 start"), (4, "PGD, 4 starts")):
            searched = part[(part["attack"] == "pgd") & (part["restarts"] == restarts)]
            assert drawn[label] == searched[["steps", "elbo"]].to_numpy().tolist()
        for attack, label in (("fgsm", "FGSM"), ("shift", "$+\\epsilon$ on all pixels")):
            assert {y for _, y in drawn[label]} == {part.loc[part["attack"] == attack, "elbo"].item()}
        assert len({(line.get_linestyle(), line.get_marker()) for line in axis.get_lines()[:2]}) == 2
        assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "5", "40"]
        assert axis.get_ylabel() == Axis.ATTACKED
    spans = [np.ptp(axis.get_ylim()) for axis in figure.axes]
    np.testing.assert_allclose(spans, spans[0], err_msg="one scale, from the level of each model")
