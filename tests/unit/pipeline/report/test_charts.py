import itertools
import math
import operator
import re
from xml.etree import ElementTree

import pytest

from pipeline.report.charts import Bar, HorizontalAxis, Reference, Series, bar_chart, line_chart, thin_out
from pipeline.report.colors import (
    BASIC_STYLES,
    DARK,
    DARK_RAMP,
    LIGHT,
    LIGHT_RAMP,
    NUM_CURVE_COLORS,
    Rgb,
    contrast,
    step_colors,
)

LIGHT_TEXT, DARK_TEXT = (236, 234, 228), (29, 35, 48)


def rgb(color: str) -> Rgb:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def corners(drawing: str, looks: str) -> list[list[tuple[float, float]]]:
    """Return the corners of every path whose style contains a text."""
    paths = [path for path in ElementTree.fromstring(drawing).iter("path") if looks in path.get("style", "")]
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d", ""))]
        for path in paths
    ]


def heights_of_bars(drawing: str) -> list[float]:
    return [max(y for _, y in bar) - min(y for _, y in bar) for bar in corners(drawing, "fill: var(--c1)")]


def texts(drawing: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawing).iter("text")]


def draw_bars(*values: float) -> str:
    bars = [Bar(name=f"name {index}", value=value, color="c1") for index, value in enumerate(values)]
    return bar_chart(bars, description="d", axis="x", format_value="<{:g}>".format)


def test_bars_are_as_high_as_their_values() -> None:
    first, second, third = heights_of_bars(draw_bars(1.0, 2.0, 0.0))
    assert second == pytest.approx(2 * first, abs=0.1)
    assert third == 0.0


def test_bars_that_are_all_zero_can_be_drawn() -> None:
    assert heights_of_bars(draw_bars(0.0)) == [0.0]


def test_bars_have_their_names_and_values() -> None:
    assert {"name 0", "name 1", "<1>", "<2.5>", "x"} <= set(texts(draw_bars(1.0, 2.5)))


def test_many_bars_have_no_values_that_would_overlap() -> None:
    assert not [text for text in texts(draw_bars(*[1.0] * 17)) if text.startswith("<")]


def test_the_axis_of_bars_reaches_the_requested_top() -> None:
    bars = [Bar(name="a", value=0.3, color="c1")]
    drawing = bar_chart(bars, description="d", axis="x", format_value="{:g}".format, top=1.0)
    assert {"0", "0.2", "1"} <= set(texts(drawing))


def test_lines_fall_when_values_fall() -> None:
    series = Series(name="loss", points=((0.0, 4.0), (100.0, 2.0)), color="c1")
    drawing = line_chart([series], description="d", references=[Reference(name="entropy", value=3.0)])
    (x_first, y_first), (x_last, y_last) = corners(drawing, "stroke: var(--c1)")[0]
    assert x_last > x_first
    assert y_last > y_first
    ((_, reference), (_, same)) = corners(drawing, "stroke-dasharray")[0]
    assert reference == same == pytest.approx((y_first + y_last) / 2)
    assert {"loss", "entropy", "iteration"} <= set(texts(drawing))


def test_the_value_axis_ends_at_round_numbers() -> None:
    drawing = line_chart(
        [Series(name="loss", points=((0.0, 6.9), (400.0, 3.1)), color="c1")], description="d"
    )
    assert {"3", "7", "0", "400"} <= set(texts(drawing))
    zero_based = line_chart(
        [Series(name="loss", points=((0.0, 0.9), (400.0, 0.3)), color="c1")],
        description="d",
        from_zero=True,
        top=3.0,
    )
    assert {"0", "3"} <= set(texts(zero_based))


@pytest.mark.parametrize("iteration", [0.0, 10.0])
def test_a_single_point_can_be_drawn(iteration: float) -> None:
    drawing = line_chart([Series(name="loss", points=((iteration, 4.0),), color="c1")], description="d")
    assert drawing.count("<use ") == 1


def test_only_short_curves_have_dots() -> None:
    points = tuple((float(at), float(at % 7)) for at in range(31))
    drawing = line_chart([Series(name="loss", points=points, color="c1")], description="d")
    assert drawing.count("<use ") == 0


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    points = tuple((float(at), float(at)) for at in range(10_000))
    thinned = thin_out(points, 100)
    assert len(thinned) == 100
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert thin_out(points[:50], 100) == points[:50]


@pytest.mark.parametrize(("ramp", "text"), [(LIGHT_RAMP, DARK_TEXT), (DARK_RAMP, LIGHT_TEXT)])
@pytest.mark.parametrize("num_colors", [1, 2, 4, 9])
def test_text_stays_readable_on_every_step_colour(ramp: tuple[Rgb, ...], text: Rgb, num_colors: int) -> None:
    colors = step_colors(ramp, num_colors)
    assert len(set(colors)) == num_colors
    for color in colors:
        assert contrast(rgb(color), text) >= 4.5


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)


@pytest.mark.parametrize("colors", [LIGHT, DARK])
def test_curves_and_text_stand_out_from_the_page(colors: dict[str, str]) -> None:
    for background in ("page", "card"):
        for role in ("ink", "muted"):
            assert contrast(rgb(colors[role]), rgb(colors[background])) >= 4.5
        for index in range(NUM_CURVE_COLORS):
            assert contrast(rgb(colors[f"c{index + 1}"]), rgb(colors[background])) >= 3.0


def test_light_and_dark_pages_have_the_same_roles() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


def difference(first: Rgb, second: Rgb) -> float:
    """Distance of two colours in CIE L*a*b*; about 2 can just be seen side by side."""
    return math.dist(lab(first), lab(second))


def lab(color: Rgb) -> tuple[float, float, float]:
    linear = [((part / 255 + 0.055) / 1.055) ** 2.4 if part > 10 else part / 255 / 12.92 for part in color]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(map(operator.mul, row, linear)) for row in rows]
    x, y, z = (
        cube ** (1 / 3) if cube > 0.008856 else 7.787 * cube + 16 / 116
        for cube in (value / white for value, white in zip(xyz, (0.95047, 1.0, 1.08883), strict=True))
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("ramp", [LIGHT_RAMP, DARK_RAMP])
def test_steps_can_be_told_apart_and_rise_in_one_direction(ramp: tuple[Rgb, ...]) -> None:
    assert difference((255, 255, 255), (0, 0, 0)) == pytest.approx(100, abs=0.1)
    for num_colors in range(2, 10):
        colors = [rgb(color) for color in step_colors(ramp, num_colors)]
        steps = [difference(*pair) for pair in itertools.pairwise(colors)]
        assert min(steps) > (24 if num_colors <= 4 else 9)
        lightness = [lab(color)[0] for color in colors]
        assert lightness in (sorted(lightness), sorted(lightness, reverse=True))


def test_a_terminal_of_16_colours_has_a_background_of_its_own_for_every_step() -> None:
    backgrounds = [style.rpartition(" on ")[2] for style in BASIC_STYLES]
    assert len(set(backgrounds)) == len(backgrounds)
    assert all(style.partition(" on ")[0] != style.rpartition(" on ")[2] for style in BASIC_STYLES)


def marks(drawing: str) -> list[tuple[float, float, list[str]]]:
    """Return the left and right ends of the areas that show values, and what they show."""
    found = []
    for group in ElementTree.fromstring(drawing).iter("g"):
        if group.get("class") == "mark":
            area = group.find("rect")
            assert area is not None
            left = float(area.get("x", ""))
            found.append(
                (left, left + float(area.get("width", "")), texts(ElementTree.tostring(group, "unicode")))
            )
    return found


def test_every_bar_shows_its_value_where_it_is() -> None:
    drawing = draw_bars(1.0, 2.5)
    (first_left, first_right, first), (second_left, second_right, second) = marks(drawing)
    assert (first, second) == (["name 0: <1>"], ["name 1: <2.5>"])
    bars = [[x for x, _ in bar] for bar in corners(drawing, "fill: var(--c1)")]
    assert first_left < min(bars[0]) < max(bars[0]) < first_right
    assert second_left < min(bars[1]) < max(bars[1]) < second_right


def test_a_place_on_a_chart_shows_the_values_of_all_lines_there() -> None:
    every = Series(name="every", points=tuple((float(at), at / 10) for at in range(0, 41, 10)), color="c1")
    some = Series(name="some", points=((10.0, 7.0), (30.0, 9.0)), color="c2")
    found = marks(line_chart([every, some], description="d"))
    shown = [lines for _, _, lines in found]
    assert shown == [
        ["iteration 0", "every 0"],
        ["iteration 10", "every 1", "some 7"],
        ["iteration 20", "every 2", "some 7 (at 10)"],
        ["iteration 30", "every 3", "some 9"],
        ["iteration 40", "every 4"],
    ]
    for (_, right, _), (left, _, _) in itertools.pairwise(found):
        assert left == pytest.approx(right, abs=1.5)


def test_long_curves_have_marks_that_are_wide_enough() -> None:
    series = Series(name="loss", points=tuple((float(at), 1.0) for at in range(5000)), color="c1")
    found = marks(line_chart([series], description="d", size=(336.0, 250.0)))
    assert len(found) == 28
    assert all(right - left > 8 for left, right, _ in found[1:-1])


def test_values_of_all_sizes_fit_on_a_logarithmic_axis() -> None:
    series = Series(name="norm", points=((0.0, 0.6), (1.0, 40.0)), color="c1")
    drawing = line_chart([series], description="d", logarithmic=True)
    assert {"0.1", "1", "10", "100"} <= set(texts(drawing))


def test_a_chart_can_be_over_a_cost() -> None:
    axis = HorizontalAxis(name="cost", format="<{:g}>".format, from_zero=False)
    series = Series(name="loss", points=((1000.0, 4.0), (1010.0, 2.0)), color="c1")
    drawing = line_chart([series], description="d", over=axis)
    assert {"cost", "<1005>"} <= set(texts(drawing))
    assert "<0>" not in texts(drawing)
