"""Every command in the code blocks of README and docs runs as it is written, in a folder of a new user.

What they work on is tiny, and options and settings that shorten their work are appended. A line that needs
more than this machine is marked on its page; see `tests.support.documented_commands`. Lines of torchrun are
not run: their ranks are new processes, which other tests start.
"""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.bench.conversion import NeoxSizes, make_model
from tests.support.commands import Finished, megaponder
from tests.support.corpus import VOCAB_SIZE, write_corpus
from tests.support.documented_commands import NEEDS, PAGES, REPOSITORY, lines_of, lines_to_run

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

TRAINING = ("train-iters=8", "evaluation.iters=1", "metrics.interval=1")
SHORTER: Mapping[str, tuple[str, ...]] = {
    "tokenizer train": ("--vocab-size", str(VOCAB_SIZE)),
    "data prepare": ("--heldout-fraction", "0.3"),
    "train": TRAINING,
    "eval": ("--iters", "1", "--no-timing"),
    "compare": ("--iters", "1", "--no-timing"),
    "convergence": ("--rows", "1", "--tokens", "8", "--sweeps", "2"),
    "verify": ("--rows", "1", "--tokens", "8"),
    "generate": ("--max-new-tokens", "4"),
}
# The pages that begin with a text; the others work on what these have made.
FIRST = ("tutorial.md", "README.md")
# Runs of other pages, all of which are the tutorial's.
OTHER_RUNS = ("demo", "vanilla", "ponderlm2", "ponderlm3")
PUBLISHED = ("pythia-2.8b", "pythia-410m")
SIZES = NeoxSizes(num_layers=1, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=VOCAB_SIZE)
TO_RUN = {page.name: lines for page in PAGES if (lines := lines_to_run(page))}


def shape_of(line: str) -> tuple[str, ...]:
    """Return a line without the values of its arguments, options and settings."""
    words = shlex.split(line, comments=True)
    names = (word.partition("=")[0] for word in words if "=" in word or re.fullmatch("-*[a-z-]+", word))
    return tuple(names)


def new_lines() -> list[str]:
    """Return the lines of the other pages whose shape no earlier line has."""
    pages = [*FIRST, *(name for name in TO_RUN if name not in FIRST)]
    shapes: dict[tuple[str, ...], tuple[str, str]] = {}
    for name in pages:
        for line in TO_RUN[name]:
            shapes.setdefault(shape_of(line), (name, line))
    return [line for name, line in shapes.values() if name not in FIRST]


def run_line(line: str, folder: Path) -> Finished:
    """Run a line of a page in a folder, shortened."""
    words = shlex.split(line, comments=True)[1:]
    shorter = SHORTER.get(words[0], SHORTER.get(" ".join(words[:2]), ()))
    return megaponder(*words, *shorter, folder=folder)


def run_page(name: str, folder: Path) -> Path:
    """Run all lines of a page in the folder of a new user, who has a text and a checkout."""
    corpus = folder / "corpus"
    write_corpus(corpus)
    for file in list(corpus.rglob("*.txt")):
        shutil.copy(file, file.with_suffix(".md"))
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "recipes").symlink_to(REPOSITORY / "pipeline" / "recipes")
    for line in TO_RUN[name]:
        done = run_line(line, folder)
        assert done.exit_code == 0, f"{line}\n{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_page("tutorial.md", tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="module")
def place(tutorial: Path) -> Path:
    """The folder of the tutorial, with what the examples of the other pages work on."""
    pondering = tutorial / "runs" / "pondering"
    for name in OTHER_RUNS:
        shutil.copytree(pondering, pondering.with_name(name))
    (tutorial / "runs" / "pile").symlink_to("data")
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    (tutorial / "run.yaml").write_text(page.split("```yaml\n")[1].partition("```")[0])
    for name in PUBLISHED:
        make_model(SIZES, tutorial / name, dtype=torch.float16)
        shutil.copy(tutorial / "runs" / "tokenizer.model", tutorial / name)
    (tutorial / "prompts.jsonl").write_text(json.dumps({"prompt": "def "}) + "\n")
    # Each example of a conversion writes it.
    shutil.rmtree(tutorial / "exported")
    return tutorial


def test_the_tutorial_goes_from_a_text_to_an_exported_model(tutorial: Path) -> None:
    runs = tutorial / "runs"
    assert json.loads((runs / "pondering" / "evaluation.json").read_text())["method"] == "ponderlm3"
    assert (runs / "compare.png").is_file()
    for run in ("plain", "pondering"):
        assert (runs / run / "pruning_curve.json").is_file()
    assert "<html" in (runs / "pondering" / "report.html").read_text()


def test_the_tour_of_the_readme_trains_on_two_ranks(tmp_path: Path) -> None:
    folder = run_page("README.md", tmp_path)
    identity = json.loads((folder / "runs" / "tiny_ponderlm3" / "identity.json").read_text())
    assert identity["method"] == "ponderlm3"


@pytest.mark.parametrize("line", new_lines())
def test_an_example_runs(place: Path, line: str) -> None:
    done = run_line(line, place)
    assert done.exit_code == 0, done.stderr
    shutil.rmtree(place / "exported", ignore_errors=True)


def test_what_is_not_run_says_what_it_needs() -> None:
    marks = {line.needs for page in PAGES for line in lines_of(page.read_text(encoding="utf-8"))}
    assert marks == {None, *NEEDS}
