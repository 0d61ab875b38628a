import pytest
import torch

from megatron_ext.device import (
    device,
    device_name,
    generator_state,
    has_cuda,
    process_group_backend,
    select_device,
    set_generator_state,
    synchronize,
)

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")


@without_cuda
def test_the_device_is_the_cpu_where_there_is_no_cuda() -> None:
    assert not has_cuda()
    assert device() == torch.device("cpu")
    assert process_group_backend() == "gloo"


def test_tensors_can_be_made_on_the_device() -> None:
    select_device(0)
    made = torch.ones(2, device=device())
    synchronize()

    assert made.sum() == 2


@without_cuda
def test_a_cpu_is_described_by_the_threads_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)

    assert "CPU" in device_name()
    assert "7" in device_name()


def test_the_generator_repeats_its_numbers_from_a_saved_state() -> None:
    state = generator_state()
    first = torch.rand(3, device=device())
    set_generator_state(state)

    assert torch.equal(torch.rand(3, device=device()), first)


@without_cuda
def test_without_cuda_the_generator_is_that_of_the_host() -> None:
    assert torch.equal(generator_state(), torch.get_rng_state())


def test_with_cuda_every_question_goes_to_the_selected_device(monkeypatch: pytest.MonkeyPatch) -> None:
    selected: list[int] = []
    states = [torch.arange(3, dtype=torch.uint8)]
    fakes = {
        "is_available": lambda: True,
        "set_device": selected.append,
        "current_device": lambda: selected[-1],
        "get_device_name": lambda: "an accelerator",
        "synchronize": lambda: selected.append(-1),
        "get_rng_state": lambda: states[-1],
        "set_rng_state": states.append,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    select_device(2)
    assert device() == torch.device("cuda", 2)
    assert (device_name(), process_group_backend()) == ("an accelerator", "cpu:gloo,cuda:nccl")
    set_generator_state(generator_state() + 1)
    assert torch.equal(generator_state(), torch.tensor([1, 2, 3], dtype=torch.uint8))
    synchronize()
    assert selected == [2, -1]
