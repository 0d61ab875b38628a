"""What is handed to sbatch, held letter by letter against recorded scripts.

After a change that is meant, `python -m tests.unit.cluster.slurm.test_render` rewrites them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.job_files import JobEnd, load_end
from cluster.job_spec import Container, JobSpec, Queue, RequeuePolicy, Resources, SweepMember
from cluster.slurm.render import render_script
from cluster.slurm.target import SlurmTarget
from pipeline.ranks.final_error import FINAL_ERROR_VARIABLE
from pipeline.shared.errors import ClusterError

SCRIPTS = Path(__file__).parent / "scripts"
RUN = Path("/shared/runs/tiny")
FOLDER = RUN / "jobs" / "20260101-000000-train-1234"
GPUS = Resources(
    nodes=8,
    ranks_per_node=8,
    gpus_per_node=8,
    cpus_per_rank=12,
    memory_per_node="900G",
    wall_time="2-00:00:00",
)


def job(**changes: object) -> JobSpec:
    fields: dict[str, object] = {
        "name": "tiny",
        "command": ("/opt/python", "-m", "pipeline.cli", "train", "--config", f"{FOLDER}/config.yaml"),
        "run_folder": RUN,
        "job_folder": FOLDER,
        "working_directory": Path("/home/someone/my project"),
    }
    return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]  # the fields of the class


JOBS = {
    "cpu": job(
        resources=Resources(nodes=2, cpus_per_rank=4),
        dependencies=("slurm:41", "42"),
        environment=(("GREETING", "it's $HOME"),),
        setup=("module load python", "ulimit -n 65536"),
    ),
    "gpu_8x8": job(
        resources=GPUS,
        queue=Queue(
            partition="batch", account="physics", qos="high", constraint="h100&ib", options=("--exclusive",)
        ),
        requeue=RequeuePolicy(max_requeues=3, signal_lead_seconds=120),
    ),
    "chain": job(resources=Resources(wall_time="04:00:00"), chain=3),
    "sweep": job(
        sweep=tuple(
            SweepMember(
                name=f"tiny-lr-{rate}",
                run_folder=RUN.with_name(f"tiny-lr-{rate}"),
                overrides=(f"lr={rate}", f"name=tiny-lr-{rate}"),
            )
            for rate in ("1e-3", "3e-4")
        )
    ),
    "pyxis": job(
        resources=GPUS,
        container=Container(image="registry#team/image:1", runtime="pyxis", mounts=("/data:/data",)),
    ),
    "apptainer": job(
        resources=GPUS,
        container=Container(image="/images/megaponder.sif", runtime="apptainer", mounts=("/data:/data",)),
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_scripts_are_as_recorded(name: str) -> None:
    assert render_script(JOBS[name]) == _recorded(name).read_text(encoding="ascii")


@pytest.mark.parametrize("name", JOBS)
def test_bash_understands_the_scripts(name: str) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=render_script(JOBS[name]), text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize("code", [0, 75])
def test_the_end_that_a_script_writes_can_be_read_whatever_its_reason(
    tmp_path: Path, code: int, is_cancelled: bool
) -> None:
    _, start, rest = render_script(JOBS["cpu"]).partition("finish() {\n")
    function = start + rest.partition("\n}\n")[0] + "\n}\n"
    if is_cancelled:
        (tmp_path / "cancelled").touch()
    finished = subprocess.run(
        [
            "bash",
            "-c",
            f'job_folder=$1\n{function}finish "$2" "$3"',
            "finish",
            tmp_path,
            str(code),
            'a "b"\n\\c%d',
        ],
        check=False,
    )
    assert finished.returncode == code
    end = JobEnd(exit_code=code, reason="a  b   c%d", cancelled=is_cancelled and code != 0)
    assert load_end(tmp_path) == end


def test_a_rendered_job_begins_with_the_commands() -> None:
    shown = SlurmTarget().render(JOBS["chain"]).splitlines()
    assert shown[:4] == [
        f"# sbatch --parsable {FOLDER}/job.sbatch 1",
        f"# sbatch --parsable '--dependency=afterany:<job before>' {FOLDER}/job.sbatch 2",
        f"# sbatch --parsable '--dependency=afterany:<job before>' {FOLDER}/job.sbatch 3",
        "#!/bin/bash",
    ]


HOSTILE = Path('/shared/it\'s "my" $(touch pwned) `touch pwned`; # work')


def test_whatever_a_folder_is_called_the_script_runs_in_it(tmp_path: Path) -> None:
    home = tmp_path / HOSTILE.name
    run, work = home / "run", home / "work"
    value = "a 'b' \"c\" $HOME $(touch pwned)\nline #2"
    member = SweepMember(name="x", run_folder=run, overrides=(f"output_dir={run}", "name=$(touch pwned)"))
    spec = job(
        run_folder=run,
        job_folder=run / "jobs" / "j",
        working_directory=work,
        command=(sys.executable, "-c", SHOW, str(tmp_path / "shown")),
        environment=(("GREETING", value),),
        setup=('test "$GREETING" && export GREETING',),
        sweep=(member,),
    )
    (run / "jobs" / "j" / "logs").mkdir(parents=True)
    finished = run_as_slurm(spec, tmp_path)
    assert finished.returncode == 0, finished.stderr
    shown = json.loads((tmp_path / "shown").read_text())
    assert shown == {"words": list(member.overrides), "value": value, "rank": "0"}
    assert load_end(run / "jobs" / "j") == JobEnd(exit_code=0, reason="complete")
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("line", "end"),
    [
        (f"printf '93\\nrank 0: no memory\\n' >${FINAL_ERROR_VARIABLE}; exit 134", (93, "rank 0: no memory")),
        (f"printf '93\\nrank 0: no memory\\n' >${FINAL_ERROR_VARIABLE}; exit 0", (0, "complete")),
        ("exit 9", (9, "rank 0 has ended with 9")),
    ],
)
def test_an_error_that_no_restart_cures_ends_the_job_whatever_the_ranks_leave_with(
    tmp_path: Path, line: str, end: tuple[int, str]
) -> None:
    folder = tmp_path / "job"
    (folder / "logs").mkdir(parents=True)
    finished = run_as_slurm(job(job_folder=folder, command=("bash", "-c", line)), tmp_path)
    assert finished.returncode == end[0], finished.stderr
    assert load_end(folder) == JobEnd(exit_code=end[0], reason=end[1])


# What every rank runs.
SHOW = """
import json, os, pathlib, sys
shown = {"words": sys.argv[2:], "value": os.environ["GREETING"], "rank": os.environ["RANK"]}
assert not [name for name in os.environ if name.startswith("TORCHELASTIC_")]
pathlib.Path(sys.argv[1]).write_text(json.dumps(shown))
"""
# Runs one rank; the options before `bash` are SLURM's.
SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done
SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 exec "$@"
"""


def run_as_slurm(spec: JobSpec, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as SLURM does, with a stand-in for srun."""
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").write_text(SRUN)
    (folder / "bin" / "srun").chmod(0o755)
    variables = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_NODELIST": "here"}
    leftovers = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "old"}
    return subprocess.run(
        ["bash"],
        input=render_script(spec),
        env=os.environ | variables | leftovers | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
    )


def test_folders_are_quoted_as_slurm_reads_them() -> None:
    script = render_script(job(working_directory=HOSTILE, job_folder=HOSTILE / "j"))
    escaped = str(HOSTILE).replace('"', '\\"')
    assert f'#SBATCH --chdir="{escaped}"\n' in script
    assert f'#SBATCH --output="{escaped}/j/job.log"\n' in script


@pytest.mark.parametrize(
    "changes",
    [
        {"job_folder": Path("/shared/a\\b/jobs/j")},
        {"run_folder": Path("/shared/a\nb")},
        {"working_directory": Path("/shared/a\rb")},
        {"environment": (("A=1; touch pwned; B", "x"),)},
        {"environment": (("job_folder", "/elsewhere"),)},
        {"environment": (("A", "\0"),)},
        {"queue": Queue(partition="a\n#SBATCH --account=other")},
        {"queue": Queue(options=("--exclusive\ntouch pwned",))},
        {"setup": ("true\ntouch pwned",)},
        {"dependencies": ("1 --wrap=x",)},
        {"container": Container(image="i", runtime="pyxis"), "run_folder": Path("/shared/a:b,c")},
    ],
)
def test_what_a_script_cannot_hold_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ClusterError):
        render_script(job(**changes))


def test_a_percent_sign_in_a_folder_is_not_a_pattern() -> None:
    script = render_script(job(job_folder=Path("/runs/50%j/jobs/x")))
    assert "#SBATCH --output=/runs/50%%j/jobs/x/job.log\n" in script
    assert '--output="${logs//%/%%}/rank-%5t.log"' in script


def _recorded(name: str) -> Path:
    return SCRIPTS / f"{name}.sbatch"


if __name__ == "__main__":
    for each, spec in JOBS.items():
        _recorded(each).write_text(render_script(spec), encoding="ascii")
