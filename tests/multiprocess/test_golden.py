"""`python -m tests.golden` on the recorded vectors, on changed ones and on folders that cannot be read."""

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
from pipeline.shared.exit_codes import ExitCode
from tests.support.forks import called_in_a_fork
from tests.support.golden.case import GoldenCase, read_cases
from tests.support.golden.command import run_golden
from tests.support.golden.compare import WHOLE_NUMBERS

pytestmark = pytest.mark.multiprocess

# On several ranks, cases that differ in what is sent: documents, mixtures, halting, versions of keys.
ON_TWO_RANKS = (
    "adaponderlm_llama_k3_packed_restart",
    "adaponderlm_neox_k3_rightpad",
    "loop_neox_k3",
    "ours_llama_k2_j3",
    "ours_neox_k1_j1_interp_topk",
    "pause_llama_k2",
    "ponderlm1_neox_k3_multiply",
    "ponderlm3_llama_k2_j2_packed_restart",
    "ponderlm3_neox_k2_j2_rightpad",
    "ponderlm3a_llama_k2_j2_rightpad",
    "ponderlm3a_llama_k3_j2_celoss",
    "ponderlm3a_neox_k2_j2_packed",
    "vanilla_llama",
)
DECODED_ON_TWO_RANKS = (
    "decode_adaponderlm_llama_k3",
    "decode_llama_k2_j3",
    "decode_neox_k2_j2_nocache",
    "decode_ponderlm3_neox_k2_tau1e-2",
    "decode_ponderlm3a_llama_k3_j4",
)
# Rows shared by ranks: documents, weights of keys, versions of them, penalties over all tokens.
ON_CONTEXT_RANKS = (
    "adaponderlm_llama_k3_packed_restart",
    "ours_llama_k2_j3",
    "pause_llama_k2",
    "ponderlm3_llama_k2_j2_packed_restart",
    "ponderlm3_neox_k2_j2_rightpad",
    "ponderlm3a_llama_k3_j2_celoss",
)
ON_FOUR_RANKS = (
    "adaponderlm_neox_k3_q1e-1",
    "ours_llama_k1_j3_interp",
    "ponderlm1_llama_k3",
    "ponderlm3_neox_k2_j2",
    "ponderlm3a_neox_k3_j4",
)


def results_of(file: Path) -> dict[str, dict[str, Any]]:
    return {result["name"]: result for result in json.loads(file.read_text())}


def copy_case(golden: Path, folder: Path, name: str) -> None:
    """Copy a case and the weights that it refers to."""
    facts = json.loads((golden / f"{name}.json").read_text())
    weights = [facts[key] for key in ("weights_file", "extra_weights_file") if key in facts]
    for file in (f"{name}.json", f"{name}.safetensors", *weights):
        shutil.copyfile(golden / file, folder / file)


def change_tensor(folder: Path, name: str, tensor: str, by: float) -> None:
    file = folder / f"{name}.safetensors"
    tensors = load_file(file)
    tensors[tensor].view(-1)[0] += by
    save_file(tensors, file)


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


def computed(folder: Path, **options: Any) -> int:
    """Compute cases on ranks that need not import torch and Megatron; return the exit code."""
    code: int = called_in_a_fork(run_quietly, folder, **options)
    return code


def run_quietly(folder: Path, **options: Any) -> int:
    return run_golden(folder, console=Console(quiet=True), **options)


def assert_all_pass(folder: Path, results_file: Path, cases: list[GoldenCase], **layout: int) -> None:
    """Compute the forward cases of a folder and check that each was compared with everything it records."""
    code = computed(folder, kind="forward", json_file=results_file, **layout)

    results = results_of(results_file)
    assert {name: result["status"] for name, result in results.items()} == {
        case.name: "passed" for case in cases
    }
    assert code == ExitCode.DONE
    for case in cases:
        measured = {quantity.split(" ")[0] for quantity in results[case.name]["worst"]}
        assert {"logits", "loss", "gradients"} <= measured, case.name
        assert ("halting" in measured) >= (case.method in (Method.PONDERLM3, Method.ADAPONDERLM)), case.name
        assert ("thoughts" in measured) == (
            case.method in (Method.PONDERLM2, Method.PONDERLM3) and case.facts["K"] > 0
        ), case.name


def test_the_production_model_reproduces_every_vector(golden_folder: Path, tmp_path: Path) -> None:
    cases = [case for case in read_cases(golden_folder) if case.kind == "forward"]
    assert len(cases) >= 60
    assert {(case.method, case.facts["arch"]) for case in cases} == {
        (method, backbone)
        for method in Method
        for backbone in ("neox", "llama")
        # Known at second hand only: nothing to record from.
        if method is not Method.ADAPTIVE_LATENT_COT
    }

    assert_all_pass(golden_folder, tmp_path / "results.json", cases)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ({"tensor_parallel": 2}, ON_TWO_RANKS),
        ({"pipeline_parallel": 2}, ON_TWO_RANKS),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, ON_FOUR_RANKS),
        ({"context_parallel": 2}, ON_CONTEXT_RANKS),
        ({"tensor_parallel": 2, "context_parallel": 2}, ON_FOUR_RANKS[-2:]),
        ({"context_parallel": 2, "pipeline_parallel": 2}, ON_FOUR_RANKS[:2]),
    ],
    ids=lambda value: " x ".join(value) if isinstance(value, dict) else f"{len(value)} cases",
)
def test_layouts_reproduce_the_vectors_too(
    golden_folder: Path, tmp_path: Path, layout: dict[str, int], names: tuple[str, ...]
) -> None:
    for name in names:
        copy_case(golden_folder, tmp_path, name)
    cases = read_cases(tmp_path)
    # Of two stages one has a layer more than the other.
    assert {case.backbone["num_hidden_layers"] for case in cases} == {3}

    file = tmp_path / "results" / "golden.json"
    file.parent.mkdir()
    assert_all_pass(tmp_path, file, cases, **layout)


@pytest.mark.parametrize("tensor", [1, 2])
def test_the_production_decoder_reproduces_every_vector(
    golden_folder: Path, tmp_path: Path, tensor: int
) -> None:
    names = [case.name for case in read_cases(golden_folder) if case.kind == "decode"]
    assert len(names) >= 11
    for name in names if tensor == 1 else DECODED_ON_TWO_RANKS:
        copy_case(golden_folder, tmp_path, name)
    cases = read_cases(tmp_path)
    file = tmp_path / "results" / "golden.json"
    file.parent.mkdir()

    code = computed(tmp_path, kind="decode", json_file=file, tensor_parallel=tensor)

    results = results_of(file)
    assert {name: (result["status"], result["reason"]) for name, result in results.items()} == {
        case.name: ("passed", "") for case in cases
    }
    assert code == ExitCode.DONE
    for case in cases:
        worst = results[case.name]["worst"]
        assert {"logits", "tokens", "logits (float64)"} <= worst.keys(), case.name
        assert ("rows" in worst) == case.facts["use_cache"], case.name
        assert ("halting" in worst) == (case.method is not Method.PONDERLM2), case.name


def test_changed_records_are_detected_and_named(golden_folder: Path, tmp_path: Path) -> None:
    changed = {
        "ours_llama_k1_j3": ("outputs/logits", "logits"),
        "ponderlm3_neox_k1_j2": ("grads/ponder.router.0.weight", "gradients"),
        "adaponderlm_neox_k1_q3e-1": ("outputs/gate_logits", "halting"),
        "decode_ponderlm3_llama_k2": ("outputs/cache_rows", "rows"),
        "decode_ponderlm3_neox_k1": ("outputs/generated_ids", "tokens"),
        "decode_adaponderlm_neox_k3": ("outputs/token_active_iterations", "halting"),
        "decode_llama_k2_j3": ("outputs/prefill_thoughts", "thoughts"),
    }
    for name in ("vanilla_llama", *changed):
        copy_case(golden_folder, tmp_path, name)
    for name, (tensor, _) in changed.items():
        change_tensor(tmp_path, name, tensor, by=1 if tensor in WHOLE_NUMBERS else 1e-2)
    file = tmp_path / "results" / "golden.json"
    file.parent.mkdir()

    assert computed(tmp_path, json_file=file) == ExitCode.CRASH

    results = results_of(file)
    assert {name for name, result in results.items() if result["status"] == "failed"} == set(changed)
    assert results["vanilla_llama"]["status"] == "passed"
    for name, (_, quantity) in changed.items():
        assert [found for found, ratio in results[name]["worst"].items() if ratio > 1] == [quantity]


def test_decoding_on_several_stages_is_not_supported(golden_folder: Path, tmp_path: Path) -> None:
    copy_case(golden_folder, tmp_path, "decode_ponderlm3_llama_k2")
    copy_case(golden_folder, tmp_path, "vanilla_llama")
    file = tmp_path / "results" / "golden.json"
    file.parent.mkdir()

    code = computed(tmp_path, json_file=file, pipeline_parallel=2)

    assert code == ExitCode.NOT_SUPPORTED
    assert results_of(file)["decode_ponderlm3_llama_k2"]["status"] not in ("passed", "failed")


def test_a_folder_without_cases_is_a_failure(tmp_path: Path, quiet: Console) -> None:
    assert run_golden(tmp_path, console=quiet) == ExitCode.CRASH


def test_a_method_without_cases_is_a_failure(golden_folder: Path, tmp_path: Path, quiet: Console) -> None:
    copy_case(golden_folder, tmp_path, "vanilla_llama")

    assert run_golden(tmp_path, method=Method.PONDERLM3, console=quiet) == ExitCode.CRASH


@pytest.mark.parametrize(
    ("change", "named"),
    [(lambda folder: folder / "missing", "missing"), (lambda folder: _broken(folder), r"case\.json")],
)
def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, quiet: Console, change: Callable[[Path], Path], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        run_golden(change(tmp_path), console=quiet)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ponderlm3a_neox_k1_j2", {"router": "quadratic"}),
        ("ponderlm3a_neox_k1_j2", {"penalty": "expected_steps"}),
        ("ponderlm3a_neox_k1_j2", {"router_dropout": 0.1}),
        ("ponderlm3a_neox_k1_j2", {"pre_pass": 1}),
        ("ponderlm3a_neox_k1_j2", {"attention_scale_extra": "8"}),
        ("vanilla_llama", {"router": "linear"}),
    ],
)
def test_a_form_that_is_not_known_is_refused(
    golden_folder: Path, tmp_path: Path, quiet: Console, name: str, change: dict[str, Any]
) -> None:
    copy_case(golden_folder, tmp_path, name)
    file = tmp_path / f"{name}.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "form": {**facts.get("form", {}), **change}}))

    with pytest.raises(ConfigError, match=name):
        run_golden(tmp_path, console=quiet)


def test_impossible_layouts_are_refused(golden_folder: Path, quiet: Console) -> None:
    with pytest.raises(ConfigError, match="--pipeline-parallel"):
        run_golden(golden_folder, pipeline_parallel=0, console=quiet)


def _broken(folder: Path) -> Path:
    (folder / "case.json").write_text('{"name": "case", "kind": "forward", "method": "unheard of"}')
    return folder
