"""The demo's model on two tensor-parallel ranks against the same model on one: loss and all gradients.

One rank computes every variant and writes the results to a file; two ranks compute the same and hold theirs
against it. The gradients are those that the optimizer reads after Megatron's schedule has finished a global
batch of two micro-batches.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_ext.batch import TokenBatch
from megatron_ext.micro_batch import ModelOutput
from megatron_ext.model import PonderModel
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.build import build_training
from pipeline.config.load import load_config
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step_settings import StepSettings
from pipeline.train_step import run_schedule
from tests.support.ponder_models import batch_of
from tests.support.ranks import run_alone, run_on_ranks

pytestmark = pytest.mark.multiprocess

RECIPE = Path(__file__).parents[2] / "pipeline" / "recipes" / "demo.yaml"
LENGTH, BATCH_SIZE, NUM_MICRO_BATCHES = 16, 2, 2
LARGEST_DIFFERENCE = 1e-5
SHARED = (
    f"training.seq_length={LENGTH}",
    f"training.micro_batch_size={BATCH_SIZE}",
    f"training.global_batch_size={BATCH_SIZE * NUM_MICRO_BATCHES}",
    "ponder.num_jacobi_iterations=1",
    "ponder.random_jacobi_iterations=null",
)
METHODS = {
    "vanilla": ("ponder.method=vanilla", "ponder.num_latent_thoughts=0", "ponder.num_jacobi_iterations=0"),
    "ponderlm2": ("ponder.method=ponderlm2",),
    "ponderlm3": (),
}
MIXTURE = ("ponder.method=ponderlm2", "ponder.mixture=softmax")
BACKBONES = {"llama": (), "gpt_neox": ("model.architecture=gpt_neox", "model.ffn_hidden_size=512")}
SEQUENCE_PARALLEL = "parallel.sequence_parallel=true"
# On both backbones.
OPTIONS = {
    **METHODS,
    "ponderlm3, sequence parallel": (SEQUENCE_PARALLEL,),
    "mixture of the largest": (MIXTURE[0], "ponder.mixture=top_k", "ponder.mixture_top_k=50"),
    "mixture, sequence parallel": (*MIXTURE, SEQUENCE_PARALLEL),
    "full recompute": ("parallel.recompute=full",),
    # Padded to 1152 rows on one rank and to 1280 on two.
    "vocabulary that does not divide": ("model.vocab_size=1100",),
}
TIED = "model.untie_embeddings_and_output_weights=false"
VARIANTS = {
    f"{backbone}: {option}": (*BACKBONES[backbone], *changes)
    for backbone in BACKBONES
    for option, changes in OPTIONS.items()
} | {
    "llama: vanilla, sequence parallel": (*METHODS["vanilla"], SEQUENCE_PARALLEL),
    "llama: ponderlm2, sequence parallel": (*METHODS["ponderlm2"], SEQUENCE_PARALLEL),
    "llama: bottom k, full recompute, sequence parallel": (
        "ponder.penalty=bottom_k",
        "parallel.recompute=full",
        SEQUENCE_PARALLEL,
    ),
    "llama: selective recompute": ("parallel.recompute=selective",),
    "llama: tied mixture": (*MIXTURE, TIED),
    "gpt_neox: tied": (*BACKBONES["gpt_neox"], TIED),
    "llama: grouped queries": ("model.num_query_groups=2",),
}
Results = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How far one variant is from its reference.

    Attributes:
        differences: by tensor, the norm of the difference over the norm of the reference.
        zero: tensors that are zero throughout in the reference.
    """

    differences: dict[str, float]
    zero: list[str]


def _compute(changes: tuple[str, ...], tensor: int) -> dict[str, Tensor]:
    """Loss, penalty, statistics, start weights and gradients of one variant, whole on every rank."""
    layout = (f"parallel.tensor={tensor}",)
    if tensor == 1:
        changes = tuple(change for change in changes if change != SEQUENCE_PARALLEL)
    config = load_config(RECIPE, (*SHARED, *changes, *layout))
    vocab_size = config.model.vocab_size or 0
    groups = initialize_groups(tensor=tensor, seed=config.seed)
    try:
        parts = build_training(config, vocab_size, groups)
        start = {f"start {name}": value.clone() for name, value in _whole(parts.module).items()}
        load_weights(parts.module, _disturbed(parts.module))
        losses: list[Tensor] = []
        statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
        parts.ddp.zero_grad_buffer()
        run_schedule(
            parts.ddp,
            _batches(vocab_size),
            StepSettings(num_jacobi_iterations=config.ponder.num_jacobi_iterations, penalty_weight=0.3),
            groups=groups,
            statistics=statistics,
            observe=lambda batch, output: losses.append(_loss(batch, output)),
        )
        gradients = whole_tensors(parts.module, lambda parameter: parameter.main_grad)  # type: ignore[attr-defined]
        sums = {f"sum {name}": torch.tensor(value) for name, value in statistics.reduce(groups.dp).items()}
        return {"loss": torch.stack(losses)} | sums | start | gradients
    finally:
        destroy_groups()


def _whole(module: PonderModel) -> dict[str, Tensor]:
    return whole_tensors(module, lambda parameter: parameter)


def _disturbed(module: PonderModel) -> dict[str, Tensor]:
    """Whole weights that do not depend on the layout, with nothing trivially 0 or 1."""
    generator = torch.Generator().manual_seed(3)

    def draw(name: str, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, generator=generator)
        return 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.06 * noise

    shapes = {name: value.shape for name, value in _whole(module).items()}
    return {name: draw(name, shapes[name]) for name in sorted(shapes)}


def _batches(vocab_size: int) -> list[TokenBatch]:
    """Micro-batches of packed documents and, in the second, padding."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(vocab_size, (NUM_MICRO_BATCHES, BATCH_SIZE, LENGTH), generator=generator)
    documents = torch.tensor([0] * 5 + [1] * 11).expand(NUM_MICRO_BATCHES, BATCH_SIZE, LENGTH).clone()
    documents[0, 1] = 0
    documents[1, 1, 13:] = -1
    return [batch_of(*pair) for pair in zip(tokens, documents, strict=True)]


def _loss(batch: TokenBatch, output: ModelOutput) -> Tensor:
    loss = output.token_losses.sum() / (batch.labels != IGNORED_LABEL).sum()
    return (loss if output.penalty is None else loss + 0.3 * output.penalty).detach()


def _write_reference(file: Path) -> None:
    torch.save({name: _compute(changes, tensor=1) for name, changes in VARIANTS.items()}, file)


def _compare_with(file: Path) -> dict[str, Compared]:
    reference: Results = torch.load(file)
    return {
        name: _difference(_compute(changes, tensor=2), reference[name]) for name, changes in VARIANTS.items()
    }


def _difference(found: dict[str, Tensor], reference: dict[str, Tensor]) -> Compared:
    assert found.keys() == reference.keys()
    differences, zero = {}, []
    for name, expected in reference.items():
        norm = expected.double().norm().item()
        difference = (found[name].double() - expected.double()).norm().item()
        if norm == 0:
            zero.append(name)
        differences[name] = difference / norm if norm else difference
    return Compared(differences=differences, zero=zero)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Compared]]:
    """What two ranks found, rank by rank."""
    file = tmp_path_factory.mktemp("reference") / "results.pt"
    run_alone(_write_reference, file)
    return run_on_ranks(_compare_with, 2, file, timeout_seconds=240)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_equal_one(ranks: list[dict[str, Compared]], name: str) -> None:
    for compared in (rank[name] for rank in ranks):
        too_far = {
            tensor: difference
            for tensor, difference in compared.differences.items()
            if not difference < LARGEST_DIFFERENCE and not tensor.startswith("start ")
        }

        assert too_far == {}
        # Nothing is zero in both by being forgotten in both.
        gradients = [tensor for tensor in compared.zero if not tensor.startswith(("start ", "sum "))]
        assert gradients == []


@pytest.mark.parametrize("name", VARIANTS)
def test_both_layouts_start_from_the_same_weights(ranks: list[dict[str, Compared]], name: str) -> None:
    for compared in (rank[name] for rank in ranks):
        differing = [
            tensor
            for tensor, difference in compared.differences.items()
            if tensor.startswith("start ") and difference != 0
        ]

        assert differing == []
