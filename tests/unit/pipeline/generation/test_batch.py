"""Generation of many sequences from a tiny model."""

from collections.abc import Iterator

import pytest
import torch

from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from pipeline.generation.batch import Ending, GenerationSettings, GrowingText, Prefill, generate_batch
from pipeline.generation.sampling import SamplingSettings
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from tests.support.ponder_models import each_method, oracle_results, random_tokens, tiny_model

PROMPTS = [random_tokens(1, length, seed=26 + length)[0].tolist() for length in (5, 1, 7, 3, 2)]
SAMPLED = SamplingSettings(temperature=1.0, top_k=20, repetition_penalty=1.3, seed=4)


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    """A layout of one rank."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        stop_process_group()


@pytest.fixture(scope="module")
def model(groups: ParallelGroups) -> PonderModel:
    return tiny_model(groups, Method.PONDERLM3, num_latent_thoughts=3)


def texts_of(model: PonderModel, settings: GenerationSettings, **options: object) -> dict[int, GrowingText]:
    return {text.number: text for text in generate_batch(model, PROMPTS, settings, **options)}  # type: ignore[arg-type]


def test_tokens_steps_and_losses_are_those_of_the_oracle(model: PonderModel) -> None:
    texts = texts_of(model, GenerationSettings(num_tokens=6, prefill=Prefill.EXACT, batch_size=2))

    assert sorted(texts) == [0, 1, 2, 3, 4]
    for number, text in texts.items():
        with torch.no_grad():
            expected = oracle_results(model, text.ids)
        assert text.ids[: len(PROMPTS[number])] == PROMPTS[number]
        assert [one.is_prompt for one in text.tokens] == [True] * len(PROMPTS[number]) + [False] * 6
        assert [one.steps for one in text.tokens] == [one.steps for one in expected]
        chosen = [int(one.logits.argmax()) for one in expected[len(PROMPTS[number]) - 1 : -1]]
        assert text.ids[len(PROMPTS[number]) :] == chosen
        losses = [
            -float(torch.log_softmax(one.logits, dim=0)[token])
            for one, token in zip(expected, text.ids[1:], strict=False)
        ]
        assert text.tokens[0].nll is None
        assert [one.nll for one in text.tokens[1:]] == pytest.approx(losses, abs=1e-9)
        assert text.ending is Ending.LENGTH


@pytest.mark.parametrize("prefill", Prefill)
@pytest.mark.parametrize("sampling", [SamplingSettings(), SAMPLED])
def test_a_text_does_not_depend_on_the_size_of_its_batch(
    model: PonderModel, sampling: SamplingSettings, prefill: Prefill
) -> None:
    def ids(batch_size: int) -> dict[int, list[int]]:
        settings = GenerationSettings(
            num_tokens=9, sampling=sampling, batch_size=batch_size, prefill=prefill, tolerance=1e-11
        )
        return {number: text.ids for number, text in texts_of(model, settings).items()}

    together = ids(5)

    assert ids(1) == ids(2) == ids(3) == together
    assert len({tuple(text[len(PROMPTS[number]) :]) for number, text in together.items()}) > 1


@each_method
def test_a_sampled_text_of_any_method_is_the_same_alone_in_float32(
    groups: ParallelGroups, method: Method
) -> None:
    model = tiny_model(groups, method, dtype=torch.float32)

    def texts(batch_size: int) -> dict[int, list[tuple[int, int]]]:
        settings = GenerationSettings(num_tokens=9, sampling=SAMPLED, batch_size=batch_size)
        return {
            number: [(one.token, one.steps) for one in text.tokens]
            for number, text in texts_of(model, settings).items()
        }

    assert texts(1) == texts(3) == texts(5)


def test_both_ways_to_read_a_prompt_give_one_text(model: PonderModel) -> None:
    exact, swept = (
        {number: text.ids for number, text in texts_of(model, GenerationSettings(prefill=prefill)).items()}
        for prefill in Prefill
    )

    assert exact == swept


def test_the_end_of_a_document_ends_a_text_and_is_not_part_of_it(model: PonderModel) -> None:
    settings = GenerationSettings(num_tokens=8, batch_size=2)
    free = texts_of(model, settings)
    eod_id = free[0].ids[len(PROMPTS[0]) + 3]

    texts = texts_of(model, settings, eod_id=eod_id)

    for number, text in texts.items():
        whole = free[number].ids
        added = whole[len(PROMPTS[number]) :]
        length = added.index(eod_id) if eod_id in added else len(added)
        assert text.ids == whole[: len(PROMPTS[number]) + length]
        assert text.ending is (Ending.EOD if eod_id in added else Ending.LENGTH)
    assert texts[0].ending is Ending.EOD


def test_the_caller_may_end_a_text(model: PonderModel) -> None:
    def has_stopped(text: GrowingText) -> bool:
        return text.number == 2 and len(text.tokens) == 9

    texts = texts_of(model, GenerationSettings(num_tokens=4), has_stopped=has_stopped)

    assert (texts[2].ending, len(texts[2].tokens)) == (Ending.STOP, 9)
    assert {text.ending for number, text in texts.items() if number != 2} == {Ending.LENGTH}


def test_what_had_ended_before_a_stop_is_yielded_and_nothing_else(model: PonderModel) -> None:
    settings = GenerationSettings(num_tokens=3, batch_size=2)
    ended: list[GrowingText] = []

    for text in generate_batch(model, PROMPTS, settings, should_stop=lambda: len(ended) >= 2):
        ended.append(text)

    # One call of the layers may end two texts.
    assert len(ended) in (2, 3)
    assert {len(text.tokens) - len(text.prompt) for text in ended} == {3}


def test_a_text_is_watched_from_its_prompt_to_its_end(model: PonderModel) -> None:
    seen: list[tuple[int, int, Ending | None]] = []

    texts_of(
        model,
        GenerationSettings(num_tokens=2, batch_size=2),
        watch=lambda text: seen.append((text.number, len(text.tokens), text.ending)),
    )

    for number, prompt in enumerate(PROMPTS):
        lengths = [(length, ending) for one, length, ending in seen if one == number]
        start = len(prompt)
        assert lengths == [(start, None), (start + 1, None), (start + 2, Ending.LENGTH)]


def test_no_prompts_give_no_texts(model: PonderModel) -> None:
    assert list(generate_batch(model, [], GenerationSettings())) == []


@pytest.mark.parametrize(("name", "value"), [("num_tokens", 0), ("batch_size", 0), ("stop", ("x", ""))])
def test_what_cannot_be_generated_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        GenerationSettings(**{name: value})  # type: ignore[arg-type]  # names and values of all kinds


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2.0**-7)])
def test_sweeps_end_where_the_weights_round(dtype: torch.dtype, tolerance: float) -> None:
    sweeps = GenerationSettings().sweeps(dtype)

    assert sweeps is not None
    assert sweeps.tolerance == tolerance
    assert GenerationSettings(prefill=Prefill.EXACT).sweeps(dtype) is None
