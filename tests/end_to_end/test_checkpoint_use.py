"""A checkpoint of two tensor-parallel ranks is evaluated and generates on one rank and on two.

The vocabulary is padded to different sizes on one rank and on two, so the shape of the embedding differs too.
"""

import json
import math
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import forked, megaponder, megaponder_under_torchrun, wait_until
from tests.support.corpus import VOCAB_SIZE
from tests.support.harness_tasks import write_tasks
from tests.support.runs import DIVISOR, NUM_ITERATIONS, written_events
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

NUM_NEW_TOKENS = 24
NUM_PROMPT_TOKENS = 32


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sample(trained: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A greedy continuation of a held-out document, generated on one rank."""
    output = tmp_path_factory.mktemp("sample") / "sample.json"
    command = megaponder("generate", *generate_arguments(trained, output))
    assert command.exit_code == 0, command.stderr
    content: dict[str, Any] = read_json(output)
    text = "".join(token["piece"] for token in content["tokens"])
    assert text.split() == command.stdout.replace("\n", " ").split()[: len(text.split())]
    return content


def generate_arguments(trained: TrainedRun, output: Path) -> list[str]:
    return [str(trained.checkpoints), "--max-new-tokens", str(NUM_NEW_TOKENS), "--output", str(output)]


def test_the_padding_of_the_vocabulary_differs_between_the_layouts() -> None:
    assert -VOCAB_SIZE % DIVISOR != -VOCAB_SIZE % (2 * DIVISOR)


def test_an_evaluation_on_one_rank_equals_that_of_training_on_two(
    trained: TrainedRun, tmp_path: Path
) -> None:
    output = tmp_path / "evaluation.json"
    command = megaponder("eval", str(trained.checkpoints), "--output", str(output))
    assert command.exit_code == 0, command.stderr
    found = read_json(output)
    (measured,) = written_events(trained.folder, "validation")
    assert found["iteration"] == NUM_ITERATIONS
    assert found["checkpoint"].endswith(f"iter_{NUM_ITERATIONS:07d}")
    assert found["loss"] == pytest.approx(measured["lm loss validation"], rel=1e-5)
    # A token at the threshold may fall on either side of it.
    assert found["steps_count"] == pytest.approx(measured["ponder/steps-histogram"], abs=2)
    assert len(found["residuals"]) == 2
    assert sum(quarter["num_tokens"] for quarter in found["loss_quartiles"]) == found["num_tokens"]
    (source,) = found["sources"]
    assert (source["num_tokens"], source["loss"]) == (found["num_tokens"], pytest.approx(found["loss"]))
    bits_per_byte = found["loss"] * found["num_tokens"] / math.log(2) / source["num_bytes"]
    for figure in (bits_per_byte, found["loss"]):
        assert f"{figure:.4f}" in command.stdout


def test_an_evaluation_may_make_more_sweeps_than_training(trained: TrainedRun, tmp_path: Path) -> None:
    output = tmp_path / "evaluation.json"
    command = megaponder(
        "eval", str(trained.checkpoints), "--jacobi-iterations", "5", "--iters", "1", "--output", str(output)
    )
    assert command.exit_code == 0, command.stderr
    residuals = read_json(output)["residuals"]
    assert len(residuals) == 5
    assert residuals == sorted(residuals, reverse=True)


def test_a_task_is_evaluated_without_conversion(trained: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    tasks, output = write_tasks(tmp_path / "tasks"), tmp_path / "tasks.json"
    command = megaponder(
        *("eval", str(trained.checkpoints), "--tasks", "tiny_choice", "--include-path", str(tasks)),
        *("--num-fewshot", "1", "--limit", "4", "--output-json", str(output)),
    )
    assert command.exit_code == 0, command.stderr
    (score,) = read_json(output)["tasks"]
    assert (score["task"], score["num_samples"], score["num_fewshot"]) == ("tiny_choice", 4, 1)
    assert 0 < score["mean_steps"] < 2
    assert f"{score['mean_steps']:.3f}" in command.stdout


def test_a_greedy_text_is_repeatable(trained: TrainedRun, sample: dict[str, Any], tmp_path: Path) -> None:
    command = megaponder("generate", *generate_arguments(trained, tmp_path / "again.json"))
    assert command.exit_code == 0, command.stderr
    assert read_json(tmp_path / "again.json")["tokens"] == sample["tokens"]


def test_a_text_has_its_prompt_steps_and_likelihoods(sample: dict[str, Any]) -> None:
    tokens = sample["tokens"]
    assert [token["is_prompt"] for token in tokens[: NUM_PROMPT_TOKENS + 1]] == [True] * 32 + [False]
    assert NUM_PROMPT_TOKENS < len(tokens) <= NUM_PROMPT_TOKENS + NUM_NEW_TOKENS
    assert tokens[0]["nll"] is None
    assert all(token["nll"] > 0 for token in tokens[1:])
    assert set(Counter(token["steps"] for token in tokens)) <= {0, 1, 2}


def test_two_ranks_generate_the_same_tokens(
    trained: TrainedRun, sample: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "two_ranks.json"
    command = megaponder_under_torchrun(2, "generate", *generate_arguments(trained, output))
    assert command.exit_code == 0, command.stderr
    found, expected = read_json(output)["tokens"], sample["tokens"]
    for name in ("piece", "steps", "is_prompt"):
        assert [token[name] for token in found] == [token[name] for token in expected]
    assert [token["nll"] for token in found[1:]] == pytest.approx(
        [token["nll"] for token in expected[1:]], rel=1e-4
    )


def test_a_text_does_not_depend_on_its_batch(trained: TrainedRun, tmp_path: Path) -> None:
    prompts = ["the", "a b c d e f g", "some text", "x"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts[1:]))
    options = ["--max-new-tokens", "12", "--temperature", "1", "--top-k", "20", "--seed", "3"]

    together, alone = tmp_path / "together.jsonl", tmp_path / "alone.jsonl"
    for output, batch_size in ((together, "3"), (alone, "1")):
        command = megaponder(
            "generate",
            str(trained.checkpoints),
            "--prompt",
            prompts[0],
            "--prompts-file",
            str(file),
            "--batch-size",
            batch_size,
            "--json-lines",
            str(output),
            *options,
        )
        assert command.exit_code == 0, command.stderr

    texts, others = ({text["number"]: text for text in json_lines(path)} for path in (together, alone))
    assert sorted(texts) == sorted(others) == [0, 1, 2, 3]
    for number, prompt in enumerate(prompts):
        assert texts[number]["prompt"] == prompt
        for name in ("pieces", "steps", "ending"):
            assert texts[number][name] == others[number][name]
        assert texts[number]["num_tokens"] <= 12


def test_a_text_ends_before_its_stop_string(
    trained: TrainedRun, sample: dict[str, Any], tmp_path: Path
) -> None:
    added = "".join(token["piece"] for token in sample["tokens"] if not token["is_prompt"])
    stop = added[len(added) // 2 :][:3]
    output = tmp_path / "stopped.json"
    command = megaponder("generate", *generate_arguments(trained, output), "--stop", stop)
    assert command.exit_code == 0, command.stderr
    text = "".join(token["piece"] for token in read_json(output)["tokens"] if not token["is_prompt"])
    assert text == added[: added.index(stop)]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_finished_texts_survive_a_signal(
    trained: TrainedRun, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    output, file = tmp_path / "texts.jsonl", tmp_path / "prompts.txt"
    file.write_text("the\n" * 500)
    arguments = [
        "generate", str(trained.checkpoints), "--prompts-file", str(file), "--json-lines", str(output),
        "--max-new-tokens", "40", "--batch-size", "2", "--temperature", "1",
    ]  # fmt: skip
    with forked(*arguments) as running:
        wait_until(lambda: output.exists() and output.read_text().count("\n") >= 2)
        running.process.send_signal(number)
        command = running.finish()

    assert command.exit_code == exit_code, command.stderr
    assert 2 <= len(json_lines(output)) < 500


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
