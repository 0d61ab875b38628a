"""Cached decoding of one and of many sequences, against the sequential oracle in float64."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext import decoding_store
from megatron_ext.decoding import BatchDecoder, DecodedTokens
from megatron_ext.decoding_store import RowStore
from megatron_ext.model.attention import StoredKeys
from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture, Residual
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.reference.method import TokenResult
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from megatron_ext.weights import load_weights, whole_tensors
from tests.support.ponder_models import (
    batch_of,
    decode_one_by_one,
    each_backbone,
    each_model,
    halting_tokens,
    observed,
    oracle_results,
    random_tokens,
    tiny_model,
)

EXACT = 1e-9
SETTLED = Sweeps(tolerance=1e-12)
PROMPT_LENGTHS = (7, 1, 9, 4)
# Each row of a number is a sequence that gets a token in that step; nobody gets one in every step.
TURNS = ((0, 1, 2, 3), (0, 2), (3,), (1, 2, 3), (3, 0))


def some_prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=26 + length)[0].tolist() for length in PROMPT_LENGTHS]


def oracle(model: PonderModel, tokens: Sequence[int]) -> list[TokenResult]:
    with torch.no_grad():
        return oracle_results(model, tokens)


def rows_of(model: PonderModel, steps: Sequence[int]) -> int:
    """Rows that a sequence keeps: a token of an iterating method keeps its place and has versions there."""
    return len(steps) if model.ponder.iterates else sum(1 + one for one in steps)


def assert_decoded_as_by_the_oracle(model: PonderModel) -> None:
    """Decode a sequence, and let the oracle read it."""
    tokens = halting_tokens()[0].tolist()
    expected = oracle(model, tokens)

    logits, steps, decoder = decode_one_by_one(model, tokens)

    assert steps == [one.steps for one in expected]
    torch.testing.assert_close(logits, torch.stack([one.logits for one in expected]), rtol=0, atol=EXACT)
    assert decoder.store.num_rows == [rows_of(model, steps)]


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
        (Method.ADAPTIVE_LATENT_COT, {"step_input_scale": 2.0, "pruning_threshold": 0.2}),
        (Method.ADAPTIVE_LATENT_COT, {"pruning_threshold": 0.0}),
    ],
)
def test_every_variant_is_decoded_as_it_is_defined(
    groups: ParallelGroups, method: Method, ponder: dict[str, Any], architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, ponder={"mixture_top_k": 7, **ponder})

    assert_decoded_as_by_the_oracle(model)


@pytest.mark.parametrize("sweeps", [None, SETTLED])
@each_model
def test_a_batch_equals_the_oracle_on_each_of_its_sequences(
    groups: ParallelGroups, method: Method, architecture: Architecture, sweeps: Sweeps | None
) -> None:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=3)
    texts, order = some_prompts(), (2, 0, 3, 1)
    decoder = BatchDecoder(model, num_sequences=4, max_tokens=16)

    prompts = [texts[sequence] for sequence in order]
    scored = decoder.score_prompts(order, prompts, sweeps=sweeps)
    read = decoder.read_prompts(order, prompts, sweeps=sweeps)

    for sequence, prompt, alike in zip(order, scored, read, strict=True):
        expected = oracle(model, texts[sequence])
        assert prompt.steps.tolist() == alike.steps.tolist()
        torch.testing.assert_close(prompt.logits, alike.logits, rtol=0, atol=EXACT)
        assert prompt.steps.tolist() == [one.steps for one in expected]
        torch.testing.assert_close(prompt.logits, expected[-1].logits, rtol=0, atol=EXACT)
        losses = [
            -torch.log_softmax(one.logits, dim=0)[token]
            for one, token in zip(expected, texts[sequence][1:], strict=False)
        ]
        assert prompt.nll.tolist() == pytest.approx([float(loss) for loss in losses], abs=EXACT)

    for number, turn in enumerate(TURNS):
        for sequence in turn:
            texts[sequence].append(5 + number + sequence)
        decoded = decoder.consume(turn, [texts[sequence][-1] for sequence in turn])
        for index, sequence in enumerate(turn):
            expected = oracle(model, texts[sequence])
            torch.testing.assert_close(decoded.logits[index], expected[-1].logits, rtol=0, atol=EXACT)
            assert int(decoded.steps[index]) == expected[-1].steps
    steps = [[one.steps for one in oracle(model, text)] for text in texts]
    assert decoder.store.num_rows == [rows_of(model, of_sequence) for of_sequence in steps]


@pytest.mark.parametrize("method", [method for method in Method if method.halts])
def test_a_batch_runs_the_rows_that_its_tokens_need_and_no_others(
    groups: ParallelGroups, method: Method
) -> None:
    model = tiny_model(groups, method, num_latent_thoughts=3)
    rows: list[int] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    columns = random_tokens(5, 9, seed=26).T.tolist()
    decoder = BatchDecoder(model, num_sequences=5, max_tokens=9)

    num_mixed = 0
    for column in columns:
        steps = decoder.consume(range(5), column).steps.tolist()
        # One call for each step that any token takes, of the tokens that take it.
        assert rows == [sum(one >= step for one in steps) for step in range(max(steps) + 1)]
        num_mixed += len(set(steps)) > 1
        rows.clear()
    assert num_mixed >= 6, "tokens of a call must differ in their steps"


@each_model
def test_every_call_takes_the_next_row_of_every_sequence(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=3)
    texts = random_tokens(4, 7, seed=26).tolist()
    expected = [oracle(model, text) for text in texts]
    decoder = BatchDecoder(model, num_sequences=4, max_tokens=7)
    calls: list[list[int]] = []

    def note(name: str, value: Tensor) -> None:
        if name == "rows/sequences":
            calls.append(sorted(value.tolist()))

    decoder.observe = note
    for decoded in decoder.follow(range(4), texts):
        for index, sequence in enumerate(decoded.sequences):
            one = expected[sequence][decoder.num_tokens[sequence] - 1]
            torch.testing.assert_close(decoded.logits[index], one.logits, rtol=0, atol=EXACT)
            assert int(decoded.steps[index]) == one.steps

    assert decoder.num_tokens == [7] * 4
    rows = [sum(1 + one.steps for one in of_text) for of_text in expected]
    assert calls == [[number for number in range(4) if rows[number] > call] for call in range(max(rows))]
    if method.halts:
        waiting = sum(1 + max(one.steps for one in column) for column in zip(*expected, strict=True))
        assert len(calls) < waiting


@pytest.mark.parametrize("method", [Method.ADAPONDERLM, Method.PONDERLM3])
def test_mixtures_of_all_sequences_are_made_at_once(
    groups: ParallelGroups, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(groups, method, num_latent_thoughts=3, ponder={"mixture": Mixture.SOFTMAX})
    calls: list[int] = [0]
    mixed: list[int] = []
    mix = model.mix_embeddings

    def note(hidden: Tensor) -> Tensor:
        mixed.append(hidden.shape[1])
        return mix(hidden)

    monkeypatch.setattr(model, "mix_embeddings", note)
    model.decoder.register_forward_hook(lambda *_: calls.append(calls[-1] + 1))
    decoder = BatchDecoder(model, num_sequences=4, max_tokens=7)
    steps = [decoded.steps for decoded in decoder.follow(range(4), random_tokens(4, 7, seed=26).tolist())]

    assert sum(mixed) == int(torch.cat(steps).sum())
    assert 0 < len(mixed) < calls[-1]


def test_a_busy_sequence_neither_begins_nor_starts_over(groups: ParallelGroups) -> None:
    decoder = BatchDecoder(tiny_model(groups, Method.PONDERLM2), num_sequences=2, max_tokens=4)
    decoder.begin([0], [5])

    for misuse in (
        lambda: decoder.begin([0], [6]),
        lambda: decoder.consume([0], [6]),
        lambda: decoder.read_prompts([0], [[6]], sweeps=None),
    ):
        with pytest.raises(AssertionError):
            misuse()
    # Others may.
    assert decoder.consume([1], [6]).sequences == [1]
    assert decoder.busy == {0}


@pytest.mark.parametrize("method", [Method.VANILLA, Method.PONDERLM2])
def test_sequences_of_one_length_are_attended_together(groups: ParallelGroups, method: Method) -> None:
    model = tiny_model(groups, method)
    decoder = BatchDecoder(model, num_sequences=3, max_tokens=4)
    decoder.read_prompts(range(3), random_tokens(3, 3).tolist(), sweeps=None)
    store = decoder.store
    places = [store.num_rows[0]] * 3

    together = store.places([0, 1, 2], places).extend(1, *some_keys(3, decoder))
    apart = store.places([0, 2], places[:2]).extend(1, *some_keys(2, decoder))

    assert [part.rows for part in together] == [slice(0, 3)]
    assert [part.rows for part in apart] == [slice(0, 1), slice(1, 2)]


def test_sequences_attend_together_unless_too_many_keys_are_read_in_vain(groups: ParallelGroups) -> None:
    model = tiny_model(groups, Method.PONDERLM2)
    decoder = BatchDecoder(model, num_sequences=4, max_tokens=9)
    store = decoder.store

    def parts_at(places: list[int]) -> list[slice]:
        return [part.rows for part in store.places(range(4), places).extend(1, *some_keys(4, decoder))]

    # Together they read 4 * 20 keys, of which they see 20 + 15 + 10 + 3.
    assert parts_at([19, 14, 9, 2]) == [slice(0, 4)]
    # Three would read 60 keys and see 26.
    assert parts_at([19, 2, 2, 2]) == [slice(0, 2), slice(2, 4)]
    # A part with several lengths says which keys each row sees.
    (part,) = store.places(range(4), [3, 2, 3, 1]).extend(1, *some_keys(4, decoder))
    assert part.visible is not None
    assert part.visible.sum(dim=1).tolist() == [4, 3, 4, 2]


def some_keys(rows: int, decoder: BatchDecoder) -> tuple[Tensor, Tensor]:
    keys, _ = decoder.store.read(1, 0, slice(0, 1), 1)
    groups, size = keys.shape[1], keys.shape[3]
    return keys.new_ones(rows, groups, size), keys.new_ones(rows, groups, size)


@each_model
def test_what_a_sequence_decodes_does_not_depend_on_its_batch(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, dtype=torch.float32)
    prompts = some_prompts()

    for sweeps in (None, Sweeps(tolerance=1e-6)):
        together = decode_greedily(model, prompts, sweeps, num_new=12)
        for index, prompt in enumerate(prompts):
            alone = decode_greedily(model, [prompt], sweeps, num_new=12)
            assert together[0][index] == alone[0][0]
            torch.testing.assert_close(together[1][index], alone[1][0], rtol=0, atol=2e-5)


def decode_greedily(
    model: PonderModel, prompts: list[list[int]], sweeps: Sweeps | None, num_new: int
) -> tuple[list[list[int]], Tensor]:
    """New tokens of every sequence, and the logits of the last of them, [B, V]."""
    decoder = BatchDecoder(model, num_sequences=len(prompts), max_tokens=max(map(len, prompts)) + num_new)
    read = decoder.read_prompts(range(len(prompts)), prompts, sweeps=sweeps)
    logits = torch.stack([prompt.logits for prompt in read])
    chosen = []
    for _ in range(num_new):
        chosen.append(logits.argmax(dim=1).tolist())
        logits = decoder.consume(range(len(prompts)), chosen[-1]).logits
    return [list(tokens) for tokens in zip(*chosen, strict=True)], logits


@each_model
def test_a_sequence_that_starts_over_has_forgotten_the_old_one(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture)
    first, second = some_prompts()[2], some_prompts()[3]

    def decode(decoder: BatchDecoder) -> DecodedTokens:
        decoder.read_prompts([1], [second], sweeps=SETTLED)
        return decoder.consume([1], [5])

    used = BatchDecoder(model, num_sequences=2, max_tokens=10)
    used.read_prompts([0, 1], [second, first], sweeps=SETTLED)
    again, fresh = decode(used), decode(BatchDecoder(model, num_sequences=2, max_tokens=10))

    assert torch.equal(again.logits, fresh.logits)


@pytest.mark.parametrize(
    "method",
    [
        Method.LOOP,
        Method.PAUSE,
        Method.PONDERLM,
        Method.PONDERLM2,
        Method.ADAPONDERLM,
        Method.ADAPTIVE_LATENT_COT,
    ],
)
def test_a_limited_decoder_decodes_as_a_model_built_with_fewer_steps(
    groups: ParallelGroups, method: Method
) -> None:
    large = tiny_model(groups, method, num_latent_thoughts=3)
    small = tiny_model(groups, method, num_latent_thoughts=1)
    weights = whole_tensors(large, lambda parameter: parameter)
    load_weights(small, {name: weights[name] for name in whole_tensors(small, lambda parameter: parameter)})
    prompts = some_prompts()

    def read(model: PonderModel, limits: StepLimits) -> list[Tensor]:
        decoder = BatchDecoder(model, num_sequences=4, max_tokens=9, limits=limits)
        return [prompt.logits for prompt in decoder.read_prompts(range(4), prompts, sweeps=SETTLED)]

    expected = read(small, UNLIMITED)
    own = large.ponder.config
    for found, logits in zip(read(large, StepLimits(num_steps=1)), expected, strict=True):
        torch.testing.assert_close(found, logits, rtol=0, atol=EXACT)
    assert large.ponder.config is own


@pytest.mark.parametrize("method", [Method.PONDERLM2, Method.PONDERLM3])
@pytest.mark.parametrize(
    "sweeps",
    [
        Sweeps(tolerance=1e-12, damping=0.3),
        Sweeps(tolerance=1e-12, num_groups=2),
        Sweeps(tolerance=1e-12, num_groups=3, damping=0.3),
        Sweeps(tolerance=1e-12, by_slot=True),
    ],
    ids=["damped", "groups", "damped groups", "by slot"],
)
def test_sweeps_of_all_kinds_leave_the_same_rows_behind(
    groups: ParallelGroups, method: Method, sweeps: Sweeps
) -> None:
    model = tiny_model(groups, method, num_latent_thoughts=3)
    texts = some_prompts()
    decoder = BatchDecoder(model, num_sequences=4, max_tokens=10)

    read = decoder.read_prompts(range(4), texts, sweeps=sweeps)
    following = decoder.consume(range(4), [5] * 4)

    for number, (text, prompt) in enumerate(zip(texts, read, strict=True)):
        expected = oracle(model, [*text, 5])
        assert prompt.steps.tolist() == [one.steps for one in expected[:-1]]
        torch.testing.assert_close(prompt.logits, expected[-2].logits, rtol=0, atol=EXACT)
        torch.testing.assert_close(following.logits[number], expected[-1].logits, rtol=0, atol=EXACT)


def test_sweeps_run_no_pruned_slot_and_no_settled_prompt(groups: ParallelGroups) -> None:
    model = tiny_model(groups, Method.PONDERLM3, num_latent_thoughts=3)
    prompts = some_prompts()
    decoder = BatchDecoder(model, num_sequences=4, max_tokens=9)
    sequences: list[list[int]] = []

    def count(name: str, value: Tensor) -> None:
        if name == "rows/sequences":
            sequences.append(value.tolist())

    decoder.observe = count
    read = decoder.read_prompts(range(4), prompts, sweeps=SETTLED)

    needed = [rows_of(model, prompt.steps.tolist()) for prompt in read]
    assert needed[2] < len(prompts[2]) * 4
    # A prompt of one token is exact after K + 1 passes and does not move in the one after them.
    passes = [sum(number in one for one in sequences) for number in range(4)]
    assert passes[1] <= 5 < passes[2]
    for number in range(4):
        assert [one.count(number) for one in sequences if number in one][-1] == needed[number]


@pytest.mark.parametrize("method", [Method.VANILLA, Method.PAUSE, Method.PONDERLM2, Method.PONDERLM3])
def test_prompts_of_one_length_attend_together_and_are_stored_once(
    groups: ParallelGroups, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pruning_threshold": 0.0} if method.halts else {}
    model = tiny_model(groups, method, num_latent_thoughts=2, ponder=settings)
    prompts = random_tokens(4, 5, seed=3).tolist()
    prompts[3].pop()
    decoder = BatchDecoder(model, num_sequences=5, max_tokens=9)
    batches: list[int] = []
    written: list[int] = []
    write, attend = RowStore.write_beginnings, decoding_store.WholeRows.extend

    def note_write(store: RowStore, layer: int, version: int, sequences: Tensor, *new: Tensor) -> None:
        written.extend(sequences.tolist() if layer == 1 else [])
        write(store, layer, version, sequences, *new)

    def note_parts(rows: decoding_store.WholeRows, *layer: Any) -> Sequence[StoredKeys]:
        parts = attend(rows, *layer)
        batches.extend(len(part.keys) for part in parts)
        return parts

    monkeypatch.setattr(RowStore, "write_beginnings", note_write)
    monkeypatch.setattr(decoding_store.WholeRows, "extend", note_parts)
    read = decoder.read_prompts([4, 0, 2, 1], prompts, sweeps=SETTLED)

    assert sorted(written) == [0, 1, 2, 4]
    assert batches[:2] == [1, 3]
    for sequence, prompt, found in zip([4, 0, 2, 1], prompts, read, strict=True):
        expected = oracle(model, [*prompt, 7])
        torch.testing.assert_close(found.logits, expected[-2].logits, rtol=0, atol=EXACT)
        following = decoder.consume([sequence], [7])
        torch.testing.assert_close(following.logits[0], expected[-1].logits, rtol=0, atol=EXACT)


@each_backbone
def test_a_number_of_sweeps_gives_the_forward_with_as_many(
    groups: ParallelGroups, architecture: Architecture
) -> None:
    model = tiny_model(groups, Method.PONDERLM2, architecture, num_latent_thoughts=3)
    tokens = random_tokens(1, 9)
    decoder = BatchDecoder(model, num_sequences=1, max_tokens=9)

    (read,) = decoder.read_prompts([0], tokens.tolist(), sweeps=Sweeps(number=2))

    with torch.no_grad():
        _, seen = observed(model, batch_of(tokens), num_jacobi_iterations=2)
    torch.testing.assert_close(read.logits, seen["logits"][-1, 0, : len(read.logits)], rtol=0, atol=EXACT)


@each_model
def test_decoding_in_bfloat16_stays_close_to_float32(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    narrow = tiny_model(groups, method, architecture, dtype=torch.bfloat16, ponder={"pruning_threshold": 0.0})
    wide = tiny_model(groups, method, architecture, dtype=torch.float32, ponder={"pruning_threshold": 0.0})
    tokens = random_tokens(1, 6)[0].tolist()

    logits, _, _ = decode_one_by_one(narrow, tokens)
    expected, _, _ = decode_one_by_one(wide, tokens)

    assert logits.dtype == torch.bfloat16
    difference = (logits.float() - expected).square().mean().sqrt()
    assert difference < 0.1 * expected.square().mean().sqrt()


@pytest.mark.parametrize(("method", "capacity"), [("ponderlm2", 3), ("loop", 1)])
def test_a_full_store_is_refused(groups: ParallelGroups, method: str, capacity: int) -> None:
    decoder = BatchDecoder(tiny_model(groups, method), num_sequences=2, max_tokens=1)
    decoder.consume([0], [3])
    decoder.consume([1], [3])

    assert decoder.store.capacity == capacity
    with pytest.raises(IndexError):
        decoder.consume([0], [3])


def test_an_empty_prompt_is_refused(groups: ParallelGroups) -> None:
    decoder = BatchDecoder(tiny_model(groups, "vanilla"), num_sequences=2, max_tokens=4)

    with pytest.raises(ValueError):  # noqa: PT011
        decoder.read_prompts([0, 1], [[3], []], sweeps=None)


def test_a_latent_cot_may_take_more_steps_than_it_was_built_with(groups: ParallelGroups) -> None:
    small = tiny_model(groups, Method.ADAPTIVE_LATENT_COT, num_latent_thoughts=1)
    large = tiny_model(groups, Method.ADAPTIVE_LATENT_COT, num_latent_thoughts=4)
    load_weights(large, whole_tensors(small, lambda parameter: parameter))
    tokens = halting_tokens()[0].tolist()
    decoder = BatchDecoder(small, num_sequences=1, max_tokens=len(tokens), limits=StepLimits(num_steps=4))

    found = [decoder.consume([0], [token]) for token in tokens]

    expected = oracle(large, tokens)
    assert [int(one.steps) for one in found] == [one.steps for one in expected]
    assert max(one.steps for one in expected) > 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logits[0], other.logits, rtol=0, atol=EXACT)
