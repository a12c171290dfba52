"""End jobs where they run.

Beam's job server, told to cancel one, only lets go of it: its Flink runner knows a job's handle when the job has ended,
so that Flink's job runs on and keeps its slots.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Callable, Collection
from typing import Any

from tallyman.errors import BrokerError

log = logging.getLogger(__name__)
_OVER = frozenset(("CANCELED", "FAILED", "FINISHED"))
_ANSWER_S, _LOOK_EVERY_S = 10, 0.5
ENDED_WITHIN_S, COMES_WITHIN_S = 90.0, 300.0


class FlinkJobs:
    """The jobs of a Flink cluster, by its REST API.

    Args:
        url: Of the JobManager, such as "http://flink-1:8081".
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def running(self, names: Collection[str]) -> frozenset[str]:
        """Return the ids of the jobs of some names that have not ended.

        Raises:
            BrokerError: Flink does not answer.
        """
        jobs = self._ask("/jobs/overview")["jobs"]
        return frozenset(str(job["jid"]) for job in jobs if job["name"] in names and job["state"] not in _OVER)

    def cancel(self, names: Collection[str], jobs: Collection[str], within_s: float = ENDED_WITHIN_S) -> None:
        """Cancel jobs, and wait until they have ended and their slots are free.

        Args:
            names: Under which they run.

        Raises:
            BrokerError: Flink does not answer, or they did not end; try again later.
        """
        deadline = time.monotonic() + within_s
        for job in sorted(self.running(names).intersection(jobs)):
            log.info("flink_job_cancelled", extra={"job_id": job})
            self._ask(f"/jobs/{job}?mode=cancel", "PATCH")
        while left := self.running(names).intersection(jobs):
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"{self._url}: the job {min(left)} was cancelled {within_s:.0f} s ago and has not ended; look "
                    "at its tasks in Flink"
                )
            time.sleep(_LOOK_EVERY_S)

    def hand_over(self, names: Collection[str], left: Collection[str], enough: Callable[[], bool]) -> None:
        """Cancel jobs that were left as soon as another one is there: until then they go on.

        Args:
            enough: Waits for a moment, and says whether to wait no longer.

        Raises:
            BrokerError: As `cancel`; or no other job came.
        """
        deadline = time.monotonic() + COMES_WITHIN_S
        while left and not self.running(names).difference(left):
            if enough():
                return
            if time.monotonic() > deadline:
                raise BrokerError(f"{self._url}: the job was submitted {COMES_WITHIN_S:.0f} s ago and is not in Flink")
        if left:
            self.cancel(names, left)

    def _ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"{self._url}{path}", method=method)  # noqa: S310 - the operator's own URL
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except (OSError, ValueError) as error:
            raise BrokerError(f"{self._url}{path}: Flink's REST API does not answer as expected: {error}") from error
