"""Choosing the next token."""

from collections import Counter

import pytest
import torch

from pipeline.generation.sampling import SamplingSettings, TokenChooser

# Probabilities 0.5, 0.25, 0.15, 0.1.
LOGITS = torch.tensor([0.25, 0.5, 0.1, 0.15]).log()


def drawn(sampling: SamplingSettings, *, number: int = 0, count: int = 400) -> Counter[int]:
    chooser = TokenChooser(sampling, number=number)
    return Counter(chooser.choose(LOGITS, [0]) for _ in range(count))


def test_greedy_takes_the_most_likely() -> None:
    assert drawn(SamplingSettings()) == {1: 400}


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-40, 1e-300, 5e-324])
def test_a_temperature_near_zero_takes_the_most_likely(temperature: float) -> None:
    assert drawn(SamplingSettings(temperature=temperature), count=5) == {1: 5}
    assert drawn(SamplingSettings(temperature=temperature, top_k=2, top_p=0.5), count=5) == {1: 5}


def test_sampling_follows_the_probabilities() -> None:
    counts = drawn(SamplingSettings(temperature=1.0), count=4000)

    assert [counts[token] / 4000 for token in range(4)] == pytest.approx([0.25, 0.5, 0.1, 0.15], abs=0.03)


def test_a_temperature_sharpens_or_flattens() -> None:
    cold, hot = (drawn(SamplingSettings(temperature=one), count=2000)[1] / 2000 for one in (0.5, 2.0))

    # p ** (1 / T), made to sum to one.
    assert cold == pytest.approx(0.25 / (0.25 + 0.0625 + 0.01 + 0.0225), abs=0.04)
    assert hot == pytest.approx(0.5**0.5 / (0.5**0.5 + 0.5 + 0.1**0.5 + 0.15**0.5), abs=0.04)


def test_top_k_leaves_the_k_most_likely() -> None:
    assert set(drawn(SamplingSettings(temperature=1.0, top_k=2))) == {0, 1}


@pytest.mark.parametrize(
    ("top_p", "left"), [(0.5, {1}), (0.51, {0, 1}), (0.75, {0, 1}), (0.8, {0, 1, 3}), (1e-9, {1})]
)
def test_top_p_leaves_the_most_likely_that_make_it_up(top_p: float, left: set[int]) -> None:
    assert set(drawn(SamplingSettings(temperature=1.0, top_p=top_p))) == left


def test_the_penalty_makes_tokens_that_are_there_less_likely_on_both_sides_of_zero() -> None:
    chooser = TokenChooser(SamplingSettings(repetition_penalty=2.0), number=0)

    assert chooser.choose(torch.tensor([3.0, 2.0, -1.0]), [0, 0]) == 1
    assert chooser.choose(torch.tensor([-1.0, -1.5, -9.0]), [0]) == 1
    assert chooser.choose(torch.tensor([3.0, 2.0, -1.0]), [2]) == 0


def test_the_penalty_leaves_the_logits_of_the_caller_alone() -> None:
    logits = torch.tensor([3.0, 2.0])

    TokenChooser(SamplingSettings(repetition_penalty=2.0), number=0).choose(logits, [0])

    assert logits.tolist() == [3.0, 2.0]


def test_texts_draw_from_seeds_of_their_own() -> None:
    def draws(seed: int, number: int) -> list[int]:
        chooser = TokenChooser(SamplingSettings(temperature=1.0, seed=seed), number=number)
        return [chooser.choose(LOGITS, [0]) for _ in range(40)]

    assert draws(1, 0) == draws(1, 0)
    assert len({tuple(draws(seed, number)) for seed in range(3) for number in range(3)}) == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -0.1), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.1), ("repetition_penalty", 0.0)],
)
def test_settings_that_choose_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        SamplingSettings(**{name: value})  # type: ignore[arg-type]  # one of them is an int
