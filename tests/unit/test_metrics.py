"""What the self-metrics and their small server promise."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from tallyman import metrics


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def ask() -> object:
    servers: list[metrics.Server] = []

    def start(ready: Callable[[], tuple[bool, str]]) -> Callable[[str], tuple[int, str]]:
        servers.append(metrics.serve(0, ready))
        return lambda path: fetch(servers[-1].port, path)

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_named_after_its_room_and_a_base_unit(metric: metrics.Metric) -> None:
    assert re.fullmatch(r"tallyman_(collectors|pipeline|rules)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|us|millis|kb|mb)(_|$)", metric.name)
    assert not {"tenant", "subject", "account", "message"} & set(metric.labels)


def test_a_metric_has_one_line_in_the_table() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(names) == len(set(names))


def test_asking_twice_gives_the_same_metric() -> None:
    name = "tallyman_pipeline_seals_total"
    assert metrics.counter(name) is metrics.counter(name)


def test_every_metric_of_the_table_can_be_made() -> None:
    for metric in metrics.METRICS:
        getattr(metrics, metric.kind)(metric.name)


def test_a_misspelt_metric_names_the_nearest_one() -> None:
    with pytest.raises(LookupError, match='did you mean "tallyman_pipeline_seals_total"'):
        metrics.counter("tallyman_pipeline_seels_total")


def test_a_counter_asked_for_as_a_gauge_is_a_mistake() -> None:
    with pytest.raises(LookupError, match="no gauge of that name"):
        metrics.gauge("tallyman_pipeline_seals_total")


def test_metrics_are_shown_in_the_text_format(ask) -> None:
    metrics.counter("tallyman_pipeline_seals_total").inc(0)
    status, text = ask(lambda: (True, "ready"))("/metrics")
    assert status == 200
    assert "tallyman_pipeline_seals_total " in text
    assert "process_resident_memory_bytes" in text


def test_a_service_that_is_not_ready_says_why(ask) -> None:
    get = ask(lambda: (False, "the spool is full: 268435456 of 268435456 bytes"))
    assert get("/readyz") == (503, "the spool is full: 268435456 of 268435456 bytes\n")
    assert get("/healthz") == (200, "alive\n")


def test_a_probe_that_breaks_means_not_ready(ask) -> None:
    def broken() -> tuple[bool, str]:
        raise OSError("disk gone")

    status, text = ask(broken)("/readyz")
    assert (status, text) == (503, "the readiness probe failed: OSError: disk gone\n")


def test_an_unknown_page_names_the_known_ones(ask) -> None:
    assert ask(lambda: (True, "ready"))("/favicon.ico") == (404, "known: /metrics /healthz /readyz\n")
