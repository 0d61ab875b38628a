import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.evaluation.results import SampleToken, TextSample
from pipeline.report.render import headline_tiles, render_report, write_report
from pipeline.report.runs import have_same_text, labels_of
from tests.unit.pipeline.report.sample_data import few_figures, made_up_report

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
    return render_report([made_up_report()])


def test_the_page_is_well_formed_and_has_every_section(page: str) -> None:
    text = " ".join(outline(page).text)
    for heading in (
        "Was it worth it?",
        "Learning",
        "Tasks",
        "A text, token by token",
        "Pondering",
        "Look further",
        "The run",
    ):
        assert heading in text
    for title in (
        "Loss by cost",
        "Loss, nats per token",
        "Learning rate",
        "Gradient norm",
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
    assert not {"link", "img", "iframe", "object", "embed"} & set(found.tags)
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
    page = render_report([dataclasses.replace(few_figures(), samples=(sample,), name="a<b>&c")])
    found = outline(page)
    # The page's own.
    assert found.tags.count("script") == 1
    assert "&lt;script&gt;&amp;" in page
    assert "a&lt;b&gt;&amp;c" in page
    assert ("title", "2 of 3 steps, probability 100.0% (0.00 nats), generated") in found.attributes


def test_every_token_of_the_sample_is_coloured_by_its_steps(page: str) -> None:
    report = made_up_report()
    (sample,) = report.samples
    steps = re.findall(r'<span class="s(\d)" title="(\d) of 3 steps', page)
    assert [int(shown) for shown, _ in steps] == [token.steps for token in sample.tokens]
    assert page.count("the model continues") == 1


def test_the_sample_reads_as_the_text_itself(page: str) -> None:
    report = made_up_report()
    (sample,) = report.samples
    shown = re.split('<div class="sample".*?>', page)[1].split("</div>")[0]
    shown = re.sub(r"<i [^>]*>.*?</i>|<b .*?</b>|<[^>]*>", "", shown)
    unescaped = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace("&amp;", "&")
    assert unescaped == "".join(token.piece for token in sample.tokens)


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
    curves = {"c1", "c2", "c3", "c4", "c6", "accent"}
    assert {"ink", "muted", "line", "axis", "s0", "s1", "s2", "s3"} | curves == roles
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
        samples=(),
        worth=(),
        tasks=None,
        speeds=(),
    )
    text = " ".join(outline(render_report([plain])).text)
    assert "Pondering" not in text
    assert "Loss, nats per token" in text
    assert [tile.name for tile in headline_tiles(plain)] == [
        "held-out loss, nats per token",
        "tokens per second in training",
    ]


def test_writing_the_report_leaves_only_the_report(tmp_path: Path, page: str) -> None:
    write_report(page, tmp_path / "run" / "report.html")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["report.html"]
    assert (tmp_path / "run" / "report.html").read_text() == page


def test_the_first_thing_said_is_what_the_steps_are_worth(page: str) -> None:
    headings = re.findall("<h2 .*?>(.*?)</h2>", page)
    assert headings[0] == "Was it worth it?"
    first = page.split("<h2 ")[1]
    for number in ("3.2500", "3.2600", "3.6100", "9.00 MFLOPs", "6.90 MFLOPs", "3.00 MFLOPs", "4.00", "1.60"):
        assert f"<td>{number}</td>" in first


def test_tasks_are_shown_with_their_errors_and_costs(page: str) -> None:
    tasks = page.split('<h2 id="tasks">')[1].split("</table>")[0]
    for shown in ("piqa", "0.5625 &plusmn; 0.0125", "0.5875", "1.625", "6.00 MFLOPs"):
        assert shown in tasks


def test_every_chart_has_a_drawing_for_a_phone(page: str) -> None:
    widths = re.findall(r'<div class="fit ([\w ]+)"><svg viewBox="0 0 ([\d.]+)', page)
    assert {float(width) for names, width in widths if "narrow" in names.split()} == {336.0}
    figures = page.count("<figure")
    for name in ("wide", "middle", "narrow"):
        assert sum(name in names.split() for names, _ in widths) == figures


def test_charts_take_the_focus_and_have_their_values(page: str) -> None:
    assert len(re.findall('<svg [^>]*tabindex="0"', page)) == page.count("<svg")
    tips = set(re.findall(r'<text x="[\d.]+" y="[\d.]+">(.*?)</text>', page))
    # Of a bar, and of a point of two curves.
    assert {"2: 39.1%", "iteration 400", "learning rate 0.001"} <= tips


def test_several_runs_are_compared_in_one_page() -> None:
    report = few_figures()
    other = dataclasses.replace(
        report, name="other", num_latent_thoughts=0, worth=(), samples=(), heldout_loss=3.5
    )
    page = render_report([report, other, report], ["a", "b", "c"], written_by="somebody")
    found = outline(page)
    identifiers = [value for name, value in found.attributes if name == "id"]
    assert len(set(identifiers)) == len(identifiers)
    assert page.count('<details class="run">') == 3
    table = page.split("</table>")[0]
    # Three ways to run the first and the last, one of the other; the best is marked.
    assert table.count("<tr") - 1 == 7
    assert re.findall('class="best">(.*?)<', table) == ["3.2500", "3.2500"]
    for title in ("Loss by inference FLOPs", "Loss by time", "Held-out loss", "Training loss"):
        assert f"<h3>{title}</h3>" in page
    assert 'class="warning"' not in page
    assert "somebody" in page


def test_runs_on_different_texts_come_with_a_warning() -> None:
    report = few_figures()
    other = dataclasses.replace(report, unigram_entropy=5.0)
    assert have_same_text([report, report])
    assert not have_same_text([report, other])
    assert 'class="warning"' in render_report([report, other], ["a", "b"])


def test_runs_of_one_name_are_called_by_their_folders() -> None:
    report = made_up_report()
    assert labels_of([report, report], [Path("x"), Path("y")]) == ["x", "y"]
    folders = [Path("/one/first/runs/demo"), Path("/one/second/demo")]
    assert labels_of([report, report], folders) == ["first/runs/demo", "second/demo"]
    assert labels_of([report], [Path("x")]) == ["demo"]
