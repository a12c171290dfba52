"""How the pipeline is doing: what it counts for Prometheus, and whether it is ready (one that stands still is not).

Whether it is ready is asked in a thread of its own, while others change what it looks at: it looks at copies.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from pipeline.batches import Fetch
from pipeline.book import OPEN, Place
from pipeline.columns import Block
from pipeline.seal import Seal
from pipeline.write import Flush
from tallyman.metrics import counter, gauge, histogram

STANDS_STILL_S = 15.0
LATE_WAITS_S = 120.0  # how long late records may wait before somebody is told: they have days
OUTCOMES = ("aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict")


@dataclass(slots=True)
class _Pulse:
    """When things last happened in this process, by the monotonic clock."""

    started: float = field(default_factory=time.monotonic)
    polled: float = 0.0
    appended: dict[int, float] = field(default_factory=dict)
    ticked: dict[int, float] = field(default_factory=dict)  # partition -> when the tick was sent that is still away
    ends: dict[int, int] = field(default_factory=dict)  # partition -> where its log ends
    booked: dict[int, int] = field(default_factory=dict)  # partition -> the offset up to which it is booked
    failed: float = 0.0
    failure: str = ""
    quarantined: dict[int, str] = field(default_factory=dict)  # partition -> what is wrong with its log
    late: dict[str, tuple[float, str]] = field(default_factory=dict)  # ended topic -> since when it waits, and why
    unreadable: dict[tuple[str, int], str] = field(default_factory=dict)  # (ended topic, partition) -> why


_pulse = _Pulse()


def note_fetch(fetch: Fetch) -> None:
    """Count a fetch; an empty one still says that the job polls."""
    now = time.monotonic()
    _pulse.polled = now
    if len(fetch.offsets):
        _pulse.appended[fetch.partition] = now
        _pulse.ticked.pop(fetch.partition, None)
        counter("tallyman_pipeline_records_total").labels(str(fetch.partition)).inc(len(fetch.offsets))
    else:
        _pulse.appended.setdefault(fetch.partition, now)


def note_flush(flush: Flush, took_s: float) -> None:
    """Count an acknowledged flush."""
    histogram("tallyman_pipeline_flush_seconds").observe(took_s)
    for chunk in (flush.chunk, *(chunk for chunk, _ in flush.others)):
        # What is read again after a restart was booked further before.
        if chunk.here.offset >= _pulse.booked.get(chunk.partition, 0):
            note_booked(chunk.partition, chunk.here)


def note_booked(partition: int, place: Place) -> None:
    """Say how far a partition is booked."""
    gauge("tallyman_pipeline_offset").labels(str(partition)).set(place.offset)
    gauge("tallyman_pipeline_log_clock_seconds").labels(str(partition)).set(place.clock_ms / 1000)
    _pulse.booked[partition] = place.offset
    _show_lag(partition)


def note_end(partition: int, end: int) -> None:
    """Note where the broker says that a partition ends."""
    _pulse.ends[partition] = end
    _show_lag(partition)


def _show_lag(partition: int) -> None:
    if partition in _pulse.booked and partition in _pulse.ends:
        lag = max(0, _pulse.ends[partition] - _pulse.booked[partition])
        gauge("tallyman_pipeline_lag_records").labels(str(partition)).set(lag)


def note_block(block: Block) -> None:
    """Count the events of a judged block by what became of them. A restart counts what it reads again a second time."""
    for outcome, number in zip(OUTCOMES, block.counts[1:], strict=True):
        if number:
            counter("tallyman_pipeline_events_total").labels(outcome).inc(number)
    for reason, number in Counter(letter.reason for letter in block.dead).items():
        counter("tallyman_pipeline_dead_letters_total").labels(reason).inc(number)


def note_failure(error: BaseException) -> None:
    """Remember why the pipeline had to start again."""
    note_waits(error)
    counter("tallyman_pipeline_restarts_total").inc()


def note_waits(error: BaseException) -> None:
    """Remember what the pipeline waits for before it can start."""
    _pulse.failed, _pulse.failure = time.monotonic(), f"{type(error).__name__}: {error}"[:300]


def note_quarantine(partition: int, problem: str) -> None:
    """Say of a partition that it is set aside."""
    _pulse.quarantined[partition] = problem[:300]
    gauge("tallyman_pipeline_quarantined").labels(str(partition)).set(1)


def note_repaired(partition: int) -> None:
    """Say of a partition that it is booked again."""
    _pulse.quarantined.pop(partition, None)
    gauge("tallyman_pipeline_quarantined").labels(str(partition)).set(0)


def note_late_waits(topic: str, reason: str) -> bool:
    """Note that late records of an ended topic are not copied; return whether that is so for minutes."""
    since, _ = _pulse.late.get(topic, (time.monotonic(), ""))
    _pulse.late[topic] = since, reason
    return time.monotonic() - since > LATE_WAITS_S


def note_late_copied(topic: str) -> None:
    """Late records of an ended topic are copied, as far as there are any."""
    _pulse.late.pop(topic, None)


def note_late_unreadable(topic: str, partition: int, reason: str) -> None:
    """Note that late records of a partition wait until the pipeline is started again."""
    _pulse.unreadable[topic, partition] = reason


def forget_late(topic: str) -> None:
    """Say nothing more of an ended topic: nobody in this process copies it."""
    _pulse.late.pop(topic, None)
    for key in [key for key in _pulse.unreadable.copy() if key[0] == topic]:
        _pulse.unreadable.pop(key, None)


def late_waits() -> str:
    """Say which late records have not been copied for minutes, and why; "" if there are none."""
    now = time.monotonic()
    for topic, (since, reason) in sorted(_pulse.late.copy().items()):
        if now - since > LATE_WAITS_S:
            waits = f"what comes late to topic {topic} was not copied for {now - since:.0f} s"
            return f"{waits}, and retention will take it: {reason}"
    for (topic, partition), reason in sorted(_pulse.unreadable.copy().items()):
        waits = f"what comes late to topic {topic}, partition {partition}, is not copied"
        return f"{waits}, and retention will take it: {reason}"
    return ""


def note_rebuild() -> None:
    counter("tallyman_pipeline_rebuilds_total").inc()


def note_seal(seal: Seal) -> None:
    counter("tallyman_pipeline_seals_total").inc()


def note_tick(partition: int) -> None:
    """A tick was sent: it will come back as a record, until then the partition need not be asked again."""
    now = _pulse.appended[partition] = time.monotonic()
    _pulse.ticked.setdefault(partition, now)


def note_nothing_to_read() -> None:
    """A worker without partitions is well, too: there are more workers than partitions."""
    _pulse.polled = time.monotonic()


def forget(partition: int) -> None:
    """Say nothing more of a partition that another worker reads now."""
    _pulse.appended.pop(partition, None)
    _pulse.ticked.pop(partition, None)
    _pulse.ends.pop(partition, None)
    _pulse.booked.pop(partition, None)
    for name in ("offset", "log_clock_seconds", "lag_records"):
        gauge(f"tallyman_pipeline_{name}").remove(str(partition))


def forget_others(reads: Collection[int]) -> None:
    """Say nothing more of the partitions that this worker does not read; what is set aside stays as it was last seen.

    After a failure none is open, and some may be another worker's before they are opened again.
    """
    pulse = _pulse
    noted = (pulse.appended, pulse.ticked, pulse.ends, pulse.booked)
    known = {partition for each in noted for partition in each.copy()}
    for partition in known.difference(reads, pulse.quarantined.copy()):
        forget(partition)


def silent_s(partition: int) -> float:
    """Return for how long nothing came from a partition; 0 before it was first polled."""
    last = _pulse.appended.get(partition)
    return 0.0 if last is None else time.monotonic() - last


def set_aside() -> str:
    """Say which partition is set aside, and why; "" if none is."""
    quarantined = _pulse.quarantined.copy()
    if not quarantined:
        return ""
    partition, problem = min(quarantined.items())
    return f"partition {partition} is set aside, the others are booked on (tallyman repair list): {problem}"


def ready() -> tuple[bool, str]:
    """Say whether usage is being booked, and if not, why."""
    now = time.monotonic()
    if aside := set_aside():
        return False, aside
    if not _pulse.polled:
        return False, "no partition was read yet" + (f"; {_pulse.failure}" if _pulse.failure else "")
    if now - _pulse.polled > STANDS_STILL_S:
        return False, f"nothing was read for {now - _pulse.polled:.0f} s; {_pulse.failure or 'the job stands still'}"
    late = [chunk for chunk in OPEN.copy().values() if chunk.unwritten and now - chunk.waits_since > STANDS_STILL_S]
    if late:
        return False, f"partition {late[0].partition}: nothing was acknowledged for {now - late[0].waits_since:.0f} s"
    # A broker that is away answers a poll with nothing, as a silent partition does; but it gives no tick back.
    away = [(sent, partition) for partition, sent in _pulse.ticked.copy().items() if now - sent > STANDS_STILL_S]
    if away:
        sent, partition = min(away)
        return False, f"partition {partition}: the tick sent {now - sent:.0f} s ago did not come back; is Kafka away?"
    if waits := late_waits():
        return False, waits
    return True, f"{len(OPEN)} partitions"
