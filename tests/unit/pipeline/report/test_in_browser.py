"""The report in a real browser: it fits wide and narrow pages, and shows values on request."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.render import render_report
from scripts.screenshots.browser import find_chromium, open_page
from tests.unit.pipeline.report.sample_data import few_figures, made_up_report

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium")

# The size of the smallest visible text in charts, in CSS pixels.
SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll("svg")]
  .filter(svg => svg.getBoundingClientRect().width)
  .map(svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width
    * Math.min(...[...svg.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize)))
))"""
NUM_CHARTS = """[...document.querySelectorAll("figure")].map(figure =>
  [...figure.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width).length)"""
PRESS = """(selector => {
  const place = [...document.querySelectorAll(selector)].find(one => one.getBoundingClientRect().width);
  for (let times = 0; times < 2; times++)
    place.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true, cancelable: true}));
  const tip = place.querySelector(".on .tip");
  return [tip ? getComputedStyle(tip).visibility : "", place.querySelector(".on").textContent.trim()];
})"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a browser finds on the pages, from one start of it."""
    folder = tmp_path_factory.mktemp("pages")
    one, two = folder / "one.html", folder / "two.html"
    one.write_text(render_report([made_up_report()]))
    few = few_figures()
    two.write_text(render_report([few, few], ["a", "a run with a name that is quite long, for a table"]))
    return asyncio.run(look(one, two))


async def look(one: Path, two: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with open_page() as page:
        for path in (one, two):
            for width in (320, 390, 1280):
                await page.emulate(width=width, height=844, scheme="dark" if width == 390 else "light")
                await page.open(path.as_uri())
                found[f"{path.stem} {width}"] = {
                    "width": await page.evaluate("document.documentElement.scrollWidth"),
                    "text": await page.evaluate(SMALLEST_TEXT),
                    "charts": await page.evaluate(NUM_CHARTS),
                }
        await page.emulate(width=390, height=844, scheme="light")
        await page.open(one.as_uri())
        found["chart"] = await page.evaluate(f"{PRESS}('figure svg')")
        found["token"] = await page.evaluate(f"{PRESS}('.sample')")
        found["reading"] = await page.evaluate("document.querySelector('.reading').textContent")
        click = "document.querySelector('.sample span[title]').click()"
        found["clicked"] = await page.evaluate(f"{click}, document.querySelector('.reading').textContent")
    return found


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("page", ["one", "two"])
def test_nothing_scrolls_sideways_and_every_figure_has_one_legible_chart(
    seen: dict[str, Any], page: str, width: int
) -> None:
    found = seen[f"{page} {width}"]
    assert found["width"] <= width
    assert set(found["charts"]) <= {0, 1}
    assert 1 in found["charts"]
    assert found["text"] >= (12 if width >= 390 else 9)


def test_arrow_keys_show_the_values_of_a_chart(seen: dict[str, Any]) -> None:
    # The second place: the steps above the threshold.
    assert seen["chart"] == ["visible", "inference FLOPs per token 6.90 Mloss 3.26"]


def test_a_token_says_its_steps_by_the_keys_and_by_a_tap(seen: dict[str, Any]) -> None:
    tokens = made_up_report().samples[0].tokens
    assert seen["token"][1] == tokens[1].piece.strip()
    assert seen["reading"].startswith(f"{tokens[1].steps} of 3 steps, probability")
    assert seen["clicked"].startswith(f"{tokens[0].steps} of 3 steps")
