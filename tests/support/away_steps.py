"""Training steps on a layout, on the CPU and on the device of :mod:`tests.support.away`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_ext.device import device
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups
from megatron_ext.weights import whole_tensors
from pipeline.checkpoint.loading import load_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.writing import Destination, prepare_save, write_save
from pipeline.config.schema import RunConfig
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import StepResult, train_step
from tests.support.away import AwayDevice, away_device
from tests.support.layout_steps import groups_of, own_batches
from tests.support.layouts import LAYOUTS, MODELS, ONE_PROCESS, VOCAB_SIZE, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What two steps have done.

    Attributes:
        steps: their results.
        values: weights and sums.
        waits: of the second step.
        collectives: of tensors of the device, in all.
    """

    steps: list[StepResult]
    values: dict[str, Tensor]
    waits: list[tuple[str, str]]
    collectives: int

    def differences(self, other: "Trained") -> list[str]:
        """Return what is not the same to the bit in both."""
        assert self.values.keys() == other.values.keys()
        results = [] if self.steps == other.steps else ["results"]
        values = self.values.items()
        return results + [name for name, value in values if not torch.equal(value, other.values[name])]


@contextmanager
def by_products() -> Iterator[None]:
    """Compute attention as plain products, as torch does on any device without a kernel of its own."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def trained(
    name: str,
    groups: ParallelGroups,
    away: AwayDevice | None = None,
    layout: Layout = ONE_PROCESS,
    *,
    fused: str = "never",
    folder: Path | None = None,
) -> Trained:
    """Train on documents and padding.

    Args:
        name: of a model.
        groups: of the layout.
        away: the device, where it trains on that.
        layout: as many micro-batches as it has stages make a step.
        fused: see training.fused; fused functions round differently.
        folder: where the run is saved after the first step, and resumed from; None: it continues.
    """
    away = AwayDevice() if away is None else away
    config = MODELS[name].config(layout, training={"fused": fused})
    parts = build_training(config, VOCAB_SIZE, groups)
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
    settings = StepSettings(num_jacobi_iterations=1, penalty_weight=0.3)
    batches, number = own_batches(groups), layout.pipeline
    middle = len(batches) // 2
    steps = []
    for own in (batches[middle - number : middle], batches[middle : middle + number]):
        if steps and folder is not None:
            parts = _saved_and_resumed(parts, config, groups, folder)
        away.waits.clear()
        steps.append(train_step(parts, own, settings, groups=groups, statistics=statistics))
    of_last = list(away.waits.elements())
    whole = whole_tensors(parts.module, lambda weight: weight)
    values = {name: weight.cpu() for name, weight in whole.items()}
    values |= {name: torch.tensor(sums) for name, sums in statistics.reduce(groups.dp, groups.pp).items()}
    return Trained(steps=steps, values=values, waits=of_last, collectives=away.collectives)


def _saved_and_resumed(
    parts: TrainingParts, config: RunConfig, groups: ParallelGroups, folder: Path
) -> TrainingParts:
    """Return parts of another seed that were loaded with what these were saved with."""
    config_file = folder / "config.yaml"
    if groups.rank == 0:
        config_file.touch()
    state = TrainState(iteration=1, consumed_samples=8)
    prepared = prepare_save(
        state,
        module=parts.module,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        groups=groups,
        copies=True,
    )
    write_save(prepared, Destination(directory=folder, config_file=config_file))
    resumed = build_training(config.model_copy(update={"seed": 2}), VOCAB_SIZE, groups)
    load_checkpoint(
        folder,
        module=resumed.module,
        optimizer=resumed.optimizer,
        scheduler=resumed.scheduler,
        groups=groups,
    )
    return resumed


def trained_twice(name: str, layout: str, folder: Path) -> tuple[Trained, Trained]:
    """Train on the CPU, and on the device, where the run is saved and resumed between its steps.

    All ranks of the layout call it together.
    """

    def on_layout(away: AwayDevice | None = None, folder: Path | None = None) -> Trained:
        groups = groups_of(LAYOUTS[layout])
        try:
            return trained(name, groups, away, LAYOUTS[layout], folder=folder)
        finally:
            destroy_groups()

    with by_products():
        expected = on_layout()
        with away_device() as away:
            return expected, on_layout(away, folder)
