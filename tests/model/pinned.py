"""One schedule for each rule: a bad day on which the rule is what keeps the figures right.

Each function brings the day about, by hand; `BROKEN` says how it shows when the rule is switched off in the real code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tallyman.errors import ConfigError, LogError
from tests.model.chunk_model import CHUNK, CLOSES
from tests.model.script import Script

FIRST = 2 * CLOSES  # the booking of minute 20


def seen_at_start(script: Script) -> None:
    """A worker is killed between its rows and their progress; another one reads the same records again."""
    script.send()
    worker = script.worker()
    worker.book(flush=True, before="INSERT INTO progress")
    worker.kill()
    script.send()
    script.end()


def restart_at_turn(script: Script) -> None:
    """Retention removes a day that is booked; the chunk that holds its end is still open."""
    script.send()
    script.send(minute=30, at=30)
    worker = script.worker()
    worker.book(flush=True)
    worker.kill()
    script.expire(0, 1)
    script.send(minute=30, at=30)
    script.end()


def ids_before_progress(script: Script) -> None:
    """A worker is killed when the progress that closes a chunk is stored; then a copy comes."""
    event = script.send()
    script.fill()
    script.fail("INSERT INTO progress", executed=True)
    worker = script.worker()
    worker.book(before="sleep")
    worker.kill()
    script.again(event)
    script.end()


def remember_longer_than_late(script: Script) -> None:
    """A copy comes as late as an event may be."""
    event = script.send()
    script.tick(at=40)
    script.again(event, at=40)
    script.end()


def remember_from_event_time(script: Script) -> None:
    """An event that was let in again lies far ahead; a copy comes when its time has come."""
    event = script.send(minute=50, admitted=True)
    script.tick(at=60)
    script.again(event, at=60)
    script.end()


def home_partition(script: Script) -> None:
    """A producer with another partitioner sends a copy."""
    event = script.send()
    script.again(event, partition=1)
    script.end()


def judge_by_log_time(script: Script) -> None:
    """A worker was away for days and reads what came in time."""
    script.send()
    script.world.now = 60
    script.worker().book(flush=True)
    script.end()


def clock_never_back(script: Script) -> None:
    """The clock of a broker is set back; an event that is too old by the log comes in."""
    script.tick(at=60)
    script.send(minute=22, at=22)
    script.end()


def meters_in_key(script: Script) -> None:
    """Definitions change in the middle of a booking: midnight opened it before the operator's clock knew."""
    script.send()
    script.apply(0, opens=FIRST)
    script.send()
    script.worker().book(flush=True)
    script.end()


def meters_from_log(script: Script) -> None:
    """Definitions are applied; what was sent before is booked afterwards."""
    script.send()
    script.apply(0, opens=FIRST + 1)
    script.send()
    script.worker().book(flush=True)
    script.end()


def chunk_size_pinned(script: Script) -> None:
    """The chunk size is changed in one worker's configuration."""
    for _ in range(CHUNK + 1):
        script.send()
    first = script.configured_worker(CHUNK)
    try:
        second = script.configured_worker(2 * CHUNK)
    except ConfigError:
        second = script.configured_worker(CHUNK)
    second.book(flush=True)
    first.book(flush=True)
    script.end()


def refuse_truncated_head(script: Script) -> None:
    """A worker wakes up behind retention; the first record that it wants is gone, and a copy of it comes."""
    event = script.send()
    script.send(minute=30, at=30)
    zombie, worker = script.worker(), script.worker()
    zombie.book(flush=True, before="fetch")
    worker.book(flush=True)
    script.expire(0, 1)
    script.again(event, at=30)
    zombie.go()
    script.end()


def clean_when_acked(script: Script) -> None:
    """An insert fails, and is done again."""
    script.send()
    script.fail("INSERT INTO usage_hot", executed=False)
    script.worker().book(flush=True)
    script.end()


def close_before_next(script: Script) -> None:
    """The last insert of a chunk fails; the log goes on."""
    script.send()
    script.fill()
    script.send()
    script.fail("INSERT INTO usage_hot", executed=False)
    script.worker().book(flush=True)
    script.end()


def flush_fits_a_block(script: Script) -> None:
    """Two partitions have a little less than a block each, and are flushed together."""
    for partition in (0, 1):
        for minute in range(16, 21):
            script.send(partition, minute)
    worker = script.worker()
    worker.book(0)
    worker.book(1, flush=True)
    script.end()


def progress_after_data(script: Script) -> None:
    """A reader comes between the inserts of a flush."""
    script.send()
    script.worker().book(flush=True)
    script.end()


def push_after_progress(script: Script) -> None:
    """Who is told of progress looks at once."""
    script.send()
    script.worker().book(flush=True)
    script.end()


def progress_read_first(script: Script) -> None:
    """Usage is booked between the two things that a reader asks for."""
    worker, reader = script.worker(), script.reader()
    for partition in (0, 1):
        script.send(partition)
        worker.book(partition, flush=True)
    reader.ask(before="usage_hot FINAL")
    reader.step()
    script.send(minute=22, at=22)
    for partition in (0, 1):
        script.tick(partition, at=24)
        worker.book(partition, flush=True)
    reader.go()
    script.end()


def longest_prefix_wins(script: Script) -> None:
    """A worker is paused before an insert and wakes up when another one is further."""
    script.send()
    zombie, worker = script.worker(), script.worker()
    zombie.book(flush=True, before="INSERT INTO usage_hot")
    script.send()
    worker.book(flush=True)
    zombie.go()
    script.end()


def book_by_log_day(script: Script) -> None:
    """Usage of a day comes in when that day is sealed."""
    script.send(minute=19)
    script.worker().book(flush=True)
    script.end()


def _leave_the_first_day(script: Script) -> None:
    """Book what there is, and a tick of the next day into each partition."""
    worker = script.worker()
    for partition in (0, 1):
        script.tick(partition, at=30)
        worker.book(partition, flush=True)


def private_staging(script: Script) -> None:
    """A sealer is killed when it has begun to total."""
    script.send()
    _leave_the_first_day(script)
    sealer = script.sealer()
    sealer.seal(before="INSERT INTO usage_staging")
    sealer.kill()
    script.end()


def recheck_before_replace(script: Script) -> None:
    """A sealer wakes up a day after another one has sealed; a worker that slept as long has written a little again."""
    script.send()
    late_worker, late_sealer, sealer = script.worker(), script.sealer(), script.sealer()
    late_worker.book(flush=True, before="INSERT INTO usage_hot")
    script.send()
    _leave_the_first_day(script)
    late_sealer.seal(before="CREATE TABLE")
    sealer.seal()
    sealer.drop()
    late_worker.go()
    late_sealer.go()
    script.end()


def correct_what_counted(script: Script) -> None:
    """An operator corrects another copy than the one that counted, one that had yet to come, one twice, and one whose
    id is used again later.
    """
    event = script.send(subject="c", value=3)
    script.correct(event._replace(value=5), 0)
    early = script.event(subject="c", value=2)
    script.correct(early, 1)
    script.again(early)
    amended = script.correct(event, 4)
    script.correct(event, 1)
    void = script.correct(amended, 0)
    again = script.again(event._replace(minute=60, value=6), at=60)  # its id has expired
    script.correct(void, 8, at=60)
    amended = script.correct(again, 4, at=60)
    script.again(void, at=60)
    script.correct(amended, 0, at=60)
    script.worker().book(flush=True)
    script.end()


def digest_met_again(script: Script) -> None:
    """The log was cut by an unclean election, and another event stands where one was booked."""
    script.send()
    worker = script.worker()
    worker.book(flush=True)
    worker.kill()
    log = script.world.logs[0]
    log.records.clear()
    log.end = 0
    script.send(minute=19)
    script.send(minute=19)
    worker = script.worker()
    worker.book(flush=True)
    if worker.stopped is None:  # it went on in another log
        script.end()
    assert isinstance(worker.stopped, LogError)


def own_definitions_in_a_joint_flush(script: Script) -> None:
    """One partition has passed a close that applies definitions, the other one has not."""
    script.send(0, subject="a")
    script.apply(1, opens=FIRST + 1)
    script.send(1, subject="b")
    worker = script.worker()
    worker.book(0)
    worker.book(1, flush=True)
    script.end()


def new_only_when_the_filter_is_loaded(script: Script) -> None:
    """A worker starts; the first that it reads is a copy."""
    event = script.send()
    script.fill()
    worker = script.worker()
    worker.book(flush=True)
    worker.kill()
    script.again(event)
    script.end()


def ids_of_a_waiting_block_stay(script: Script) -> None:
    """A chunk's ids leave the memory when a day ends; a copy of the next day's first event comes."""
    script.send()
    event = script.send(minute=30, at=30)
    script.again(event, at=30)
    worker = script.worker()
    for _ in range(3):
        worker.book(most=1)
    worker.book(flush=True)
    script.end()


def ids_stay_until_a_load_has_read_them(script: Script) -> None:
    """The thread that loads the filter comes late, after an event was accepted and another partition was opened."""
    event = script.send()
    worker = script.worker()
    worker.book(0)
    worker.book(1)
    worker.run_threads()
    script.again(event)
    worker.book(0, flush=True)
    script.end()


PINNED: Mapping[str, Callable[[Script], None]] = {
    schedule.__name__: schedule
    for schedule in (
        seen_at_start, restart_at_turn, ids_before_progress, remember_longer_than_late, remember_from_event_time,
        home_partition, judge_by_log_time, clock_never_back, meters_in_key, meters_from_log, chunk_size_pinned,
        refuse_truncated_head, clean_when_acked, close_before_next, flush_fits_a_block, progress_after_data,
        push_after_progress, progress_read_first, longest_prefix_wins, book_by_log_day, private_staging,
        recheck_before_replace, correct_what_counted, digest_met_again, own_definitions_in_a_joint_flush,
        new_only_when_the_filter_is_loaded, ids_of_a_waiting_block_stay, ids_stay_until_a_load_has_read_them,
    )
}  # fmt: skip
# What a schedule needs that is not so elsewhere; small limits, so that a few records reach them.
DEPLOYED: Mapping[str, Mapping[str, Any]] = {
    "flush_fits_a_block": {"most_keys": 12, "block_rows": 24},
    "ids_of_a_waiting_block_stay": {"most_ids": 0},
    "ids_stay_until_a_load_has_read_them": {"threads_share": 1.0},
}
BROKEN: Mapping[str, str] = {
    "seen_at_start": "I1",
    "restart_at_turn": "I1 the log was never booked",
    "ids_before_progress": "I1",
    "remember_longer_than_late": "I1",
    "remember_from_event_time": "I1",
    "home_partition": "I1",
    "judge_by_log_time": "I2",
    "clock_never_back": "I1",
    "meters_in_key": "I2",
    "meters_from_log": "I2",
    "chunk_size_pinned": "I2",
    "refuse_truncated_head": "I2",
    "clean_when_acked": "I2",
    "close_before_next": "I2",
    "flush_fits_a_block": "I2",
    "progress_after_data": "I2",
    "push_after_progress": "I2 who waits",
    "progress_read_first": "I2 an answer claims",
    "longest_prefix_wins": "I2",
    "book_by_log_day": "I2",
    "private_staging": "I4 a booking was never sealed",
    "recheck_before_replace": "I4",
    "correct_what_counted": "I2",
    "digest_met_again": "I2",
    "own_definitions_in_a_joint_flush": "I2",
    "new_only_when_the_filter_is_loaded": "I1",
    "ids_of_a_waiting_block_stay": "I2",
    "ids_stay_until_a_load_has_read_them": "I2",
}
