"""The model against the oracle at random sizes."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture
from tests.support.ponder_models import (
    BACKBONES,
    METHODS,
    VOCAB_SIZE,
    batch_of,
    decode_one_by_one,
    observed,
    oracle_results,
    random_tokens,
    tiny_model,
)

EXACT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A model and its input; `num_groups` is used for Llama only."""

    method: Method
    architecture: Architecture
    num_thoughts: int
    num_layers: int
    num_heads: int
    num_groups: int
    mixture: Mixture
    num_sequences: int
    num_tokens: int

    def build(self, groups: ParallelGroups) -> PonderModel:
        """Build the model."""
        return tiny_model(
            groups,
            self.method,
            self.architecture,
            num_latent_thoughts=self.num_thoughts,
            ponder={"mixture": self.mixture, "mixture_top_k": 5},
            num_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_query_groups=self.num_groups if self.architecture is Architecture.LLAMA else self.num_heads,
        )


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    num_heads = draw(st.sampled_from([1, 2, 4, 8]))
    return Sizes(
        method=draw(st.sampled_from(METHODS)),
        architecture=draw(st.sampled_from(BACKBONES)),
        num_thoughts=draw(st.integers(0, 4)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        num_groups=draw(st.sampled_from([size for size in (1, 2, 4, 8) if size <= num_heads])),
        mixture=draw(st.sampled_from(Mixture)),
        num_sequences=draw(st.integers(1, 3)),
        num_tokens=draw(st.integers(1, 5)),
    )


@settings(max_examples=30)
@given(size=sizes())
def test_the_parallel_forward_equals_the_oracle_once_its_sweeps_suffice(
    groups: ParallelGroups, size: Sizes
) -> None:
    model = size.build(groups)
    tokens = random_tokens(size.num_sequences, size.num_tokens)
    sweeps = size.num_thoughts * (size.num_tokens - 1)

    with torch.no_grad():
        _, seen = observed(model, batch_of(tokens), num_jacobi_iterations=sweeps, prune=True)
        for row, sequence in enumerate(tokens.tolist()):
            expected = torch.stack([result.logits for result in oracle_results(model, sequence)])
            found = seen["logits"][:, row, :VOCAB_SIZE]
            torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@settings(max_examples=20)
@given(size=sizes())
def test_decoding_equals_the_oracle(groups: ParallelGroups, size: Sizes) -> None:
    model = size.build(groups)
    tokens = random_tokens(1, size.num_tokens)[0].tolist()

    with torch.no_grad():
        expected = oracle_results(model, tokens)
    logits, steps, _ = decode_one_by_one(model, tokens)

    torch.testing.assert_close(logits, torch.stack([one.logits for one in expected]), rtol=0, atol=EXACT)
    assert steps == [one.steps for one in expected]


@settings(max_examples=20)
@given(size=sizes(), sweeps=st.integers(0, 4), cut=st.integers(1, 4))
def test_tokens_see_neither_later_tokens_nor_other_documents(
    groups: ParallelGroups, size: Sizes, sweeps: int, cut: int
) -> None:
    model = size.build(groups)
    tokens = random_tokens(size.num_sequences, cut + size.num_tokens)
    documents = (torch.arange(tokens.shape[1]) >= cut).long().expand_as(tokens)

    with torch.no_grad():
        _, packed = observed(model, batch_of(tokens, documents), num_jacobi_iterations=sweeps)
        _, whole = observed(model, batch_of(tokens), num_jacobi_iterations=sweeps)
        parts = [
            observed(model, batch_of(part), num_jacobi_iterations=sweeps)[1]["logits"]
            for part in (tokens[:, :cut], tokens[:, cut:])
        ]

    torch.testing.assert_close(packed["logits"], torch.cat(parts), rtol=0, atol=EXACT)
    torch.testing.assert_close(whole["logits"][:cut], parts[0], rtol=0, atol=EXACT)
