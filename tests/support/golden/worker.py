"""One rank of a golden run, which computes every case on a parallel layout; rank 0 writes the results."""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, initialize_groups
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from tests.support.golden.case import GoldenCase, read_cases
from tests.support.golden.compare import DOUBLE_PREFIX, CaseResult, Status, compare
from tests.support.golden.decode import compute_decode
from tests.support.golden.forward import compute_forward

TIMEOUT_SECONDS = 300


def main() -> None:
    """Parse the arguments of :func:`tests.support.golden.command.run_golden` and run this rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs="*", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tensor-parallel", type=int, required=True)
    parser.add_argument("--context-parallel", type=int, required=True)
    parser.add_argument("--pipeline-parallel", type=int, required=True)
    arguments = parser.parse_args()
    prepare_host()
    ranks = Ranks.from_environment()
    start_process_group(ranks, timeout_seconds=TIMEOUT_SECONDS)
    try:
        groups = initialize_groups(
            tensor=arguments.tensor_parallel,
            context=arguments.context_parallel,
            pipeline=arguments.pipeline_parallel,
        )
        chosen = set(arguments.names)
        cases = [case for case in read_cases(arguments.folder) if case.name in chosen]
        results = [_run(case, groups) for case in cases]
        if ranks.rank == 0:
            arguments.output.write_text(json.dumps([dataclasses.asdict(result) for result in results]))
    finally:
        stop_process_group()


def _run(case: GoldenCase, groups: ParallelGroups) -> CaseResult:
    obstacle = _why_not_supported(case, groups)
    if obstacle:
        return CaseResult(name=case.name, status=Status.NOT_SUPPORTED, reason=obstacle)
    obstacle = _why_not_applicable(case, groups)
    if obstacle:
        return CaseResult(name=case.name, status=Status.NOT_APPLICABLE, reason=obstacle)
    compute = compute_decode if case.kind == "decode" else compute_forward
    result = compare(case, compute(case, groups, torch.float32), double=False)
    if result.status is Status.PASSED and any(name.startswith(DOUBLE_PREFIX) for name in case.tensors):
        exact = compare(case, compute(case, groups, torch.float64), double=True)
        worst = {**result.worst, **{f"{name} (float64)": value for name, value in exact.worst.items()}}
        result = dataclasses.replace(result, status=exact.status, reason=exact.reason, worst=worst)
    return result


def _why_not_supported(case: GoldenCase, groups: ParallelGroups) -> str:
    if case.kind == "decode" and groups.pp_size > 1:
        return f"decoding on {groups.pp_size} pipeline stages"
    if case.kind == "decode" and groups.cp_size > 1:
        return f"decoding on {groups.cp_size} context-parallel ranks"
    return "" if case.kind in ("forward", "decode") else f"cases of kind {case.kind}"


def _why_not_applicable(case: GoldenCase, groups: ParallelGroups) -> str:
    heads = case.backbone["num_attention_heads"]
    sizes = {
        "attention heads": heads,
        "key/value heads": case.backbone.get("num_key_value_heads", heads),
        "intermediate size": case.backbone["intermediate_size"],
    }
    for name, size in sizes.items():
        if size % groups.tp_size != 0:
            return f"{size} {name} on {groups.tp_size} tensor-parallel ranks"
    if case.backbone["num_hidden_layers"] < groups.pp_size:
        return f"{case.backbone['num_hidden_layers']} layers on {groups.pp_size} pipeline stages"
    if groups.cp_size == 1:
        return ""
    length = case.tensors["inputs/input_ids"].shape[1]
    if length % (2 * groups.cp_size) != 0:
        return f"{length} tokens on {groups.cp_size} context-parallel ranks"
    return ""


if __name__ == "__main__":
    main()
