"""Muon on several ranks: updates as in one process, runs that resume bit by bit, checkpoints that reshard."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import megatron_ext.muon
from megatron_ext.muon import MatrixParts, Muon
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
from tests.support.layout_steps import Compared, own_batches
from tests.support.layout_trainings import (
    Training,
    assert_as_in_one_process,
    compare_with_trained,
    write_trained,
)
from tests.support.layouts import MODELS, Layout
from tests.support.ranks import SharedRanks, run_alone
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.multiprocess

TRAININGS = [
    Training(model="ponderlm3, llama", layout="TP2+SP", optimizer="muon"),
    Training(model="adaponderlm, neox", layout="TP2", optimizer="muon"),
    Training(model="ponderlm3, llama", layout="PP2", optimizer="muon"),
    Training(model="ponderlm2, llama", layout="CP2", optimizer="muon"),
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


def in_float64(matrix: Tensor, coefficients: tuple[float, ...], num_steps: int, eps: float) -> Tensor:
    """Do what torch's function does in bfloat16, whose rounding makes much of differences in last bits."""
    a, b, c = coefficients
    x = matrix.double() / matrix.double().norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@contextmanager
def exact_iterations() -> Iterator[None]:
    with (
        patch.object(megatron_ext.muon, "_PRECISION", torch.float64),
        patch.object(megatron_ext.muon, "_zeropower_via_newtonschulz", in_float64),
    ):
        yield


def write_exactly_trained(trainings: Sequence[Training], file: Path) -> None:
    with exact_iterations():
        write_trained(trainings, file)


def compare_with_exactly_trained(trainings: Sequence[Training], file: Path) -> list[Compared]:
    with exact_iterations():
        return compare_with_trained(trainings, file)


@pytest.fixture(scope="module")
def side_by_side(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> SideBySide[Training]:
    file = tmp_path_factory.mktemp("muon") / "weights.pt"
    run_alone(write_exactly_trained, TRAININGS, file)
    return SideBySide(TRAININGS, compare_with_exactly_trained, file, ranks)


@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_training_on_a_layout_equals_training_in_one_process(
    training: Training, side_by_side: SideBySide[Training]
) -> None:
    assert_as_in_one_process(training, side_by_side)


# Two blocks a rank of 4 + 2 + 2 rows, such as heads of a fused query, key and value; gate and up, of which
# each rank holds a part; and a matrix that ranks share by columns.
WEIGHTS = {
    "qkv": ((32, 12), MatrixParts(rows=(4, 2, 2), split_dim=0)),
    "gated": ((28, 10), MatrixParts(rows=(7, 7), split_dim=0)),
    "columns": ((9, 16), MatrixParts(rows=(9,), split_dim=1)),
}


def own_part(name: str, whole: Tensor, rank: int) -> Tensor:
    layout = WEIGHTS[name][1]
    assert layout.split_dim is not None
    pieces = whole.chunk(2) if name == "gated" else (whole,)
    return torch.cat([piece.chunk(2, layout.split_dim)[rank] for piece in pieces], layout.split_dim)


def differing_parts() -> list[str]:
    """Return the weights of which this rank's part is not that of a process that holds all of it."""
    groups = initialize_groups(tensor=2)
    generator = torch.Generator().manual_seed(3)
    wholes = {
        name: nn.Parameter(torch.randn(*shape, generator=generator)) for name, (shape, _) in WEIGHTS.items()
    }
    parts = {
        name: nn.Parameter(own_part(name, whole.detach(), groups.tp_rank).clone())
        for name, whole in wholes.items()
    }
    for name, (_, layout) in WEIGHTS.items():
        rows = (14, 14) if name == "gated" else layout.rows
        wholes[name].matrix_parts = MatrixParts(rows=rows, split_dim=None)  # type: ignore[attr-defined]
        parts[name].matrix_parts = layout  # type: ignore[attr-defined]
    optimizers = [Muon(list(wholes.values())), Muon(list(parts.values()), tp_group=groups.tp)]
    for _ in range(3):
        for name, whole in wholes.items():
            whole.grad = torch.randn(*whole.shape, generator=generator)
            parts[name].grad = own_part(name, whole.grad, groups.tp_rank)
        for optimizer in optimizers:
            optimizer.step()
    rank = groups.tp_rank
    destroy_groups()
    return [name for name in parts if not torch.equal(parts[name], own_part(name, wholes[name], rank))]


def test_ranks_that_share_a_matrix_update_it_as_one_process_bit_for_bit(ranks: SharedRanks) -> None:
    assert ranks.run(differing_parts, 2) == [[], []]


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


@pytest.mark.parametrize(("name", "precision"), [("dp2", "bf16"), ("tp2", "fp32"), ("pp2", "bf16")])
def test_a_run_resumes_bit_by_bit(ranks: SharedRanks, tmp_path: Path, name: str, precision: str) -> None:
    found = called(ranks, train_save_and_resume, name, tmp_path, name, precision)

    assert found == [[], []]


@pytest.fixture(scope="module")
def saved(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reshard")
    for name in ("dp2", "pp2"):
        assert called(ranks, train_save_and_resume, name, folder, name, "fp32") == [[], []]
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
