"""Runs that repeat to the bit: what is switched on, and that nothing a step does is refused then."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.utils.deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ext.ponder.config import Method
from megatron_ext.ponder.halting import sums_one_by_one, tail_mass
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.rehearsal.rehearse import rehearse_rank
from pipeline.run.determinism import compute_deterministically
from pipeline.step.megatron_config import transformer_config
from tests.unit.pipeline.config.settings import changed_settings

VOCAB_SIZE = 128

# On CUDA, torch raises an error in these, whatever their arguments or for floating point numbers; see
# `torch.use_deterministic_algorithms`.
REFUSED = {
    *("bincount", "cumsum", "histc", "median", "put", "put_", "nll_loss_forward", "nll_loss2d_forward"),
    *("cumsum_", "embedding_bag", "max_unpool2d", "ctc_loss", "kthvalue"),
}


def run_of(method: Method, *, deterministic: bool = False) -> RunConfig:
    steps = {} if method is Method.VANILLA else {"num_latent_thoughts": 2}
    return build_config(
        changed_settings(
            model__vocab_size=VOCAB_SIZE,
            model__num_layers=1,
            training__global_batch_size=4,
            ponder={"method": method.value} | steps,
            training__precision="bf16",
            training__deterministic=deterministic,
        )
    )


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.deterministic
    compute_deterministically()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.deterministic = before


class Recorder(TorchDispatchMode):
    """Notes the operations on floating point numbers of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if any(tensor.is_meta and tensor.is_floating_point() for tensor in tensors):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("deterministic")
def test_torch_is_asked_for_repeatable_algorithms() -> None:
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("method", list(Method))
def test_a_step_asks_for_nothing_that_is_refused(method: Method) -> None:
    with Recorder() as recorder:
        rehearse_rank(run_of(method, deterministic=True), VOCAB_SIZE, 0, documents_per_row=2)

    assert "mm" in recorder.names
    assert recorder.names & REFUSED == set()


def test_the_refused_are_found_where_it_is_not_asked_for() -> None:
    with Recorder() as recorder:
        rehearse_rank(run_of(Method.PONDERLM3), VOCAB_SIZE, 0)

    assert recorder.names & REFUSED == {"cumsum"}


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_sums_one_by_one_are_those_of_cumsum(num_steps: int) -> None:
    shares = torch.randn(3, num_steps + 1, 2, dtype=torch.float64).softmax(1).requires_grad_()
    usual = tail_mass(shares)
    summed = torch.cat([torch.ones_like(shares[:, :1]), sums_one_by_one(shares[:, 1:])], dim=1)

    torch.testing.assert_close(summed, usual)
    weights = torch.randn_like(usual)
    expected, found = (
        torch.autograd.grad((mass * weights).sum(), shares, allow_unused=True) for mass in (usual, summed)
    )
    torch.testing.assert_close(found, expected)


def test_megatron_looks_embeddings_up_repeatably() -> None:
    assert transformer_config(run_of(Method.VANILLA, deterministic=True), VOCAB_SIZE).deterministic_mode
    assert not transformer_config(run_of(Method.VANILLA), VOCAB_SIZE).deterministic_mode
