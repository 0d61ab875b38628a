"""Evaluations of a checkpoint on two ranks, tensor, data or context parallel, equal that on one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from pipeline.checkpoint.stored_config import stored_checkpoint
from pipeline.evaluation.checkpoint import evaluate_checkpoint
from pipeline.evaluation.opened import load_checkpoint
from tests.support.harness_tasks import TASKS
from tests.support.ranks import SharedRanks, run_alone
from tests.support.task_models import TaskModels, write_task_models

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.multiprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The results of a rank: scores and costs of all tasks, where it decodes, and those on held-out text."""

    scores: list[dict[str, Any]]
    heldout: dict[str, Any]


def evaluated(models: TaskModels, tensor: int, data: int, context: int = 1) -> Found:
    """Evaluate PonderLM-3 on a layout."""
    from pipeline.evaluation.harness.run import run_tasks
    from pipeline.evaluation.tasks import TaskSettings

    prepare_host()
    folder = models.ponderlm3
    layout = (f"parallel.tensor={tensor}", f"parallel.data={data}", f"parallel.context={context}")
    batch = ("training.global_batch_size=4", "training.micro_batch_size=2")
    stored = stored_checkpoint(folder, (*layout, *batch))
    groups = initialize_groups(tensor=tensor, context=context)
    try:
        opened = load_checkpoint(folder, stored, groups)
        tasks = []
        if context == 1:
            settings = TaskSettings(names=TASKS, include_path=models.tasks, batch_size=3)
            tasks = list(run_tasks(opened, settings).tasks)
        heldout = asdict(evaluate_checkpoint(opened, max_global_batches=2))
    finally:
        destroy_groups()
    scores = [{**one.metrics, "tokens": one.num_tokens, "steps": one.mean_steps} for one in tasks]
    return Found(scores=scores, heldout=heldout)


def test_two_ranks_find_what_one_finds(tmp_path: Path, ranks: SharedRanks) -> None:
    models = write_task_models(tmp_path)
    expected = run_alone(evaluated, models, 1, 1)
    assert [one["steps"] for one in expected.scores] == [2.0] * len(TASKS)
    (source,) = expected.heldout["sources"]
    assert source["num_bytes"] > source["num_tokens"]

    for tensor, data in ((1, 2), (2, 1)):
        for found in ranks.run(evaluated, 2, models, tensor, data):
            assert found.scores == [pytest.approx(one, rel=1e-5) for one in expected.scores]
            assert_alike(found.heldout, expected.heldout)
    for found in ranks.run(evaluated, 2, models, 1, 1, 2):
        assert_alike(found.heldout, expected.heldout)


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("num_tokens", "steps_count"):
        assert found[name] == expected[name]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for parts in ("sources", "loss_quartiles"):
        assert len(found[parts]) == len(expected[parts]) > 0
        for one, other in zip(found[parts], expected[parts], strict=True):
            assert {k: v for k, v in one.items() if k != "name"} == pytest.approx(
                {k: v for k, v in other.items() if k != "name"}, rel=1e-4
            )
