from pathlib import Path

import pytest

from cluster.slurm.client import environment_for, refusal, show_job, submit_script
from pipeline.shared.errors import ClusterError, UnreachableClusterError


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


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Unable to contact slurm controller (connect failure)", UnreachableClusterError),
        ("Socket timed out on send/recv operation", UnreachableClusterError),
        ("Access/permission denied", ClusterError),
    ],
)
def test_a_controller_that_is_away_is_told_from_one_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[ClusterError]
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho 'slurm_load_jobs error: {said}' >&2\nexit 1\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ClusterError) as caught:
        show_job("1")
    assert type(caught.value) is kind


def test_the_job_that_submits_does_not_change_the_job_that_is_submitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        *("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_CPU", "SLURM_CONF", "PMI_RANK"),
        *("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SBATCH_RESERVATION"),
    ):
        monkeypatch.setenv(name, "1")
    left = environment_for("#!/bin/bash\n#SBATCH --account=physics\n#SBATCH --time=1:00\n")
    kept = {name for name in left if name.startswith(("SLURM", "SBATCH", "PMI"))}
    # A user's defaults serve what the script leaves open.
    assert kept == {"SLURM_CONF", "SBATCH_PARTITION", "SBATCH_RESERVATION"}
