"""Cached decoding with halting, against the oracle and against recorded vectors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.decoding import DecodedToken, TokenDecoder
from megatron_ext.model import PonderModel
from megatron_ext.model_config import Architecture
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture, Residual
from megatron_ext.weights import load_weights
from pipeline.golden.case import GoldenCase, read_cases
from pipeline.golden.forward import model_config
from tests.support.ponder_models import (
    each_backbone,
    each_model,
    halting_tokens,
    oracle_results,
    tiny_model,
)

CASES = {
    "decode_adaponderlm_llama_k3": "token_active_iterations",
    "decode_adaponderlm_neox_k1": "token_active_iterations",
    "decode_adaponderlm_neox_k3": "token_active_iterations",
    "decode_ponderlm3_llama_k2": "token_steps",
    "decode_ponderlm3_llama_k3": "token_steps",
    "decode_ponderlm3_neox_k1": "token_steps",
    "decode_ponderlm3_neox_k2_tau1e-2": "token_steps",
    "decode_ponderlm3_neox_k3": "token_steps",
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


def assert_decoded_as_by_the_oracle(model: PonderModel) -> None:
    """Decode a sequence, and let the oracle read it."""
    tokens = halting_tokens()[0].tolist()
    with torch.no_grad():
        expected = oracle_results(model, tokens)
    decoder = TokenDecoder(model, len(tokens))

    decoded = [decoder.consume(token) for token in tokens]

    assert [one.steps for one in decoded] == [one.steps for one in expected]
    for one, other in zip(decoded, expected, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-9)
    # A token of an iterating method keeps its place and has versions there.
    rows = len(tokens) if model.ponder.iterates else sum(1 + one.steps for one in decoded)
    assert decoder.store.num_rows == rows


@each_model
def test_decoding_equals_the_oracle(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    assert_decoded_as_by_the_oracle(tiny_model(groups, method, architecture, num_latent_thoughts=3))


@each_backbone
@pytest.mark.parametrize(
    ("method", "ponder"),
    [
        *((Method.PONDERLM2, {"mixture": mixture}) for mixture in (Mixture.SOFTMAX, Mixture.TOP_K)),
        *((Method.PONDERLM3, {"mixture": mixture}) for mixture in (Mixture.SOFTMAX, Mixture.TOP_K)),
        *((Method.PONDERLM, {"mixture": mixture}) for mixture in (Mixture.HIDDEN, Mixture.TOP_K)),
        *((Method.ADAPONDERLM, {"mixture": mixture}) for mixture in (Mixture.HIDDEN, Mixture.TOP_K)),
        (Method.PONDERLM, {"residual": Residual.FROM_EMBEDDING, "softmax_temperature": 0.5}),
        (Method.PONDERLM, {"multiply_embedding": True}),
        (Method.PAUSE, {"scale_embeds": False, "pause_token_id": 5}),
        (Method.LOOP, {"scale_embeds": False}),
    ],
)
def test_every_variant_is_decoded_as_it_is_defined(
    groups: ParallelGroups, method: Method, ponder: dict[str, Any], architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, ponder={"mixture_top_k": 7, **ponder})

    assert_decoded_as_by_the_oracle(model)


@pytest.mark.parametrize(
    ("method", "message"), [("ponderlm2", "3 rows cannot take row 4"), ("loop", "1 rows cannot take row 2")]
)
def test_a_full_store_is_refused(groups: ParallelGroups, method: str, message: str) -> None:
    decoder = TokenDecoder(tiny_model(groups, method), 1)
    decoder.consume(3)

    with pytest.raises(IndexError, match=message):
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


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_decoding_equals_the_recorded_vectors(
    groups: ParallelGroups, golden_folder: Path, name: str, dtype: torch.dtype
) -> None:
    (case,) = [case for case in read_cases(golden_folder) if case.name == name]
    model = PonderModel(model_config(case, groups, dtype), groups.pg_collection)
    load_weights(model, case.weights())
    rows: list[int] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    num_new = int(case.facts["new_tokens"])

    # One sequence in each precision.
    row = list(TOLERANCES).index(dtype)
    prompt = case.tensors["inputs/prompt_ids"][row].tolist()
    decoded, decoder = decode_greedily(model, prompt, num_new)

    logits = torch.stack([one.logits for one in decoded[len(prompt) - 1 :]])
    assert logits.argmax(dim=-1).tolist() == case.tensors["outputs/generated_ids"][row].tolist()
    assert [one.steps for one in decoded] == case.tensors[f"outputs/{CASES[name]}"][row].tolist()
    expected = recorded(case, "step_logits", dtype)[row]
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCES[dtype])
    assert sum(rows) == int(case.tensors["outputs/token_rows"][row].sum())
    assert decoder.store.num_rows == (len(decoded) if case.method is Method.ADAPONDERLM else sum(rows))
