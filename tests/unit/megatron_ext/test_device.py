import pytest
import torch

from megatron_ext.device import (
    DEVICE_VARIABLE,
    choose_device,
    computes_bf16,
    device,
    device_name,
    generator_state,
    has_cuda,
    process_group_backend,
    select_device,
    set_generator_state,
    standing_in,
    synchronize,
    to_device,
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


@without_cuda
@pytest.mark.parametrize(
    ("capabilities", "is_able"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bw": False}, False),
        ({"architecture": "x86_64", "avx2": True, "avx512_bw": True, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
    ],
)
def test_a_cpu_computes_bf16_if_it_has_instructions_for_it(
    capabilities: dict[str, object], is_able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    assert computes_bf16() is is_able


@without_cuda
def test_what_is_known_of_this_cpu_is_what_torch_goes_by() -> None:
    assert computes_bf16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
        "device_count": lambda: 4,
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


def pretend_devices(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    selected: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    return selected


@pytest.mark.parametrize(("variable", "choice"), [("cpu", "auto"), ("auto", "cpu"), ("cuda", "cpu")])
def test_the_cpu_can_be_chosen_where_there_is_cuda(
    monkeypatch: pytest.MonkeyPatch, variable: str, choice: str
) -> None:
    selected = pretend_devices(monkeypatch, 1)
    monkeypatch.setenv(DEVICE_VARIABLE, variable)
    choose_device(choice)
    select_device(3)

    assert device() == torch.device("cpu")
    assert process_group_backend() == "gloo"
    assert selected == []


@pytest.mark.parametrize(("variable", "choice"), [("cuda", "auto"), ("auto", "cuda"), ("tpu", "auto")])
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, choice: str
) -> None:
    pretend_devices(monkeypatch, 0)
    monkeypatch.setenv(DEVICE_VARIABLE, variable)

    with pytest.raises(ValueError, match=r"CUDA|tpu"):
        choose_device(choice)


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_devices(monkeypatch, 2)
    select_device(1, 4)

    with pytest.raises(ValueError, match=r"4 ranks and shows 2.*parallel\.device=cpu"):
        select_device(2, 4)


def test_a_task_that_is_shown_one_device_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    selected = pretend_devices(monkeypatch, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    select_device(3)

    assert selected == [0]


def test_another_device_can_stand_in() -> None:
    with standing_in(torch.device("meta")):
        assert not has_cuda()
        assert device() == torch.device("meta")
        assert to_device(torch.zeros(2)).is_meta


@without_cuda
def test_a_tensor_of_the_host_stays_where_the_device_is_the_cpu() -> None:
    tensor = torch.zeros(2)

    assert to_device(tensor) is tensor
