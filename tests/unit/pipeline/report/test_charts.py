import re

import pytest

from pipeline.report import svg
from pipeline.report.charts import Bar, Reference, Series, bar_chart, line_chart, thin_out
from pipeline.report.colors import DARK_RAMP, LIGHT_RAMP, Rgb, contrast, step_colors

LIGHT_TEXT, DARK_TEXT = (236, 234, 228), (29, 35, 48)


def heights_of_bars(drawing: str) -> list[float]:
    return [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', drawing)]


def test_bars_are_as_high_as_their_values() -> None:
    bars = [Bar(name=name, value=value, css="c1") for name, value in (("a", 1.0), ("b", 2.0), ("c", 0.0))]
    heights = heights_of_bars(bar_chart(bars, description="d", axis="x", write="{:g}".format))
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.1)
    assert heights[2] == 0.0


def test_bars_that_are_all_zero_can_be_drawn() -> None:
    drawing = bar_chart([Bar(name="a", value=0.0, css="c1")], description="d", axis="x", write="{:g}".format)
    assert heights_of_bars(drawing) == [0.0]


def test_lines_fall_when_values_fall() -> None:
    series = Series(name="loss", points=((0.0, 4.0), (100.0, 2.0)), css="c1")
    drawing = line_chart([series], description="d", references=[Reference(name="entropy", value=3.0)])
    (places,) = re.findall(r'<polyline points="([^"]*)"', drawing)
    (x_first, y_first), (x_last, y_last) = (map(float, place.split(",")) for place in places.split())
    assert x_last > x_first
    assert y_last > y_first
    (reference,) = re.findall(r'y1="([\d.]+)"[^>]*class="reference"', drawing)
    assert y_first < float(reference) < y_last


def test_a_single_point_can_be_drawn() -> None:
    drawing = line_chart([Series(name="loss", points=((10.0, 4.0),), css="c1")], description="d")
    assert drawing.count("<circle") == 1


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    points = tuple((float(at), float(at)) for at in range(10_000))
    thinned = thin_out(points, 100)
    assert len(thinned) == 100
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert thin_out(points[:50], 100) == points[:50]


def test_svg_text_and_attributes_are_escaped() -> None:
    assert svg.label((1, 2), "<&>", 'a"b') == (
        '<text x="1" y="2" class="a&#34;b" text-anchor="start">&lt;&amp;&gt;</text>'
    )


@pytest.mark.parametrize(("ramp", "text"), [(LIGHT_RAMP, DARK_TEXT), (DARK_RAMP, LIGHT_TEXT)])
@pytest.mark.parametrize("num_colors", [1, 2, 4, 9])
def test_text_stays_readable_on_every_step_colour(ramp: tuple[Rgb, ...], text: Rgb, num_colors: int) -> None:
    colors = step_colors(ramp, num_colors)
    assert len(set(colors)) == num_colors
    for color in colors:
        red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
        assert contrast((red, green, blue), text) >= 4.5


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
