"""Convergence of tiny models in float64, whose exact solution is known."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.passes import jacobi_plan
from megatron_ext.ponder.residual import residual
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.stored_config import StoredRun
from pipeline.config.load import build_config
from pipeline.data.dataset import TokenRows, Vocabulary
from pipeline.evaluation.convergence.measure import (
    ConvergenceSettings,
    default_forwards,
    measure_convergence,
    num_leading,
    num_parts,
)
from pipeline.evaluation.convergence.readings import WAYS
from pipeline.evaluation.convergence.result import Convergence, save_convergence
from pipeline.evaluation.convergence.sums import ResidualSums
from pipeline.evaluation.convergence.table import render_convergence
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.report.convergence import render_convergence_png
from pipeline.verification.texts import heldout_rows
from tests.support.ponder_models import VOCAB_SIZE, batch_of, random_tokens, tiny_model
from tests.unit.pipeline.config.settings import changed_settings

NUM_THOUGHTS, NUM_TOKENS = 2, 6
# Exact after K (S - 1) sweeps.
ENOUGH = NUM_THOUGHTS * (NUM_TOKENS - 1)
SETTINGS = ConvergenceSettings(
    num_rows=3,
    num_tokens=NUM_TOKENS,
    num_sweeps=ENOUGH,
    forwards=tuple(range(ENOUGH + 1)),
    tolerances=(0.1,),
    reading_tolerance=1e-9,
)


class Rows:
    """Held-out rows of one document each."""

    vocabulary = Vocabulary(size=VOCAB_SIZE, eod_id=VOCAB_SIZE + 1, tokenizer_sha256=None)

    def __len__(self) -> int:
        return 3

    def rows(self, indices: Sequence[int]) -> TokenRows:
        tokens = random_tokens(3, NUM_TOKENS + 1, seed=5)[list(indices)].numpy()
        return TokenRows(tokens=tokens, lengths=np.full(len(indices), NUM_TOKENS + 1))


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        stop_process_group()


def opened(groups: ParallelGroups, method: Method) -> OpenedCheckpoint:
    module = tiny_model(groups, method, num_latent_thoughts=NUM_THOUGHTS)
    module.eval()
    config = build_config(
        changed_settings(ponder={"method": str(method), "num_latent_thoughts": NUM_THOUGHTS})
    )
    checkpoint = OpenedCheckpoint(
        folder=Path("nowhere/checkpoints/iter_0000007"),
        stored=StoredRun(config=config, identity=None, given={}, bases=()),
        state=cast(TrainState, type("State", (), {"iteration": 7})),
        module=module,
        groups=groups,
    )
    checkpoint.__dict__["heldout"] = Rows()
    return checkpoint


@pytest.fixture(scope="module", params=[Method.PONDERLM2, Method.PONDERLM3])
def measured(groups: ParallelGroups, request: pytest.FixtureRequest) -> tuple[OpenedCheckpoint, Convergence]:
    checkpoint = opened(groups, request.param)
    return checkpoint, measure_convergence(checkpoint, SETTINGS)


def test_first_tokens_are_exact_as_the_theory_says(measured: tuple[OpenedCheckpoint, Convergence]) -> None:
    _, found = measured

    for one in found.forwards:
        assert one.num_guaranteed == 1 + one.num_jacobi_iterations // NUM_THOUGHTS
        assert one.num_exact >= one.num_guaranteed
    assert found.forwards[0].num_exact < NUM_TOKENS


def test_enough_sweeps_give_the_exact_solution(measured: tuple[OpenedCheckpoint, Convergence]) -> None:
    _, found = measured

    assert found.forwards[-1].max_error < 1e-6
    assert found.forwards[-1].loss == pytest.approx(found.exact_loss, abs=1e-9)
    assert abs(found.forwards[0].loss - found.exact_loss) > 1e-6


def test_residuals_are_the_statistics_of_the_forward(
    measured: tuple[OpenedCheckpoint, Convergence],
) -> None:
    checkpoint, found = measured
    (batch,) = heldout_rows(
        checkpoint.heldout, num_rows=3, num_tokens=NUM_TOKENS, seed=checkpoint.config.seed, rows_at_once=4
    )
    with torch.no_grad():
        sums = checkpoint.module(batch, num_jacobi_iterations=ENOUGH).statistics

    expected = residual(sums["residual_change"], sums["residual_norm"])[:ENOUGH]
    assert found.residuals == pytest.approx(expected.tolist(), abs=1e-12)
    assert found.residuals[0] > found.residuals[-1]
    # All rows are one document of the same length, so every position has as many tokens.
    assert found.tokens_by_position == (3,) * NUM_TOKENS
    assert found.num_tokens == 3 * NUM_TOKENS
    # Thoughts of the first token depend on nothing but the build-up.
    assert found.residuals_by_position[0][0] == 0
    assert found.residuals_by_position[0][-1] > 0


def test_all_ways_to_read_prompts_reach_the_same_result(
    measured: tuple[OpenedCheckpoint, Convergence],
) -> None:
    _, found = measured

    ways = [(one.damping, one.num_groups, one.by_slot) for one in found.readings]
    assert ways == [(way.damping, way.num_groups, way.by_slot) for way in WAYS]
    assert all(one.max_error < 1e-6 for one in found.readings)
    assert all(one.milliseconds > 0 and one.rows_per_token > 0 for one in found.readings)
    jacobi, damped, by_slot = found.readings[0], found.readings[2], found.readings[-1]
    assert damped.num_calls > jacobi.num_calls
    assert by_slot.rows_per_token < jacobi.rows_per_token


def test_the_figures_are_shown_and_written(
    measured: tuple[OpenedCheckpoint, Convergence], tmp_path: Path
) -> None:
    checkpoint, found = measured
    save_convergence(found, tmp_path / "out" / "convergence.json")

    assert (tmp_path / "out" / "convergence.json").stat().st_size > 0
    assert render_convergence_png(found).startswith(b"\x89PNG")
    assert [table.row_count for table in render_convergence(found)] == [
        len(found.residuals) + (found.contraction is not None),
        len(found.needed),
        len(found.forwards),
        len(found.readings),
    ]
    calls: list[None] = []
    small = ConvergenceSettings(
        num_rows=1, num_tokens=3, num_sweeps=2, forwards=(1,), tolerances=(), reading_tolerance=0.1
    )
    measure_convergence(checkpoint, small, advance=lambda: calls.append(None))
    assert len(calls) == num_parts(checkpoint, small, len(WAYS))


def test_residuals_by_hand() -> None:
    batch = batch_of(random_tokens(1, 2))
    sums = ResidualSums(jacobi_plan(1, 2), 2)
    sums.begin(batch)
    # One thought of one channel for two tokens after the build-up and after two sweeps.
    for index, thoughts in enumerate(([2.0, 4.0], [2.0, 5.0], [2.0, 5.5])):
        sums(f"thoughts/after_pass_{index:02d}", torch.tensor(thoughts).reshape(2, 1, 1, 1))
    sums("other", torch.zeros(1))

    assert sums.residuals_by_position() == [[0.0, 0.25], [0.0, 0.1]]
    assert sums.residuals() == pytest.approx([1 / 20**0.5, 0.5 / 29**0.5])


def test_only_leading_tokens_count_as_exact() -> None:
    assert num_leading(torch.tensor([0.0, 1e-6, 0.1, 0.0]), 1e-4) == 2


def test_losses_are_measured_at_few_numbers_of_sweeps() -> None:
    assert list(default_forwards(5, 10)) == [0, 1, 2, 3, 4, 5, 6, 8, 10]
