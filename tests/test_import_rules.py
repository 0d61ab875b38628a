"""Who may import whom, read from the sources; see the layout in README.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
OUR_PACKAGES = ("pipeline", "megatron_ext", "cluster", "data_prep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the modules of one package may import beside the standard library and their own package."""

    package: str
    allowed: tuple[str, ...]
    forbidden: tuple[str, ...] = ()


# Loads no torch, and neither does what `cluster` uses of it.
LAUNCHING = (
    "cluster",
    "data_prep",
    "jinja2",
    "pipeline.checkpoint",
    "pipeline.commands.shared",
    "pipeline.config",
    "pipeline.cost",
    "pipeline.metrics",
    "pipeline.ranks",
    "pipeline.shared",
    "pydantic",
    "rich",
    "typer",
)

# The first rule whose package holds a module applies to it.
RULES = (
    Rule(package="megatron_ext.ponder", allowed=("torch",), forbidden=("torch.distributed",)),
    Rule(package="megatron_ext", allowed=("torch", "megatron.core")),
    Rule(package="data_prep.manifest", allowed=("pydantic", "pipeline.shared")),
    Rule(package="data_prep.on_ray", allowed=("ray", "data_prep", "pipeline.shared")),
    Rule(
        package="data_prep.inputs.opening",
        allowed=("backports.zstd", "fsspec", "data_prep", "pipeline.shared"),
    ),
    Rule(package="data_prep.inputs.finding", allowed=("fsspec", "pydantic", "data_prep", "pipeline.shared")),
    Rule(
        package="data_prep.tokenizers.huggingface_tokenizer",
        allowed=("numpy", "tokenizers", "data_prep", "pipeline.shared"),
    ),
    Rule(package="data_prep.inputs.parquet_records", allowed=("pyarrow", "data_prep", "pipeline.shared")),
    Rule(
        package="data_prep",
        allowed=("numpy", "sentencepiece", "webdataset", "pydantic", "rich", "pipeline.shared"),
    ),
    Rule(package="pipeline.shared", allowed=("rich",)),
    Rule(
        package="pipeline.config",
        # The method's names: a module of plain values, which loads nothing else.
        allowed=("pydantic", "pydantic_core", "yaml", "megatron_ext.ponder.config", "pipeline.shared"),
    ),
    Rule(
        package="pipeline.report",
        allowed=("jinja2", "markupsafe", "matplotlib", "pipeline", "rich"),
    ),
    # Runs where nothing of ours is.
    Rule(package="pipeline.conversion.hf_model", allowed=("torch", "transformers")),
    Rule(
        package="pipeline.evaluation.harness",
        allowed=("data_prep", "lm_eval", "megatron_ext", "numpy", "pipeline"),
    ),
    Rule(
        package="pipeline.conversion.transformers_logits",
        allowed=("torch", "transformers", "pipeline.conversion"),
    ),
    # The command line puts the parts together.
    Rule(package="pipeline.cli", allowed=("cluster.commands", "pipeline", "typer")),
    Rule(
        package="pipeline",
        allowed=(
            "data_prep",
            "jinja2",
            "markupsafe",
            "megatron.core",
            "megatron_ext",
            "numpy",
            "psutil",
            "pydantic",
            "rich",
            "safetensors",
            "tensorboard",
            "torch",
            "typer",
            "yaml",
        ),
    ),
    Rule(package="cluster.on_ray", allowed=("ray", *LAUNCHING)),
    Rule(package="cluster.local", allowed=("psutil", *LAUNCHING)),
    Rule(package="cluster", allowed=LAUNCHING),
)


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
    if name.partition(".")[0] in sys.stdlib_module_names or is_inside(name, rule.package):
        return True
    return any(is_inside(name, allowed) for allowed in rule.allowed)


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
        ("cluster.slurm", "from pipeline.config.load import load_config", True),
        ("cluster.slurm", "from pipeline.run.start import train", False),
        ("cluster.slurm", "import torch", False),
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
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import pipeline.config.load",
        "import cluster",
        "import data_prep.manifest",
        "import pipeline.cli",
    ],
)
def test_light_parts_load_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement, "torch", "megatron", "ray", "numpy", "tensorboard") == set()


@pytest.mark.parametrize("package", OUR_PACKAGES)
def test_importing_a_package_loads_none_of_its_parts(package: str) -> None:
    parts = [module for module, _ in modules() if module.startswith(f"{package}.")]

    assert loaded_after(f"import {package}", *parts) == set()


def test_the_loading_check_sees_what_is_loaded() -> None:
    assert loaded_after("import pipeline.config.load", "yaml", "torch") == {"yaml"}
