import ast
import sys
from collections.abc import Iterator

import pytest

from pipeline.conversion.model_code import CODE_FILES, shipped_code


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield level and module of each import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("name", CODE_FILES)
def test_shipped_code_needs_torch_transformers_and_its_neighbours(name: str) -> None:
    for level, module in imported(shipped_code()[name]):
        if level:
            assert (level, f"{module}.py" in CODE_FILES) == (1, True), module
        else:
            package = module.partition(".")[0]
            assert package in {"torch", "transformers"} or package in sys.stdlib_module_names, module


def test_everything_shipped_is_used_by_the_model() -> None:
    code = shipped_code()
    needed, found = {"modeling_megaponder.py"}, set[str]()
    while needed:
        name = needed.pop()
        found.add(name)
        needed |= {f"{module}.py" for level, module in imported(code[name]) if level} - found

    assert found == set(CODE_FILES)
