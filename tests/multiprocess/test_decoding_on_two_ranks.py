"""Batched decoding with the layers split over two ranks, against the oracle on the whole weights."""

import pytest
import torch

from megatron_ext.decoding import BatchDecoder
from megatron_ext.host import prepare_host
from megatron_ext.model.config import Architecture
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.decode.sweeps import Sweeps
from tests.support.ponder_models import METHODS, oracle_results, random_tokens, tiny_model
from tests.support.ranks import SharedRanks

pytestmark = pytest.mark.multiprocess

PROMPT_LENGTHS = (5, 1, 7)
# Grouped queries on Llama: each rank holds one key/value head for two query heads.
CASES = [(method, Architecture.LLAMA) for method in METHODS] + [
    (Method.PONDERLM3, Architecture.GPT_NEOX),
    (Method.ADAPONDERLM, Architecture.GPT_NEOX),
    (Method.ADAPTIVE_LATENT_COT, Architecture.GPT_NEOX),
]


def errors_on_ranks(cases: list[tuple[Method, Architecture]]) -> dict[str, tuple[float, bool, list[int]]]:
    """Return by case the largest error of the logits, whether the steps are correct, and the rows kept."""
    prepare_host()
    groups = initialize_groups(tensor=2)
    try:
        return {
            f"{method} {architecture} {sweeps}": _error(groups, method, architecture, sweeps)
            for method, architecture in cases
            for sweeps in (None, Sweeps(tolerance=1e-12))
        }
    finally:
        destroy_groups()


def _error(
    groups: object, method: Method, architecture: Architecture, sweeps: Sweeps | None
) -> tuple[float, bool, list[int]]:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=3, tensor_model_parallel_size=2)  # type: ignore[arg-type]
    texts = [random_tokens(1, length, seed=26 + length)[0].tolist() for length in PROMPT_LENGTHS]
    decoder = BatchDecoder(model, num_sequences=3, max_tokens=11)
    logits = [read.logits for read in decoder.read_prompts(range(3), texts, sweeps=sweeps)]
    steps = []
    for turn in ((0, 1, 2), (0, 2)):
        for sequence in turn:
            texts[sequence].append(7 + sequence)
        decoded = decoder.consume(turn, [texts[sequence][-1] for sequence in turn])
        for index, sequence in enumerate(turn):
            logits[sequence] = decoded.logits[index]
        steps = decoded.steps.tolist()
    # Row by row: a sequence begins its next token while others finish theirs.
    following = [[3 + sequence, 5] for sequence in range(3)]
    for ended in decoder.follow(range(3), following):
        for index, sequence in enumerate(ended.sequences):
            logits[sequence] = ended.logits[index]
    texts = [text + more for text, more in zip(texts, following, strict=True)]
    with torch.no_grad():
        results = [oracle_results(model, text) for text in texts]
    expected = [of_text[-1] for of_text in results]
    error = max(float((found - one.logits).abs().max()) for found, one in zip(logits, expected, strict=True))
    return error, steps == [results[0][-3].steps, results[2][-3].steps], decoder.store.num_rows


def test_two_ranks_decode_what_the_oracle_does(ranks: SharedRanks) -> None:
    first, second = ranks.run(errors_on_ranks, 2, CASES)

    assert len(first) == 2 * len(CASES)
    assert all(steps_are_right for _, steps_are_right, _ in first.values())
    assert max(error for error, _, _ in first.values()) < 1e-9
    assert first == second
