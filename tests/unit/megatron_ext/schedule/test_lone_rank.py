"""A single data-parallel rank steps without collectives over its buffers, and steps just the same."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.distributed import param_and_grad_buffer
from torch import Tensor

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.schedule.lone_rank import among_several
from pipeline.config.load import load_config
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from tests.support.ponder_models import batch_of, random_tokens

NAMES = ("dist_reduce_scatter_func", "dist_all_gather_func")
BATCH = batch_of(random_tokens(4, 12))


def trained(repository: Path, groups: ParallelGroups, precision: str) -> dict[str, Tensor]:
    """Return the weights after two steps."""
    prepare_host()
    recipe = repository / "pipeline" / "recipes" / "tiny_ponderlm2.yaml"
    parts = build_training(load_config(recipe, [f"training.precision={precision}"]), 43, groups)
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
    for _ in range(2):
        train_step(
            parts,
            [BATCH],
            StepSettings(num_jacobi_iterations=1, penalty_weight=0.0),
            groups=groups,
            statistics=statistics,
        )
    return {name: weight.detach().clone() for name, weight in parts.module.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_without_them_is_the_step_with_them(
    repository: Path, groups: ParallelGroups, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    found = trained(repository, groups, precision)
    calls: list[str] = []

    def counted(name: str) -> Any:
        plain = getattr(param_and_grad_buffer, name).__wrapped__

        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.append(name)
            return plain(*arguments, **keywords)

        return call

    for name in NAMES:
        monkeypatch.setattr(param_and_grad_buffer, name, counted(name))
    wanted = trained(repository, groups, precision)

    assert set(calls) == set(NAMES)
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


@pytest.mark.parametrize(
    ("num_ranks", "is_same", "is_called"), [(1, True, False), (1, False, True), (2, True, True)]
)
def test_only_the_identity_is_left_out(num_ranks: int, is_same: bool, is_called: bool) -> None:
    calls: list[tuple[Tensor, Tensor]] = []
    buffer = torch.zeros(4)
    given = buffer if is_same else torch.ones(4)

    among_several(lambda output, given, **_: calls.append((output, given)))(
        buffer, given, group=SimpleNamespace(size=lambda: num_ranks), op=None
    )

    assert bool(calls) == is_called
