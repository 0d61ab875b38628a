"""All ranks of a job through Ray Train, which places them, notices lost machines and restarts all ranks.

Ray Train's worker is a machine, not a rank: STRICT_SPREAD then means one per machine, and a machine's GPUs
come in one bundle. Its trainer is the base class of `TorchTrainer`, without the process group of torch that
the latter creates: the ranks are processes of their own and create theirs, as under every other launcher.
"""

import os
import shutil
import threading
from typing import Any

import ray
import ray.exceptions
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.job_spec import JobSpec
from cluster.on_ray.capacity import node_resources, render_missing_capacity
from cluster.on_ray.job_status import JobStatusTracker, Overview, Verdict
from cluster.on_ray.node_worker import RestartError, run_node
from pipeline.shared.exit_codes import ExitCode

_RESPONSE_SECONDS = 30.0
_TRAIN_FOLDER = "ray_train"
# Every end and every restart waits for one interval; the default is 2 s.
_TRAIN_VARIABLES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1.0"}


class WorkerGroup:
    """The ranks of a job on the Ray that this process is connected to.

    Args:
        job: what they run.
    """

    def __init__(self, job: JobSpec) -> None:
        self._job = job
        self._tracker: Any = _tracker_here(job)
        self._ending: Verdict | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Let Ray Train place and start the ranks, in a thread of its own."""
        self._thread.start()

    def overview(self) -> Overview:
        """Return the state of the ranks."""
        seen: Overview = ray.get(self._tracker.overview.remote(), timeout=_RESPONSE_SECONDS)
        return seen

    def stop(self) -> None:
        """Let all ranks save and leave."""
        ray.get(self._tracker.stop.remote(), timeout=_RESPONSE_SECONDS)

    @property
    def ending(self) -> Verdict | None:
        """How it has ended; None while it has not."""
        if self._thread.is_alive() or self._ending is None:
            return None
        return self._ending

    def _run(self) -> None:
        try:
            self._ending = self._fit()
        except Exception as error:
            self._ending = Verdict(exit_code=ExitCode.CRASH, reason=f"{type(error).__name__}: {error}")
        finally:
            # It holds nothing to keep: the ranks write their checkpoints themselves.
            shutil.rmtree(self._job.job_folder / _TRAIN_FOLDER, ignore_errors=True)

    def _fit(self) -> Verdict:
        """Train; retry if a machine is lost while Ray Train's workers start, which ends its trainer."""
        num_lost_starts = 0
        while True:
            num_restarts = max(self.overview().num_attempts - 1, 0) + num_lost_starts
            restarts_left = max(self._job.requeue.max_requeues - num_restarts, 0)
            try:
                _trainer(self._job, self._tracker, restarts_left).fit()
                return _as_judged(self.overview().verdict)
            except ControllerError as error:
                num_lost_starts += 1
                is_lost = isinstance(error.controller_failure, WorkerGroupStartupFailedError)
                if not is_lost or restarts_left == 0:
                    return self._not_placed(error)
            except WorkerGroupError as error:
                return self._given_up(error)

    def _not_placed(self, error: TrainingFailedError) -> Verdict:
        seen = self.overview()
        if not isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            return Verdict(exit_code=ExitCode.CRASH, reason=str(error).strip())
        requested = node_resources(self._job.resources)
        missing = render_missing_capacity(requested, self._job.resources.nodes, _machines())
        when = "after a machine was lost, " if seen.num_attempts else ""
        limit = self._job.start_timeout_seconds
        reason = f"{when}the cluster had no capacity for all ranks within {limit} s\n{missing}"
        # A job that has trained can resume; one that has not started must request other resources.
        code = ExitCode.REQUEUE if seen.num_attempts else ExitCode.USAGE
        return Verdict(exit_code=code, reason=reason)

    def _given_up(self, error: WorkerGroupError) -> Verdict:
        seen = self.overview()
        if any(isinstance(failure, RestartError) for failure in error.worker_failures.values()):
            last = "its ranks left in order to restart"
        elif any(_is_lost(failure) for failure in error.worker_failures.values()):
            last = "a machine was lost"
        else:
            return Verdict(exit_code=ExitCode.CRASH, reason=str(error).strip())
        restarts = self._job.requeue.max_requeues
        reason = f"restarted {restarts} times, all that submit.max_requeues allows; the last time {last}"
        if seen.verdict is not None and seen.verdict.reason:
            reason += f" ({seen.verdict.reason})"
        return Verdict(exit_code=ExitCode.REQUEUE, reason=reason)


def _as_judged(verdict: Verdict | None) -> Verdict:
    if verdict is None:
        return Verdict(exit_code=ExitCode.CRASH, reason="the ranks ended without a verdict")
    return verdict


def _is_lost(failure: Exception) -> bool:
    """Tell whether Ray Train reports a worker that died, with or without its own wrapping."""
    cause = getattr(failure, "health_check_failure", failure)
    return isinstance(cause, ray.exceptions.RayError) and not isinstance(cause, ray.exceptions.RayTaskError)


def _tracker_here(job: JobSpec) -> Any:
    """Start the tracker on the driver's machine: it must not be lost with a machine of the ranks."""
    here = ray.get_runtime_context().get_node_id()
    place = NodeAffinitySchedulingStrategy(here, soft=False)
    remote: Any = ray.remote(num_cpus=0)(JobStatusTracker)
    return remote.options(scheduling_strategy=place).remote(job.log_folder, job.resources.nodes)


def _trainer(job: JobSpec, tracker: Any, restarts_left: int) -> DataParallelTrainer:
    os.environ.update(_TRAIN_VARIABLES, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=str(job.start_timeout_seconds))
    # Ray's annotations still name the classes of Ray Train's first version.
    run_config: Any = RunConfig(
        name=_TRAIN_FOLDER,
        storage_path=str(job.job_folder),
        failure_config=FailureConfig(
            max_failures=restarts_left,
            max_preemption_failures=restarts_left,
            # Capacity that is not available in time ends the job: the start timeout must be long enough.
            controller_failure_limit=0,
        ),
        # Ray's workers have a lower priority by default, which the ranks would inherit.
        worker_runtime_env={"env_vars": {"RAY_worker_niceness": "0"}},
    )
    return DataParallelTrainer(
        run_node,
        train_loop_config={"job": job, "tracker": tracker},
        scaling_config=ScalingConfig(
            num_workers=job.resources.nodes,
            use_gpu=job.resources.gpus_per_node > 0,
            resources_per_worker=node_resources(job.resources),
            placement_strategy="STRICT_SPREAD" if job.resources.nodes > 1 else "PACK",
        ),
        run_config=run_config,
    )


def _machines() -> list[tuple[str, dict[str, float]]]:
    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [(node["NodeManagerHostname"], node["Resources"]) for node in every if node["Alive"]]
