import re
from xml.etree import ElementTree

import pytest

from pipeline.report.colored_text import ColoredText
from pipeline.report.colors import LIGHT_RAMP, step_colors
from pipeline.report.render import shown_tokens
from tests.unit.pipeline.report.sample_data import made_up_sample


def spans(text: ColoredText) -> list[ElementTree.Element]:
    """Return the elements of tokens, which have a title."""
    html = text._repr_html_().replace("&nbsp;", " ")
    return [span for span in ElementTree.fromstring(html).iter("span") if "title" in span.attrib]


def test_a_token_is_escaped_and_has_the_colour_of_its_steps() -> None:
    pieces, steps = ("<b>", "&", "", "a\n"), (2, 0, 1, 2)
    found = spans(ColoredText(pieces=pieces, steps=steps, most_steps=2))

    assert [span.text or "" for span in found] == ["<b>", "&", "", "a\u21b5\n"]
    colors = step_colors(LIGHT_RAMP, 3)
    assert [re.findall("#[0-9a-f]{6}", span.attrib["style"])[0] for span in found] == [
        colors[step] for step in steps
    ]
    assert [int(re.findall(r"(\d)px", span.attrib["style"])[0]) for span in found] == [2, 0, 1, 2]


def test_the_legend_counts_the_tokens_of_each_colour() -> None:
    html = ColoredText(pieces=("a", "b", "c"), steps=(3, 0, 3), most_steps=3)._repr_html_()
    assert [int(count) for count in re.findall(r"(\d+) tokens", html)] == [1, 0, 0, 2]


def test_it_shows_a_sample_as_the_report_does() -> None:
    sample = made_up_sample()
    text = ColoredText(
        pieces=[token.piece for token in sample.tokens],
        steps=[token.steps for token in sample.tokens],
        most_steps=sample.num_latent_thoughts,
    )
    in_report = shown_tokens(sample)
    found = spans(text)
    assert [(span.text or "").replace("\u21b5", "") for span in found] == [token.text for token in in_report]
    assert all(
        token.tooltip.startswith(span.attrib["title"]) for token, span in zip(in_report, found, strict=True)
    )


@pytest.mark.parametrize("steps", [(0,), (0, 3), (-1, 0)])
def test_steps_that_do_not_fit_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="steps"):
        ColoredText(pieces=("a", "b"), steps=steps, most_steps=2)
