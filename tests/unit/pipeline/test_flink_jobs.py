"""Jobs are cancelled where they run, and waited for, by Flink's REST API as its documentation has it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.flink_jobs import FlinkJobs
from tallyman.errors import BrokerError

NAME, OTHER = "tallyman-usage-Ecl5Q0nR", "tallyman-usage-of-others"


class Flink:
    """A JobManager; a job that is cancelled ends when it has been looked at a few times more."""

    def __init__(self, *jobs: tuple[str, str, str], ends_after: int = 2) -> None:
        self.states = {job: [name, state] for job, name, state in jobs}
        self.cancelled = list[str]()
        self._left = ends_after
        flink = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(flink.overview() if self.path == "/jobs/overview" else None)

            def do_PATCH(self) -> None:
                job, _, mode = self.path.removeprefix("/jobs/").partition("?")
                flink.cancel(job)
                self._answer({} if mode == "mode=cancel" else None)

            def _answer(self, found: object) -> None:
                self.send_response(404 if found is None else 202)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def overview(self) -> object:
        self._left -= bool(self.cancelled)
        if self._left < 0:
            for job in self.cancelled:
                self.states[job][1] = "CANCELED"
        return {"jobs": [{"jid": job, "name": name, "state": state} for job, (name, state) in self.states.items()]}

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)
        self.states[job][1] = "CANCELLING"


@pytest.fixture
def flink(request: pytest.FixtureRequest) -> Iterator[Flink]:
    flink = Flink(
        ("a", NAME, "RUNNING"), ("b", OTHER, "RUNNING"), ("c", NAME, "FAILED"), ("d", NAME, "RESTARTING"),
        ends_after=getattr(request, "param", 2),
    )  # fmt: skip
    threading.Thread(target=flink.server.serve_forever, args=(0.05,), daemon=True).start()
    yield flink
    flink.server.shutdown()
    flink.server.server_close()


def test_jobs_that_run_or_restart_are_cancelled_once_and_those_of_others_are_left(
    flink: Flink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.flink_jobs._LOOK_EVERY_S", 0.01)
    there = FlinkJobs(flink.url)
    there.cancel([NAME], there.running([NAME]))
    assert flink.cancelled == ["a", "d"]
    assert {job: state for job, (_, state) in flink.states.items()} == {
        "a": "CANCELED", "b": "RUNNING", "c": "FAILED", "d": "CANCELED"
    }  # fmt: skip
    there.cancel([NAME], ["a", "b"])
    assert flink.cancelled == ["a", "d"]


def test_what_was_left_goes_on_until_another_job_is_there(flink: Flink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.flink_jobs._LOOK_EVERY_S", 0.01)
    there, looks = FlinkJobs(flink.url), list[list[str]]()
    left = there.running([NAME])
    assert left == {"a", "d"}

    def look() -> bool:
        looks.append(list(flink.cancelled))
        if len(looks) == 3:
            flink.states["e"] = [NAME, "CREATED"]
        return False

    there.hand_over([NAME], left, look)
    assert looks == [[], [], []] and flink.cancelled == ["a", "d"] and there.running([NAME]) == {"e"}
    there.hand_over([NAME], frozenset(), look)
    assert len(looks) == 3


def test_a_service_that_is_stopped_while_it_hands_over_waits_no_longer(
    flink: Flink, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = FlinkJobs(flink.url)
    there.hand_over([NAME], there.running([NAME]), lambda: True)
    assert flink.cancelled == []
    monkeypatch.setattr("pipeline.flink_jobs.COMES_WITHIN_S", 0)
    with pytest.raises(BrokerError, match="the job was submitted 0 s ago and is not in Flink"):
        there.hand_over([NAME], there.running([NAME]), lambda: False)


@pytest.mark.parametrize("flink", [1 << 30], indirect=True)
def test_a_job_that_does_not_end_is_named(flink: Flink) -> None:
    with pytest.raises(BrokerError, match=r"the job a was cancelled 0 s ago and has not ended; look at its tasks"):
        FlinkJobs(flink.url).cancel([NAME], ["a"], within_s=0)


def test_a_cluster_that_is_away_is_tried_again_later(flink: Flink) -> None:
    with pytest.raises(BrokerError, match="Flink's REST API does not answer as expected: HTTP Error 404") as caught:
        FlinkJobs(f"{flink.url}wrong").running([NAME])
    assert caught.value.retriable
    with pytest.raises(BrokerError, match="does not answer as expected"):
        FlinkJobs("http://127.0.0.1:1").running([NAME])
