"""Figures are checked by the data that they plot: every row, every model, in its own colour, with units and caption."""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paperlib.paper.plots import cost as cost_plots
from paperlib.paper.plots import linear_bounds as method_plots
from paperlib.paper.plots import style as plots
from paperlib.paper.plots import toy_2d as toy_plots

NAMES = ["VAE", "proVAE kappa=0", "proVAE kappa=0.5"]
SHOWN = ["VAE", "proVAE $\\kappa=0$", "proVAE $\\kappa=0.5$"]
EPS = [0.0, 0.01, 0.1, 0.2]
CAPTION = "full MNIST, first 7 test images, one noise draw"


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    with plt.rc_context():
        plots.style()
        yield
    plt.close("all")


def lines(axis: Axes, name: str, **look: Any) -> list[Line2D]:
    """The lines of a model's colour on an axis that look as given; no helper lines."""
    found = [line for line in axis.get_lines() if to_rgb(line.get_color()) == to_rgb(plots.COLORS[name])]
    return [line for line in found if all(getattr(line, f"get_{key}")() == value for key, value in look.items())]


def xy(line: Line2D) -> list[list[float]]:
    return np.asarray(line.get_xydata()).tolist()


def bars(axis: Axes, label: str) -> tuple[list[list[float]], list[float]]:
    """Points and half-lengths of the error bars of the series with this label."""
    (series,) = [c for c in axis.containers if isinstance(c, ErrorbarContainer) and c.get_label() == label]
    line, _, (segments,) = series.lines
    return xy(line), [(top - bottom) / 2 for (_, bottom), (_, top) in segments.get_segments()]


def legend_texts(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def attacked_rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"model": name, "eps": eps, "index": i, "attacked": -100 * (k + 1) - 900 * eps - rng.random()}
        | {"attacked_kl": 10 * (k + 1) + rng.random(), "certified": -400 * (k + 1) - 2_000 * eps}
        for k, name in enumerate(NAMES)
        for eps in EPS
        for i in range(7)
    ]
    return pd.DataFrame(rows)


def certified_rows() -> pd.DataFrame:
    rows = [
        {"model": name, "eps": eps, "clean": -90.0 - k, "clean_se": 0.5 + k, "certified_se": 2.0 + k}
        | {"certified": -400.0 * (k + 1) - 2_000 * eps}
        for k, name in enumerate(NAMES)
        for eps in reversed(EPS)  # the figure sorts
    ]
    return pd.DataFrame(rows)


def strength_rows() -> pd.DataFrame:
    rows = []
    for k, name in enumerate(NAMES):
        levels = [("none", 0, 1, -90.0), ("random", 0, 1, -95.0), ("shift", 0, 1, -110.0), ("fgsm", 1, 1, -150.0)]
        levels += [("pgd", s, r, -150.0 - s - r) for s in (1, 5, 40) for r in (1, 4)]
        rows += [{"model": name, "attack": a, "steps": s, "restarts": r, "elbo": v - k} for a, s, r, v in levels]
    return pd.DataFrame(rows)


def loose_rows() -> pd.DataFrame:
    rows = [
        {"model": name, "stage": stage, "box": 2.0 * (i + 1) * (k + 1), "reached": 2.0 / (i + 1)}
        for k, name in enumerate(NAMES)
        for i, stage in enumerate(("input", "encoder 1", "latent", "ELBO"))
    ]
    return pd.DataFrame(rows)


def histories() -> dict[str, pd.DataFrame]:
    return {
        name: pd.DataFrame(
            {"step": [10, 20, 30], "clean": [-300.0 - k, -200.0, -150.0], "certified": [-310.0, -390.0 - k, -380.0]}
            | {"kl": [0.5, 5.0 + k, 9.0], "eps": [0.0, 0.05, 0.1] if k else [0.0] * 3}
        )
        for k, name in enumerate(NAMES)
    }


def fields() -> dict[str, dict[str, torch.Tensor]]:
    return {
        toy: {"clean": torch.arange(9.0).view(3, 3) - 20 - k, "certified": -torch.arange(9.0).view(3, 3) * 90}
        for k, toy in enumerate(("two-moons", "pinwheel"))
    }


def truth(shift: float) -> dict[str, torch.Tensor]:
    points = torch.cartesian_prod(torch.linspace(0, 1, 5), torch.linspace(0, 1, 5)).flip(1).double() + shift
    values = -points.square().sum(1)
    scalars = {"exact": values.min(), "attacked": values.min() + 0.01, "certified": torch.tensor(-9.999)}
    return {"points": points, "values": values, "worst": points[-1], "pgd": points[-2], **scalars}


def growth() -> pd.DataFrame:
    rows = [
        {"model": name, "stage": stage, "box": 1.0 + i + k, "exact": 1.0 + 0.1 * i}
        for k, name in enumerate(("VAE", "proVAE"))
        for i, stage in enumerate(("input", "encoder 1", "latent"))
    ]
    return pd.DataFrame(rows)


METHODS = {"ibp": "intervals", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}


def method_rows() -> pd.DataFrame:
    """Like `attacked_rows`, which has one radius more, in another order."""
    loose = {"ibp": 300.0, "crown-ibp": 30.0, "crown": 3.0}
    rows = attacked_rows().sample(frac=1, random_state=0)
    certified = {method: rows["attacked"] - gap * (1 + rows["index"] / 10) for method, gap in loose.items()}
    return rows[["model", "eps", "index"]].assign(**certified)[rows["eps"] > 0]


def front_rows() -> pd.DataFrame:
    points = [(0.0, 0.095), (0.5, 0.1), (0.75, 0.12)]
    rows = [
        {"bound": bound, "kappa": kappa, "train_eps": eps, "seed": seed}
        | {"few_clean": -200.0 + 60 * kappa + 9 * (bound == "crown-ibp") + seed - 100 * (eps - 0.1)}
        | {"few_crown": -350.0 - 9 * kappa - seed, "few_attacked": -335.0 - 6 * kappa + seed}
        for bound in ("ibp", "crown-ibp")
        for kappa, eps in points
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def cost_rows() -> pd.DataFrame:
    """Three rounds, of which the second is slower in all; a step's products are half of it."""
    steps = {("step", name): 0.01 * (1 + k) for k, name in enumerate(cost_plots.STEPS)}
    bare = {("products", name): second / 2 for (_, name), second in steps.items() if not name.startswith("conv")}
    images = {("image", name): 1e-4 * 3**k for k, name in enumerate(cost_plots.IMAGES)}
    return pd.DataFrame(
        {"kind": kind, "name": name, "round": number, "seconds": seconds * slower}
        for number, slower in enumerate((1, 5, 1))
        for (kind, name), seconds in {**steps, **bare, **images}.items()
    )


def cost_targets() -> pd.DataFrame:
    targets = [
        (("step", "proVAE kappa=0"), ("step", "VAE"), 2.3),
        (("step", "proVAE kappa=0"), ("products", "proVAE kappa=0"), 1.6),
        (("step", "conv proVAE kappa=0"), ("step", "conv VAE"), 3.0),
        (("image", "crown-ibp"), ("image", "ibp"), 2.5),
        (("image", "crown"), None, 10.0),
    ]
    return pd.DataFrame([{"of": of, "against": against, "most": most} for of, against, most in targets])


DIGITS = torch.rand(3, 784, generator=torch.Generator().manual_seed(0))

FIGURES: dict[str, Any] = {
    "learning_curves": lambda: plots.learning_curves(histories(), CAPTION),
    "digit_grid": lambda: plots.digit_grid([("original", DIGITS), ("sample", DIGITS.flip(0))], CAPTION),
    "attacked_digits": lambda: plots.attacked_digits(DIGITS, {"VAE": 1 - DIGITS}, {"VAE": DIGITS}, CAPTION),
    "elbo_against_eps": lambda: plots.elbo_against_eps(attacked_rows(), CAPTION),
    "attack_strength": lambda: plots.attack_strength(strength_rows(), CAPTION),
    "sandwich": lambda: plots.sandwich(certified_rows(), attacked_rows(), CAPTION),
    "gap_distribution": lambda: plots.gap_distribution(attacked_rows()[lambda r: r["eps"] == 0.1], CAPTION),
    "looseness": lambda: plots.looseness(loose_rows(), CAPTION),
    "landscapes": lambda: toy_plots.landscapes(fields(), {t: torch.zeros(4, 2) for t in fields()}, CAPTION),
    "ball": lambda: toy_plots.ball({"VAE": truth(0.0), "proVAE": truth(1.0)}, CAPTION),
    "box_growth": lambda: toy_plots.box_growth(growth(), CAPTION),
    "gaps": lambda: method_plots.gaps(method_rows(), attacked_rows(), CAPTION),
    "front": lambda: method_plots.front(front_rows(), CAPTION),
    "cost": lambda: cost_plots.cost(cost_rows(), cost_targets(), CAPTION),
}
PICTURES = {"digit_grid", "attacked_digits", "landscapes"}


def test_every_figure_is_tried_here() -> None:
    drawn = {
        name
        for module in (plots, toy_plots, method_plots, cost_plots)
        for name, thing in vars(module).items()
        if callable(thing) and getattr(thing, "__annotations__", {}).get("return") is Figure
    }
    assert drawn - {"finish"} == set(FIGURES)


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
    units = ("nats", "pixels", "step", "share", "width", "x_", "ms")
    assert labels and all(any(unit in label for unit in units) for label in labels), labels
    assert figure.axes[0].get_ylabel()


@pytest.mark.parametrize("name", sorted(set(FIGURES) - PICTURES))
def test_no_legend_is_missing(name: str) -> None:
    figure = FIGURES[name]()
    expected = {
        "attack_strength": {"PGD, 1 start", "PGD, 4 starts", "$+\\epsilon$ on all pixels", "FGSM"},
        "sandwich": {"clean", "attacked", "certified"},
        "ball": {"exact worst", "PGD"},
        "box_growth": {"VAE, box", "VAE, exact", "proVAE, box", "proVAE, exact"},
        "gaps": set(METHODS.values()),
        "front": {"trained on intervals", "trained on the linear bound"},
        "cost": {"target", "all of the step", "its bare matrix products"},
    }.get(name, set(SHOWN))
    assert sorted(legend_texts(figure)) == sorted(expected)


def test_each_model_has_a_colour_and_marker_of_its_own() -> None:
    assert len({to_rgb(plots.COLORS[name]) for name in NAMES}) == len({plots.MARKERS[name] for name in NAMES}) == 3
    assert to_rgb(plots.COLORS["VAE"]) != to_rgb(plots.COLORS["proVAE"])
    assert len({to_rgb(plots.COLORS[name]) for name in ("clean", "attacked", "certified")}) == 3


def test_learning_curves_plot_the_histories() -> None:
    figure = plots.learning_curves(histories(), CAPTION)
    for name, history in histories().items():
        for axis, column in zip(figure.axes, ("clean", "kl", "eps"), strict=True):
            (line,) = lines(axis, name, linestyle="-")
            assert xy(line) == history[["step", column]].to_numpy().tolist()
        dashed = lines(figure.axes[0], name, linestyle="--")
        assert [xy(line) for line in dashed] == [history[["step", "certified"]].to_numpy().tolist()] * (name != "VAE")
    low, high = figure.axes[0].get_ylim()
    assert low <= -392 and high >= -150, "everything above -420 nats is visible"
    assert figure.axes[1].get_ylim()[0] == 0


def test_digits_are_shown_row_by_row_on_one_grey_scale() -> None:
    rows = [("original", DIGITS), ("sample", DIGITS.flip(0) / 2)]
    figure = plots.digit_grid(rows, CAPTION)
    (axis,) = figure.axes
    (image,) = axis.get_images()
    assert image.get_clim() == (0, 1) and image.get_cmap().name == "gray_r"
    sheet = np.asarray(image.get_array())
    for line, (_, digits) in enumerate(rows):
        for column, digit in enumerate(digits):
            tile = sheet[30 * line + 1 : 30 * line + 29, 30 * column + 1 : 30 * column + 29]
            np.testing.assert_array_equal(tile, digit.view(28, 28))
    assert [text.get_text() for text in axis.get_yticklabels()] == ["original", "sample"]
    assert axis.get_yticks().tolist() == [15, 45]


def test_attacked_digits_show_clean_attacked_perturbation_and_reconstruction() -> None:
    x = torch.full((2, 784), 0.5)
    x_adv = x.clone()
    x_adv[:, 0], x_adv[:, 1] = 0.6, 0.4
    figure = plots.attacked_digits(x, {NAMES[2]: x_adv}, {NAMES[2]: torch.zeros(2, 784)}, CAPTION)
    sheet = np.asarray(figure.axes[0].get_images()[0].get_array())
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["clean", f"{SHOWN[2]}\nattacked", "perturbation", "reconstruction"]
    first, second = sheet[1::30, 1][:4], sheet[1::30, 2][:4]
    np.testing.assert_allclose(first, [0.5, 0.6, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(second, [0.5, 0.4, 0.0, 0.0], atol=1e-6)
    assert sheet[61, 3] == 0.5, "no change is grey"


def test_elbo_against_eps_plots_means_with_standard_errors() -> None:
    rows = attacked_rows()
    figure = plots.elbo_against_eps(rows, CAPTION)
    for name, shown in zip(NAMES, SHOWN, strict=True):
        part = rows[rows["model"] == name].groupby("eps")
        for axis, column in zip(figure.axes, ("attacked", "attacked_kl"), strict=True):
            points, halves = bars(axis, shown)
            np.testing.assert_allclose(points, list(zip(EPS, part[column].mean(), strict=True)))
            np.testing.assert_allclose(halves, part[column].sem())
            assert lines(axis, name)


def test_attack_strength_plots_each_setting_and_the_simple_attacks() -> None:
    rows = strength_rows()
    figure = plots.attack_strength(rows, CAPTION)
    assert [axis.get_title() for axis in figure.axes] == SHOWN
    for axis, name in zip(figure.axes, NAMES, strict=True):
        part = rows[rows["model"] == name]
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        for restarts, label in ((1, "PGD, 1 start"), (4, "PGD, 4 starts")):
            searched = part[(part["attack"] == "pgd") & (part["restarts"] == restarts)]
            assert drawn[label] == searched[["steps", "elbo"]].to_numpy().tolist()
        for attack, label in (("fgsm", "FGSM"), ("shift", "$+\\epsilon$ on all pixels")):
            assert {y for _, y in drawn[label]} == {part.loc[part["attack"] == attack, "elbo"].item()}
        assert len({line.get_linestyle() for line in axis.get_lines()[:2]}) == 2
        assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "5", "40"]


def test_the_sandwich_plots_certified_attacked_and_clean_of_each_model() -> None:
    certified, attacked = certified_rows(), attacked_rows()
    figure = plots.sandwich(certified, attacked, CAPTION)
    assert [axis.get_title() for axis in figure.axes] == SHOWN
    for axis, name in zip(figure.axes, NAMES, strict=True):
        known = certified[certified["model"] == name].sort_values("eps")
        found = attacked[attacked["model"] == name].groupby("eps")["attacked"]
        for label in ("clean", "certified"):
            points, halves = bars(axis, label)
            assert points == known[["eps", label]].to_numpy().tolist()
            np.testing.assert_allclose(halves, known[f"{label}_se"])
        points, halves = bars(axis, "attacked")
        np.testing.assert_allclose(points, list(zip(EPS, found.mean(), strict=True)))
        np.testing.assert_allclose(halves, found.sem())
        for label in ("clean", "attacked", "certified"):
            assert lines(axis, label)
        (band,) = axis.collections[-1:]
        assert band.get_paths()[0].contains_point((0.1, float(known["certified"].iloc[2] + 1)))


@pytest.mark.parametrize("lowest", [-1e3, -1e5, -3e7])
def test_no_certificate_falls_out_of_the_sandwichs_picture(lowest: float) -> None:
    certified = certified_rows()
    certified.loc[0, "certified"] = lowest  # the VAE's at the largest radius
    axis = plots.sandwich(certified, attacked_rows(), CAPTION).axes[0]
    low, high = axis.get_ylim()
    assert low <= lowest and high >= certified["clean"].max()


def test_gaps_are_shown_as_shares_of_images() -> None:
    rows = attacked_rows()
    rows = rows[rows["eps"] == 0.1]
    figure = plots.gap_distribution(rows, CAPTION)
    for name, part in rows.groupby("model"):
        (line,) = lines(figure.axes[0], str(name))
        points = np.asarray(line.get_xydata())
        points = points[np.isfinite(points[:, 0]) & (points[:, 0] > 0)]
        np.testing.assert_allclose(points[:, 0], np.sort(part["attacked"] - part["certified"]))
        np.testing.assert_allclose(points[:, 1], np.arange(1, 8) / 7)


def test_looseness_plots_the_ratio_of_widths() -> None:
    rows = loose_rows()
    (axis,) = plots.looseness(rows, CAPTION).axes
    for name, shown in zip(NAMES, SHOWN, strict=True):
        part = rows[rows["model"] == name]
        (line,) = lines(axis, name, label=shown)
        np.testing.assert_allclose(line.get_ydata(), part["box"] / part["reached"])
        assert list(line.get_xdata(orig=True)) == part["stage"].tolist()
    assert axis.get_yscale() == "log"


def test_landscapes_show_the_fields_with_the_data_on_one_colour_scale() -> None:
    points = {toy: torch.rand(6, 2, generator=torch.Generator().manual_seed(i)) for i, toy in enumerate(fields())}
    figure = toy_plots.landscapes(fields(), points, CAPTION)
    grid = np.array(figure.axes[:4]).reshape(2, 2)
    scales = set()
    for column, (toy, parts) in zip(grid.T, fields().items(), strict=True):
        for axis, (kind, field) in zip(column, parts.items(), strict=True):
            (image,) = axis.get_images()
            np.testing.assert_array_equal(np.asarray(image.get_array()), field)
            assert image.origin == "lower" and list(image.get_extent()) == [-4, 4, -4, 4]
            scales.add((image.norm.vmin, image.norm.vmax, type(image.norm)))
            (dots,) = axis.get_lines()
            np.testing.assert_allclose(xy(dots), points[toy])
            assert axis is not grid[0, 0] or (axis.get_title(), axis.get_ylabel()) == (toy, kind)
    assert len(scales) == 1
    assert [axis.get_title() for axis in grid[0]] == list(fields())
    assert [axis.get_ylabel() for axis in grid[:, 0]] == ["clean", "certified"]
    assert figure.axes[-1].get_ylabel() == "nats"


def test_a_ball_shows_the_grid_the_worst_and_the_attacked_point() -> None:
    truths = {"VAE": truth(0.0), "proVAE": truth(1.0)}
    figure = toy_plots.ball(truths, CAPTION)
    panels = [axis for axis in figure.axes if axis.get_title()]
    for axis, (name, one) in zip(panels, truths.items(), strict=True):
        (image,) = axis.get_images()
        np.testing.assert_array_equal(np.asarray(image.get_array()), one["values"].view(5, 5))
        left, right, bottom, top = image.get_extent()
        assert [left, bottom] == one["points"][0].tolist() and [right, top] == one["points"][-1].tolist()
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        assert drawn == {"exact worst": [one["worst"].tolist()], "PGD": [one["pgd"].tolist()]}
        assert axis.get_title().startswith(f"{name}: PGD {one['attacked'].item():.2f}")
        assert axis.get_title().endswith("certified -10.00"), "a certificate is rounded down"
    assert [axis.get_ylabel() for axis in figure.axes].count("ELBO (nats)") == 2


def test_box_growth_plots_boxes_solid_and_exact_widths_dashed() -> None:
    rows = growth()
    (axis,) = toy_plots.box_growth(rows, CAPTION).axes
    for name, part in rows.groupby("model"):
        for column, style in (("box", "-"), ("exact", "--")):
            (line,) = lines(axis, str(name), linestyle=style, label=f"{name}, {column}")
            assert list(line.get_ydata()) == part[column].tolist()
            assert list(line.get_xdata(orig=True)) == part["stage"].tolist()
    assert axis.get_yscale() == "log"


def test_gaps_of_each_method_are_means_at_each_radius() -> None:
    rows, attacked = method_rows(), attacked_rows()
    figure = method_plots.gaps(rows, attacked, CAPTION)
    assert sorted(axis.get_title() for axis in figure.axes) == sorted(SHOWN)
    both = rows.merge(attacked, on=["model", "eps", "index"])
    assert len(both) == len(rows)
    for axis in figure.axes:
        assert axis.get_yscale() == "log"
        name = NAMES[SHOWN.index(axis.get_title())]
        part = both[both["model"] == name].groupby("eps")
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        assert list(drawn) == list(METHODS.values())
        for method, label in METHODS.items():
            expected = part["attacked"].mean() - part[method].mean()
            np.testing.assert_allclose(drawn[label], list(zip(EPS[1:], expected, strict=True)))
        assert len({(to_rgb(line.get_color()), line.get_marker()) for line in axis.get_lines()}) == 3


def test_gaps_pair_each_certificate_with_the_attack_on_its_own_image() -> None:
    rows, attacked = method_rows(), attacked_rows()
    missing = attacked[~((attacked["model"] == "VAE") & (attacked["index"] == 6))]
    (axis, *_) = [a for a in method_plots.gaps(rows, missing, CAPTION).axes if a.get_title() == "VAE"]
    for line, gap in zip(axis.get_lines(), (300.0, 30.0, 3.0), strict=True):
        np.testing.assert_allclose(line.get_ydata(), gap * 1.25)  # images 0 to 5


def test_the_front_shows_each_seed_and_joins_means_along_kappa() -> None:
    rows = front_rows()
    figure = method_plots.front(rows, CAPTION)
    assert [axis.get_ylabel() for axis in figure.axes] == ["certified ELBO (nats)", "attacked ELBO (nats)"]
    assert len({to_rgb(look["color"]) for look in method_plots.LOOK.values()}) == 2
    for axis, column in zip(figure.axes, ("few_crown", "few_attacked"), strict=True):
        drawn = {line.get_label(): xy(line) for line in axis.get_lines()}
        assert list(drawn) == list(method_plots.BOUNDS.values())
        for (bound, label), points in zip(method_plots.BOUNDS.items(), axis.collections, strict=True):
            part = rows[rows["bound"] == bound]
            means = part.groupby(["kappa", "train_eps"])[["few_clean", column]].mean()
            np.testing.assert_allclose(drawn[label], means)
            np.testing.assert_allclose(points.get_offsets(), part[["few_clean", column]])
            texts = {tuple(text.xy): text.get_text() for text in axis.texts}
            for (kappa, radius), point in zip(means.index, means.to_numpy().tolist(), strict=True):
                assert texts[tuple(point)] == f"$\\kappa={kappa:g}$, {radius:g}"


def test_costs_are_bars_in_plain_steps_with_their_products_inside_and_dots_in_milliseconds() -> None:
    steps, images = cost_plots.cost(cost_rows(), cost_targets(), CAPTION).axes
    names = list(cost_plots.STEPS)
    assert [text.get_text() for text in steps.get_yticklabels()] == list(cost_plots.STEPS.values())
    assert [text.get_text() for text in images.get_yticklabels()] == list(cost_plots.IMAGES.values())
    height = dict(zip(names, steps.get_yticks(), strict=True))
    drawn = {
        (bar.get_label(), round(patch.get_y() + patch.get_height() / 2, 6)): patch.get_width()
        for bar in steps.containers
        for patch in bar.patches
    }
    relative = {name: 1.0 + k for k, name in enumerate(names[:5])} | {"conv VAE": 1.0, "conv proVAE kappa=0": 7 / 6}
    expected = {("all of the step", height[name]): value for name, value in relative.items()}
    expected |= {("its bare matrix products", height[name]): relative[name] / 2 for name in names[:5]}
    assert drawn == pytest.approx(expected)
    marks = [xy(line) for line in steps.get_lines() if line.get_label() == "target"]
    robust, conv = height["proVAE kappa=0"], height["conv proVAE kappa=0"]
    assert marks == [[[pytest.approx(x), y]] for x, y in ((2.3, robust), (1.6, robust), (3.0, conv))]

    assert images.get_xscale() == "log"
    dots = [xy(line) for line in images.get_lines() if line.get_marker() == "o"]
    assert dots == [[[pytest.approx(0.1 * 3**k), k]] for k in range(5)]
    marks = [xy(line) for line in images.get_lines() if line.get_label() == "target"]
    assert marks == [[[pytest.approx(2.5 * 0.9), 3]], [[pytest.approx(10.0), 4]]]
    for axis in (steps, images):
        low, high = axis.get_xlim()
        assert all(low <= x <= high for line in axis.get_lines() for x in line.get_xdata())


@pytest.mark.parametrize("name", FIGURES)
def test_drawing_twice_gives_the_same_picture(name: str) -> None:
    drawn = []
    for _ in range(2):  # any draw in between would leave the generators in another state
        figure = FIGURES[name]()
        figure.canvas.draw()
        drawn.append(np.asarray(figure.canvas.buffer_rgba()).copy())
    np.testing.assert_array_equal(*drawn)
