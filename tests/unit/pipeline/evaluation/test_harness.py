"""Native checkpoints in lm-evaluation-harness, beside the harness's own `hf` model on the same weights."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.evaluation.opened import OpenedCheckpoint, opened_checkpoint
from pipeline.evaluation.tasks import TaskReport, TaskScore
from pipeline.shared.errors import DataError
from tests.support.harness_tasks import TASKS
from tests.support.task_models import SEQ_LENGTH, TaskModels, write_task_models

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

NUM_FEWSHOT = 2
PAIRS = [
    ("def return", " value"),
    ("", "token shard order"),
    ("a context that ends with a space ", "self"),
    # More than the model sees at once.
    (" ".join(["import range while"] * 20), " yield split"),
]
# Windows of one text must differ: the `hf` model takes equal ones for one.
TEXTS = ["def", "class lambda \u00e9 split\n", " ".join(f"index {number}" for number in range(40))]
PROMPTS = ["def return", "import range " * 30, "x"]
GREEDY = {"until": ["a"], "max_gen_toks": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TaskModels:
    return write_task_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def vanilla(models: TaskModels) -> Iterator[OpenedCheckpoint]:
    with opened_checkpoint(models.vanilla) as opened:
        yield opened


@pytest.fixture(scope="module")
def native(vanilla: OpenedCheckpoint) -> Any:
    from pipeline.evaluation.harness.model import CheckpointModel

    return CheckpointModel(vanilla, batch_size=3)


@pytest.fixture(scope="module")
def reference(models: TaskModels) -> Any:
    """The harness's model of the checkpoint's export."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(models.exported), device="cpu", dtype="float32", batch_size=2, max_length=SEQ_LENGTH
    )


@pytest.fixture(scope="module")
def report(vanilla: OpenedCheckpoint, models: TaskModels) -> TaskReport:
    return run(vanilla, models, *TASKS)


def run(opened: OpenedCheckpoint, models: TaskModels, *names: str, **options: Any) -> TaskReport:
    from pipeline.evaluation.harness.run import run_tasks
    from pipeline.evaluation.tasks import TaskSettings

    given = {"include_path": models.tasks, "num_fewshot": NUM_FEWSHOT, **options}
    return run_tasks(opened, TaskSettings(names=names, **given))


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=number, metadata=(kind, number, 1))
        for number, one in enumerate(arguments)
    ]


def test_continuations_are_as_likely_as_for_the_hf_model(native: Any, reference: Any) -> None:
    asked = requests("loglikelihood", *PAIRS)
    # The first token that both find likeliest makes one answer greedy.
    best = native.generate_until(requests("generate_until", ("def return", {**GREEDY, "until": []})))[0]
    asked += requests("loglikelihood", ("def return", best))

    found, expected = native.loglikelihood(asked), reference.loglikelihood(asked)

    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]


def test_complete_texts_are_as_likely_as_for_the_hf_model(native: Any, reference: Any) -> None:
    asked = requests("loglikelihood_rolling", *((text,) for text in TEXTS))

    found, expected = native.loglikelihood_rolling(asked), reference.loglikelihood_rolling(asked)

    assert found == pytest.approx(expected, rel=1e-5)


def test_greedy_texts_are_those_of_the_hf_model(native: Any, reference: Any) -> None:
    asked = requests("generate_until", *((prompt, dict(GREEDY)) for prompt in PROMPTS))

    found, expected = native.generate_until(asked), reference.generate_until(asked)

    assert found == expected
    assert all("a" not in text for text in found)


def test_tasks_have_the_scores_that_the_hf_model_has(
    report: TaskReport, reference: Any, models: TaskModels
) -> None:
    from pipeline.evaluation.harness.loading import load_tasks
    from pipeline.evaluation.harness.run import _set_examples
    from pipeline.evaluation.tasks import TaskSettings

    loaded = load_tasks(TaskSettings(names=TASKS, include_path=models.tasks))
    for task in loaded["tasks"].values():
        _set_examples(task, NUM_FEWSHOT)
    expected = lm_eval.evaluate(reference, loaded, bootstrap_iters=0, log_samples=False)["results"]

    assert [score.task for score in report.tasks] == list(TASKS)
    for score in report.tasks:
        assert score.metrics == {
            name: pytest.approx(value, rel=1e-5)
            for name, value in expected[score.task].items()
            if "," in name and "stderr" not in name
        }
    choice = score_of(report, "tiny_choice")
    assert (choice.num_samples, choice.num_fewshot) == (7, NUM_FEWSHOT)
    assert choice.standard_errors.keys() == choice.metrics.keys() == {"acc,none", "acc_norm,none"}


def score_of(report: TaskReport, task: str) -> TaskScore:
    return next(score for score in report.tasks if score.task == task)


def test_scores_come_with_steps_and_operations(report: TaskReport, models: TaskModels) -> None:
    for score in report.tasks:
        assert score.mean_steps == 0
        assert score.flops == pytest.approx(score.num_tokens * score.flops_per_token)


def test_a_task_asks_no_more_questions_than_the_limit(vanilla: OpenedCheckpoint, models: TaskModels) -> None:
    (score,) = run(vanilla, models, "tiny_choice", limit=2).tasks

    assert score.num_samples == 2


def test_a_task_whose_data_are_out_of_reach_is_one_clear_error(
    vanilla: OpenedCheckpoint, models: TaskModels
) -> None:
    (models.tasks / "gone.yaml").write_text(
        (models.tasks / "tiny_choice.yaml").read_text().replace("tiny_choice", "gone")
    )

    with pytest.raises(DataError, match="gone"):
        run(vanilla, models, "gone")


def test_options_of_a_task_that_mean_nothing_here_are_refused(native: Any) -> None:
    with pytest.raises(DataError, match="num_beams"):
        native.generate_until(requests("generate_until", ("x", {**GREEDY, "num_beams": 2})))


def test_texts_that_are_drawn_come_back_in_the_order_of_their_prompts(native: Any) -> None:
    drawn = {"max_gen_toks": 6, "do_sample": True, "temperature": 2.0}
    asked = requests("generate_until", ("x", drawn), ("x", dict(GREEDY)), ("x", drawn))

    texts = native.generate_until(asked)

    assert texts == native.generate_until(asked)
    assert texts[0] != texts[2]
    assert texts[1] == native.generate_until(asked[1:2])[0]


def test_without_the_harness_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)

    result = CliRunner().invoke(cli.app, ["eval", str(tmp_path), "--tasks", "piqa"])

    assert result.exit_code == 2
    assert ".[eval]" in result.output.replace("\n", "")
