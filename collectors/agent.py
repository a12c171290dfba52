"""The agent on a host: measure at each boundary of the interval, spool, send; survive kill -9, full disks and clocks.

All that it must remember lies in the spool, inside the batch that it belongs to, so that a crash between "accepted"
and "remembered" cannot exist.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from collectors import COLLECTORS, intervals
from collectors.arrow import encode_readings
from collectors.intervals import Book, Level, LevelMeter, Moment, Sample
from collectors.send import DELIVERY_TIMEOUT_MS, Producer, Sender
from collectors.spool import Spool
from tallyman import metrics
from tallyman.errors import ConfigError, QuantityError, SpoolFullError
from tallyman.event import Series
from tallyman.files import nearest
from tallyman.kafka import make_producer
from tallyman.project import Project

log = logging.getLogger(__name__)

HEARTBEAT_US = 10_000_000  # an empty batch when nothing was sent for so long: silence must be visible
LONGEST_SLEEP_S = 1.0  # how soon a wall clock that was set is noticed
DRAIN_S = 3.0
QUIET_S = 45.0  # after this long without an answer from Kafka the agent is not ready

_encode_state = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(dict[str, Book]).decode


class Collector(Protocol):
    """A source. `read` returns every counter and level it has; one that is missing is gone."""

    name: str

    def read(self) -> Sequence[Sample]: ...


class _Source:
    """A collector and where its last accepted interval ended."""

    def __init__(self, collector: Collector, book: Book | None, now: Moment) -> None:
        self.collector, self.book = collector, book
        is_same_boot = book is not None and book.boot_id == now.boot_id
        self.levels = LevelMeter(book.boot_us if book and is_same_boot else None)
        self.trouble = ""


class Agent:
    """Everything but threads and sleeping: `step` is called with what both clocks show."""

    def __init__(
        self, spool: Spool, collectors: Sequence[Collector], *, subject: str, interval_us: int, now: Moment
    ) -> None:
        self._spool, self._subject, self._interval_us = spool, subject, interval_us
        books = _read_state(spool.state)
        self._sources = [_Source(collector, books.get(collector.name), now) for collector in collectors]
        self._seen: Moment | None = None
        self._due_us = 0
        self._appended_us: int | None = None  # boottime
        self._accepted_us = now.boot_us  # boottime of the last accepted interval
        self._trouble = ""
        self._empty = encode_readings([])
        metrics.gauge("tallyman_collectors_spool_limit_bytes").set(spool.max_bytes)

    def step(self, now: Moment) -> float:
        """Do what is due; return the seconds until something can be due again."""
        step_us = intervals.step_between(self._seen, now) if self._seen else 0
        if step_us:
            direction = "forward" if step_us > 0 else "back"
            metrics.counter("tallyman_collectors_clock_steps_total").labels(direction).inc()
            log.warning("clock_was_set", extra={"seconds": step_us / 1_000_000, "direction": direction})
        if self._seen is None or step_us:
            # Close what was before at once, so that a restart or a jump touches as little as possible.
            self._measure(now, now.wall_us)
        elif now.wall_us >= self._due_us:
            if now.wall_us >= self._due_us + self._interval_us:
                metrics.counter("tallyman_collectors_intervals_late_total").inc()
            self._measure(now, intervals.boundary_before(now.wall_us, self._interval_us))
        elif self._appended_us is None or now.boot_us - self._appended_us >= HEARTBEAT_US:
            self._append(self._empty, 0, self._books(), now)
            metrics.counter("tallyman_collectors_heartbeats_total").inc()
        self._seen = now
        self._show()
        return min(max(self._due_us - now.wall_us, 0) / 1_000_000, LONGEST_SLEEP_S)

    def finish(self, now: Moment) -> None:
        """Measure what has begun, so that a stop leaves nothing to be dated later."""
        self._measure(now, now.wall_us)

    def _measure(self, now: Moment, until_us: int) -> None:
        self._due_us = intervals.boundary_before(now.wall_us, self._interval_us) + self._interval_us
        for source in self._sources:
            samples = self._read(source)
            if samples is None:
                continue
            source.levels.add(samples, now.boot_us)
            if source.book is not None and intervals.is_held(source.book, until_us):
                self._say("the wall clock was set back; readings wait until it has caught up")
                continue
            make_series = partial(_make_series, self._owner(source.book, now))
            closed = intervals.close_interval(source.book, samples, source.levels.used, now, until_us, make_series)
            book = msgspec.structs.replace(closed.book, subject=self._subject)
            books = self._books() | {source.collector.name: book}
            try:
                payload = encode_readings(closed.readings)
            except QuantityError as error:
                source.trouble = f"{source.collector.name}: {error}"
                log.error("reading_does_not_fit", extra={"collector": source.collector.name, "cause": str(error)})
                continue
            if not self._append(payload, len(closed.readings), books, now):
                continue
            source.book = book
            source.levels.clear()
            self._accepted_us = now.boot_us
            if self._trouble:
                log.info("accepting_again", extra={"before": self._trouble})
                self._trouble = ""
            name = source.collector.name
            metrics.counter("tallyman_collectors_readings_total").labels(name).inc(len(closed.readings))
            for flag, kind in closed.flags:
                metrics.counter("tallyman_collectors_counter_resets_total").labels(name, flag).inc()
                if flag != "too_large":  # which was said once, when it began
                    log.info("counter_began_anew", extra={"type": kind, "cause": flag})

    def _read(self, source: _Source) -> Sequence[Sample] | None:
        """Read a source; None if it cannot be read: its counters go on counting and the next reading spans both."""
        name = source.collector.name
        try:
            with metrics.histogram("tallyman_collectors_read_seconds").labels(name).time():
                samples = source.collector.read()
        except (OSError, ValueError, IndexError) as error:
            metrics.counter("tallyman_collectors_read_errors_total").labels(name).inc()
            if not source.trouble:
                log.warning("source_cannot_be_read", extra={"collector": name, "cause": str(error)})
            source.trouble = f"{name} cannot be read: {error}"
            return None
        trouble = "; ".join(_beyond(name, sample) for sample in samples if not intervals.fits(sample))
        if trouble and not source.trouble:
            log.error("reading_does_not_fit", extra={"collector": name, "cause": trouble})
        source.trouble = trouble
        return samples

    def _append(self, payload: bytes, rows: int, books: Mapping[str, Book], now: Moment) -> bool:
        """Put a batch into the spool; False if there is no room: nothing was accepted, all is kept for later."""
        watermark_us = min((book.next_us for book in books.values()), default=now.wall_us)
        try:
            if self._spool.torn is not None:
                sent_us = min((book.next_us for book in self._books().values()), default=0)
                self._spool.fill(self._empty, watermark_us=sent_us)
            self._spool.append(payload, watermark_us=watermark_us, rows=rows, state=_encode_state(books))
        except SpoolFullError as error:
            metrics.counter("tallyman_collectors_spool_refused_total").inc()
            self._say(str(error))
            return False
        self._appended_us = now.boot_us
        return True

    def _say(self, trouble: str) -> None:
        """Log a trouble once, when it begins; /readyz shows it while it lasts."""
        if not self._trouble:
            log.error("not_accepting", extra={"cause": trouble})
        self._trouble = trouble

    def _books(self) -> dict[str, Book]:
        return {source.collector.name: source.book for source in self._sources if source.book is not None}

    def _owner(self, book: Book | None, now: Moment) -> str:
        """Return whose usage it is since a book was written: in the same boot still that of its subject."""
        if book is None or not book.subject or book.boot_id != now.boot_id:
            return self._subject
        return book.subject

    def _show(self) -> None:
        metrics.gauge("tallyman_collectors_spool_bytes").set(self._spool.used_bytes)
        metrics.gauge("tallyman_collectors_spool_pending_bytes").set(self._spool.pending_bytes)
        metrics.gauge("tallyman_collectors_spool_set_aside_bytes").set(self._spool.set_aside_bytes)
        unmeasured_us = sum(source.levels.unmeasured_us for source in self._sources)
        metrics.gauge("tallyman_collectors_unmeasured_seconds").set(unmeasured_us / 1_000_000)

    def readiness(self, now: Moment) -> tuple[bool, str]:
        """Say whether intervals are accepted, and why not."""
        for trouble in (self._trouble, *(source.trouble for source in self._sources)):
            if trouble:
                return False, trouble
        silent_us = now.boot_us - self._accepted_us
        if silent_us > 3 * self._interval_us:
            return False, f"no interval was accepted for {silent_us // 1_000_000} s"
        return True, "measuring"


def _make_series(subject: str, sample: Sample) -> Series:
    data: dict[str, str | None] = {name: sample.data[name] for name in sorted(sample.data)}
    if isinstance(sample, Level):
        return Series(type=sample.type, subject=subject, data=data, scale=LevelMeter.LEVEL_SCALE)
    return Series(type=sample.type, subject=subject, data=data, scale=sample.scale, incarnation=sample.incarnation)


def _beyond(name: str, sample: Sample) -> str:
    which = " ".join(f"{key}={value}" for key, value in sorted(sample.data.items()))
    return f"{name}: {sample.type} {which}: expected int64, got {sample.value}; not metered until it fits again"


def open_collectors(configured: Mapping[str, Mapping[str, object]]) -> list[Collector]:
    """Open the collectors that a project names, with their options.

    Raises:
        ConfigError: An unknown collector or option, or a value that does not fit.
    """
    opened: list[Collector] = []
    for name, options in configured.items():
        place = f"tallyman.yaml: agent.collectors.{name}"
        if name not in COLLECTORS:
            raise ConfigError(f"{place}: unknown collector{nearest(name, COLLECTORS)}")
        module = importlib.import_module(COLLECTORS[name])
        known = module.Options.__struct_fields__
        for option in options:
            if option not in known:
                raise ConfigError(f"{place}.{option}: unknown option{nearest(option, known)}")
        try:
            opened.append(module.open_collector(msgspec.convert(options, module.Options, strict=False)))
        except msgspec.ValidationError as error:
            raise ConfigError(f"{place}: {error}") from error
    return opened


def read_moment(boot_id: str) -> Moment:
    """Read both clocks."""
    return Moment(time.time_ns() // 1000, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000, boot_id)


def read_boot_id(file: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Return what names this boot.

    Raises:
        ConfigError: There is none: the agent runs on Linux only.
    """
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; the agent measures Linux hosts") from error


def main(project: Project, stop: threading.Event, metrics_port: int | None) -> int:
    """Run until `stop`; return the exit code.

    Args:
        metrics_port: Loopback port of /metrics, /healthz and /readyz; 0 takes a free one, None shows nothing.

    Raises:
        ConfigError: A collector or its options are unknown.
        StackError: Another agent holds the spool, or there is no Kafka to send to.
        OSError: The spool's folder cannot be used, or the port is taken.
    """
    config = project.config.agent
    collectors = open_collectors(config.collectors)
    boot_id = read_boot_id()
    brokers = project.kafka_brokers  # says now, and not only in the log, when there is none
    spool = Spool(project.spool_folder, max_bytes=config.spool_max_bytes)
    sender = Sender(spool, lambda: connect(brokers), topic=project.config.kafka.topic, collector=config.collector)
    interval_us = config.interval // timedelta(microseconds=1)
    agent = Agent(spool, collectors, subject=project.agent_subject, interval_us=interval_us, now=read_moment(boot_id))

    def ready() -> tuple[bool, str]:
        is_ready, why = agent.readiness(read_moment(boot_id))
        silent_s = time.monotonic() - sender.acknowledged_s
        if is_ready and silent_s > QUIET_S:
            cause = sender.trouble or "no answer"
            return False, f"Kafka has acknowledged nothing for {silent_s:.0f} s ({cause}); the spool keeps all of it"
        return is_ready, why

    server = metrics.serve(metrics_port, ready) if metrics_port is not None else None
    log.info("agent_started", extra={"collector": config.collector, "epoch": spool.epoch, "brokers": ",".join(brokers)})
    sender.start()
    try:
        run(agent, stop, lambda: read_moment(boot_id))
    finally:
        sender.stop(DRAIN_S)
        spool.close()
        if server:
            server.close()
    log.info("agent_stopped", extra={"collector": config.collector})
    return 0


def run(agent: Agent, stop: threading.Event, read_clocks: Callable[[], Moment]) -> None:
    """Step until asked to stop, then measure what has begun."""
    while not stop.wait(agent.step(read_clocks())):
        pass
    agent.finish(read_clocks())


def connect(brokers: Sequence[str]) -> Producer:
    """Return a producer that never gives up on a batch by itself, for that would change the order.

    Raises:
        BrokerError: Kafka does not answer.
    """
    producer: Producer = make_producer(
        brokers, delivery_timeout_ms=DELIVERY_TIMEOUT_MS, max_block_ms=10_000, linger_ms=0
    )
    return producer


def _read_state(state: bytes) -> Mapping[str, Book]:
    if not state:
        return {}
    try:
        return _decode_state(state)
    except msgspec.DecodeError as error:
        # A version that wrote it otherwise: begin with a baseline rather than bill what is not understood.
        log.error("state_not_understood", extra={"cause": str(error)})
        return {}
