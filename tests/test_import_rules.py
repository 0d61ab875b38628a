"""Who may import whom: the table in CONTRIBUTING.md, checked against the sources."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS

REPOSITORY = Path(__file__).parent.parent
OUR_PACKAGES = ("pipeline", "megatron_ext", "cluster", "data_prep")
SECTION = "## Who may import whom"
# What every package may import, unless its row makes an exception.
SHARED = "pipeline.shared"
ROW = re.compile(r"\| `(?P<package>[\w.]+)` \| (?P<imports>.+) \|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row of the table."""

    package: str
    allowed: tuple[str, ...]
    forbidden: tuple[str, ...]


def rules_of(text: str) -> tuple[Rule, ...]:
    """Read the table, longest package first."""
    _, _, section = text.partition(f"{SECTION}\n")
    section, _, _ = section.partition("\n## ")
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    rules = []
    for row in rows:
        found = ROW.fullmatch(row)
        assert found is not None, f"not a row of the table: {row}"
        names = re.findall(r"(not )?`([\w.]+)`", found["imports"])
        rules.append(
            Rule(
                package=found["package"],
                allowed=tuple(name for exception, name in names if not exception),
                forbidden=tuple(name for exception, name in names if exception),
            )
        )
    return tuple(sorted(rules, key=lambda rule: rule.package.count("."), reverse=True))


RULES = rules_of((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def modules() -> list[tuple[str, Path]]:
    """Return every module of ours with its file."""
    found = []
    for package in OUR_PACKAGES:
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            parts = file.relative_to(REPOSITORY).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), file))
    return found


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """Yield the dotted name of everything a source imports; `from a import b` yields `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = parents[: len(parents) - node.level + is_package]
                base = ".".join([*kept, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def rule_for(module: str) -> Rule:
    return next(rule for rule in RULES if is_inside(module, rule.package))


def is_allowed(name: str, rule: Rule) -> bool:
    if any(is_inside(name, forbidden) for forbidden in rule.forbidden):
        return False
    if name.partition(".")[0] in sys.stdlib_module_names:
        return True
    return any(is_inside(name, allowed) for allowed in (rule.package, SHARED, *rule.allowed))


def test_every_row_is_about_a_package_of_ours_and_each_of_them_has_one() -> None:
    known = {module for module, _ in modules()}
    packages = [rule.package for rule in RULES]
    assert set(packages) <= known
    assert len(set(packages)) == len(packages)
    assert set(OUR_PACKAGES) <= set(packages)


def test_every_package_of_ours_in_the_table_exists() -> None:
    known = {module for module, _ in modules()}
    named = {name for rule in RULES for name in (*rule.allowed, *rule.forbidden)}
    ours = {name for name in named if name.partition(".")[0] in OUR_PACKAGES}
    assert ours - known == set()


def test_the_longest_row_applies() -> None:
    table = f"{SECTION}\n| `a` | `x` |\n| `a.b` | `y`, not `y.z` |\n\n## Tests\n| `a.b.c` | `z` |\n"
    assert rules_of(table) == (
        Rule(package="a.b", allowed=("y",), forbidden=("y.z",)),
        Rule(package="a", allowed=("x",), forbidden=()),
    )


@pytest.mark.parametrize(
    ("module", "file"), modules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_module_imports_only_what_its_package_may(module: str, file: Path) -> None:
    rule = rule_for(module)
    source = file.read_text(encoding="utf-8")

    offending = [
        name
        for name in imports(module, source, is_package=file.name == "__init__.py")
        if not is_allowed(name, rule)
    ]

    assert offending == [], f"{module} may import only {', '.join(rule.allowed)} and the standard library"


@pytest.mark.parametrize(
    ("module", "source", "is_within_the_rules"),
    [
        ("megatron_ext.ponder.slots", "import torch.nn.functional as F", True),
        ("megatron_ext.ponder.slots", "import torch.distributed as dist", False),
        ("megatron_ext.ponder.slots", "from torch import distributed", False),
        ("megatron_ext.ponder.slots", "from megatron.core import parallel_state", False),
        ("megatron_ext.ponder.slots", "from ..attention import attend", False),
        ("megatron_ext.ponder.slots", "from pipeline.shared.errors import UserError", False),
        ("megatron_ext.parallel.groups", "from megatron_ext.model.config import ModelConfig", False),
        ("megatron_ext.parallel.groups", "from megatron_ext.host import device", True),
        ("megatron_ext.model.model", "from megatron_ext.parallel.groups import ParallelGroups", True),
        ("megatron_ext.model.model", "def late():\n    import megatron_ext.schedule.gradients", False),
        ("megatron_ext.methods.base", "from megatron_ext.schedule.freezing import x", False),
        ("megatron_ext.schedule.gradients", "from megatron_ext.model.model import x", True),
        ("pipeline.conversion.hf_model.modeling_megaponder", "import pipeline.shared.errors", False),
        ("pipeline.cli", "from cluster.commands import submit", True),
        ("pipeline.commands.train", "from cluster.commands import submit", False),
        ("data_prep.run", "from pipeline.shared.errors import DataError", True),
        ("data_prep.run", "from pipeline.config.load import load_config", False),
        ("megatron_ext.model.model", "from megatron_ext.ponder.slots import interleave_stages", True),
        ("megatron_ext.model.model", "from megatron.core.transformer import TransformerConfig", True),
        ("megatron_ext.model.model", "from megatron.training import get_args", False),
        ("megatron_ext.model.model", "from pipeline.config.schema import RunConfig", False),
        ("data_prep.on_ray.local", "import ray", True),
        ("data_prep.tasks", "import ray", False),
        ("data_prep.manifest", "import numpy", False),
        ("data_prep.run", "import torch", False),
        ("pipeline.config.schema", "from pipeline.cost.flops import x", False),
        ("pipeline.config.schema", "def late():\n    import torch", False),
        ("pipeline.run.start", "import cluster.slurm", False),
        ("pipeline.run.start", "import torch, megatron_ext.model.model, data_prep.manifest", True),
        ("cluster.preflight", "from pipeline.config.load import load_config", True),
        ("cluster.preflight", "from pipeline.run.start import train", False),
        ("cluster.slurm", "import torch", False),
        ("cluster.slurm", "import ray", False),
    ],
)
def test_the_rules_tell_good_imports_from_bad(module: str, source: str, is_within_the_rules: bool) -> None:
    rule = rule_for(module)

    assert all(is_allowed(name, rule) for name in imports(module, source)) == is_within_the_rules


def loaded_after(statement: str, *candidates: str) -> set[str]:
    """Return which of the candidate modules a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(name for name in {candidates!r} if name in sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    # The statement may print as well.
    return set(finished.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import pipeline.config.load",
        "import cluster",
        "import data_prep.manifest",
        "import pipeline.cli",
        "import cluster.commands.submit",
        "import cluster.commands.jobs, cluster.slurm.target, cluster.local.target, cluster.on_ray.target",
        "import cluster.workflow.local_run",
    ],
)
def test_light_parts_load_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement, "torch", "megatron", "ray", "numpy", "tensorboard") == set()


def test_the_help_of_the_program_loads_no_command_and_no_schema() -> None:
    loaded = loaded_after(
        "import pipeline.cli\ntry: pipeline.cli.app(['--help'])\nexcept SystemExit: pass",
        *(entry.module for entry in COMMANDS),
        *("pydantic", "yaml", "numpy", "torch", "pipeline.config.schema", "typer.rich_utils"),
    )
    assert loaded == {"typer.rich_utils"}


def test_no_module_of_a_command_loads_anything_heavy() -> None:
    statement = f"import {', '.join(entry.module for entry in COMMANDS)}"
    assert loaded_after(statement, "torch", "megatron", "ray", "numpy", "tensorboard") == set()


def test_a_report_and_the_content_of_a_checkpoint_need_no_torch() -> None:
    statement = (
        "import pipeline.checkpoint.stored_config, pipeline.report.collect, pipeline.report.facts, "
        "pipeline.report.render, pipeline.report.table, pipeline.checkpoint.description"
    )
    assert loaded_after(statement, "torch", "megatron", "matplotlib.figure") == {"matplotlib.figure"}


@pytest.mark.parametrize("package", OUR_PACKAGES)
def test_importing_a_package_loads_none_of_its_parts(package: str) -> None:
    parts = [module for module, _ in modules() if module.startswith(f"{package}.")]

    assert loaded_after(f"import {package}", *parts) == set()


def test_the_loading_check_sees_what_is_loaded() -> None:
    assert loaded_after("import pipeline.config.load", "yaml", "torch") == {"yaml"}
