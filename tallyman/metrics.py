"""All metrics of Tallyman in one table, and the small server that shows them.

A room asks for a metric by its name (`counter("tallyman_pipeline_events_total")`) and so registers it; a
process shows only what runs in it. A name that is not in the table is a mistake, found at the first call.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table. Labels are few and bounded: a collector's name, never a tenant or a message."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS


METRICS: tuple[Metric, ...] = (
    # collectors
    Metric("tallyman_collectors_readings_total", "counter", "Readings written to the spool.", ("collector",)),
    Metric(
        "tallyman_collectors_read_seconds",
        "histogram",
        "Time that one reading of a source took.",
        ("collector",),
    ),
    Metric(
        "tallyman_collectors_read_errors_total",
        "counter",
        "Readings of a source that failed.",
        ("collector",),
    ),
    Metric(
        "tallyman_collectors_counter_resets_total",
        "counter",
        "Counters that began anew: boot, returned (the device was away), dropped (smaller without a cause).",
        ("collector", "cause"),
    ),
    Metric(
        "tallyman_collectors_clock_steps_total", "counter", "Times the wall clock was set.", ("direction",)
    ),
    Metric(
        "tallyman_collectors_intervals_late_total", "counter", "Intervals read after the next one was due."
    ),
    Metric("tallyman_collectors_heartbeats_total", "counter", "Empty batches that only carry the watermark."),
    Metric("tallyman_collectors_spool_bytes", "gauge", "Bytes of segments on disk."),
    Metric("tallyman_collectors_spool_limit_bytes", "gauge", "Bytes that the spool may take."),
    Metric("tallyman_collectors_spool_pending_bytes", "gauge", "Bytes that Kafka has not acknowledged."),
    Metric("tallyman_collectors_spool_refused_total", "counter", "Times the spool or its disk had no room."),
    Metric("tallyman_collectors_spool_set_aside_bytes", "gauge", "Damaged bytes set aside since the start."),
    Metric("tallyman_collectors_unmeasured_seconds", "gauge", "Time since the start in which no level was seen."),
    Metric(
        "tallyman_collectors_batches_acknowledged_total", "counter", "Batches that Kafka has on acks=all."
    ),
    Metric(
        "tallyman_collectors_send_errors_total",
        "counter",
        "Batches that Kafka did not acknowledge; sent again.",
    ),
    Metric("tallyman_collectors_send_in_flight_batches", "gauge", "Batches sent and not yet answered."),
    Metric("tallyman_collectors_watermark_seconds", "gauge", "Event time up to which everything was sent."),
    # pipeline
    Metric("tallyman_pipeline_records_total", "counter", "Kafka records read.", ("partition",)),
    Metric("tallyman_pipeline_events_total", "counter", "Events by what became of them.", ("outcome",)),
    Metric("tallyman_pipeline_dead_letters_total", "counter", "Events set aside, by reason.", ("reason",)),
    Metric("tallyman_pipeline_flush_seconds", "histogram", "Time that one flush to ClickHouse took."),
    Metric("tallyman_pipeline_flush_errors_total", "counter", "Tries to write a flush that failed."),
    Metric("tallyman_pipeline_restarts_total", "counter", "Times the job began again from the books: it failed."),
    Metric("tallyman_pipeline_rows_total", "counter", "Rows written to ClickHouse.", ("table",)),
    Metric("tallyman_pipeline_offset", "gauge", "Next offset that is not yet booked.", ("partition",)),
    Metric(
        "tallyman_pipeline_lag_records", "gauge", "Records in Kafka that are not yet booked.", ("partition",)
    ),
    Metric("tallyman_pipeline_log_clock_seconds", "gauge", "Log clock of what is booked.", ("partition",)),
    Metric(
        "tallyman_pipeline_watermark_seconds",
        "gauge",
        "Event time up to which usage is complete.",
        ("partition",),
    ),
    Metric("tallyman_pipeline_complete_to_seconds", "gauge", "Event time up to which all usage is complete."),
    Metric("tallyman_pipeline_collectors", "gauge", "Collectors by state: live, silent, retired.", ("state",)),
    Metric("tallyman_pipeline_missing_batches", "gauge", "Numbered batches that did not come."),
    Metric("tallyman_pipeline_rebuilds_total", "counter", "Times the Beam pipeline was built anew."),
    Metric("tallyman_pipeline_seals_total", "counter", "Bookings sealed."),
    Metric("tallyman_pipeline_quarantined", "gauge", "1 for a partition that is set aside.", ("partition",)),
    # rules
    Metric("tallyman_rules_evaluations_total", "counter", "Evaluations of alarm rules.", ("outcome",)),
    Metric("tallyman_rules_evaluation_seconds", "histogram", "Time that one round of evaluations took."),
    Metric("tallyman_rules_transitions_total", "counter", "Alarm transitions.", ("to",)),
    Metric("tallyman_rules_alarms", "gauge", "Alarms by state.", ("state",)),
    Metric("tallyman_rules_deliveries_total", "counter", "Webhook deliveries.", ("endpoint", "outcome")),
    Metric(
        "tallyman_rules_delivery_seconds", "histogram", "Time that one webhook request took.", ("endpoint",)
    ),
    Metric("tallyman_rules_outbox_messages", "gauge", "Webhooks that wait to be delivered.", ("endpoint",)),
)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
_TABLE = {metric.name: metric for metric in METRICS}
_MADE: dict[str, Counter | Gauge | Histogram] = {}
_LOCK = threading.Lock()


def counter(name: str) -> Counter:
    """Return the counter of that name; asking twice gives the same one.

    Raises:
        LookupError: For a name that the table does not hold as a counter.
    """
    made = _make(_find(name, "counter"))
    assert isinstance(made, Counter)
    return made


def gauge(name: str) -> Gauge:
    """Return the gauge of that name; asking twice gives the same one.

    Raises:
        LookupError: For a name that the table does not hold as a gauge.
    """
    made = _make(_find(name, "gauge"))
    assert isinstance(made, Gauge)
    return made


def histogram(name: str) -> Histogram:
    """Return the histogram of that name; asking twice gives the same one.

    Raises:
        LookupError: For a name that the table does not hold as a histogram.
    """
    made = _make(_find(name, "histogram"))
    assert isinstance(made, Histogram)
    return made


def _make(metric: Metric) -> Counter | Gauge | Histogram:
    with _LOCK:
        if metric.name not in _MADE:
            if metric.kind == "histogram":
                made: Counter | Gauge | Histogram = Histogram(
                    metric.name, metric.help, metric.labels, registry=REGISTRY, buckets=metric.buckets
                )
            elif metric.kind == "gauge":
                made = Gauge(metric.name, metric.help, metric.labels, registry=REGISTRY)
            else:
                made = Counter(metric.name, metric.help, metric.labels, registry=REGISTRY)
            _MADE[metric.name] = made
        return _MADE[metric.name]


def _find(name: str, kind: str) -> Metric:
    metric = _TABLE.get(name)
    if metric is None or metric.kind != kind:
        same_kind = [other.name for other in METRICS if other.kind == kind]
        near = difflib.get_close_matches(name, same_kind, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else "; add it to tallyman.metrics.METRICS"
        raise LookupError(f'metric "{name}": no {kind} of that name{hint}')
    return metric


class Server:
    """A running server of /metrics, /healthz and /readyz; `port` is the real one, also when 0 was asked."""

    def __init__(self, http: ThreadingHTTPServer) -> None:
        self._http = http
        self.host, self.port = str(http.server_address[0]), int(http.server_address[1])
        self._thread = threading.Thread(target=http.serve_forever, args=(0.2,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def serve(port: int, ready: Callable[[], tuple[bool, str]], host: str = "127.0.0.1") -> Server:
    """Show this process's metrics and health over HTTP until the returned server is closed.

    Args:
        port: 0 takes a free one.
        ready: Says whether the service does its work, and why not: /readyz is 200 or 503 and that sentence.

    Raises:
        OSError: The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # a client that says nothing does not hold a thread

        def do_GET(self) -> None:
            path = self.path.split("?", 1)[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
            elif path == "/healthz":
                self._answer(200, "text/plain; charset=utf-8", b"alive\n")
            elif path == "/readyz":
                is_ready, why = _ask(ready)
                self._answer(200 if is_ready else 503, "text/plain; charset=utf-8", f"{why}\n".encode())
            else:
                self._answer(404, "text/plain; charset=utf-8", b"known: /metrics /healthz /readyz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a scrape every few seconds is no event."""

    class Http(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing: a scraper that hangs up is no event."""

    return Server(Http((host, port), Handler))


def _ask(ready: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    try:
        return ready()
    except Exception as error:  # noqa: BLE001 - a probe that breaks is an answer: not ready, and why
        return False, f"the readiness probe failed: {type(error).__name__}: {error}"
