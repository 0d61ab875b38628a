"""When a training consists of fused functions."""

import importlib.util
import logging
from typing import Any

import pytest
import torch

from megatron_ext.device import standing_in
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.fusing import is_compiling
from pipeline.step import fusing
from pipeline.step.fusing import can_fuse
from pipeline.step.megatron_config import transformer_config
from tests.support.layouts import MODELS, ONE_PROCESS, VOCAB_SIZE
from tests.support.one_rank import groups

__all__ = ["groups"]


def can(groups: ParallelGroups, **training: Any) -> bool:
    config = MODELS["vanilla, llama"].config(ONE_PROCESS, training=training)
    return can_fuse(config, transformer_config(config, VOCAB_SIZE), groups)


def test_nothing_is_fused_on_a_cpu(groups: ParallelGroups) -> None:
    assert not can(groups)


@pytest.mark.parametrize(
    ("training", "expected"), [({}, True), ({"fused": "never"}, False), ({"deterministic": True}, False)]
)
def test_what_stands_in_for_cuda_fuses_as_cuda_does(
    groups: ParallelGroups, training: dict[str, Any], expected: bool
) -> None:
    with standing_in(torch.device("meta")):
        assert can(groups, **training) == expected
    assert not is_compiling()


@pytest.mark.parametrize(
    ("has_triton", "check"),
    [
        (False, lambda *_: {"norm": 1.0}),
        (True, lambda *_: {"norm": 1.0, "heads": 1e3}),
        (True, lambda *_: 1 / 0),
    ],
    ids=["without triton", "wrong numbers", "failing compiler"],
)
def test_without_a_compiler_that_works_the_log_says_that_nothing_is_fused(
    groups: ParallelGroups,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    has_triton: bool,
    check: Any,
) -> None:
    monkeypatch.setattr(fusing, "has_cuda", lambda: True)
    monkeypatch.setattr(fusing, "check_fused", check)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: has_triton or None)
    with standing_in(torch.device("meta")), caplog.at_level(logging.WARNING, logger=fusing.__name__):
        assert not can(groups)

    assert len(caplog.records) == 1
    assert not is_compiling()
