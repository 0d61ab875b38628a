"""A checkpoint of any layout loads onto any other: weights and moments stay the same, bit for bit.

Each layout trains and saves; every other one loads that and saves again; the two checkpoints are compared.
The weights are also compared without any code of checkpoints: gathered from the ranks that saved and from
those that loaded. So are the moments, for optimizers that do not distribute them.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups
from megatron_ext.weights import whole_tensors
from pipeline.checkpoint.comparison import TensorComparison, compare_checkpoints
from pipeline.checkpoint.folder import checkpoint_folder
from pipeline.checkpoint.loading import load_checkpoint
from pipeline.checkpoint.saver import save_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.config.schema import RunConfig
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import step_settings
from pipeline.step.train import train_step
from tests.support.layout_steps import groups_of, own_batches
from tests.support.layouts import MODELS, Layout
from tests.support.ranks import SharedRanks, run_alone

pytestmark = pytest.mark.multiprocess

LAYOUTS = {
    "tp1": Layout(),
    "tp2": Layout(tensor=2),
    "pp2": Layout(pipeline=2, layers_per_stage=(3, 1)),
    "tp2pp2": Layout(tensor=2, pipeline=2),
    "dp2": Layout(data=2),
    "dp4": Layout(data=4),
    "cp2dp2": Layout(context=2, data=2),
}
# With moments that can be gathered without the code under test.
PLAIN = ("tp2", "pp2")
MODEL = "ponderlm3, llama"
# A multiple of what the vocabulary is padded to on every layout.
VOCAB_SIZE = 64
NUM_STEPS = 1
STATE = TrainState(iteration=NUM_STEPS, consumed_samples=8)
Values = Mapping[str, Tensor]


def _config(name: str, *, is_plain: bool) -> RunConfig:
    return MODELS[MODEL].config(
        LAYOUTS[name],
        seed=list(LAYOUTS).index(name) + 1,
        model={"vocab_size": VOCAB_SIZE},
        ponder={"num_jacobi_iterations": 0},
        training={"micro_batch_size": 1, "global_batch_size": 8},
        parallel={"use_distributed_optimizer": not is_plain},
        # The router, which not every stage has, is in groups of its own.
        optimizer={"new_parameters_lr_mult": 3.0},
    )


def _train(parts: TrainingParts, config: RunConfig, groups: ParallelGroups) -> None:
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
    for iteration in range(NUM_STEPS):
        settings = step_settings(config, iteration=iteration, consumed_tokens=0)
        train_step(parts, own_batches(groups), settings, groups=groups, statistics=statistics)


def _gathered(parts: TrainingParts, *, is_plain: bool) -> Values:
    """Weights, and moments where each rank keeps all of its own, under names without a layout."""
    values = dict(whole_tensors(parts.module, lambda weight: weight))
    if is_plain:
        (part,) = parts.optimizer.chained_optimizers
        for moment in ("exp_avg", "exp_avg_sq"):
            of = whole_tensors(parts.module, lambda weight: part.optimizer.state[weight][moment])  # noqa: B023
            values |= {f"{moment} of {name}": value for name, value in of.items()}
    return {name: value.detach().clone() for name, value in values.items()}


def _save(directory: Path, parts: TrainingParts, groups: ParallelGroups) -> None:
    save_checkpoint(
        directory,
        STATE,
        module=parts.module,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        groups=groups,
        config_file=Path(__file__),
    )


def _on_layout(name: str, is_plain: bool, action: Callable[[TrainingParts, ParallelGroups], None]) -> None:
    layout, config = LAYOUTS[name], _config(name, is_plain=is_plain)
    groups = groups_of(layout)
    # Megatron collects garbage at every save and load; exclude what was imported before.
    gc.freeze()
    try:
        action(build_training(config, VOCAB_SIZE, groups), groups)
    finally:
        gc.unfreeze()
        destroy_groups()


def _train_and_save(folder: Path, names: Sequence[str], is_plain: bool) -> None:
    for name in names:

        def train_and_save(parts: TrainingParts, groups: ParallelGroups, name: str = name) -> None:
            _train(parts, _config(name, is_plain=is_plain), groups)
            _save(folder / name, parts, groups)
            values = _gathered(parts, is_plain=is_plain)
            if groups.rank == 0:
                torch.save(values, folder / f"{name}.pt")

        _on_layout(name, is_plain, train_and_save)


def _load_and_save(folder: Path, names: Sequence[str], sources: Sequence[str], is_plain: bool) -> list[str]:
    """Load every other layout's checkpoint, save it again, and return what differs when gathered."""
    differing: list[str] = []
    for name in names:

        def load_and_save(parts: TrainingParts, groups: ParallelGroups, name: str = name) -> None:
            for source in sources:
                if source == name:
                    continue
                load_checkpoint(
                    folder / source,
                    module=parts.module,
                    optimizer=parts.optimizer,
                    scheduler=parts.scheduler,
                    groups=groups,
                )
                expected = torch.load(folder / f"{source}.pt")
                found = _gathered(parts, is_plain=is_plain)
                assert found.keys() == expected.keys()
                differing.extend(
                    f"{source} -> {name}: {key}"
                    for key in found
                    if not torch.equal(found[key], expected[key])
                )
                _save(folder / f"{source} to {name}", parts, groups)

        _on_layout(name, is_plain, load_and_save)
    return differing


def _in_pools(ranks: SharedRanks, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Call a function once for each number of ranks, with the layouts that take so many."""
    results = []
    is_plain = arguments[-1]
    chosen = PLAIN if is_plain else tuple(LAYOUTS)
    for world_size in sorted({LAYOUTS[name].world_size for name in chosen}):
        names = [name for name in chosen if LAYOUTS[name].world_size == world_size]
        if world_size == 1:
            results.append(run_alone(function, folder, names, *arguments))
        else:
            results += ranks.run(function, world_size, folder, names, *arguments)
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def differing(ranks: SharedRanks, folder: Path) -> list[list[str]]:
    """Return what differs when gathered, by rank; the checkpoints of all pairs are in the folder then."""
    _in_pools(ranks, _train_and_save, folder, False)
    return _in_pools(ranks, _load_and_save, folder, tuple(LAYOUTS), False)


def _compare(folder: Path, source: str, name: str) -> dict[str, TensorComparison]:
    original = checkpoint_folder(folder / source, NUM_STEPS)
    again = checkpoint_folder(folder / name, NUM_STEPS)
    return {item.name: item for item in compare_checkpoints(original, again)}


@pytest.mark.parametrize(("source", "target"), list(permutations(LAYOUTS, 2)), ids=lambda name: name)
def test_weights_and_moments_load_onto_another_layout_bit_for_bit(
    differing: list[list[str]], folder: Path, source: str, target: str
) -> None:
    compared = _compare(folder, source, f"{source} to {target}")
    kinds = [name for name in compared if name.startswith("optimizer.state.exp_avg")]
    assert len(kinds) == 2 * len([name for name in compared if not name.startswith("optimizer.")])
    assert [str(item) for item in compared.values() if not item.is_equal] == []


def test_weights_gathered_from_the_ranks_are_those_that_were_saved(differing: list[list[str]]) -> None:
    assert len(differing) == 1 + 2 + 4, "ranks of all pools"
    assert [line for of_rank in differing for line in of_rank] == []


def test_layouts_have_trained_different_weights(differing: list[list[str]], folder: Path) -> None:
    assert not all(item.is_equal for item in _compare(folder, "tp1", "dp2").values())


def test_moments_gathered_from_the_ranks_are_those_that_were_saved(
    ranks: SharedRanks, tmp_path: Path
) -> None:
    _in_pools(ranks, _train_and_save, tmp_path, True)
    moments = torch.load(tmp_path / "tp2.pt")
    assert sum(name.startswith("exp_avg_sq of") and bool(value.any()) for name, value in moments.items()) > 10
    for of_rank in _in_pools(ranks, _load_and_save, tmp_path, PLAIN, True):
        assert of_rank == []
