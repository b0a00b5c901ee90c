"""The style of every committed figure, as its reader sees it: words, signs, places, and what is left of it in grey."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from unittest import mock

import gallery
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from paperlib.paper.plots import style
from paperlib.paper.words import DIMENSIONLESS, LOG, Axis

POINT = 1 / 72  # inches
SAVED = 220  # dots per inch of the committed files: layouts differ a little from one resolution to another
UNLIKE = 25  # of lightness, in [0, 100]: colours that are told apart in grey
every_figure = pytest.mark.parametrize("name", gallery.NAMES)


@cache
def page(name: str) -> tuple[Figure, list[Text]]:
    """The figure, laid out, and all texts that are drawn; ticks outside an axis are not."""
    figure = gallery.drawn(name)
    figure.set_dpi(SAVED)
    canvas = FigureCanvasAgg(figure)  # a closed figure has one that draws nothing
    canvas.draw()
    drawn: dict[int, Text] = {}
    draw = Text.draw

    def record(text: Text, *args: object, **kwargs: object) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = text
        draw(text, *args, **kwargs)

    with mock.patch.object(Text, "draw", record):
        canvas.draw()
    assert drawn
    return figure, list(drawn.values())


def corners(text: Text) -> np.ndarray:
    """The corners of the text's rectangle in pixels, [4, 2], which lies as the text does; half a point is its air."""
    middle = np.array([(end[0] + end[1]) / 2 for end in text.get_window_extent().get_points().T])
    angle = text.get_rotation()
    text.set_rotation(0)
    flat = text.get_window_extent()
    text.set_rotation(angle)
    air = 0.5 * POINT * text.get_figure(root=True).dpi
    wide, high = flat.width / 2 - air, flat.height / 2 - air
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turned = np.array([[cosine, sine], [-sine, cosine]])
    return middle + np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]) @ turned


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two rectangles do: no side of either separates them."""
    for rectangle in (one, other):
        for side in (rectangle[1] - rectangle[0], rectangle[2] - rectangle[1]):
            first, second = one @ side, other @ side
            if first.max() <= second.min() or second.max() <= first.min():
                return False
    return True


def lightness(color: object) -> float:
    """CIE L* in [0, 100], on white paper."""
    *rgb, alpha = to_rgba(color)  # type: ignore[arg-type]
    on_paper = np.array(rgb) * alpha + 1 - alpha
    linear = np.where(on_paper <= 0.04045, on_paper / 12.92, ((on_paper + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return float(116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance)


def mark(line: Line2D) -> tuple[object, bool]:
    return line.get_marker(), line.get_markerfacecolor() == "none"


def told_apart(one: Line2D, other: Line2D) -> bool:
    shapes = mark(one) != mark(other) or one.get_linestyle() != other.get_linestyle()
    return shapes or abs(lightness(one.get_color()) - lightness(other.get_color())) >= UNLIKE


def series(axis: Axes) -> list[Line2D]:
    """The lines that show data; not the marks of a broken axis."""
    return [line for line in axis.get_lines() if line.get_visible() and line.get_transform() != axis.transAxes]


def is_named(line: Line2D) -> bool:
    return not str(line.get_label()).startswith("_")


def pixels(line: Line2D) -> np.ndarray:
    """Where its points are on the page, [points, 2], without those that have no place on it."""
    places = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
    return places[np.isfinite(places).all(1)]


def numbered(name: str) -> Iterator[tuple[Axes, str, str]]:
    """Each axis that shows numbers: its axes, "x" or "y", and its label."""
    figure, written = page(name)
    shown = {id(text) for text in written}
    for axes in figure.axes:
        for direction, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            ticks = [text.get_text() for text in axis.get_ticklabels(which="both") if id(text) in shown]
            plain = [re.sub(r"\\mathdefault|[${}^]", "", text) for text in ticks]
            if any(re.fullmatch(r"[-−]?[\d.,]+", text) for text in plain):
                yield axes, direction, axis.get_label_text()


@every_figure
def test_each_axis_with_numbers_says_what_it_shows_in_the_one_wording_of_its_quantity(name: str) -> None:
    for _, direction, label in numbered(name):
        lines = [line for line in label.split("\n") if not line.startswith(LOG)]
        if name.startswith("00_") and name != gallery.COST:  # takes nothing from the library
            assert lines in (["unit 1"], ["unit 2"])
        elif lines:  # the strip below a break has the label of the axis above it
            assert lines[-1] in list(Axis), f"{direction}: {label!r} is not one of paperlib.paper.words"


def test_each_wording_has_a_unit_or_is_a_dimensionless_quantity() -> None:
    with_unit = [word for word in Axis if word not in DIMENSIONLESS]
    assert all(
        re.search(r"\((.*, )?(nats|pixels in \[0, 1\]|pixels²|ms|s|per cent|units of .*)[,)]|^nats per", word)
        for word in with_unit
    )


@every_figure
def test_one_quantity_on_two_kinds_of_scale_is_marked(name: str) -> None:
    scales: dict[str, list[tuple[str, str]]] = {}
    for axes, direction, label in numbered(name):
        scale = axes.get_xscale() if direction == "x" else axes.get_yscale()
        scales.setdefault(label.split("\n")[0], []).append((scale, label))
    for shown in scales.values():
        if len({scale for scale, _ in shown}) > 1:
            assert all(LOG in label for scale, label in shown if scale != "linear")


@every_figure
def test_negative_numbers_have_a_minus_sign(name: str) -> None:
    shown = [re.sub(r"\$[^$]*\$", "", text.get_text()) for text in page(name)[1]]
    assert [text for text in shown if re.search(r"(?<!\w)-[\d.]", text)] == []


@every_figure
def test_no_text_leaves_the_figure(name: str) -> None:
    figure, written = page(name)
    for text in written:
        inside = (figure.bbox.min <= corners(text)) & (corners(text) <= figure.bbox.max)
        assert inside.all(), text.get_text()


@every_figure
def test_no_two_texts_overlap(name: str) -> None:
    places = [(text.get_text(), corners(text)) for text in page(name)[1]]
    assert [(one, two) for (one, at), (two, there) in combinations(places, 2) if overlap(at, there)] == []


@every_figure
def test_no_text_or_legend_lies_on_a_mark_or_a_line(name: str) -> None:
    figure, written = page(name)
    for axis in figure.axes:
        notes = [text for text in written if text in axis.texts]
        notes += list(axis.get_legend().get_texts()) if axis.get_legend() else []
        for text in notes:
            at = text.get_window_extent()
            for line in series(axis):
                path = line.get_transform().transform_path(line.get_path())
                size = POINT * figure.dpi / 2 * (line.get_markersize() if line.get_marker() != "None" else 0)
                around = Bbox.from_extents(at.x0 - size, at.y0 - size, at.x1 + size, at.y1 + size)
                joined = line.get_linestyle() != "None" and path.intersects_bbox(at, filled=False)
                assert not joined and not any(around.contains(*place) for place in pixels(line)), text.get_text()


@every_figure
def test_captions_and_titles_have_at_most_two_lines_and_no_word_alone(name: str) -> None:
    figure, _ = page(name)
    caption = figure.get_supxlabel().split("\n")
    assert len(caption) <= 2 and len(caption[-1]) >= len(caption[0]) / 2
    assert all(axis.get_title().count("\n") < 2 for axis in figure.axes)


@every_figure
def test_what_colour_tells_apart_is_told_apart_in_grey(name: str) -> None:
    for axis in page(name)[0].axes:
        for one, two in combinations(series(axis), 2):
            named = is_named(one) and is_named(two) and one.get_label() != two.get_label()
            if named or to_rgb(one.get_color()) != to_rgb(two.get_color()):
                assert told_apart(one, two), (one.get_label(), two.get_label())
        bars = {
            bars.get_label(): bars.patches[0].get_facecolor() for bars in axis.containers if hasattr(bars, "patches")
        }
        for (_, first), (_, second) in combinations(bars.items(), 2):
            assert abs(lightness(first) - lightness(second)) >= UNLIKE


@every_figure
def test_no_series_hides_another(name: str) -> None:
    figure, _ = page(name)
    near = 1.5 * POINT * figure.dpi
    for axis in figure.axes:
        marked = [line for line in series(axis) if line.get_marker() not in ("None", "") and is_named(line)]
        for below, above in combinations(marked, 2):  # in the order in which they are drawn
            covers = not mark(above)[1] and above.get_markersize() >= below.get_markersize()
            if covers and len(pixels(below)) > 1:
                distance = np.linalg.norm(pixels(below)[:, None] - pixels(above)[None], axis=2).min(1)
                assert (distance < near).mean() <= 0.5, (below.get_label(), above.get_label())


@every_figure
def test_no_value_leaves_its_axis(name: str) -> None:
    figure, _ = page(name)
    seen: dict[tuple[object, float, float], bool] = {}
    for axis in figure.axes:
        (left, right), (bottom, top) = sorted(axis.get_xlim()), sorted(axis.get_ylim())
        for line in series(axis):
            if line.get_transform() == axis.transData and line.get_clip_on():
                for x, y in np.asarray(line.get_xydata(), dtype=float).tolist():
                    # at a natural end of its axis, such as a share of 1, a line may lie on the edge
                    inside = all(
                        low < value < high or (value in (0, 1) and low <= value <= high)
                        for value, low, high in ((x, left, right), (y, bottom, top))
                    )
                    # a point may be in a strip below the break instead
                    seen[line.get_label(), x, y] = seen.get((line.get_label(), x, y), False) or inside
    assert [point for point, inside in seen.items() if np.isfinite(point[1:]).all() and not inside] == []


def test_the_signs_of_a_signed_map_are_told_apart_in_grey_and_from_nothing() -> None:
    colors = mpl.colormaps[style.SIGNED]
    minus, nothing, plus = (lightness(colors(0.5 + sign / (2 * style.PALER))) for sign in (-1, 0, 1))
    assert minus - plus > 12 and nothing - minus > UNLIKE


USER = "savefig.transparent: True\nfont.family: serif\naxes.grid: True\nsavefig.dpi: 50\nlines.linewidth: 5\n"
DRAW = "import sys; from pathlib import Path; import gallery; Path(sys.argv[2]).write_bytes(gallery.png(sys.argv[1]))"


@pytest.mark.parametrize("name", [gallery.COST, "00_box"])  # by the library's style, and by notebook 0's own
def test_no_setting_of_the_user_changes_a_figure(name: str, tmp_path: Path) -> None:
    settings, picture = tmp_path / "matplotlibrc", tmp_path / f"{name}.png"
    settings.write_text(USER)
    places = os.pathsep.join([str(gallery.ROOT), str(Path(__file__).parent)])
    env = os.environ | {"MPLBACKEND": "Agg", "MATPLOTLIBRC": str(settings), "PYTHONPATH": places}
    subprocess.run([sys.executable, "-c", DRAW, name, str(picture)], env=env, check=True)
    assert picture.read_bytes() == gallery.png(name)
