"""`megaponder verify` on a trained run."""

import json
from pathlib import Path

import pytest

from pipeline.verification.result import load_verification
from tests.support.commands import megaponder
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

FEW = ["--rows", "4", "--tokens", "24", "--threshold", "0.5"]


def test_a_trained_run_decodes_what_its_forward_computes(trained: TrainedRun, tmp_path: Path) -> None:
    output = tmp_path / "found" / "verification.json"
    command = megaponder("verify", str(trained.checkpoints), *FEW, "--output", str(output))

    assert command.exit_code == 0, command.stderr
    found = load_verification(output)
    verification = found.verification
    assert found.passes
    assert verification.settled.max_error < 1e-4
    assert [one.pruning_threshold for one in verification.decodings] == [1e-4, 0.5]
    assert {one.num_jacobi_iterations for one in verification.comparisons} == {0, 1, 2, 4, 8, 16}
    assert 0 < verification.num_tokens <= 4 * 24
    # A row cut at 24 tokens has the label of its last one.
    assert verification.decodings[0].loss == pytest.approx(verification.settled.forward_loss, abs=1e-4)


def test_decoding_differs_from_a_forward_without_sweeps(trained: TrainedRun, tmp_path: Path) -> None:
    output = tmp_path / "verification.json"
    command = megaponder(
        "verify", str(trained.checkpoints), *FEW, "--jacobi-iterations", "0", "--output", str(output)
    )

    assert command.exit_code == 1, command.stderr
    assert json.loads(output.read_text())["passes"] is False
