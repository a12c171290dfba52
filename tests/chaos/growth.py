"""The last act of a chaos run: partitions are added behind the pipeline's back. Each worker stops with a sentence,
usage goes on coming, also into what was added, and the runbook for a new topic brings all of it through, command by
command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import TopicPartition

from tallyman.clickhouse import connect
from tallyman.kafka import ask as ask_kafka
from tallyman.kafka import end_offsets, make_consumer
from tests.chaos import evidence, sameness
from tests.chaos.board import TWIN
from tests.chaos.parts import PARTITIONS, SENDERS, Helper, Parts
from tests.chaos.senders import has_conflicts
from tests.chaos.usage_made import STRAY_EVERY
from tests.chaos.watch import Watch

MORE = PARTITIONS + 1
_REFUSES = f"expected {PARTITIONS} partitions, got {MORE}; the number never changes"
_UNTOLD_LOTS, _UNTOLD_BATCHES = 3, 20  # sent to the old topic by who was not told, while nobody books it
_LOTS, _BATCHES = 30, 60  # sent to the new one


def lots_until_quiet(lots: int) -> int:
    """Return how many lots may be sent from here until some come in which no id or number is used again with other
    content: the order of two copies is not kept on the way from one topic to the other.
    """
    return next(
        more
        for more in range(100)
        if not any(has_conflicts(n) or n % STRAY_EVERY == 0 for n in range(lots + more, lots + more + _UNTOLD_LOTS))
    )


class Growth:
    """Adds partitions, and follows the runbook."""

    def __init__(self, parts: Parts, watch: Watch) -> None:
        self._parts, self._watch, self._board = parts, watch, parts.board
        self._old = parts.project.config.kafka.topic

    def add_partitions(self) -> Sequence[str]:
        """Add partitions: each worker must stop with a sentence and book nothing more; return what is not so."""
        parts, client = self._parts, connect(self._parts.project.clickhouse)
        self._watch.doing("adding partitions")
        for name in parts.workers:
            self._watch.until(f"{name} works", lambda: parts.flushes(name))  # noqa: B023
        ended = {name: parts.ended[name] for name in parts.workers}
        before = evidence.fingerprint(sameness.usage_by_key(client))
        ask_kafka(parts.project.kafka_brokers, "add partitions",
                  lambda admin: admin.create_partitions({self._old: MORE}))  # fmt: skip
        for name in parts.workers:
            self._watch.until(f"{name} stops", lambda: parts.ended[name] > ended[name])  # noqa: B023
            self._watch.until(f"{name} says why", lambda: _REFUSES in parts.log_of(name))  # noqa: B023
        same = before == evidence.fingerprint(sameness.usage_by_key(client))
        return [] if same else ["usage changed when partitions were added"]

    def bring_through(self) -> None:
        """Go on in a new topic, by the runbook, and let the senders send more."""
        self._send_untold()
        self._watch.doing("growing the topic")
        # Its partitions are named by hand: those of the new topic, before it is made.
        self._parts.configure(self._parts.folder / TWIN, f"partitions: {list(range(MORE))}")
        grow = ("topic", "grow", "--partitions", str(MORE))
        self._run(*grow)
        new = self._run(*grow, "--yes")["new"]
        self._watch.until(f"{new} is booked", lambda: self._states() == ["ended", "booked"])
        self._watch.doing("sending to the new topic")
        self._tell_senders(f"topic: {new}, partitions: {MORE}")
        self._parts.follow(self._run("topic", "list")[-1]["topic_id"], MORE)
        self._board["agent.allowed"] += _BATCHES
        self._board["client.allowed"] += _LOTS

    def wait_for_late_records(self) -> None:
        """Wait until all that stands behind the end of the old topic, or in what was added, is sent on."""
        consumer = make_consumer(self._parts.project.kafka_brokers, group_id=f"tallyman.late.{self._old}")
        places = {partition: TopicPartition(self._old, partition) for partition in range(MORE)}
        try:
            ends = end_offsets(consumer, self._old, range(MORE))
            self._watch.until(
                "what came late is sent on",
                lambda: all(consumer.committed(place) == ends[partition] for partition, place in places.items()),
            )
        finally:
            consumer.close(autocommit=False)

    def _send_untold(self) -> None:
        """Let senders use all partitions that the old topic has now, while no worker books it."""
        self._watch.doing("sending into the partitions that were added")
        self._tell_senders(f"partitions: {MORE}")
        self._board["agent.allowed"] += _UNTOLD_BATCHES
        self._board["client.allowed"] += _UNTOLD_LOTS
        for name in ("agent", "client"):
            self._watch.until(f"{name} has sent", lambda: self._board[f"{name}.done"] >= self._board[f"{name}.allowed"])  # noqa: B023  # fmt: skip
        self._watch.until("something stands in the partition that was added", lambda: self._ends()[PARTITIONS])

    def _tell_senders(self, kafka: str) -> None:
        """Write the topic down, and start what sends again."""
        self._parts.configure(self._parts.folder, kafka=kafka)
        self._board["finish"] = 0
        for name in SENDERS:
            self._board[f"{name}.finished"] = 0
            before = self._parts.pid(name)
            self._parts.kill(name)
            self._watch.until(f"{name} is started again", lambda: self._parts.pid(name) not in (None, before))  # noqa: B023  # fmt: skip

    def _ends(self) -> Mapping[int, int]:
        consumer = make_consumer(self._parts.project.kafka_brokers)
        try:
            return end_offsets(consumer, self._old, range(MORE))
        finally:
            consumer.close()

    def _states(self) -> list[str]:
        return [topic["state"] for topic in self._run("topic", "list")]

    def _run(self, *words: str) -> Any:
        """Run a command of the runbook to its end; return what it prints."""
        out = self._parts.folder / "runbook.json"
        out.unlink(missing_ok=True)
        where = ("--project", str(self._parts.folder), "--data", str(self._parts.data), "--json")
        argv = (sys.executable, "-m", "tallyman", *words, *where)
        helper = Helper(argv, out, talk=self._parts.folder / "runbook.log")
        self._watch.until(f"tallyman {' '.join(words)} ends", lambda: helper.code is not None)
        if helper.code:
            raise TimeoutError(f"tallyman {' '.join(words)} ended with {helper.code}; see runbook.log")
        return json.loads(out.read_text("utf-8"))
