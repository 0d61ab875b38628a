"""Two modules know whether there is a CUDA device; all others ask them."""

import ast
from collections.abc import Iterator

import pytest

from tests.test_import_rules import modules

ALLOWED = ("megatron_ext.device", "megatron_ext.host")
BACKENDS = frozenset({"nccl", "gloo", "cpu:gloo,cuda:nccl"})


def device_questions(source: str) -> Iterator[str]:
    """Yield what a source reaches of ``torch.cuda``, and the names of process group backends in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda":
            yield "torch.cuda"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if f"{alias.name}.".startswith("torch.cuda."))
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}." for alias in node.names]
            yield from (name.rstrip(".") for name in names if name.startswith("torch.cuda."))
        elif isinstance(node, ast.Constant) and node.value in BACKENDS:
            yield node.value


def test_only_two_modules_ask_about_the_device() -> None:
    questions = {name: list(device_questions(file.read_text(encoding="utf-8"))) for name, file in modules()}

    assert sorted(name for name, asked in questions.items() if asked) == sorted(ALLOWED)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\nif torch.cuda.is_available():\n    pass", ["torch.cuda"]),
        ("def late():\n    return torch.cuda.max_memory_allocated()", ["torch.cuda"]),
        ("from torch import cuda", ["torch.cuda"]),
        ("from torch.cuda import synchronize", ["torch.cuda.synchronize"]),
        ("import torch.cuda.amp", ["torch.cuda.amp"]),
        ("new_group(backend='gloo')", ["gloo"]),
        ("from megatron.core.tensor_parallel import get_cuda_rng_tracker", []),
        ('"""NCCL and gloo."""\ntensor.cuda()', []),
    ],
)
def test_questions_are_found(source: str, found: list[str]) -> None:
    assert list(device_questions(source)) == found
