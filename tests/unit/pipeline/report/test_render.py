import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.evaluation.results import SampleToken, TextSample
from pipeline.report.render import headline_tiles, render_report, write_report
from tests.unit.pipeline.report.sample_data import made_up_report

VOID = {"meta"}


class Outline(HTMLParser):
    """Checks that every element is closed and collects text, tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(made_up_report())


def test_the_page_is_well_formed_and_has_every_section(page: str) -> None:
    text = " ".join(outline(page).text)
    for heading in ("Learning", "A text, token by token", "Pondering", "Look further", "The run"):
        assert heading in text
    for title in (
        "Loss, nats per token",
        "Tokens by steps taken",
        "Mean steps by the token's own loss",
        "Pruned fraction by step",
        "Pruned fraction during training",
        "Mean steps during training",
        "Loss by steps taken",
        "Loss by steps allowed",
        "Jacobi residual by sweep",
    ):
        assert title in text


def test_the_page_shows_the_numbers(page: str) -> None:
    text = " ".join(outline(page).text)
    for number in ("3.252", "5.903", "1.88", "27%", "5,321", "40,960", "2.60 steps", "by 0.40"):
        assert number in text
    assert "tensorboard --logdir runs/demo/tensorboard" in text
    assert "num_layers: 4" in text
    assert "runs/demo/checkpoints/iter_0000400" in text


def test_the_page_loads_nothing(page: str) -> None:
    found = outline(page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(found.tags)
    assert not {"src", "srcset", "data"} & {name for name, _ in found.attributes}
    assert all((value or "").startswith("#") for name, value in found.attributes if name.endswith("href"))
    assert not re.search(r"https?://|url\(|@import", page)


def test_pieces_are_escaped() -> None:
    sample = TextSample(
        checkpoint="c",
        num_latent_thoughts=3,
        pruning_threshold=None,
        tokens_per_second=None,
        tokens=(SampleToken(piece="<script>&\"'", steps=2, nll=0.0, is_prompt=False),),
    )
    page = render_report(dataclasses.replace(made_up_report(), sample=sample, name="a<b>&c"))
    found = outline(page)
    assert "script" not in found.tags
    assert "&lt;script&gt;&amp;" in page
    assert "a&lt;b&gt;&amp;c" in page
    assert ("title", "2 of 3 steps, probability 100.0% (0.00 nats), generated") in found.attributes


def test_every_token_of_the_sample_is_coloured_by_its_steps(page: str) -> None:
    report = made_up_report()
    assert report.sample is not None
    steps = re.findall(r'<span class="s(\d)" title="(\d) of 3 steps', page)
    assert [int(shown) for shown, _ in steps] == [token.steps for token in report.sample.tokens]
    assert page.count("the model continues") == 1


def test_the_sample_reads_as_the_text_itself(page: str) -> None:
    report = made_up_report()
    assert report.sample is not None
    shown = page.split('<div class="sample">')[1].split("</div>")[0]
    shown = re.sub(r"<i [^>]*>.*?</i>|<b .*?</b>|<[^>]*>", "", shown)
    unescaped = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace("&amp;", "&")
    assert unescaped == "".join(token.piece for token in report.sample.tokens)


def test_identifiers_are_unique_and_every_reference_has_its_target(page: str) -> None:
    attributes = outline(page).attributes
    identifiers = [value for name, value in attributes if name == "id"]
    references = {(value or "")[1:] for name, value in attributes if name == "href"}
    assert len(set(identifiers)) == len(identifiers)
    assert references
    assert references <= set(identifiers)


def test_charts_take_every_colour_from_the_page(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    roles = set(re.findall(r"var\(--(\w+)\)", drawings))
    assert not re.search(r"#[0-9a-f]{6}\b", drawings)
    assert {"ink", "muted", "line", "axis", "c1", "c2", "c3", "c4", "s0", "s1", "s2", "s3"} == roles
    # Light, dark and print.
    assert all(page.count(f"--{role}: #") >= 3 for role in roles)


def test_drawings_are_described_for_screen_readers(page: str) -> None:
    found = outline(page)
    assert page.count('role="img"') == page.count("<svg")
    labels = [value or "" for name, value in found.attributes if name == "aria-label"]
    assert all(len(label) > 20 for label in labels)
    assert len(labels) == page.count("<svg")


def test_a_model_that_does_not_ponder_gets_a_shorter_page() -> None:
    plain = dataclasses.replace(
        made_up_report(),
        method="vanilla",
        num_latent_thoughts=0,
        pruning_threshold=None,
        steps_count=(),
        mean_steps_curve=(),
        pruned_curves=(),
        nll_by_steps=(),
        loss_quartiles=(),
        residuals=(),
        steps_allowed=(),
        flops_saved=None,
        sample=None,
    )
    text = " ".join(outline(render_report(plain)).text)
    assert "Pondering" not in text
    assert "Loss, nats per token" in text
    assert [tile.name for tile in headline_tiles(plain)] == [
        "held-out loss, nats per token",
        "tokens per second in training",
    ]


def test_writing_the_report_leaves_only_the_report(tmp_path: Path, page: str) -> None:
    write_report(made_up_report(), tmp_path / "run" / "report.html")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["report.html"]
    assert (tmp_path / "run" / "report.html").read_text() == page
