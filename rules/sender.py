"""Deliver what waits in the outbox: one thread for each endpoint, so that a slow one is in nobody's way.

Success is 2xx and nothing else; a redirect is not followed. 410 disables the endpoint, Retry-After is honoured. When an
endpoint does not answer at all, its other deliveries are not tried one after the other: it gets a pause.
"""

from __future__ import annotations

import logging
import random
import shlex
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import httpcore
import httpx
import sqlalchemy as sa

from rules.guard import AddressError, GuardedNetwork
from rules.outbox import Answer, Delivery, claim, next_due, note
from rules.webhook import as_alertmanager, sign
from tallyman.config import EndpointConfig
from tallyman.errors import StoreError
from tallyman.metrics import counter, gauge, histogram

log = logging.getLogger(__name__)

_AT_ONCE = 16  # deliveries that one claim takes from an endpoint that answers
_LEASE_MARGIN = timedelta(seconds=1)
_LONGEST_WAIT_S = 5.0  # deliveries of another process may have become due
_LONGEST_PAUSE_S = 60.0
_LONGEST_RETRY_AFTER = timedelta(days=1)
_READ_AT_MOST = 64 * 1024
_PAUSE_STATUS = (429, 502, 503, 504)


class Courier:
    """Makes single attempts at one endpoint, over connections that stay open."""

    def __init__(self, name: str, endpoint: EndpointConfig) -> None:
        self.name = name
        self._endpoint = endpoint
        self._network = GuardedNetwork(allow_private=endpoint.allow_private)
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl.create_default_context(), network_backend=self._network, max_connections=1
        )
        url = httpx.URL(endpoint.url)  # knows how names and paths beyond ASCII are written on the wire
        self._url = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        self._user_agent = f"tallyman/{_version()}"

    def attempt(self, delivery: Delivery, now: datetime) -> Answer:
        """Send a message once and say what came of it."""
        body = delivery.body
        if self._endpoint.format == "alertmanager":
            body = as_alertmanager(body, self.name)
        timestamp = int(now.timestamp())
        headers: dict[bytes | str, bytes | str] = {
            "content-type": "application/json",
            "user-agent": self._user_agent,
            "webhook-id": delivery.message_id,
            "webhook-timestamp": str(timestamp),
        }
        if self._endpoint.secrets:
            headers["webhook-signature"] = sign(self._endpoint.secrets, delivery.message_id, timestamp, body)
        timeout_s = self._endpoint.timeout.total_seconds()
        self._network.deadline = time.monotonic() + timeout_s
        limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)}
        try:
            with self._pool.stream(
                "POST", self._url, headers=headers, content=body, extensions=limits
            ) as response:
                answered = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                _drain(response)
                return read_answer(response.status, answered, now, self.name)
        except AddressError as error:
            return Answer(False, str(error))
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            return Answer(False, f"{type(error).__name__}: {error}", retry_after=timedelta(0))

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()


def read_answer(status: int, headers: Mapping[str, str], now: datetime, endpoint: str) -> Answer:
    """Say what a response means."""
    if 200 <= status < 300:
        return Answer(True, str(status))
    if status == 410:
        again = shlex.join(["tallyman", "alarms", "enable", endpoint])
        return Answer(False, f"410 Gone: the endpoint was disabled; once it takes messages again: {again}", gone=True)
    if 300 <= status < 400:
        return Answer(False, f"{status}: redirects are not followed; correct the endpoint's url")
    pause = _read_retry_after(headers.get("retry-after", ""), now)
    if pause is None and status in _PAUSE_STATUS:
        pause = timedelta(0)
    return Answer(False, str(status), retry_after=pause)


class Sender:
    """Delivers until it is stopped; `wake` tells it that something new is in the outbox."""

    def __init__(
        self,
        engine: sa.Engine,
        endpoints: Mapping[str, EndpointConfig],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stopped = threading.Event()
        self._lines = [
            _Line(engine, Courier(name, endpoint), endpoint.timeout, clock, self._stopped)
            for name, endpoint in endpoints.items()
        ]

    def start(self) -> None:
        """Start a thread for each endpoint."""
        for line in self._lines:
            line.thread.start()

    def wake(self) -> None:
        """Look into the outbox now."""
        for line in self._lines:
            line.news.set()

    def stop(self, patience_s: float = 5.0) -> None:
        """Stop; what is being sent may end, what is not noted is sent again by the next start."""
        self._stopped.set()
        self.wake()
        until = time.monotonic() + patience_s
        for line in self._lines:
            if line.thread.is_alive():
                line.thread.join(max(0.0, until - time.monotonic()))


class _Line:
    """The queue of one endpoint and its thread."""

    def __init__(
        self,
        engine: sa.Engine,
        courier: Courier,
        timeout: timedelta,
        clock: Callable[[], datetime],
        stopped: threading.Event,
    ) -> None:
        self.news = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"webhooks-{courier.name}", daemon=True)
        self._engine, self._courier, self._clock, self._stopped = engine, courier, clock, stopped
        self._timeout = timeout
        self._chance = random.Random()
        self._failures = 0
        self._paused_until = 0.0

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                sent = 0 if time.monotonic() < self._paused_until else self._send_due()
                if not sent:
                    self.news.wait(self._rest_s())
                    self.news.clear()
            except StoreError as error:
                log.warning("outbox_not_read", extra={"endpoint": self._courier.name, "error": str(error)})
                self._stopped.wait(1.0)
            except Exception:
                # What was claimed becomes due again; the other alarms of this endpoint must still go out.
                log.exception("sender_failed", extra={"endpoint": self._courier.name})
                self._stopped.wait(_LONGEST_WAIT_S)
        self._courier.close()

    def _send_due(self) -> int:
        most = 1 if self._failures else _AT_ONCE
        # No attempt begins later than one timeout after the claim, so none outlives the lease. It is short because
        # what a killed engine had claimed waits for its end.
        began, timeout_s = time.monotonic(), self._timeout.total_seconds()
        claimed = claim(self._engine, self._courier.name, self._clock(), most, 2 * self._timeout + _LEASE_MARGIN)
        answers: list[tuple[Delivery, Answer | None]] = []
        for delivery in claimed:
            now = time.monotonic()
            leave = self._stopped.is_set() or now < self._paused_until or now - began > timeout_s
            answers.append((delivery, None if leave else self._send(delivery)))
        if answers:
            note(self._engine, answers, self._clock(), self._chance)
        return sum(answer is not None for _, answer in answers)

    def _send(self, delivery: Delivery) -> Answer:
        name = self._courier.name
        began = time.monotonic()
        answer = self._courier.attempt(delivery, self._clock())
        outcome = "delivered" if answer.delivered else "gone" if answer.gone else "failed"
        counter("tallyman_rules_deliveries_total").labels(name, outcome).inc()
        histogram("tallyman_rules_delivery_seconds").labels(name).observe(time.monotonic() - began)
        if answer.delivered:
            self._failures = 0
            return answer
        extra = {"endpoint": name, "message_id": delivery.message_id, "attempt": delivery.attempts + 1}
        log.warning("webhook_not_delivered", extra=extra | {"answer": answer.text})
        if answer.gone:
            self._paused_until = time.monotonic() + 1.0
        elif answer.retry_after is not None:
            self._failures += 1
            pause_s = min(2.0 ** min(self._failures, 10) / 2, _LONGEST_PAUSE_S)
            self._paused_until = time.monotonic() + max(pause_s, answer.retry_after.total_seconds())
        return answer

    def _rest_s(self) -> float:
        due = next_due(self._engine, self._courier.name)
        rest = _LONGEST_WAIT_S if due is None else (due - self._clock()).total_seconds()
        rest = max(rest, self._paused_until - time.monotonic())
        return min(max(rest, 0.01), _LONGEST_WAIT_S)


def _drain(response: httpcore.Response) -> None:
    """Read a short body, so that the connection can be used again; a long one is not ours to read."""
    size = 0
    for part in response.iter_stream():
        size += len(part)
        if size > _READ_AT_MOST:
            return


def _read_retry_after(text: str, now: datetime) -> timedelta | None:
    """Return how long to wait, from seconds or a date; None when nothing usable was said."""
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text[:9])), _LONGEST_RETRY_AFTER)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(at - now, timedelta(0)), _LONGEST_RETRY_AFTER)


def _version() -> str:
    try:
        return version("tallyman")
    except ImportError:
        return "0"


def show_waiting(waiting: Mapping[str, int], names: Mapping[str, object]) -> None:
    """Show how many deliveries wait at each endpoint."""
    for name in names:
        gauge("tallyman_rules_outbox_messages").labels(name).set(waiting.get(name, 0))
