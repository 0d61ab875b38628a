"""A tiny model and the batches of the layouts' tests, as a checkpoint and its held-out text."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.step_limits import HaltingSignal, StepLimits
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.stored_config import StoredRun
from pipeline.data.batches import HeldoutBatches
from pipeline.evaluation.budget import Budget
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.under_limits import HeldoutText
from tests.support.layout_steps import built_model, own_batches
from tests.support.layouts import MODELS, ONE_PROCESS, Layout


class Batches:
    """The batches of the layouts' tests in the place of held-out ones."""

    def __init__(self, batches: list[TokenBatch]) -> None:
        self.num_samples = sum(len(batch.tokens) for batch in batches)
        self._batches = batches

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        yield self._batches


def text_of(
    groups: ParallelGroups, name: str, folder: Path = Path("nowhere"), *, layout: Layout = ONE_PROCESS
) -> HeldoutText:
    """Return the text of one of the models of the layouts' matrix, on an initialized layout.

    Args:
        groups: the layout.
        name: of the model.
        folder: of its run.
        layout: the same as `groups`.
    """
    config = MODELS[name].config(layout).model_copy(update={"output_dir": folder})
    module, _ = built_model(config, groups)
    module.eval()
    opened = OpenedCheckpoint(
        folder=folder / "checkpoints" / "iter_0000007",
        stored=StoredRun(config=config, identity=None, given={}, bases=()),
        state=cast(TrainState, type("State", (), {"iteration": 7})),
        module=module,
        groups=groups,
    )
    return HeldoutText(opened, 1, [cast(HeldoutBatches, Batches(own_batches(groups)))])


def budgets_met(layout: Layout) -> list[tuple[float, ...]]:
    """Meet a budget by the router and by a signal; all ranks of the layout call it.

    Returns:
        Threshold, mean steps and loss of each.
    """
    groups = initialize_groups(tensor=layout.tensor, pipeline=layout.pipeline)
    try:
        text, found = text_of(groups, "ponderlm3, llama", layout=layout), []
        for limits in (StepLimits(), StepLimits(signal=HaltingSignal.ENTROPY)):
            result = text.meet(Budget(mean_steps=1.2), limits)
            assert result.limits.threshold is not None
            found.append((result.limits.threshold, text.spending(result).mean_steps, result.loss))
        return found
    finally:
        destroy_groups()
