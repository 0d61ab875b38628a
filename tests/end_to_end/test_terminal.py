"""What commands print where names and texts are hostile, and where the terminal cannot show them."""

import shutil
from pathlib import Path

import pytest

from tests.support.commands import Finished, megaponder
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus
from tests.support.runs import NUM_ITERATIONS, one_rank, written_events
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

# Ends rich's markup, clears the screen, a C1 control, no ASCII.
HOSTILE = "a[/red] \x1b[2J \x9b caf\u00e9"
ENCODINGS = ("utf-8", "ascii")


@pytest.fixture(scope="module")
def hostile(trained: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("hostile") / HOSTILE
    shutil.copytree(trained.folder, folder)
    return folder


def assert_shows_no_raw_text(command: Finished, *, exit_code: int = 0) -> None:
    assert command.exit_code == exit_code, command.stderr
    assert "Traceback" not in command.stderr
    printed = command.stdout + command.stderr
    assert not {"\x1b", "\x9b"} & set(printed)
    assert "\\x1b" in printed


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("checkpoint", "list", "{run}/checkpoints"),
        ("checkpoint", "verify", "{run}/checkpoints"),
        ("checkpoint", "show", "{run}/checkpoints"),
        ("checkpoint", "diff", "{run}/checkpoints", "{run}/checkpoints"),
        ("generate", "{run}/checkpoints", "--prompt", HOSTILE, "--max-new-tokens", "2"),
        ("eval", "{run}/checkpoints", "--iters", "1"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_commands_escape_what_comes_from_outside(
    hostile: Path, arguments: tuple[str, ...], encoding: str
) -> None:
    command = megaponder(
        *(part.replace("{run}", str(hostile)) for part in arguments),
        variables={"PYTHONIOENCODING": encoding},
    )
    assert_shows_no_raw_text(command)


@pytest.mark.parametrize(
    "arguments",
    [
        ("checkpoint", "list", "nowhere{name}"),
        ("checkpoint", "show", "nowhere", "{name}"),
        ("data", "inspect", "nowhere{name}"),
        ("data", "inspect", "nowhere", "--{name}"),
        ("train", "--config", "nowhere{name}"),
        ("train", "--config", "nowhere", "--option{name}"),
        ("report", "nowhere{name}"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_errors_escape_what_was_typed(arguments: tuple[str, ...]) -> None:
    command = megaponder(*(part.replace("{name}", HOSTILE) for part in arguments))
    assert command.exit_code in (2, 93)
    assert_shows_no_raw_text(command, exit_code=command.exit_code)


def test_a_prompt_with_a_byte_that_is_no_character_is_refused(trained: TrainedRun) -> None:
    command = megaponder("generate", str(trained.checkpoints), "--prompt", "caf\udce9")
    assert command.exit_code == 2
    assert "Traceback" not in command.stderr


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_documents_are_inspected_without_their_escape_sequences(tmp_path: Path, encoding: str) -> None:
    source = write_corpus(tmp_path / "texts")
    for path in (tmp_path / "texts").rglob("document_*.txt"):
        path.write_text(f"{HOSTILE}\n{path.read_text()}")
    tokenizer = train_small_tokenizer(source, tmp_path / "tokenizer.model")
    prepare_here(source, tokenizer, tmp_path / HOSTILE)
    command = megaponder(
        "data", "inspect", str(tmp_path / HOSTILE), "--verify", variables={"PYTHONIOENCODING": encoding}
    )
    assert_shows_no_raw_text(command)


def test_a_log_that_nobody_reads_ends_no_training(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = one_rank(folder, "metrics.tensorboard=false")
    command = megaponder("train", "--config", str(recipe), *settings, is_read=False)
    assert command.exit_code == 0
    assert [row["iteration"] for row in written_events(folder)] == list(range(1, NUM_ITERATIONS + 1))
    assert f"iteration {NUM_ITERATIONS:8}" in (folder / "stderr.log").read_text()


@pytest.mark.parametrize(
    "arguments", [("--help",), ("data",), ("checkpoint", "list", "{run}"), ("checkpoint", "list", "nowhere")]
)
def test_commands_end_as_usual_when_nobody_reads_their_output(
    trained: TrainedRun, arguments: tuple[str, ...]
) -> None:
    arguments = tuple(part.replace("{run}", str(trained.checkpoints)) for part in arguments)
    expected = megaponder(*arguments).exit_code
    assert megaponder(*arguments, is_read=False).exit_code == expected
