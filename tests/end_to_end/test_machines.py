"""The same commands on machines that differ from this one; docs/testing.md lists them with the results."""

import shutil
from pathlib import Path

import pytest

from tests.support.commands import Finished, megaponder
from tests.support.machines import MACHINES, Machine
from tests.support.runs import losses, one_rank

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

NUM_ITERATIONS = 2


def cases() -> list[object]:
    """Return every machine; those that are not quick are part of the soak."""
    return [
        pytest.param(machine, id=machine.name, marks=[] if machine.is_quick else [pytest.mark.soak])
        for machine in MACHINES
    ]


def run(machine: Machine, *arguments: str) -> Finished:
    command = megaponder(*arguments, variables=machine.variables, before=machine.before)
    assert "Traceback" not in command.stderr, (arguments, command.stderr)
    assert command.exit_code == 0, (arguments, command.stderr)
    return command


@pytest.mark.parametrize("machine", cases())
def test_commands_work_on_other_machines(machine: Machine, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / machine.folder
    texts, data, trained = folder / "texts", folder / "data", folder / "run"
    texts.mkdir(parents=True)
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"def value(index): return index {number} " * 20)
    shutil.copy(recipe.parent / "tokenizer.model", folder)
    prepared = ("--tokenizer", str(folder / "tokenizer.model"), "--output", str(data), "--workers", "0")
    run(machine, "data", "prepare", str(texts), *prepared, "--heldout-fraction", "0.3")
    run(machine, "data", "inspect", str(data), "--verify")
    settings = one_rank(trained, f"data.path={data}", f"exit-interval={NUM_ITERATIONS}")
    run(machine, "train", "--config", str(recipe), *settings)
    assert list(losses(trained)) == [1, 2]
    run(machine, "checkpoint", "list", str(trained / "checkpoints"))
    prompt = ("--prompt", "def value", "--max-new-tokens", "2")
    run(machine, "generate", str(trained / "checkpoints"), *prompt)
    slurm = ("--target", "slurm", "--dry-run")
    run(machine, "submit", "--config", str(recipe), *slurm, f"output_dir={trained}", f"data.path={data}")
    run(machine, "jobs", "list", "--runs", str(folder))


@pytest.mark.parametrize("name", ["caf\udce9", "a\nb"])
def test_folder_names_that_cannot_be_stored_are_refused(name: str, recipe: Path, tmp_path: Path) -> None:
    command = megaponder("train", "--config", str(recipe), *one_rank(tmp_path / name))
    assert command.exit_code == 2
    assert "Traceback" not in command.stderr
    assert not list(tmp_path.iterdir())
