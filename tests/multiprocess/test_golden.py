"""`megaponder golden` on the recorded vectors, and on folders in which something is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from megatron_ext.ponder.config import Method
from pipeline.config.errors import ConfigError
from pipeline.exit_codes import ExitCode
from pipeline.golden.command import run_golden

pytestmark = pytest.mark.multiprocess


def results_of(file: Path) -> dict[str, dict[str, Any]]:
    return {result["name"]: result for result in json.loads(file.read_text())}


def copy_case(golden: Path, folder: Path, name: str) -> None:
    """Copy a case and the weights it names."""
    facts = json.loads((golden / f"{name}.json").read_text())
    weights = [facts[key] for key in ("weights_file", "extra_weights_file") if key in facts]
    for file in (f"{name}.json", f"{name}.safetensors", *weights):
        shutil.copyfile(golden / file, folder / file)


def change_tensor(folder: Path, name: str, tensor: str, by: float) -> None:
    file = folder / f"{name}.safetensors"
    tensors = load_file(file)
    tensors[tensor].view(-1)[0] += by
    save_file(tensors, file)


def rename_method(folder: Path, name: str, method: str) -> None:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"method": method}))


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_the_production_model_reproduces_every_vector(
    golden_folder: Path, tmp_path: Path, quiet: Console, tensor_parallel: int
) -> None:
    file = tmp_path / "results.json"
    folder = tmp_path / "cases"
    folder.mkdir()
    names = [path.stem for path in golden_folder.glob("*.json")]
    chosen = [name for name in names if name.startswith(("ours_", "vanilla_", "ponderlm3_"))]
    for name in chosen:
        copy_case(golden_folder, folder, name)

    code = run_golden(folder, kind="forward", tensor_parallel=tensor_parallel, json_file=file, console=quiet)

    results = results_of(file)
    assert code == ExitCode.DONE
    assert sorted(results) == sorted(chosen)
    assert {result["status"] for result in results.values()} == {"passed"}
    counts = {
        kind: sum(name.startswith(kind) for name in chosen) for kind in ("ours_", "vanilla_", "ponderlm3_")
    }
    assert counts == {"ours_": 30, "vanilla_": 3, "ponderlm3_": 26}
    for name, result in results.items():
        measured = {quantity.split(" ")[0] for quantity in result["worst"]}
        assert {"logits", "loss", "gradients", "hidden"} <= measured
        assert ("halting" in measured) == name.startswith("ponderlm3_")


def test_changed_records_are_found_and_named(golden_folder: Path, tmp_path: Path, quiet: Console) -> None:
    changed = {
        "ours_llama_k1_j0": ("outputs/logits", "logits"),
        "ponderlm3_neox_k1_j2": ("grads/ponder.router.0.weight", "gradients"),
    }
    for name in ("vanilla_llama", *changed):
        copy_case(golden_folder, tmp_path, name)
    for name, (tensor, _) in changed.items():
        change_tensor(tmp_path, name, tensor, by=1e-3)
    file = tmp_path / "results" / "golden.json"
    file.parent.mkdir()

    assert run_golden(tmp_path, json_file=file, console=quiet) == ExitCode.CRASH

    results = results_of(file)
    assert {name for name, result in results.items() if result["status"] == "failed"} == set(changed)
    assert results["vanilla_llama"]["status"] == "passed"
    for name, (_, quantity) in changed.items():
        assert [found for found, ratio in results[name]["worst"].items() if ratio > 1] == [quantity]


def test_methods_that_are_not_built_are_told_apart(
    golden_folder: Path, tmp_path: Path, quiet: Console
) -> None:
    copy_case(golden_folder, tmp_path, "vanilla_llama")
    copy_case(golden_folder, tmp_path, "ours_llama_k1_j0")
    rename_method(tmp_path, "ours_llama_k1_j0", "loop")

    assert run_golden(tmp_path, console=quiet) == ExitCode.NOT_SUPPORTED
    assert run_golden(tmp_path, method=Method.VANILLA, console=quiet) == ExitCode.DONE


def test_a_folder_without_cases_is_no_success(tmp_path: Path, quiet: Console) -> None:
    assert run_golden(tmp_path, console=quiet) == ExitCode.CRASH


def test_no_case_of_the_chosen_method_is_no_success(
    golden_folder: Path, tmp_path: Path, quiet: Console
) -> None:
    copy_case(golden_folder, tmp_path, "vanilla_llama")

    assert run_golden(tmp_path, method=Method.PONDERLM3, console=quiet) == ExitCode.CRASH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: folder / "absent", "must lie in a folder"),
        (lambda folder: _broken(folder), "must be a golden case of a known method"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, quiet: Console, change: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_golden(change(tmp_path), console=quiet)


def _broken(folder: Path) -> Path:
    (folder / "case.json").write_text('{"name": "case", "kind": "forward", "method": "unheard of"}')
    return folder
