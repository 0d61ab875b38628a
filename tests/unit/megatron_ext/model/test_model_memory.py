"""The tensors that a training step creates, recorded operation by operation, forward and backward."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ext.model.config import Architecture
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture
from megatron_ext.ponder.masks import visible_rows
from tests.support.ponder_models import (
    METHODS,
    PADDED_VOCAB_SIZE,
    batch_of,
    each_backbone,
    each_model,
    mean_loss,
    random_tokens,
    tiny_model,
)

LENGTH, BATCH_SIZE, NUM_THOUGHTS = 38, 2, 2
ONE_DOCUMENT = batch_of(random_tokens(BATCH_SIZE, LENGTH))
PACKED = batch_of(random_tokens(BATCH_SIZE, LENGTH), torch.tensor([[0] * 30 + [1] * 8, [0] * 5 + [1] * 33]))
MIXING = (Method.PONDERLM, Method.ADAPONDERLM)
# They ask the head what every step predicts.
PREDICTING = tuple(method for method in METHODS if method.facts.predicts_each_step)


class ShapeRecorder(TorchDispatchMode):
    """Records operation and shape of every tensor that is created."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        self.made += [(str(func), tuple(value.shape)) for value in results if isinstance(value, Tensor)]
        return result


def training_step(model: PonderModel, batch: TokenBatch) -> list[tuple[str, tuple[int, ...]]]:
    with ShapeRecorder() as recorder:
        output = model(batch, num_jacobi_iterations=2)
        mean_loss(output, batch, penalty_weight=0.3).backward()
    assert any("backward" in operation for operation, _ in recorder.made)
    return recorder.made


def vocabulary_sized(made: list[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors with a vocabulary for each of at least S rows."""
    for operation, shape in made:
        rows = torch.Size(shape).numel() // PADDED_VOCAB_SIZE
        if PADDED_VOCAB_SIZE in shape and rows >= LENGTH * BATCH_SIZE:
            yield operation, shape


def square(made: list[tuple[str, tuple[int, ...]]], *, smallest: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return the tensors with two dims of rows."""
    rows = {LENGTH * slots for slots in range(1, NUM_THOUGHTS + 2)} | {30, 33, 60, 66, 90, 99}
    return [
        (operation, shape)
        for operation, shape in made
        if sum(size in rows and size >= smallest for size in shape) >= 2
    ]


@each_backbone
@pytest.mark.parametrize("method", [method for method in METHODS if method not in MIXING + PREDICTING])
def test_only_the_final_readout_makes_logits(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    vanilla = list(vocabulary_sized(training_step(tiny_model(groups, "vanilla", architecture), ONE_DOCUMENT)))

    found = list(vocabulary_sized(training_step(tiny_model(groups, method, architecture), ONE_DOCUMENT)))

    # All passes together create what one pass creates: no more tensors and none larger.
    assert vanilla
    assert sorted(found) == sorted(vanilla)
    products = [operation for operation, _ in found if "mm" in operation]
    assert len(products) == 1


@each_backbone
@pytest.mark.parametrize("method", PREDICTING)
def test_predictions_of_steps_have_no_gradient(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    one, more = (
        list(
            vocabulary_sized(
                training_step(tiny_model(groups, method, architecture, num_latent_thoughts=k), ONE_DOCUMENT)
            )
        )
        for k in (0, NUM_THOUGHTS)
    )

    products = [operation for operation, _ in more if "mm" in operation]
    assert len(products) == 1 + NUM_THOUGHTS
    backward = [[operation for operation, _ in made if "backward" in operation] for made in (one, more)]
    assert backward[0] == backward[1]


@pytest.mark.parametrize("method", [Method.PONDERLM2, *MIXING])
def test_mixtures_of_embeddings_are_recorded(groups: ParallelGroups, method: Method) -> None:
    plain, mixing = (
        list(vocabulary_sized(training_step(tiny_model(groups, method, ponder=ponder), ONE_DOCUMENT)))
        for ponder in ({"mixture": Mixture.HIDDEN}, {"mixture": Mixture.SOFTMAX})
    )

    assert len(mixing) > len(plain)


@each_model
def test_no_tensor_has_rows_times_rows(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    # One document on one backbone, packed ones on the other: attention is the same.
    batch = ONE_DOCUMENT if architecture is Architecture.LLAMA else PACKED
    made = training_step(tiny_model(groups, method, architecture, dtype=torch.float32), batch)

    assert square(made, smallest=30) == []


def test_a_dense_mask_would_be_recorded() -> None:
    with ShapeRecorder() as recorder:
        visible_rows(PACKED.document_ids, 2)

    assert square(recorder.made, smallest=30)
