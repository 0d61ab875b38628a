import importlib
import inspect

import pytest
import torch

from megatron_ext import host
from megatron_ext.adamw import AdamW

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")


@pytest.fixture(autouse=True)
def prepared_host() -> None:
    host.prepare_host()


@without_cuda
def test_preparing_twice_changes_nothing_more() -> None:
    before = (torch.Tensor.type, torch.cuda.current_device, torch.Tensor.cuda)
    host.prepare_host()
    assert (torch.Tensor.type, torch.cuda.current_device, torch.Tensor.cuda) == before


@without_cuda
@pytest.mark.parametrize("name", host._MODULES_NAMING_CUDA)
def test_a_megatron_module_that_names_cuda_gets_cpu_tensors(name: str) -> None:
    module = importlib.import_module(name)
    source = inspect.getsource(module)
    assert 'device="cuda"' in source or "device='cuda'" in source, "this module needs no stand-in"
    for tensor in (
        module.torch.zeros(2, device="cuda"),
        module.torch.tensor([1], dtype=torch.int, device="cuda"),
        module.torch.empty_like(torch.zeros(2), device="cuda"),
    ):
        assert tensor.device.type == "cpu"


@without_cuda
def test_only_megatron_reads_cuda_as_the_cpu() -> None:
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        torch.zeros(2, device="cuda")


@without_cuda
def test_only_the_optimizer_sees_cpu_tensors_under_cuda_names() -> None:
    asks = "def ask(tensor): return tensor.type()"
    answers = {}
    for caller in ("megatron.core.optimizer.clip_grads", "megatron.core.utils", "anything.else"):
        namespace = {"__name__": caller}
        exec(asks, namespace)
        answers[caller] = namespace["ask"](torch.zeros(1, dtype=torch.bfloat16))  # type: ignore[operator]
    assert answers == {
        "megatron.core.optimizer.clip_grads": "torch.cuda.BFloat16Tensor",
        "megatron.core.utils": "torch.BFloat16Tensor",
        "anything.else": "torch.BFloat16Tensor",
    }


@without_cuda
def test_type_still_converts() -> None:
    assert torch.zeros(1).type(torch.float64).dtype == torch.float64


@without_cuda
def test_the_tracker_forks_the_cpu_generator_and_returns_it() -> None:
    tracker_module = importlib.import_module("megatron.core.tensor_parallel.random")
    tracker = tracker_module.CudaRNGStatesTracker()
    tracker.add("weights", 7)
    torch.manual_seed(1)
    expected_outside = torch.rand(3)
    expected_inside = torch.rand(3, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    with tracker.fork("weights"):
        inside = torch.rand(3)
    assert torch.equal(inside, expected_inside)
    assert torch.equal(torch.rand(3), expected_outside)


@without_cuda
def test_our_adamw_fills_megatrons_optimizer_slot() -> None:
    optimizers = importlib.import_module("megatron.core.optimizer")
    distributed = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    assert optimizers.Adam is AdamW
    assert distributed.Adam is AdamW
