"""Forwards, gradients, decoding and training steps on a device that is not the CPU; all with `--away`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.device import device
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from pipeline.generation.batch import GenerationSettings, Prefill, generate_batch
from pipeline.generation.sampling import SamplingSettings
from tests.support.away import AWAY, NEEDED_WAITS, AwayTensor, DevicesError, away_device
from tests.support.away_steps import by_products, trained
from tests.support.golden.case import read_cases
from tests.support.golden.compare import Status, compare
from tests.support.golden.decode import compute_decode
from tests.support.golden.forward import compute_forward
from tests.support.layouts import MODELS
from tests.support.ponder_models import random_tokens, tiny_model

GOLDEN = Path(__file__).parents[2] / "golden"
# What the others have too, in a few seconds.
USUALLY = {
    "adaponderlm_neox_k1_q3e-1",
    "decode_adaponderlm_neox_k1",
    "decode_ponderlm3_neox_k1",
    "ours_neox_k1_j1_interp_topk",
    "ponderlm3_neox_k1_j2",
    "vanilla_llama",
}
USUAL_STEPS = {"adaponderlm, llama", "adaptive_latent_cot, llama", "ponderlm3, neox authors"}


def some(names: set[str], usual: set[str]) -> list[Any]:
    """Return the names as parameters, the others than the usual ones only with the option."""
    assert usual <= names, usual - names
    return [name if name in usual else pytest.param(name, marks=pytest.mark.away) for name in sorted(names)]


@pytest.mark.parametrize("name", some({path.stem for path in GOLDEN.glob("*.json")}, USUALLY))
def test_recorded_vectors_are_reproduced(groups: ParallelGroups, golden_folder: Path, name: str) -> None:
    (case,) = (case for case in read_cases(golden_folder) if case.name == name)
    compute = compute_decode if case.kind == "decode" else compute_forward

    with away_device() as away:
        result = compare(case, compute(case, groups, torch.float32), double=False)

    assert result.status is Status.PASSED, result
    assert away.operations > 100


@pytest.mark.parametrize("name", some(set(MODELS), USUAL_STEPS))
def test_training_steps_are_those_of_the_cpu_to_the_bit_and_wait_twice(
    groups: ParallelGroups, name: str
) -> None:
    with by_products():
        expected = trained(name, groups)
        with away_device() as away:
            found = trained(name, groups, away)

    assert found.differences(expected) == []
    assert sorted(place.rsplit(":", 1)[0] for _, place in found.waits) == sorted(NEEDED_WAITS)


def test_fused_functions_train_as_separate_operations_do(groups: ParallelGroups) -> None:
    name = "adaponderlm, llama"
    with by_products():
        expected = trained(name, groups)
        with away_device() as away:
            found = trained(name, groups, away, fused="auto")

    # Rounded differently, or nothing was fused.
    assert found.differences(expected)
    for key, value in expected.values.items():
        torch.testing.assert_close(found.values[key], value, rtol=1e-4, atol=1e-5)
    for one, other in zip(found.steps, expected.steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    assert sorted(place.rsplit(":", 1)[0] for _, place in found.waits) == sorted(NEEDED_WAITS)


@pytest.mark.parametrize(
    ("method", "prefill"),
    [
        (Method.PONDERLM3, Prefill.JACOBI),
        pytest.param(Method.PONDERLM3, Prefill.EXACT, marks=pytest.mark.away),
        pytest.param(Method.ADAPTIVE_LATENT_COT, Prefill.EXACT, marks=pytest.mark.away),
        pytest.param(Method.ADAPONDERLM, Prefill.EXACT, marks=pytest.mark.away),
    ],
)
def test_texts_are_those_of_the_cpu(groups: ParallelGroups, method: Method, prefill: Prefill) -> None:
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in (4, 1, 6)]
    settings = GenerationSettings(
        num_tokens=4, batch_size=2, prefill=prefill, sampling=SamplingSettings(temperature=0.8, seed=1)
    )

    def texts() -> dict[int, list[int]]:
        model = tiny_model(groups, method).to(device())
        return {text.number: text.ids for text in generate_batch(model, prompts, settings)}

    with by_products():
        expected = texts()
        with away_device():
            found = texts()

    assert found == expected


def on_both_sides() -> tuple[Tensor, Tensor]:
    host = torch.arange(4.0)
    return host.to(device()), host


MIXTURES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda away, host: away + host,
    "sum of a number": lambda away, host: host + away.sum(),
    "list": lambda away, host: torch.stack([away[0], host[0]]),
    "into a number of the host": lambda away, host: host[0].add_(away[0]),
    "index of the device": lambda away, host: host[away.long()],
    "index_select": lambda away, host: away.index_select(0, host.long()),
    "values to put": lambda away, host: away.index_put_((away.long(),), host),
    "generator": lambda away, host: away.bernoulli_(0.5, generator=torch.Generator()),
    "array": lambda away, host: away.numpy(),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_the_device_refuses_what_cuda_refuses(name: str) -> None:
    with away_device(), pytest.raises((DevicesError, TypeError)):
        MIXTURES[name](*on_both_sides())


WAITING: dict[str, tuple[Callable[[Tensor, Tensor], object], int]] = {
    "number of the host": (lambda away, host: away * host[1] + 1, 0),
    "copy without waiting": (lambda away, host: host.to(device(), non_blocking=True), 0),
    "boolean mask filled": (lambda away, host: away.masked_fill(away > 1, 0.0), 0),
    "number put by a mask": (lambda away, host: away.__setitem__(away > 1, 0.0), 0),
    "copy": (lambda away, host: host.to(device()), 1),
    "copy back": (lambda away, host: away.cpu(), 1),
    "copy into the host": (lambda away, host: host.copy_(away), 1),
    "value": (lambda away, host: away.sum().item(), 1),
    "truth": (lambda away, host: bool((away > 1).any()), 1),
    "list": (lambda away, host: away.tolist(), 1),
    "index of the host": (lambda away, host: away[host.long()], 1),
    "boolean index": (lambda away, host: away[away > 1], 1),
    "places": (lambda away, host: away.nonzero(), 1),
    "like another": (lambda away, host: away.new_tensor([1.0]) + away, 1),
    "tensor of numbers": (lambda away, host: torch.tensor([1.0], device=device()), 1),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_device_counts_the_waits_for_it(name: str) -> None:
    operation, expected = WAITING[name]
    with away_device() as away:
        both = on_both_sides()
        away.waits.clear()
        operation(*both)

    assert away.waits.total() == expected


def test_a_tensor_made_like_another_is_where_it_is_asked_for() -> None:
    with away_device():
        away, host = on_both_sides()
        there = [torch.empty_like(host, device=device()), host.new_zeros(2, device=device())]
        there += [torch.ones_like(away), away.new_full((2,), 3.0)]
        here = [torch.zeros_like(away, device="cpu"), away.new_empty(2, device="cpu"), torch.ones_like(host)]

        assert all(isinstance(one, AwayTensor) and one.device == AWAY for one in there)
        assert all(type(one) is Tensor for one in here)
        assert (away + there[2]).tolist() == [1, 2, 3, 4]


def test_a_copy_to_another_device_is_other_memory() -> None:
    with away_device():
        away, host = on_both_sides()
        away += 1
        back = away.cpu()
        back += 1

        assert isinstance(away, AwayTensor)
        assert away.device == AWAY
        assert host.tolist() == [0, 1, 2, 3]
        assert away.tolist() == [1, 2, 3, 4]
        assert back.tolist() == [2, 3, 4, 5]
