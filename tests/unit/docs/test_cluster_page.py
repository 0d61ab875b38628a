"""The examples of docs/cluster.md are ones that could be submitted."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.preflight import check_run
from cluster.run_job import training_job
from cluster.targets import target_named
from cluster.workflow.job import step_job
from pipeline.cli import COMMANDS
from pipeline.config.load import load_config

REPOSITORY = Path(__file__).parents[3]
RECIPES = sorted((REPOSITORY / "pipeline" / "recipes" / "cluster").glob("*.yaml"))
PAGE = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
KUBERAY = yaml.safe_load((REPOSITORY / "docs" / "kuberay.yaml").read_text(encoding="utf-8"))


def test_there_are_examples_for_1_8_and_32_nodes() -> None:
    assert sorted(load_config(path).submit.nodes for path in RECIPES) == [1, 8, 32]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_example_passes_the_checks_before_it_is_queued(path: Path, tmp_path: Path) -> None:
    # Whose weights and rows lie on the cluster alone; what it asks of the GPUs is checked here.
    (tmp_path / "config.json").touch()
    config = load_config(path, [f"init_from.path={tmp_path}"])
    check_run(config, expects_data=False)
    first_job = load_config(path, [f"init_from.path={tmp_path}", "train-iters=20"])
    check_run(first_job, expects_data=False)
    assert config.name == path.stem
    assert path.name in PAGE


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_example_becomes_a_script_for_slurm(path: Path) -> None:
    config = load_config(path)
    slurm = target_named("slurm")
    script = slurm.render(training_job(config))
    assert f"#SBATCH --nodes={config.submit.nodes}\n" in script
    assert "#SBATCH --ntasks-per-node=8\n" in script
    for step in config.workflow:
        assert f"#SBATCH --job-name={config.name}-{step.name}\n" in slurm.render(step_job(config, step))


def test_the_largest_example_goes_to_ray_too() -> None:
    (path,) = [path for path in RECIPES if "32" in path.stem]
    config = load_config(path, ["submit.target=ray"])
    assert '"nodes": 32' in target_named("ray").render(training_job(config))


def test_the_cluster_on_kubernetes_has_the_pinned_ray_and_room_for_8_nodes() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    pins = project["project"]["dependencies"]
    spec: dict[str, Any] = KUBERAY["spec"]
    assert f"ray=={spec['rayVersion']}" in pins
    (workers,) = spec["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    config = load_config(next(path for path in RECIPES if "8_nodes" in path.stem))
    submit = config.submit
    assert workers["replicas"] == submit.nodes
    asked = container["resources"]["requests"]
    assert int(asked["nvidia.com/gpu"]) == submit.gpus_per_node
    assert int(asked["cpu"]) == submit.cpus_per_rank * submit.gpus_per_node


def test_every_command_on_the_page_exists() -> None:
    commands = {entry.name for entry in COMMANDS}
    named = set(re.findall(r"megaponder ([a-z]+)", PAGE))
    assert named - commands == set()
