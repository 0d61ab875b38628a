"""A few training steps on a layout, compared with those of one process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.config.schema import RunConfig
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import step_settings
from pipeline.step.train import train_step
from tests.support.layout_steps import Compared, Values, compare, groups_of, own_batches
from tests.support.layouts import LARGEST_J, LAYOUTS, MODELS, ONE_PROCESS, SEED, VOCAB_SIZE, Layout
from tests.support.ponder_models import random_weights
from tests.support.side_by_side import SideBySide

NUM_STEPS = 4
# Below the norms of the first steps, so that gradients are clipped.
CLIP_GRAD = 0.5
# Of the change of a weight, and of gradient norms and sums: largest absolute difference over largest absolute
# value.
LARGEST_UPDATE_ERROR, LARGEST_ERROR = 5e-4, 2e-5
# Large compared with rounding errors of zero gradients, which AdamW would otherwise amplify.
ADAM_EPS = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A model trained on a layout, with a random J in every step.

    Attributes:
        model, layout: by name.
        recompute: on the layout; one process has none.
        freeze_backbone_tokens: as in the settings.
        ponder: further settings of the method, (name, value) each.
        optimizer: by name.
    """

    model: str
    layout: str
    recompute: str = "none"
    freeze_backbone_tokens: int = 0
    ponder: tuple[tuple[str, Any], ...] = ()
    optimizer: str = "adamw"

    def __str__(self) -> str:
        frozen = f", frozen for {self.freeze_backbone_tokens} tokens" if self.freeze_backbone_tokens else ""
        further = "".join(f", {name} {value}" for name, value in self.ponder)
        optimizer = "" if self.optimizer == "adamw" else f", {self.optimizer}"
        return f"{self.model}, {self.layout}, recompute {self.recompute}{frozen}{further}{optimizer}"

    @property
    def reference(self) -> tuple[Any, ...]:
        """What the training has in common with its reference on one process."""
        return self.model, self.freeze_backbone_tokens, self.ponder, self.optimizer

    def config(self, layout: Layout, **parallel: Any) -> RunConfig:
        """Return the settings of the run on a layout."""
        model = MODELS[self.model]
        drawn = {"random_jacobi_iterations": (1, LARGEST_J)} if model.sweeps else {}
        return model.config(
            layout,
            seed=SEED,
            ponder=drawn | {"freeze_backbone_tokens": self.freeze_backbone_tokens} | dict(self.ponder),
            parallel=parallel,
            optimizer={
                "name": self.optimizer,
                "clip_grad": CLIP_GRAD,
                "adam_eps": ADAM_EPS,
                "lr_decay_style": "constant",
            },
        )


def write_trained(trainings: Sequence[Training], file: Path) -> None:
    """Train in one process, without a distributed optimizer."""
    groups = initialize_groups()
    configs = {
        training.reference: training.config(ONE_PROCESS, use_distributed_optimizer=False)
        for training in trainings
    }
    try:
        torch.save({reference: _train(config, groups) for reference, config in configs.items()}, file)
    finally:
        destroy_groups()


def compare_with_trained(trainings: Sequence[Training], file: Path) -> list[Compared]:
    """Train on one layout on this rank and compare each training with one process."""
    references = torch.load(file, mmap=True)
    layout = LAYOUTS[trainings[0].layout]
    groups = groups_of(layout)
    try:
        return [
            compare(
                _train(training.config(layout, recompute=training.recompute), groups),
                references[training.reference],
            )
            for training in trainings
        ]
    finally:
        destroy_groups()


def _train(config: RunConfig, groups: ParallelGroups) -> Values:
    """Return gradient norms, sums and the changes of the weights."""
    parts = build_training(config, VOCAB_SIZE, groups)
    load_weights(parts.module, random_weights(parts.module, seed=3))
    parts.optimizer.reload_model_params()
    start = _weights(parts.module)
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
    norms = [_step(parts, config, iteration, groups, statistics) for iteration in range(NUM_STEPS)]
    end = _weights(parts.module)
    return (
        {"gradient norm": torch.tensor(norms), "copies": _difference_of_copies(parts.module, groups)}
        | {
            f"sum {name}": torch.tensor(sums)
            for name, sums in statistics.reduce(groups.dp, groups.pp).items()
        }
        | {f"update of {name}": end[name] - start[name] for name in end}
    )


def _step(
    parts: TrainingParts,
    config: RunConfig,
    iteration: int,
    groups: ParallelGroups,
    statistics: StatisticsAccumulator,
) -> float:
    tokens = iteration * config.training.global_batch_size * config.training.seq_length
    settings = step_settings(config, iteration=iteration, consumed_tokens=tokens)
    result = train_step(parts, own_batches(groups), settings, groups=groups, statistics=statistics)
    assert result.grad_norm is not None
    return result.grad_norm


def _weights(module: PonderModel) -> Values:
    return {name: value.clone() for name, value in whole_tensors(module, lambda weight: weight).items()}


def _difference_of_copies(module: PonderModel, groups: ParallelGroups) -> Tensor:
    """Return the largest difference between the copies of an embedding on the first and the last stage."""
    shared = [weight for weight in module.parameters() if getattr(weight, "shared_embedding", False)]
    if not shared or groups.pp_size == 1:
        return torch.zeros(1)
    (weight,) = shared
    copies = [torch.empty_like(weight) for _ in range(2)]
    torch.distributed.all_gather(copies, weight.detach(), group=groups.pg_collection.embd)
    return (copies[0] - copies[1]).abs().max().reshape(1)


def assert_as_in_one_process(training: Training, side_by_side: SideBySide[Training]) -> None:
    """Check weights, gradient norms and sums of every rank against one process, and that copies are equal."""
    for rank, found in enumerate(side_by_side.compared(training)):
        complaint = (
            found.complaint(LARGEST_UPDATE_ERROR)
            or found.complaint(LARGEST_ERROR, among="gradient norm")
            or found.complaint(LARGEST_ERROR, among="sum")
            or found.complaint(0, among="copies")
        )
        assert not complaint, f"{training}, rank {rank}: {complaint}"
