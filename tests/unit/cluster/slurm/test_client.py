from pathlib import Path

import pytest

from cluster.slurm.client import refusal, show_job, submit_script
from pipeline.shared.errors import ClusterError


def test_every_line_of_a_refusal_becomes_part_of_one_message() -> None:
    text = (
        "sbatch: error: Memory specification can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available\n"
    )
    assert refusal(text, what="take the job") == (
        "SLURM does not take the job: Memory specification can not be satisfied; Batch job submission "
        "failed: Requested node configuration is not available; submit.nodes, gpus_per_node, cpus_per_rank "
        "and memory_per_node must fit the partition's nodes (`sinfo -N -o '%N %c %m %G'` shows them)"
    )


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("Invalid qos specification", "submit.qos"),
        ("Job dependency problem", "--after"),
        ("Access/permission denied", "limits"),
        ("Unable to contact slurm controller (connect failure)", "`scontrol ping`"),
    ],
)
def test_known_refusals_have_a_cure(said: str, cure: str) -> None:
    assert cure in refusal(f"sbatch: error: Batch job submission failed: {said}\n", what="take the job")


def test_an_unknown_refusal_is_reported_unchanged() -> None:
    assert refusal("sbatch: error: Out of cheese\n", what="take the job") == (
        "SLURM does not take the job: Out of cheese"
    )
    assert refusal("", what="take the job") == "SLURM does not take the job: no reason given"


def test_a_machine_without_slurm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClusterError, match="sbatch"):
        submit_script(Path(__file__))
    with pytest.raises(ClusterError, match="scontrol"):
        show_job("1")
