"""What a step on a layout computes, compared with what one process computes.

The error of a tensor is the largest absolute difference over the largest absolute value of the reference. A
tensor that is all zeros in the reference must be all zeros.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

import megatron_ext.ponder.parts
import pipeline.step.build
from megatron_ext.model import layers
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.schedule.gradients import finalize_gradients
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.config.schema import ParallelConfig, RunConfig
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import build_module, wrap_model
from pipeline.step.settings import StepSettings
from pipeline.step.train import run_schedule
from tests.support.layouts import (
    LAYOUTS,
    MICRO_BATCH_SIZE,
    MODELS,
    NUM_MICRO_BATCHES,
    ONE_PROCESS,
    SEQ_LENGTH,
    SWEEPS,
    VOCAB_SIZE,
    Case,
    Layout,
)
from tests.support.ponder_models import batch_of, random_weights

PENALTY_WEIGHT = 0.3
# What one process computes in bf16 with sums apart.
BF16_APART = "bf16, sums apart"
Values = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The values of a rank compared with the reference.

    Attributes:
        errors: by tensor.
        zero: gradients that are all zeros in the reference, which may have been forgotten on both sides.
    """

    errors: dict[str, float]
    zero: list[str]

    def complaint(self, largest_error: float, *, among: str = "") -> str:
        """Return the tensors with larger errors, largest first, or "" if there are none.

        Args:
            largest_error: that is acceptable.
            among: part of the names of the tensors that are checked.
        """
        # NaN must not pass.
        names = [name for name, error in self.errors.items() if among in name and not error <= largest_error]
        names.sort(key=lambda name: -self.errors[name])
        listed = ", ".join(f"{name} by {self.errors[name]:.1e}" for name in names[:3])
        return f"{len(names)} of {len(self.errors)} tensors differ: {listed}" if names else ""


def write_references(models: Iterable[tuple[str, str]], file: Path) -> None:
    """Compute models for every J in one process: plain autograd through all passes, without recompute.

    In bf16 they are also computed with the sums of tensor-parallel ranks, which round after each product,
    bias and residual instead of once: that difference is not one of the layout.

    Args:
        models: names and precisions.
        file: to write to.
    """
    groups = initialize_groups()
    try:
        found = {}
        for name, precision in models:
            found[name, precision] = _reference(name, precision, groups)
            if precision == "bf16":
                with sums_apart():
                    found[name, BF16_APART] = _reference(name, precision, groups)
        torch.save(found, file)
    finally:
        destroy_groups()


def compare_with_references(cases: Sequence[Case], file: Path) -> list[Compared]:
    """Compute cases of one layout on this rank and compare each with one process."""
    references = torch.load(file, mmap=True)
    (layout,) = {case.layout for case in cases}
    groups = groups_of(LAYOUTS[layout])
    try:
        return [
            _compare_case(case, references[case.model, _kind_of_reference(case, groups)], groups)
            for case in cases
        ]
    finally:
        destroy_groups()


def compare_fused_with_references(cases: Sequence[Case], file: Path) -> list[Compared]:
    """Do the same with the fused functions that CUDA gets, on parts of few rows."""
    with (
        patch.object(pipeline.step.build, "can_fuse", lambda *_: True),
        patch.object(megatron_ext.ponder.parts, "PART_ELEMENTS", 5 * VOCAB_SIZE),
    ):
        return compare_with_references(cases, file)


def groups_of(layout: Layout) -> ParallelGroups:
    """Start the groups of a layout on the ranks that call this together."""
    return initialize_groups(tensor=layout.tensor, context=layout.context, pipeline=layout.pipeline)


def own_batches(groups: ParallelGroups) -> list[TokenBatch]:
    """Return this rank's share of four micro-batches of packed documents; numbers of labels differ."""
    generator = torch.Generator().manual_seed(4)
    shape = (NUM_MICRO_BATCHES, MICRO_BATCH_SIZE, SEQ_LENGTH)
    tokens = torch.randint(VOCAB_SIZE, shape, generator=generator)
    documents = torch.tensor([0] * 5 + [1] * (SEQ_LENGTH - 5)).expand(shape).clone()
    documents[0, 1] = 0
    documents[1, 1, 9:] = -1
    documents[2, 0, :3] = -1
    return [batch_of(*pair) for pair in zip(tokens, documents, strict=True)][groups.dp_rank :: groups.dp_size]


def built_model(config: RunConfig, groups: ParallelGroups) -> tuple[PonderModel, Values]:
    """Return a model in which every weight matters, and the full initial weights that it had before."""
    module = build_module(config, VOCAB_SIZE, groups, is_trained=True)
    start = {name: value.clone() for name, value in whole_tensors(module, lambda weight: weight).items()}
    load_weights(module, random_weights(module, seed=3))
    return module, start


def wrapped(module: PonderModel) -> Any:
    """Wrap a model such that every rank keeps the full gradients, to compare them."""
    ddp = wrap_model(module, ParallelConfig(use_distributed_optimizer=False))
    ddp.config.finalize_model_grads_func = finalize_gradients
    return ddp


def run_step(
    ddp: Any, num_jacobi_iterations: int, groups: ParallelGroups, **settings: Any
) -> StatisticsAccumulator:
    """Run a step up to the reduction of gradients, without the update; return the sums of this rank."""
    statistics = StatisticsAccumulator(ddp.module.statistics_layout(), device=torch.device("cpu"))
    ddp.zero_grad_buffer()
    run_schedule(
        ddp,
        own_batches(groups),
        StepSettings(num_jacobi_iterations=num_jacobi_iterations, penalty_weight=PENALTY_WEIGHT, **settings),
        groups=groups,
        statistics=statistics,
    )
    return statistics


def values_of_step(ddp: Any, statistics: StatisticsAccumulator, groups: ParallelGroups) -> Values:
    """Return loss, sums and all full gradients."""
    sums = statistics.reduce(groups.dp, groups.pp)
    loss = sums["nll"][0] / sums["labelled_tokens"][0]
    if "penalty" in sums:
        loss += PENALTY_WEIGHT * sums["penalty"][0] / sums["real_tokens"][0]
    gradients = whole_tensors(ddp.module, lambda parameter: parameter.main_grad)  # type: ignore[attr-defined]
    values = {"loss": torch.tensor(loss)} | {f"sum {name}": torch.tensor(sums[name]) for name in sums}
    return values | {f"gradient of {name}": value.clone() for name, value in gradients.items()}


def compare(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Compared:
    """Compare values with the reference."""
    assert found.keys() == reference.keys(), f"not in both: {found.keys() ^ reference.keys()}"
    errors, zero = {}, []
    for name, expected in reference.items():
        largest = expected.abs().max().item()
        difference = (found[name].double() - expected.double()).abs().max().item()
        errors[name] = difference / largest if largest else difference
        if largest == 0 and "gradient of" in name:
            zero.append(name)
    return Compared(errors=errors, zero=zero)


def _kind_of_reference(case: Case, groups: ParallelGroups) -> str:
    return BF16_APART if case.precision == "bf16" and groups.tp_size > 1 else case.precision


def _reference(name: str, precision: str, groups: ParallelGroups) -> dict[int | str, Values]:
    model = MODELS[name]
    all_sweeps = sorted(set().union(*SWEEPS.values())) if model.sweeps else [0]
    return _steps(model.config(ONE_PROCESS, training={"precision": precision}), all_sweeps, groups)


@contextmanager
def sums_apart() -> Iterator[None]:
    """Let one process add biases, products and residuals one by one, as tensor-parallel ranks do."""
    with (
        patch.object(layers, "add_products", layers.add_one_by_one),
        patch.object(layers.FusedBiasLinear, "_forward_impl", ColumnParallelLinear._forward_impl),
    ):
        yield


def _compare_case(case: Case, reference: Mapping[int | str, Values], groups: ParallelGroups) -> Compared:
    try:
        found = _steps(case.config(), case.jacobi_iterations, groups)
    except Exception as error:
        error.add_note(f"in the case {case}")
        raise
    return compare(
        {f"{step}: {name}": value for step, values in found.items() for name, value in values.items()},
        {f"{step}: {name}": value for step in found for name, value in reference[step].items()},
    )


def _steps(config: RunConfig, sweeps: Iterable[int], groups: ParallelGroups) -> dict[int | str, Values]:
    """Return the initial weights and the values of a step with each J."""
    module, start = built_model(config, groups)
    ddp = wrapped(module)
    found: dict[int | str, Values] = {"start": start}
    for num_jacobi_iterations in sweeps:
        statistics = run_step(ddp, num_jacobi_iterations, groups)
        found[num_jacobi_iterations] = values_of_step(ddp, statistics, groups)
    return found
