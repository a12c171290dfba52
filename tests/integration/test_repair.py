"""A damaged partition is set aside, the others are booked on, and an operator lets booking go on behind the damage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clickhouse_driver import Client
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from pipeline import metrics as counted
from pipeline.book import OPEN
from pipeline.close import found_books
from pipeline.growth import grow, plan_growth, read_states
from pipeline.repair import RepairPlan, plan_repair, repair, steps
from tallyman.aggregates import Completeness, read_completeness, read_usage
from tallyman.cli import run
from tallyman.cli.repair import as_object, aside_lines, preview
from tallyman.clickhouse import connect, store_errors
from tallyman.errors import BrokerError, ConfigError, FencedError
from tallyman.event import TICK, home_key
from tallyman.kafka import end_offsets, make_consumer, make_producer, partition_of
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.usage import UsageQuery
from tests.integration.booking import OwnProject, wait_for

pytestmark = pytest.mark.integration
METERS = "meters:\n- {meter: host.cpu, event_type: cpu, aggregation: sum, value: value, scale: 0}\n"
ZOË = "Zoë Åström"
SOURCES = {partition_of(home_key(ZOË, f"host-{n}"), 2): f"host-{n}" for n in range(20)}  # partition -> whose home it is


class Damaged(OwnProject):
    """A project with two partitions, and what breaks one of them."""

    client: Client

    def send_to(self, partition: int, *names: str) -> None:
        self.send(*[(event(partition, name), ()) for name in names], partition=partition)

    def send_at_home(self, *names: str) -> None:
        """Send events of the first partition's source by their keys."""
        producer = make_producer((self.kafka,))
        try:
            for name in names:
                key, value = home_key(ZOË, SOURCES[0]), event(0, name)
                producer.send(str(self.settings["topic"]), key=key, value=value).get(timeout=30)
        finally:
            producer.close()

    def end(self, partition: int) -> int:
        consumer = make_consumer((self.kafka,))
        try:
            return end_offsets(consumer, str(self.settings["topic"]), [partition])[partition]
        finally:
            consumer.close()

    def stamp(self, kind: str) -> None:
        """Let the broker take its own time for a record's, as it must, or the sender's."""
        admin = KafkaAdminClient(bootstrap_servers=self.kafka)
        try:
            settings = {"message.timestamp.type": kind}
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, str(self.settings["topic"]), settings)])
        finally:
            admin.close()

    def send_ahead(self, *names: str, padding: int = 0) -> None:
        """Append records, and a tick behind them, as a broker does whose clock is forty minutes ahead."""
        ahead_ms = time.time_ns() // 1_000_000 + 2_400_000
        self.stamp("CreateTime")
        producer = make_producer((self.kafka,), max_request_size=2 * padding + 1_000_000)
        try:
            for name in names:
                record = {"value": event(0, name) + b" " * padding, "partition": 0, "timestamp_ms": ahead_ms}
                producer.send(str(self.settings["topic"]), **record).get(timeout=30)
            tick = {"value": b"", "headers": [(TICK, b"1")], "partition": 0, "timestamp_ms": ahead_ms}
            producer.send(str(self.settings["topic"]), **tick).get(timeout=30)
        finally:
            producer.close()
            self.stamp("LogAppendTime")

    def spoil_progress(self, partition: int, change: str) -> None:
        """Let the books say something else of the open chunk of a partition than the log does."""
        self.client.execute(
            f"INSERT INTO progress SELECT * REPLACE ({change}) FROM progress FINAL"
            " WHERE partition = %(partition)s ORDER BY chunk DESC LIMIT 1",
            {"partition": partition},
        )

    def fences(self) -> int:
        """Return how many tables refuse rows of who does not know of a repair."""
        fence = "match(create_table_query, 'CONSTRAINT .?repaired_')"
        sql = f"SELECT countIf({fence}) FROM system.tables WHERE database = %(own)s"
        return int(self.client.execute(sql, {"own": self.endpoint.database})[0][0])

    def plan_or_none(self) -> RepairPlan | None:
        return plan_repair(self.project, self.client, 0)

    def plan(self, partition: int = 0, at: int | None = None) -> RepairPlan:
        found = plan_repair(self.project, self.client, partition, at)
        assert found is not None
        return found

    def completeness(self) -> Completeness:
        return read_completeness(self.client, partitions=2)

    def wait_until_aside(self) -> None:
        wait_for(lambda: self.completeness().quarantines, "partition 0 to be set aside")

    def booked_of(self, partition: int) -> int:
        return {each.partition: each.offset for each in self.completeness().partitions}[partition]

    def wait_for_end(self, partition: int) -> None:
        end = self.end(partition)
        wait_for(lambda: self.booked_of(partition) >= end, f"partition {partition} booked to {end}")


def event(partition: int, name: str) -> bytes:
    return msgspec.json.encode({
        "specversion": "1.0", "id": name, "source": SOURCES[partition], "type": "cpu", "subject": ZOË,
        "time": datetime.now(UTC).isoformat(), "data": {"value": 1},
    })  # fmt: skip


def five_booked_of_each(own: Damaged) -> Iterator[Damaged]:
    """Let five events of each partition be booked, and the pipeline stop."""
    with own.running():
        wait_for(lambda: found_books(own.project).founded, "the topic")
        for partition in (0, 1):
            own.send_to(partition, *[f"early-{n}" for n in range(5)])
        own.wait_until_booked()
    own.client = connect(own.endpoint)
    yield own
    own.client.disconnect()


@pytest.fixture
def own(kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path) -> Iterator[Damaged]:
    """Five events are booked of each partition, and the pipeline is stopped."""
    own = Damaged(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, partitions=2)
    own.pipeline["partitions"] = "[0, 1]"
    yield from five_booked_of_each(own)
    counted.note_repaired(0)


def usage(own: Damaged, **asked: Any) -> Any:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    query = UsageQuery(meter="host.cpu", start=now - timedelta(hours=1), end=now + timedelta(hours=1), **asked)
    return read_usage(own.client, query)


def test_retention_ate_what_was_not_booked(own: Damaged) -> None:
    """The other partition goes on; after the repair nothing but what was eaten is missing, and sent again it counts."""
    stood = own.end(0)
    own.send_to(0, *[f"lost-{n}" for n in range(6)], "kept-0", "kept-1")
    own.eat(0, stood + 6)
    with own.running():
        own.wait_until_aside()
        assert not counted.ready()[0] and "partition 0 is set aside" in counted.ready()[1]
        own.send_to(1, *[f"late-{n}" for n in range(9)])
        own.wait_for_end(1)
        assert own.usage() == {"host.cpu": 5 + 14}
        stands = own.completeness()
        assert [each.offset for each in stands.quarantines] == [stood] and stands.quarantines[0].reason == "retention"

        plan = own.plan()
        assert (plan.first, plan.goes_on_at, plan.skipped) == (stood, stood + 6, 6)
        done = repair(own.project, own.client, plan, who="zoë", note="the disk was full")
        own.wait_for_end(0)  # the running pipeline learns of it by itself
        assert own.usage() == {"host.cpu": 5 + 14 + 2}
        wait_for(lambda: counted.ready()[0], "the pipeline to be ready again")
        assert own.completeness().quarantines == ()

        own.send_to(0, *[f"lost-{n}" for n in range(6)], "kept-0", "early-0")
        own.wait_for_end(0)
        assert own.usage() == {"host.cpu": 5 + 14 + 2 + 6}
    assert plan_repair(own.project, own.client, 0) is None, "a second run finds nothing wrong"
    answer = usage(own)
    assert answer.repaired == (done,) and (done.from_offset, done.to_offset, done.who) == (stood, stood + 6, "zoë")
    assert usage(own, up_to_booking=done.from_booking - 1).repaired == ()


@pytest.mark.parametrize("killed_after", ["fenced", "quiet", "closed", "decided"])
def test_a_repair_that_was_killed_is_run_again(own: Damaged, killed_after: str) -> None:
    stood = own.end(0)
    own.send_to(0, *[f"lost-{n}" for n in range(4)], "kept-0")
    own.eat(0, stood + 4)
    for step in steps(own.project, own.client, own.plan(), who="zoë", note="first"):
        if step == killed_after:
            break
    again = own.plan()
    assert (again.decided is not None) == (killed_after == "decided")
    assert again.goes_on_at == stood + 4 and own.completeness().repairs == (), "a preview changes nothing"
    if again.decided:
        assert "decided: repair 1, by zoë" in "\n".join(preview(again)) and as_object(again)["skipped"] == 4
        with pytest.raises(ConfigError, match=f"is decided, and goes on at offset {stood + 4}"):
            own.plan(at=stood + 5)
    repair(own.project, own.client, again, who="bo", note="second")
    (decided,) = own.completeness().repairs
    assert decided.note == ("first" if killed_after == "decided" else "second")
    with own.running():
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 11}


def test_a_repair_that_stopped_behind_its_fence_holds_up_one_partition(
    own: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log can be read again by then, and ClickHouse takes no block that holds a row of it."""
    stood = own.end(0)
    own.send_ahead("ahead-0", "ahead-1")
    with own.running():
        own.wait_until_aside()
    for step in steps(own.project, own.client, own.plan(), who="zoë", note="first"):
        if step == "fenced":
            break  # killed
    for module in ("clock", "repair"):  # as if an hour had passed
        monkeypatch.setattr(f"pipeline.{module}.AHEAD_MS", 3_600_000)
    own.send_to(1, *[f"late-{n}" for n in range(9)])
    with own.running():
        own.wait_for_end(1)
        wait_for(lambda: [each.reason for each in own.completeness().quarantines] == ["fenced"], "it to be set aside")
        assert own.booked_of(0) == stood and own.usage() == {"host.cpu": 10 + 9}
        assert aside_lines(own.completeness()) == [
            f"partition 0 is set aside at offset {stood} (fenced): run tallyman repair 0 again"
        ]
        assert not counted.ready()[0] and "run tallyman repair 0 again" in counted.ready()[1]
        own.send_to(1, "later-0")
        own.wait_for_end(1)

        plan = own.plan()
        assert (plan.problem, plan.number, plan.goes_on_at, plan.skipped) == ("fenced", 1, stood, 0)
        repair(own.project, own.client, plan, who="zoë", note="second")
        own.wait_for_end(0)
        wait_for(lambda: counted.ready()[0], "the pipeline to be ready again")
    assert own.usage() == {"host.cpu": 10 + 9 + 1 + 2}
    assert own.completeness().quarantines == () and own.plan_or_none() is None


def test_a_fence_is_found_before_a_pipeline_meets_it(own: Damaged) -> None:
    """The repair of a log that was too short has filled it up: but for the fence nothing is wrong any more."""
    stood = own.booked_of(0)
    own.spoil_progress(0, "covered + 1 AS covered, reached_offset + 1 AS reached_offset")
    for step in steps(own.project, own.client, own.plan(), who="zoë", note="first"):
        if step == "filled":
            break  # killed
    assert own.plan().problem == "fenced" and own.completeness().quarantines == ()
    repair(own.project, own.client, own.plan(), who="zoë", note="second")
    with own.running():
        own.send_to(0, "new-0")
        own.wait_for_end(0)
    (decided,) = own.completeness().repairs
    assert (decided.to_offset, decided.skipped) == (stood + 1, 0) and own.usage() == {"host.cpu": 11}


def test_retention_ate_the_end_of_a_topic_that_grows(own: Damaged) -> None:
    """The growth waits for the partition that is set aside; after the repair the old topic ends."""
    stood = own.end(0)
    own.send_to(0, "lost-0", "lost-1")
    grown = grow(own.project, plan_growth(own.project, 4))
    own.send_to(0, "late-0")
    own.eat(0, own.end(0) - 1)  # the end marker, too
    del own.pipeline["partitions"]
    with own.running():
        own.wait_until_aside()
        wait_for(lambda: [each.ended for each in read_states(own.project, own.client)] == [1, 0], "the other to end")

        done = repair(own.project, own.client, own.plan(), who="zoë", note="the disk was full")
        assert (done.from_offset, done.skipped) == (stood, 3)
        wait_for(
            lambda: [each.ended for each in read_states(own.project, own.client)] == [2, 0], "the old topic to end", 60
        )
        own.settings["topic"], own.settings["partitions"] = grown.name, 4
        own.send_at_home("lost-0", "lost-1", "late-0", "early-0")
        wait_for(lambda: own.usage() == {"host.cpu": 5 + 5 + 3}, "what was skipped, sent again, once", 60)


def test_of_two_operators_the_first_decides(own: Damaged) -> None:
    stood = own.end(0)
    own.send_to(0, *[f"lost-{n}" for n in range(4)])
    own.eat(0, stood + 2)
    plans = {"a": own.plan(), "b": own.plan(at=stood + 3)}
    done = [repair(own.project, own.client, plan, who=who, note="") for who, plan in plans.items()]
    assert done[0] == done[1] and done[0].to_offset == stood + 2
    with own.running():
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 12}


@pytest.mark.long
def test_a_gap_over_several_chunks_is_closed_by_the_decision_and_sealed_over(own: Damaged) -> None:
    stood = own.end(0)
    own.send_to(0, *[f"lost-{n}" for n in range(30)], *[f"kept-{n}" for n in range(3)])
    own.eat(0, stood + 30)
    done = repair(own.project, own.client, own.plan(), who="zoë", note="")
    with own.running():
        own.wait_for_end(0)
        wait_for(lambda: own.completeness().sealed_to >= done.from_booking, "the booking with the gap to be sealed")
    assert own.usage() == {"host.cpu": 13}
    with own.running():
        own.send_to(0, "kept-0", "lost-7")
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 14}


def test_who_does_not_know_of_the_repair_can_write_nothing_any_more(own: Damaged) -> None:
    stood = own.end(0)
    own.send_to(0, "lost-0")
    own.eat(0, stood + 1)
    repair(own.project, own.client, own.plan(), who="zoë", note="")
    with pytest.raises(FencedError, match=r"\(partition 0: repair 1\)"), store_errors(own.client, "progress"):
        own.spoil_progress(0, "covered + 1 AS covered")
    own.spoil_progress(1, "covered AS covered")
    assert own.usage() == {"host.cpu": 10}


def test_other_records_where_booked_ones_stood(own: Damaged) -> None:
    """What was booked stays, and what comes behind that place counts."""
    stood = own.booked_of(0)
    own.spoil_progress(0, "reached_digest + 1 AS reached_digest")
    own.send_to(0, "new-0", "new-1", "early-0")
    with own.running():
        own.wait_until_aside()
        plan = own.plan()
        assert (plan.problem, plan.goes_on_at) == ("digest", stood)
        repair(own.project, own.client, plan, who="zoë", note="")
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 12}


def test_a_log_that_ends_before_the_booked_place_is_filled_up_to_it(own: Damaged) -> None:
    stood = own.booked_of(0)
    ahead = "covered + 1 AS covered, reached_offset + 1 AS reached_offset"
    own.spoil_progress(0, ahead)
    with pytest.raises(ConfigError, match=r"takes 1,999,999 empty records, and at most 1,000,000 are written\. Say"):
        own.plan(at=own.end(0) + 1_999_999)
    plan = own.plan()
    assert (plan.problem, plan.goes_on_at, plan.ticks) == ("cut", stood + 1, 1)
    repair(own.project, own.client, plan, who="zoë", note="")
    with own.running():
        own.send_to(0, "new-0", "early-1")
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 11}


@pytest.mark.long
def test_what_is_eaten_below_the_booked_place_costs_nothing(own: Damaged) -> None:
    stood = own.end(0)
    own.eat(0, stood - 1)
    plan = own.plan()
    assert (plan.problem, plan.skipped) == ("retention", 0)
    repair(own.project, own.client, plan, who="zoë", note="")
    with own.running():
        own.send_to(0, "new-0", "early-0")
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 11}
    assert usage(own).repaired == ()


def test_a_broker_whose_clock_was_ahead_loses_and_doubles_nothing(
    own: Damaged, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it appended would take the log's clock with it for ever; it is sent again behind all others."""
    own.send_to(0, "before-0", "before-1")
    stood = own.end(0)
    own.send_ahead("ahead-0", "ahead-1", "ahead-2")
    own.send_to(0, "behind-0", "early-1")
    with own.running():
        own.wait_until_aside()
        (aside,) = own.completeness().quarantines
        assert (aside.offset, aside.reason) == (stood, "clock") and "it is" in aside.detail
        own.send_to(1, "late-1")
        own.wait_for_end(1)
        where = ["--project", str(own.folder), "--data", str(own.folder / "data")]
        assert run(["repair", "0", *where]) == 0
        assert f"sent again: what stands at offsets {stood} to {stood + 3}" in capsys.readouterr().err
        plan, end = own.plan(), own.end(0)
        for step in steps(own.project, own.client, plan, who="zoë", note=""):
            if step == "sent again":
                break  # killed, and run again
        assert own.end(0) == end + 4, "three, and one that asks for the time; the tick among them has done its work"
        repair(own.project, own.client, plan, who="zoë", note="")
        own.wait_for_end(0)
        own.send_to(0, "new-0")
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 10 + 2 + 3 + 1 + 1 + 1}
    assert own.ask("SELECT count() FROM dead_letters FINAL") == [(0,)]
    assert sum(row["duplicate"] for row in own.counts()) == 4  # early-1, and three that were sent twice
    ahead_ms = (time.time_ns() // 1_000_000) + 1_200_000
    assert own.ask("SELECT max(reached_clock_ms) < %(ahead)s FROM progress", ahead=ahead_ms) == [(1,)]
    assert run(["usage", ZOË, "--meter", "host.cpu", "--from", "1h", *where]) == 0
    assert f"offsets {stood} to {stood + 3} had a time in the future and were sent again" in capsys.readouterr().out


def test_a_repair_while_the_brokers_clock_is_still_ahead_decides_nothing(own: Damaged) -> None:
    own.send_ahead("ahead-0")
    with own.running():
        own.wait_until_aside()
    plan = own.plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.repair.store_clock_ms", lambda database: time.time_ns() // 1_000_000 - 3_600_000)
        with pytest.raises(BrokerError, match="the clock of the leader of partition 0 is still ahead; set it"):
            repair(own.project, own.client, plan, who="zoë", note="")
    assert own.completeness().repairs == () and own.fences() == 0
    repair(own.project, own.client, plan, who="zoë", note="")
    with own.running():
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 11}


@pytest.mark.long
def test_a_clock_that_is_ahead_passes_and_the_other_partitions_are_not_read_again(
    own: Damaged, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("SOONEST_AGAIN_S", "LATEST_AGAIN_S"):
        monkeypatch.setattr(f"pipeline.quarantine.{name}", 0.5)
    own.send_ahead("ahead-0", "ahead-1")
    caplog.set_level("INFO", "pipeline")

    def lines(name: str) -> int:
        return sum(record.message == name for record in caplog.records)

    with own.running():
        own.wait_until_aside()
        other = (own.plan().topic.topic_id, 1)
        chunk = OPEN[other]
        own.send_to(1, "late-0")
        own.wait_for_end(1)
        wait_for(lambda: lines("partition_tried_again") >= 4, "it to be tried again")
        assert OPEN[other] is chunk, "it is booked on from where it stands"
        assert own.usage() == {"host.cpu": 11} and own.completeness().quarantines
        assert lines("pipeline_restarts") <= 2 + lines("partition_tried_again"), "one failure is enough from then on"
        monkeypatch.setattr("pipeline.clock.AHEAD_MS", 3_600_000)  # as if an hour had passed
        own.wait_for_end(0)
        wait_for(lambda: counted.ready()[0], "the pipeline to be ready again")
        assert OPEN[other] is chunk
    assert own.usage() == {"host.cpu": 13} and own.completeness().repairs == ()


@pytest.mark.long
def test_a_record_that_only_compression_brought_below_kafkas_limit_is_sent_again(own: Damaged) -> None:
    own.send_ahead("large-0", padding=9 << 20)
    with own.running():
        own.wait_until_aside()
        repair(own.project, own.client, own.plan(), who="zoë", note="")
        own.wait_for_end(0)
    assert own.ask("SELECT reason FROM dead_letters FINAL") == [("too_large",)]
    assert own.usage() == {"host.cpu": 10}


def test_the_command_shows_first_and_does_it_when_told_to(own: Damaged, capsys: pytest.CaptureFixture[str]) -> None:
    stood = own.end(0)
    own.send_to(0, "lost-0", "kept-0")
    own.eat(0, stood + 1)
    where = ["--project", str(own.folder), "--data", str(own.folder / "data")]
    assert run(["repair", "0", *where]) == 0
    shown = capsys.readouterr().err
    assert f"skipped: offsets {stood} to {stood}, at most 1 records" in shown and "nothing was done" in shown
    assert own.completeness().repairs == ()
    assert run(["repair", "0", "--note", "disk of broker 2", "--yes", *where]) == 0
    assert f"partition 0 goes on at offset {stood + 1}" in capsys.readouterr().out
    assert run(["repair", "0", "--yes", *where]) == 0
    assert "nothing is wrong with it" in capsys.readouterr().err
    assert run(["repair", *where]) == 0
    listed = capsys.readouterr().out
    assert "no partition is set aside" in listed and "disk of broker 2" in listed
    assert run(["repair", "7", *where]) == 2
    assert run(["usage", ZOË, "--meter", "host.cpu", "--from", "1h", *where]) == 0
    assert f"repaired: partition 0 lacks offsets {stood} to {stood}" in capsys.readouterr().out
    assert run(["audit", "counts", *where]) == 0, "skipped offsets were never received"
    assert f"repaired: partition 0 lacks offsets {stood} to {stood}" in capsys.readouterr().err
    assert run(["audit", "counts", "--json", *where]) == 0
    assert [each["skipped"] for each in msgspec.json.decode(capsys.readouterr().out)["repaired"]] == [1]
