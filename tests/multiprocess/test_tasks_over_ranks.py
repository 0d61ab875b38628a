"""Tasks of lm-evaluation-harness on two ranks, tensor or data parallel, against one."""

from pathlib import Path
from typing import Any

import pytest

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from pipeline.config.load import load_config
from pipeline.inference import load_checkpoint
from tests.support.ranks import SharedRanks, run_alone
from tests.support.task_models import TASKS, write_task_models

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.multiprocess


def scores(folder: Path, tasks: Path, tensor: int, data: int) -> list[dict[str, Any]]:
    """Run all tasks on a layout and return what each found and cost."""
    from pipeline.evaluation.harness.run import run_tasks
    from pipeline.evaluation.harness.settings import TaskSettings

    prepare_host()
    layout = (f"parallel.tensor={tensor}", f"parallel.data={data}", f"training.global_batch_size={data}")
    config = load_config(folder / "run_config.yaml", (*layout, "training.micro_batch_size=1"))
    groups = initialize_groups(tensor=tensor)
    try:
        opened = load_checkpoint(folder, config, groups)
        report = run_tasks(opened, TaskSettings(names=TASKS, include_path=tasks, batch_size=3))
    finally:
        destroy_groups()
    return [{**one.metrics, "tokens": one.num_tokens, "steps": one.mean_steps} for one in report.tasks]


def test_two_ranks_find_what_one_finds(tmp_path: Path, ranks: SharedRanks) -> None:
    models = write_task_models(tmp_path)
    expected = run_alone(scores, models.ponderlm3, models.tasks, 1, 1)
    assert [one["steps"] for one in expected] == [2.0] * len(TASKS)

    for tensor, data in ((1, 2), (2, 1)):
        for found in ranks.run(scores, 2, models.ponderlm3, models.tasks, tensor, data):
            assert found == [pytest.approx(one, rel=1e-5) for one in expected]
