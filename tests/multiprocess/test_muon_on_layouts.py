"""Muon on several ranks: updates as in one process, runs that resume bit by bit, checkpoints that reshard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from megatron_ext.weights import whole_tensors
from pipeline.checkpoint.comparison import compare_checkpoints
from pipeline.checkpoint.folder import checkpoint_folder
from pipeline.checkpoint.loading import load_checkpoint
from pipeline.checkpoint.saver import save_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import build_training
from pipeline.step.settings import step_settings
from pipeline.step.train import train_step
from tests.support.layout_steps import own_batches
from tests.support.layout_trainings import Training, compare_with_trained, write_trained
from tests.support.layouts import MODELS, Layout
from tests.support.ranks import SharedRanks, run_alone
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.multiprocess

# Of sums and norms, and of a weight's change: Newton-Schulz iterations are computed in bfloat16, of which one
# unit is 2**-8. Gradients that differ in their last bits differ by one after rounding, where they are between
# two values.
LARGEST_ERROR, LARGEST_UPDATE_ERROR = 5e-4, 2**-7
TRAININGS = [
    Training(model="ponderlm3, llama", layout="TP2+SP", optimizer="muon"),
    Training(model="adaponderlm, neox", layout="TP2", optimizer="muon"),
    Training(model="ponderlm3, llama", layout="PP2", optimizer="muon"),
    Training(model="adaponderlm, neox", layout="DP2", optimizer="muon"),
    Training(model="ponderlm3, llama", layout="DP2xPP2", optimizer="muon", freeze_backbone_tokens=150),
]
RESHARDED = {
    "tp1": Layout(),
    "tp2": Layout(tensor=2),
    "pp2": Layout(pipeline=2, layers_per_stage=(3, 1)),
    "dp2": Layout(data=2),
}
# A multiple of what the vocabulary is padded to on every layout.
VOCAB_SIZE = 64
NUM_STEPS = 2
STATE = TrainState(iteration=NUM_STEPS, consumed_samples=8 * NUM_STEPS)
Values = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def side_by_side(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> SideBySide[Training]:
    file = tmp_path_factory.mktemp("muon") / "weights.pt"
    run_alone(write_trained, TRAININGS, file)
    return SideBySide(TRAININGS, compare_with_trained, file, ranks)


@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_training_on_a_layout_equals_training_in_one_process(
    training: Training, side_by_side: SideBySide[Training]
) -> None:
    for rank, found in enumerate(side_by_side.compared(training)):
        complaint = (
            found.complaint(LARGEST_UPDATE_ERROR)
            or found.complaint(LARGEST_ERROR, among="gradient norm")
            or found.complaint(LARGEST_ERROR, among="sum")
            or found.complaint(0, among="copies")
        )
        assert not complaint, f"{training}, rank {rank}: {complaint}"


class Run:
    """A model on a layout, of which every layout starts from other weights."""

    def __init__(self, name: str, precision: str = "fp32") -> None:
        layout = RESHARDED[name]
        self.config = MODELS["ponderlm3, llama"].config(
            layout,
            seed=list(RESHARDED).index(name) + 1,
            model={"vocab_size": VOCAB_SIZE},
            ponder={"num_jacobi_iterations": 0},
            training={"micro_batch_size": 1, "global_batch_size": 8, "precision": precision},
            # The router, which not every stage has, is in groups of its own.
            optimizer={"name": "muon", "new_parameters_lr_mult": 3.0, "lr": 3e-3},
        )
        self.groups = initialize_groups(tensor=layout.tensor, pipeline=layout.pipeline)
        self.parts = build_training(self.config, VOCAB_SIZE, self.groups)

    def train(self, iteration: int) -> None:
        statistics = StatisticsAccumulator(self.parts.module.statistics_layout(), device=torch.device("cpu"))
        settings = step_settings(self.config, iteration=iteration, consumed_tokens=0)
        train_step(self.parts, own_batches(self.groups), settings, groups=self.groups, statistics=statistics)

    def save(self, directory: Path) -> None:
        save_checkpoint(directory, STATE, config_file=Path(__file__), **self._parts)

    def load(self, directory: Path) -> None:
        load_checkpoint(directory, **self._parts)

    @property
    def weights(self) -> Values:
        whole = whole_tensors(self.parts.module, lambda weight: weight)
        return {name: value.clone() for name, value in whole.items()}

    @property
    def _parts(self) -> dict[str, Any]:
        parts = self.parts
        return {
            "module": parts.module,
            "optimizer": parts.optimizer,
            "scheduler": parts.scheduler,
            "groups": self.groups,
        }


def train_save_and_resume(folder: Path, name: str, precision: str) -> list[str]:
    """Return the weights that differ between a run that was interrupted and one that was not."""
    straight = Run(name, precision)
    for iteration in range(NUM_STEPS):
        straight.train(iteration)
    straight.save(folder / name)
    saved = straight.weights
    straight.train(NUM_STEPS)
    expected = straight.weights
    assert not all(torch.equal(saved[key], expected[key]) for key in saved)
    destroy_groups()
    resumed = Run(name, precision)
    resumed.load(folder / name)
    resumed.train(NUM_STEPS)
    found = resumed.weights
    destroy_groups()
    return [key for key in expected if not torch.equal(found[key], expected[key])]


def load_and_save(folder: Path, source: str, target: str) -> None:
    run = Run(target)
    run.load(folder / source)
    run.save(folder / f"{source} to {target}")
    destroy_groups()


def called(ranks: SharedRanks, function: Any, name: str, *arguments: Any) -> list[Any]:
    world_size = RESHARDED[name].world_size
    return (
        [run_alone(function, *arguments)] if world_size == 1 else ranks.run(function, world_size, *arguments)
    )


@pytest.mark.parametrize(
    ("name", "precision"), [("dp2", "fp32"), ("dp2", "bf16"), ("tp2", "fp32"), ("pp2", "bf16")]
)
def test_a_run_resumes_bit_by_bit(ranks: SharedRanks, tmp_path: Path, name: str, precision: str) -> None:
    found = called(ranks, train_save_and_resume, name, tmp_path, name, precision)

    assert found == [[], []]


@pytest.fixture(scope="module")
def saved(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reshard")
    for name in ("dp2", "pp2"):
        called(ranks, train_save_and_resume, name, folder, name, "fp32")
    return folder


@pytest.mark.parametrize(
    ("source", "target"), [("dp2", "tp1"), ("dp2", "tp2"), ("dp2", "pp2"), ("pp2", "dp2")]
)
def test_weights_and_state_load_onto_another_layout_bit_for_bit(
    ranks: SharedRanks, saved: Path, source: str, target: str
) -> None:
    called(ranks, load_and_save, target, saved, source, target)

    original = checkpoint_folder(saved / source, NUM_STEPS)
    again = checkpoint_folder(saved / f"{source} to {target}", NUM_STEPS)
    compared = {item.name: item for item in compare_checkpoints(original, again)}
    weights = [name for name in compared if not name.startswith("optimizer.")]
    momenta = [name for name in compared if ".momentum_buffer." in name]
    moments = [name for name in compared if ".exp_avg" in name]
    assert momenta
    assert all(".layers." in name for name in momenta)
    # Layers are stored together.
    assert len(momenta) + len(moments) / 2 == len(weights)
    assert [str(item) for item in compared.values() if not item.is_equal] == []
