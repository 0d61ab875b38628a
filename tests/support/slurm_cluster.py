"""A real SLURM of two nodes on this machine, which touches nothing outside its folder.

The nodes are named by loopback addresses, so that the first host of a job is an address at which its ranks
can meet. Both share the processors of this machine and say that they have more, and two GPUs each.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.shared.ports import free_ports

NODES = ("127.0.0.11", "127.0.0.12")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "setpriv")
START_SECONDS = 60.0
COMMAND_SECONDS = 30.0
_DAEMONS = f"/usr/sbin{os.pathsep}/usr/local/sbin"
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
SlurmdTimeout=20
MinJobAge=600
CompleteWait=0
EnforcePartLimits=ALL
SchedulerParameters=sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=01:00:00 State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=01:00:00 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=down Nodes=ALL MaxTime=01:00:00 State=DOWN
PartitionName=members Nodes=ALL MaxTime=01:00:00 State=UP AllowAccounts=members
"""
_NODE = "NodeName={name} NodeAddr={name} Port={port} CPUs=8 RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
# SLURM counts them and tells ranks their numbers; any devices will do.
_GPUS = """\
AutoDetect=off
Name=gpu File=/dev/null Flags=nvidia_gpu_env
Name=gpu File=/dev/zero Flags=nvidia_gpu_env
"""


def missing_programs() -> list[str]:
    """Return what a SLURM needs and this machine has not."""
    return [name for name in PROGRAMS if _program(name) is None] + ([] if os.geteuid() == 0 else ["root"])


@dataclass(kw_only=True)
class SlurmCluster:
    """A SLURM that runs.

    Attributes:
        root: folder of everything it writes.
        processes: its daemons by name, those of nodes by the node's.
    """

    root: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _lifted: set[tuple[str, str]] = field(default_factory=set)

    @property
    def variables(self) -> dict[str, str]:
        """By which SLURM's commands find it."""
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands; return what it says."""
        finished = subprocess.run(
            command,
            env={**os.environ, **self.variables},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert finished.returncode == 0, f"{command}: {finished.stderr}"
        return finished.stdout

    def state_of(self, job: str) -> str:
        """Return the state of a job in SLURM's words; let one that SLURM holds back start at once.

        SLURM 22.05 holds a job that is to start again for two minutes. Credentials are revoked on whole
        seconds, so two seconds pass before it starts.
        """
        fields = dict(
            word.split("=", 1)
            for word in self.ask("scontrol", "-o", "show", "job", job).split()
            if "=" in word
        )
        state, restart = fields["JobState"], (job, fields["Restarts"])
        if state == "PENDING" and fields["Reason"] == "BeginTime" and restart not in self._lifted:
            self._lifted.add(restart)
            self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+2")
        return state

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        command = ["slurmd", "-D", "-N", name, "-f", str(self.root / "slurm.conf")]
        self._start(name, command)

    def lose_node(self, name: str) -> None:
        """Drain a node, which leaves its jobs alone, and kill all of it, as when a machine loses power.

        SLURM would notice after half a minute; here it is told.
        """
        self.ask("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=repair")
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        self._kill_steps(name)
        self.ask("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=dead")

    def bring_back(self, name: str) -> None:
        """Start a node that was lost."""
        self.start_node(name)
        self.ask("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._write_configuration()
        socket_file = self.root / "munge.socket"
        files = {
            "key": key,
            "socket": socket_file,
            "pid": "munged.pid",
            "log": "munged.log",
            "seed": "munged.seed",
        }
        options = [f"--{name}-file={self.root / path}" for name, path in files.items() if name != "socket"]
        self._start("munged", ["munged", "--force", "--foreground", f"--socket={socket_file}", *options])
        self._wait_for("the socket of munge", socket_file.exists)
        self._start("slurmctld", ["slurmctld", "-D", "-f", str(self.root / "slurm.conf")])
        for name in NODES:
            self.start_node(name)
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Wait until every node is idle."""
        self._wait_for("idle nodes", lambda: set(self._node_states()) == {"idle"})

    def stop(self) -> None:
        """End all jobs and all daemons."""
        if "slurmctld" in self.processes:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                self._end_jobs()
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in NODES:
            self._kill_steps(name)

    def _end_jobs(self) -> None:
        end = time.monotonic() + COMMAND_SECONDS
        while self.ask("squeue", "-h", "-o", "%i"):
            self.ask("scancel", "--user=root")
            assert time.monotonic() < end, "jobs do not end"
            time.sleep(0.2)

    def _kill_steps(self, name: str) -> None:
        """Kill a node's helpers for the steps of jobs, and what those have started."""
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                # Their environment is empty; what tells whose they are is the socket on which they listen.
                if process.name().startswith("slurmstepd") and self._is_of(process, name):
                    for victim in (*process.children(recursive=True), process):
                        with suppress(psutil.NoSuchProcess):
                            victim.kill()

    def _is_of(self, process: psutil.Process, name: str) -> bool:
        folder = str(self.root / f"spool-{name}")
        return any(str(connection.laddr).startswith(folder) for connection in process.net_connections("unix"))

    def _node_states(self) -> Sequence[str]:
        try:
            return self.ask("sinfo", "-h", "-N", "-p", "debug", "-o", "%T").split()
        except AssertionError:
            return ()

    def _write_configuration(self) -> None:
        (self.root / "state").mkdir()
        controller_port, *ports = free_ports(len(NODES) + 1)
        nodes = [_NODE.format(name=name, port=port) for name, port in zip(NODES, ports, strict=True)]
        text = _CONFIGURATION.format(
            host=socket.gethostname(),
            controller_port=controller_port,
            root=self.root,
            nodes="\n".join(nodes),
        )
        (self.root / "slurm.conf").write_text(text, encoding="utf-8")
        (self.root / "gres.conf").write_text(_GPUS, encoding="utf-8")

    def _start(self, name: str, command: Sequence[str]) -> None:
        program = _program(command[0])
        assert program is not None, f"{command[0]} must be installed"
        (self.root / f"spool-{name}").mkdir(exist_ok=True)
        with (self.root / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                # However this process ends, its daemons end with it.
                ["setpriv", "--pdeathsig", "TERM", program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.variables},
                cwd=self.root,
                start_new_session=True,
            )

    def _wait_for(self, what: str, is_there: Callable[[], bool]) -> None:
        end = time.monotonic() + START_SECONDS
        while not is_there():
            assert time.monotonic() < end, f"{what} must be there within {START_SECONDS:.0f} s"
            for name, process in self.processes.items():
                output = self.root / f"{name}.out"
                assert process.poll() is None, f"{name} has ended: {output.read_text(errors='replace')}"
            time.sleep(0.05)


@contextmanager
def slurm_cluster(root: Path) -> Iterator[SlurmCluster]:
    """Start a SLURM of two nodes below a folder, and stop it."""
    # The daemons look at who may write where they keep their keys.
    root.chmod(0o755)
    cluster = SlurmCluster(root=root)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root / "state", ignore_errors=True)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_DAEMONS)
