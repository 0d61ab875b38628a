"""Asking a cluster that may be away for a while: its controller restarts, or the network is interrupted."""

import logging
import time
from collections.abc import Callable

from cluster.job_record import JobRecord, JobStatus
from cluster.targets import JobTarget
from pipeline.config.submit_section import SubmitSection
from pipeline.shared.errors import ClusterError, UnreachableClusterError

logger = logging.getLogger(__name__)

DEFAULT_SECONDS = float(SubmitSection().unreachable_timeout_seconds)


class PatientStatus:
    """Asks for the status of jobs, and says when their cluster does not respond and when it does again.

    Args:
        target: where the jobs are.
        limit_seconds: how long the cluster may stay away.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        target: JobTarget,
        *,
        limit_seconds: float = DEFAULT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._away_since: float | None = None

    def of(self, record: JobRecord) -> JobStatus | None:
        """Return the status of a job; None while its cluster does not respond.

        Raises:
            ClusterError: it has not responded for too long, or refuses.
        """
        try:
            status = self._target.status(record)
        except UnreachableClusterError as error:
            self._note_absence(str(error))
            return None
        if status.is_unreachable:
            self._note_absence(status.reason)
            return None
        if self._away_since is not None:
            logger.warning("the cluster responds again")
            self._away_since = None
        return status

    def _note_absence(self, reason: str) -> None:
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
            logger.warning("%s; waiting up to %.0f s for it", reason, self._limit_seconds)
        if now - self._away_since > self._limit_seconds:
            raise ClusterError(
                "the cluster must respond within submit.unreachable_timeout_seconds "
                f"({self._limit_seconds:.0f}), but has not ({reason}); the job may still run: see "
                "`megaponder jobs status` later"
            )
