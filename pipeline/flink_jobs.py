"""End jobs where they run.

Beam's job server, told to cancel one, only lets go of it: its Flink runner knows a job's handle when the job has ended,
so that Flink's job runs on and keeps its slots.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Collection
from typing import Any

from tallyman.errors import BrokerError

log = logging.getLogger(__name__)
_OVER = frozenset(("CANCELED", "FAILED", "FINISHED"))
_ANSWER_S, _LOOK_EVERY_S = 10, 0.5
ENDED_WITHIN_S = 90.0


class FlinkJobs:
    """The jobs of a Flink cluster, by its REST API.

    Args:
        url: Of the JobManager, such as "http://flink-1:8081".
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def cancel(self, names: Collection[str], within_s: float = ENDED_WITHIN_S) -> None:
        """Cancel all jobs of some names, and wait until they have ended and their slots are free.

        Raises:
            BrokerError: Flink does not answer, or they did not end; try again later.
        """
        deadline = time.monotonic() + within_s
        told: set[str] = set()
        while running := self._running(names):
            for job in sorted(running - told):
                log.info("flink_job_cancelled", extra={"job_id": job})
                self._ask(f"/jobs/{job}?mode=cancel", "PATCH")
                told.add(job)
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"{self._url}: the job {min(running)} was cancelled {within_s:.0f} s ago and has not ended; look "
                    "at its tasks in Flink"
                )
            time.sleep(_LOOK_EVERY_S)

    def _running(self, names: Collection[str]) -> set[str]:
        jobs = self._ask("/jobs/overview")["jobs"]
        return {str(job["jid"]) for job in jobs if job["name"] in names and job["state"] not in _OVER}

    def _ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"{self._url}{path}", method=method)  # noqa: S310 - the operator's own URL
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except (OSError, ValueError) as error:
            raise BrokerError(f"{self._url}{path}: Flink's REST API does not answer as expected: {error}") from error
