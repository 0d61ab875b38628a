"""No module of ours imports itself through others, imports inside functions included."""

import ast
from collections.abc import Mapping

import pytest

from tests.test_import_rules import imports, modules

Graph = Mapping[str, frozenset[str]]


def import_graph(sources: Mapping[str, str], packages: frozenset[str] = frozenset()) -> Graph:
    """Return which of the given modules each of them imports at run time, anywhere in its source.

    Args:
        sources: source by module name.
        packages: the modules that are packages, against which relative imports resolve differently.
    """
    return {
        module: frozenset(
            target
            for name in imports(module, _without_type_checking(source), is_package=module in packages)
            if (target := _module_of(name, sources)) is not None and target != module
        )
        for module, source in sources.items()
    }


def _without_type_checking(source: str) -> str:
    """Drop the bodies of ``if TYPE_CHECKING:``, which never run."""

    class Dropper(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                return [self.visit(statement) for statement in node.orelse] or ast.Pass()
            return self.generic_visit(node)

    return ast.unparse(Dropper().visit(ast.parse(source)))


def _module_of(name: str, known: Mapping[str, str]) -> str | None:
    """Return the module an imported name is or comes from; None where it is not one of the known modules."""
    if name in known:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in known else None


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """Return the groups of modules that all reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_modules: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        open_modules.append(module)
        for target in graph[module]:
            if target not in order:
                visit(target)
            if target in open_modules:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == order[module]:
            start = open_modules.index(module)
            component = tuple(sorted(open_modules[start:]))
            del open_modules[start:]
            if len(component) > 1:
                found.append(component)

    for module in graph:
        if module not in order:
            visit(module)
    return sorted(found)


def our_graph() -> Graph:
    files = dict(modules())
    return import_graph(
        {module: file.read_text(encoding="utf-8") for module, file in files.items()},
        frozenset(module for module, file in files.items() if file.name == "__init__.py"),
    )


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(our_graph()) == []


def test_the_graph_covers_the_sources() -> None:
    graph = our_graph()

    assert "megatron_ext.model.stage" in graph["megatron_ext.model.model"]
    assert len(graph) > 100


def circular_sources(last: str) -> dict[str, str]:
    return {
        "house": "",
        "house.cellar": "from house.kitchen import cook",
        "house.kitchen": "def cook():\n    from house import attic\n    return attic",
        "house.attic": last,
    }


@pytest.mark.parametrize(
    ("last", "has_circle"),
    [
        ("import house.cellar", True),
        ("from house import cellar", True),
        ("from .cellar import wine", True),
        ("def late():\n    import house.cellar", True),
        ("class A:\n    def late(self):\n        from house.cellar import wine", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.cellar", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    from house.cellar import wine", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import house.cellar", True),
        ("import torch", False),
    ],
)
def test_a_circle_is_found_wherever_its_imports_are(last: str, has_circle: bool) -> None:
    found = circles(import_graph(circular_sources(last), frozenset({"house"})))

    expected = [("house.attic", "house.cellar", "house.kitchen")] if has_circle else []
    assert found == expected


def test_separate_circles_are_reported_apart() -> None:
    graph = {
        "a": frozenset({"b", "c"}),
        "b": frozenset({"a"}),
        "c": frozenset({"d"}),
        "d": frozenset({"c"}),
        "e": frozenset({"a"}),
    }

    assert circles(graph) == [("a", "b"), ("c", "d")]
