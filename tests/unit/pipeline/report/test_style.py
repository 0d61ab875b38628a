import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes

from pipeline.report.colors import LIGHT
from pipeline.report.style import css_placeholder, render_png, render_svg, styled_axes

SIZE = (400.0, 200.0)


def draw(axes: Axes) -> None:
    axes.plot([0, 1], [2, 3], color=css_placeholder("c2"), marker="o", label="a <b> & 'c'")
    axes.bar([0], [1], color=css_placeholder("s12"))
    axes.legend()


def svg(description: str = "A line.", size: tuple[float, float] = SIZE) -> str:
    with styled_axes(size) as axes:
        draw(axes)
        return render_svg(axes, description)


def test_an_svg_is_one_described_element_with_selectable_text() -> None:
    root = ElementTree.fromstring(svg('Loss "now" < 3 & falling'))

    assert root.tag == "svg"
    assert root.attrib == {
        "viewBox": "0 0 400 200",
        "role": "img",
        "aria-label": 'Loss "now" < 3 & falling',
    }
    assert "a <b> & 'c'" in [text.text for text in root.iter("text")]


def test_colours_become_variables_of_the_page() -> None:
    drawing = svg()

    assert {"c2", "s12", "ink", "line", "axis", "muted"} == set(re.findall(r"var\(--(\w+)\)", drawing))
    assert re.search("#[0-9a-f]{6}", drawing) is None


def test_every_role_has_a_placeholder_of_its_own() -> None:
    roles = [*LIGHT, *(f"s{step}" for step in range(300))]

    placeholders = {css_placeholder(role) for role in roles}
    assert len(placeholders) == len(roles)
    # Black is what matplotlib draws without a colour of ours.
    assert "#000000" not in placeholders


def test_equal_figures_give_equal_text_and_different_ones_share_no_identifiers() -> None:
    first = svg("first")
    identifiers = set(re.findall(' id="(.*?)"', first))

    assert svg("first") == first
    for other in (svg("second"), svg("first", (300.0, 200.0))):
        assert identifiers
        assert identifiers.isdisjoint(re.findall(' id="(.*?)"', other))


def test_settings_of_the_machine_have_no_influence_and_stay_as_they_are() -> None:
    expected = svg()

    with mpl.rc_context({"font.size": 30.0, "lines.linewidth": 9.0, "axes.grid": True}):
        before = dict(mpl.rcParams)
        assert svg() == expected
        assert dict(mpl.rcParams) == before


def test_a_png_has_colours_of_its_own() -> None:
    with styled_axes(SIZE, LIGHT.__getitem__) as axes:
        axes.plot([0, 1], [2, 3])
        assert render_png(axes).startswith(b"\x89PNG")


def test_an_unknown_role_is_rejected() -> None:
    with pytest.raises(ValueError, match="nothing"):
        css_placeholder("nothing")
