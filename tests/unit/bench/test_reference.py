"""`python -m tests.bench compare-reference`: options, the comparison before timing, and the record."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.config.load import build_config
from pipeline.shared.errors import DataError
from pipeline.shared.exit_codes import ExitCode
from tests.bench import reference_own_worker, reference_worker
from tests.bench.cli import app
from tests.bench.reference import (
    FIRST_LOSS_TOLERANCE,
    LATER_LOSS_TOLERANCE,
    OURS,
    Batch,
    DifferentResultsError,
    Side,
    SideFailedError,
    check_losses,
    check_tokens,
)
from tests.bench.reference_cases import (
    CASES,
    MODEL_FOLDER,
    PARTS,
    ComparisonSizes,
    Precision,
    model_files,
    task_of,
)
from tests.bench.reference_record import commit_of, read_record, render_record
from tests.bench.reference_worker import ACTIONS as THEIR_ACTIONS
from tests.bench.reference_worker import do, load_module

TINY = [
    *("--hidden-size", "16", "--layers", "1", "--vocab-size", "32", "--seq-length", "8", "--batch-size", "1"),
    *("--prompt-tokens", "3", "--new-tokens", "2", "--texts", "2", "--rounds", "2", "--steps", "1"),
]


def _invoke(*arguments: str) -> Result:
    environment = {"COLUMNS": "200", "TERM": "dumb"}
    return CliRunner().invoke(app, ["compare-reference", *arguments], env=environment)


def _in_this_process(side: Side, task: dict[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
    """Do the work of a process here, without its start."""
    assert timeout_seconds > 0
    # What a process would read.
    task = json.loads(json.dumps(task))
    actions = reference_own_worker.ACTIONS if side.name == OURS else THEIR_ACTIONS
    return do(task, actions)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Sides and actions of the processes that would have been started."""
    done: list[tuple[str, str]] = []

    def run(side: Side, task: dict[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        done.append((side.name, task["action"]))
        return _in_this_process(side, task, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(Side, "run", run)
    return done


def test_vanilla_is_compared_with_transformers_and_then_timed_in_turns(
    here: list[tuple[str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "record.json"

    result = _invoke("--case", "vanilla", *TINY, "--note", "on purpose tiny", "--json", str(file))

    assert result.exit_code == 0, result.output
    ours, theirs = OURS, "transformers"
    turns = [ours, theirs, theirs, ours]
    assert here == [
        (ours, "each"),
        (theirs, "each"),
        *((side, "train") for side in turns * 2),
        *((side, "decode") for side in turns),
    ]
    record = read_record(file)
    assert [(each["part"], each["precision"], each["batch_size"]) for each in record["results"]] == [
        ("train", "fp32", 0),
        ("train", "bf16", 0),
        ("decode", "fp32", 2),
    ]
    for each in record["results"]:
        assert set(each["sides"]) == {ours, theirs}
        assert len(each["load"]) == 3
        figures = (
            {"seconds", "cpu_seconds"} if each["part"] == "train" else {"prompt_seconds", "token_seconds"}
        )
        for rounds in each["sides"].values():
            assert len(rounds) == 2
            assert all(len(one[figure]) == 1 and one[figure][0] > 0 for one in rounds for figure in figures)
            assert all(one["peak_bytes"] > 0 for one in rounds)
    assert set(record["versions"][theirs]) == {"python", "torch", "transformers"}
    assert record["note"] == "on purpose tiny"
    assert render_record(record) in result.output
    assert render_record(record) in _invoke("--table", str(file)).output


def test_a_difference_is_refused_before_anything_is_timed(
    here: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build = reference_worker.build_network

    def build_another(task: dict[str, Any]) -> Any:
        network = build(task)
        network.gpt_neox.final_layer_norm.weight.data.mul_(1.01)
        return network

    monkeypatch.setattr(reference_worker, "build_network", build_another)
    file = tmp_path / "record.json"

    result = _invoke(
        "--case", "vanilla", *TINY, "--part", "train", "--precision", "fp32", "--json", str(file)
    )

    assert isinstance(result.exception, DifferentResultsError)
    assert result.exception.exit_code == ExitCode.CRASH
    assert here == [(OURS, "each"), ("transformers", "each")]
    assert not file.exists()


def _batch(part: Any, precision: Precision = "fp32") -> Batch:
    return Batch(part=part, case=CASES["vanilla"], precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_may_differ_by_rounding_only(precision: Precision) -> None:
    batch = _batch("train", precision)
    first, later = FIRST_LOSS_TOLERANCE[precision], LATER_LOSS_TOLERANCE[precision]

    check_losses(batch, [8.0 * (1 + 0.9 * first), 6.0], [8.0, 6.0 * (1 + 0.9 * later)], "other")

    for ours in ([8.0 * (1 + 1.1 * first), 6.0], [8.0, 6.0 * (1 - 1.1 * later)], [math.nan, 6.0]):
        with pytest.raises(DifferentResultsError):
            check_losses(batch, ours, [8.0, 6.0], "other")


@pytest.mark.parametrize("theirs", [[[1, 2], [3, 5]], [[1, 2], [3]], [[1, 2], [3, 4, 4]]])
def test_every_decoded_token_must_be_the_same(theirs: list[list[int]]) -> None:
    check_tokens(_batch("decode"), [[1, 2], [3, 4]], [[1, 2], [3, 4]], "other")

    with pytest.raises(DifferentResultsError):
        check_tokens(_batch("decode"), [[1, 2], [3, 4]], theirs, "other")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("part", PARTS)
def test_the_settings_of_a_case_are_those_of_both_sides(case: str, part: Any, tmp_path: Path) -> None:
    chosen, sizes = CASES[case], ComparisonSizes()
    if part not in chosen.parts:
        assert model_files([chosen], [part], tmp_path) == []
        return

    task = task_of(chosen, "fp32", part, sizes, checkout=tmp_path)

    run, fields = build_config(task["settings"]), task["config"]
    assert fields["vocab_size"] == run.model.vocab_size == 4096
    assert fields["intermediate_size"] == run.model.ffn_hidden_size
    assert fields.get("num_latent_thoughts", 0) == run.ponder.num_latent_thoughts
    if "num_jacobi_iterations" in fields:
        assert fields["num_jacobi_iterations"] == run.ponder.num_jacobi_iterations
        assert not fields["random_jacobi_iterations"]
    if run.ponder.method == "pause":
        assert fields["pause_token_id"] == run.ponder.pause_token_id == 4095
    # AdamW has one rate from the first step on.
    assert (run.optimizer.lr_decay_style, run.optimizer.lr_warmup_iters) == ("constant", 0)
    assert task["optimizer"]["lr"] == run.optimizer.lr
    files = model_files([chosen], [part], tmp_path)
    assert task["model_file"] == (str(files[0]) if files else None)


def test_training_rows_are_those_of_the_method() -> None:
    assert {name: case.training_rows for name, case in CASES.items()} == {
        "vanilla": 1,
        "ponderlm2 K1 J3": 9,
        "ponderlm2 K3 J3": 22,
        "ponderlm K3": 4,
        "loop K3": 4,
        "pause K3": 4,
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--case", "loop"], "loop K3"),
        (["--precision", "fp16"], "bf16"),
        (["--part", "train", "--part", "eval"], "decode"),
        ([], "modeling_gpt_neox.py"),
        (["--case", "pause K3"], "modeling_gpt_neox_addpausetoken.py"),
        (["--rounds", "0"], "--rounds"),
        (["--table", "absent.json"], "absent.json"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(
    arguments: list[str], named: str, here: list[tuple[str, str]]
) -> None:
    result = _invoke(*arguments)

    assert result.exit_code == ExitCode.USAGE
    assert named in result.output
    assert here == []


def test_a_checkout_without_the_model_files_is_a_usage_error(
    here: list[tuple[str, str]], tmp_path: Path
) -> None:
    result = _invoke(str(tmp_path), "--case", "loop K3")

    assert result.exit_code == ExitCode.USAGE
    assert str(MODEL_FOLDER / "modeling_gpt_neox_addhidden_weightshare.py") in result.output.replace("\n", "")
    assert here == []


def test_a_file_is_imported_without_its_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError")
    (package / "modeling.py").write_text("class Model:\n    size = 3\n")

    assert load_module(str(package / "modeling.py")).Model.size == 3


def _process(tmp_path: Path, program: str) -> Side:
    return Side(
        name="other", command=(sys.executable, "-c", program), environment=(("SIZE", "7"),), folder=tmp_path
    )


def test_a_side_runs_in_its_folder_with_its_variables_and_reads_its_task(tmp_path: Path) -> None:
    program = (
        "import json, os, sys; task = json.load(open(sys.argv[1]));"
        "print(json.dumps({'size': os.environ['SIZE'], 'folder': os.getcwd(), 'task': task}))"
    )

    result = _process(tmp_path, program).run({"action": "train"}, timeout_seconds=60)

    assert result == {"size": "7", "folder": str(tmp_path.resolve()), "task": {"action": "train"}}


@pytest.mark.parametrize(
    ("program", "seconds"),
    [("import sys; sys.exit('no module named there')", 60.0), ("import time; time.sleep(60)", 0.2)],
)
def test_a_side_that_fails_or_takes_too_long_is_an_error(
    program: str, seconds: float, tmp_path: Path
) -> None:
    with pytest.raises(SideFailedError) as error:
        _process(tmp_path, program).run({"action": "train"}, timeout_seconds=seconds)

    assert error.value.exit_code == ExitCode.CRASH
    if seconds > 1:
        assert "no module named there" in str(error.value)


def _process_figures(**figures: list[float]) -> dict[str, Any]:
    return figures | {
        "peak_bytes": 2**30,
        "versions": {"python": "3.11", "torch": "2.13", "transformers": "4.46.1"},
    }


def _record() -> dict[str, Any]:
    sides: Mapping[str, list[list[float]]] = {
        OURS: [[2.0, 4.0, 3.0], [1.0]],
        "published code": [[6.0], [4.0]],
    }
    steps = {
        name: [_process_figures(seconds=each, cpu_seconds=[0.5]) for each in rounds]
        for name, rounds in sides.items()
    }
    texts = {
        OURS: [_process_figures(token_seconds=[0.010], prompt_seconds=[0.2])],
        "transformers": [_process_figures(token_seconds=[0.015], prompt_seconds=[0.1])],
    }
    common = {"case": "loop K3", "load": [3.0, 9.5]}
    return {
        "format": 1,
        "date": "2026-01-02",
        "machine": "a machine",
        "commit": "abc",
        "published_commit": "def",
        "published_files": {},
        "note": "A note.",
        "rounds": 2,
        "steps": 3,
        "threads": 1,
        "huge_pages": True,
        "versions": {"published code": {"python": "3.11"}},
        "sizes": {
            "model": {
                "num_layers": 6,
                "hidden_size": 512,
                "vocab_size": 4096,
                "micro_batch_size": 2,
                "seq_length": 512,
            },
            "prompt_tokens": 32,
            "new_tokens": 16,
        },
        "results": [
            common | {"part": "train", "precision": "bf16", "batch_size": 0, "sides": steps},
            common | {"part": "decode", "precision": "fp32", "batch_size": 8, "sides": texts},
        ],
    }


def test_a_table_shows_medians_over_processes_and_ratios_of_rounds() -> None:
    lines = render_record(_record()).splitlines()

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    # Ratios of the rounds: 6 / 3 and 4 / 1.
    assert rows[1] == [
        *("loop K3", "bf16", "published code"),
        *("2 (1..3)", "5 (4..6)", "3.00 (2.00..4.00)", "0.5 / 0.5", "1.00 / 1.00"),
    ]
    assert rows[3] == [
        *("loop K3", "8", "transformers 4.46.1"),
        *("10 (10..10)", "15 (15..15)", "1.50 (1.50..1.50)"),
        *("200 (200..200)", "100 (100..100)", "0.50 (0.50..0.50)"),
    ]
    text = "\n".join(lines)
    for fact in ("2026-01-02", "a machine", "load 3.0 to 9.5", "huge pages", "abc", "commit def", "A note."):
        assert fact in text


@pytest.mark.parametrize("content", ["{}", '{"format": 2, "results": []}', "[]", "no"])
def test_a_file_that_is_no_record_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(content)

    with pytest.raises(DataError):
        read_record(file)


def test_the_commit_of_a_checkout_is_recorded_and_marked_where_files_differ(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)

    commit = commit_of(tmp_path)

    assert commit is not None
    assert commit.endswith("-dirty")
    # The folder inside a repository of something else is no checkout.
    assert commit_of(inner) is None
