"""Cached decoding with hard pruning, against the oracle and against recorded vectors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_ext.decoding import DecodedToken, TokenDecoder
from megatron_ext.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.weights import load_weights
from pipeline.golden.case import GoldenCase, read_cases
from pipeline.golden.forward import model_config
from tests.support.ponder_models import batch_of, observed, oracle_results, random_tokens, tiny_model

CASES = [
    "decode_ponderlm3_llama_k2",
    "decode_ponderlm3_llama_k3",
    "decode_ponderlm3_neox_k1",
    "decode_ponderlm3_neox_k2_tau1e-2",
    "decode_ponderlm3_neox_k3",
]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


@pytest.mark.parametrize("method", ["vanilla", "ponderlm2", "ponderlm3"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_decoding_equals_the_oracle(groups: ParallelGroups, method: str, architecture: str) -> None:
    model = tiny_model(groups, method, architecture)
    tokens = random_tokens(2, 9, seed=5)[0].tolist()

    decoder = TokenDecoder(model, len(tokens))
    decoded = [decoder.consume(token) for token in tokens]

    with torch.no_grad():
        expected = oracle_results(model, tokens)
    assert [one.steps for one in decoded] == [one.steps for one in expected]
    for one, other in zip(decoded, expected, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-9)
    assert decoder.store.num_rows == sum(1 + one.steps for one in decoded)
    if method == "ponderlm3":
        assert len({one.steps for one in decoded}) > 1
    else:
        assert {one.steps for one in decoded} == {model.config.ponder.num_latent_thoughts}


def test_mixtures_of_embeddings_are_decoded_as_they_are_trained(groups: ParallelGroups) -> None:
    # The oracle has no mixtures; the converged parallel forward has.
    model = tiny_model(groups, "ponderlm2", ponder={"mixture": Mixture.TOP_K, "mixture_top_k": 11})
    tokens = random_tokens(1, 6)
    with torch.no_grad():
        _, seen = observed(model, batch_of(tokens), num_jacobi_iterations=2 * 5)

    decoder = TokenDecoder(model, 6)
    decoded = torch.stack([decoder.consume(token).logits for token in tokens[0].tolist()])

    torch.testing.assert_close(decoded, seen["logits"][:, 0, : decoded.shape[1]], rtol=0, atol=1e-9)


def test_a_full_store_is_refused(groups: ParallelGroups) -> None:
    decoder = TokenDecoder(tiny_model(groups, "ponderlm2"), 1)
    decoder.consume(3)

    with pytest.raises(IndexError, match="3 rows cannot take row 4"):
        decoder.consume(3)


def decode_greedily(
    model: PonderModel, prompt: list[int], num_new: int
) -> tuple[list[DecodedToken], TokenDecoder]:
    decoder = TokenDecoder(model, len(prompt) + num_new)
    decoded = [decoder.consume(token) for token in prompt]
    while len(decoded) < len(prompt) + num_new - 1:
        decoded.append(decoder.consume(int(decoded[-1].logits.argmax())))
    return decoded, decoder


def recorded(case: GoldenCase, name: str, dtype: torch.dtype) -> Tensor:
    wide = f"outputs_f64/{name}"
    return case.tensors[wide if dtype is torch.float64 and wide in case.tensors else f"outputs/{name}"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_decoding_equals_the_recorded_vectors(
    groups: ParallelGroups, golden_folder: Path, name: str, dtype: torch.dtype
) -> None:
    (case,) = [case for case in read_cases(golden_folder) if case.name == name]
    model = PonderModel(model_config(case, groups, dtype), groups.pg_collection)
    load_weights(model, case.weights())
    num_new = int(case.facts["new_tokens"])

    for row, prompt in enumerate(case.tensors["inputs/prompt_ids"].tolist()):
        decoded, decoder = decode_greedily(model, prompt, num_new)

        logits = torch.stack([one.logits for one in decoded[len(prompt) - 1 :]])
        assert logits.argmax(dim=-1).tolist() == case.tensors["outputs/generated_ids"][row].tolist()
        assert [one.steps for one in decoded] == case.tensors["outputs/token_steps"][row].tolist()
        expected = recorded(case, "step_logits", dtype)[row]
        torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCES[dtype])
        assert decoder.store.num_rows == sum(1 + one.steps for one in decoded)
        assert decoder.store.num_rows == int(case.tensors["outputs/token_rows"][row].sum())
