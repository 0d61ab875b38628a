"""The choice of a kernel for attention, and the self-test that finds wrong ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model import kernels
from megatron_ext.model.kernels import (
    LARGEST_RATIO,
    AttentionSizes,
    check_kernel,
    is_cudnn_preferred,
    leave_out_cudnn,
    preferring_cudnn,
)
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.attention import key_weighted_attention
from megatron_ext.ponder.config import Method
from tests.support.ponder_models import batch_of, decode_one_by_one, random_tokens, tiny_model

CPU = torch.device("cpu")


def sizes(
    dtype: torch.dtype = torch.bfloat16, *, weighs_keys: bool = True, groups: int = 2
) -> AttentionSizes:
    return AttentionSizes(
        num_heads=4, num_groups=groups, head_size=8, num_rows=67, dtype=dtype, weighs_keys=weighs_keys
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weighs_keys", [False, True])
@pytest.mark.parametrize("groups", [2, 4])
def test_the_kernel_of_this_machine_is_right(dtype: torch.dtype, weighs_keys: bool, groups: int) -> None:
    check = check_kernel(sizes(dtype, weighs_keys=weighs_keys, groups=groups), CPU)

    assert check.is_right, check
    assert check.kernel in ("flash", "math")
    expected = {"output", "query", "key", "value"} | ({"log_weight"} if weighs_keys else set())
    assert set(check.errors) == expected


@pytest.mark.parametrize(
    ("break_it", "hurt"),
    [
        (lambda output: output * 1.2, "output"),
        (lambda output: torch.where(output > 1, torch.nan, output), "output"),
        (lambda output: output + (output * 0.2 - (output * 0.2).detach()), "value"),
    ],
)
def test_a_kernel_with_wrong_numbers_is_found(
    break_it: Callable[[Tensor], Tensor], hurt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **keywords: Any) -> Tensor:
        return break_it(key_weighted_attention(*arguments, **keywords))

    monkeypatch.setattr(kernels, "key_weighted_attention", broken)
    check = check_kernel(sizes(), CPU)

    assert not check.is_right
    assert check.errors[hurt] > LARGEST_RATIO


def test_cudnn_comes_first_where_it_is_preferred_and_nowhere_else() -> None:
    before = torch._C._get_sdp_priority_order(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        leave_out_cudnn()
        with preferring_cudnn(False):
            assert not is_cudnn_preferred()
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        with preferring_cudnn(True):
            assert is_cudnn_preferred()
            assert torch.backends.cuda.cudnn_sdp_enabled()
            # The methods that join kernels ask whether there is FlashAttention.
            assert torch.backends.cuda.flash_sdp_enabled()
        assert not is_cudnn_preferred()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch._C._set_sdp_priority_order(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])


@pytest.fixture
def preferences(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note for each call of torch's attention whether cuDNN was preferred."""
    found: list[bool] = []
    original = functional.scaled_dot_product_attention

    def noting(*arguments: Any, **keywords: Any) -> Tensor:
        found.append(is_cudnn_preferred())
        return original(*arguments, **keywords)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noting)
    return found


@pytest.mark.parametrize("method", [Method.VANILLA, Method.PONDERLM3, Method.ADAPONDERLM])
@pytest.mark.parametrize(
    ("prefers_cudnn", "documents", "expected"),
    [(True, [0] * 8, True), (True, [0] * 3 + [1] * 5, False), (False, [0] * 8, False)],
)
def test_cudnn_is_for_rows_of_one_document(
    groups: ParallelGroups,
    preferences: list[bool],
    method: Method,
    prefers_cudnn: bool,
    documents: list[int],
    expected: bool,
) -> None:
    model = tiny_model(groups, method, dtype=torch.float32, prefers_cudnn=prefers_cudnn)
    model(batch_of(random_tokens(1, 8), torch.tensor([documents])), num_jacobi_iterations=1)

    assert set(preferences) == {expected}


def test_cudnn_is_not_for_passes_whose_rows_vary(groups: ParallelGroups, preferences: list[bool]) -> None:
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32, prefers_cudnn=True)
    model(batch_of(random_tokens(1, 8)), num_jacobi_iterations=1, skips_pruned_rows=True)

    assert set(preferences) == {False}


def test_decoding_never_takes_cudnn(groups: ParallelGroups, preferences: list[bool]) -> None:
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32, prefers_cudnn=True).eval()
    decode_one_by_one(model, [1, 2, 3])

    assert set(preferences) == {False}


@pytest.mark.gpu
@pytest.mark.parametrize("weighs_keys", [False, True])
@pytest.mark.parametrize(("prefers_cudnn", "kernel"), [(False, "flash"), (True, "cudnn")])
def test_the_kernels_of_a_gpu_are_right(weighs_keys: bool, prefers_cudnn: bool, kernel: str) -> None:
    leave_out_cudnn()
    for head_size in (64, 80, 128):
        found = check_kernel(
            AttentionSizes(
                num_heads=8,
                num_groups=2,
                head_size=head_size,
                num_rows=512,
                dtype=torch.bfloat16,
                weighs_keys=weighs_keys,
            ),
            torch.device("cuda"),
            prefers_cudnn=prefers_cudnn,
        )

        assert found.is_right, found
        assert found.kernel == kernel
