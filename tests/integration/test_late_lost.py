"""What comes behind the end of a partition while another one holds the growth up: copied in time, or told as lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pipeline import upkeep
from pipeline.growth import grow, plan_growth, read_states
from tallyman.books import Topic
from tallyman.cli import run
from tallyman.kafka import end_offsets, make_consumer
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.topics import ends_of
from tests.integration.booking import wait_for
from tests.integration.test_repair import METERS, Damaged, five_booked_of_each

pytestmark = pytest.mark.integration


@pytest.fixture
def own(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Damaged]:
    own = Damaged(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, partitions=2, chunk_size=64)
    own.pipeline["partitions"] = "[0, 1]"
    monkeypatch.setattr(upkeep, "FOLLOWED_EVERY_S", 0.2)
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    monkeypatch.chdir(own.folder)
    yield from five_booked_of_each(own)


def half_grown(own: Damaged) -> Topic:
    """Grow, with partition 1 read by nobody; return the topic that follows when the other one has ended."""
    grown = grow(own.project, plan_growth(own.project, 4))
    wait_for(lambda: [each.ended for each in read_states(own.project, own.client)] == [1, 0], "one to end")
    return grown


def go_over(own: Damaged, grown: Topic) -> None:
    """Let all partitions be read, by the names of the new topic."""
    del own.pipeline["partitions"]
    own.settings["topic"], own.settings["partitions"] = grown.name, 4


def test_what_retention_took_behind_the_end_of_a_topic_is_named(
    own: Damaged, capsys: pytest.CaptureFixture[str]
) -> None:
    """A partition holds the growth up; senders still write to the old topic behind the other one's end marker."""
    own.pipeline["partitions"] = "[0]"
    with own.running():
        grown = half_grown(own)
    own.send_to(0, "late-0", "late-1", "late-2")
    ((marker, *_),) = ends_of(own.client, read_states(own.project, own.client)[0].topic_id).values()
    skipped = own.end(0) - marker - 1  # a tick too, that was on its way when the partition ended
    assert skipped >= 3
    own.eat(0, own.end(0))
    own.send_to(0, "kept-0")
    old = own.settings["topic"]
    go_over(own, grown)
    with own.running():
        wait_for(lambda: own.usage() == {"host.cpu": 10 + 1}, "what is there of the late ones")
        (lost,) = own.completeness().repairs
    assert (lost.reason, lost.partition, lost.skipped, lost.number) == ("late", 0, skipped, 0), old
    assert lost.topic_id == read_states(own.project, own.client)[0].topic_id
    capsys.readouterr()
    asked = ["usage", "--meter", "host.cpu", "--from", f"{lost.from_clock:%Y-%m-%d}", "--json"]
    assert run(asked) == 0
    (told,) = msgspec.json.decode(capsys.readouterr().out)["repaired"]
    assert (told["reason"], told["skipped"]) == ("late", skipped)
    assert run(["repair", "list"]) == 0
    assert "late" in capsys.readouterr().out
    assert run(["audit", "counts"]) == 0
    assert "were not copied (retention took them before" in capsys.readouterr().err


@pytest.mark.long
def test_what_comes_behind_an_end_is_copied_while_another_partition_holds_the_growth_up(own: Damaged) -> None:
    own.pipeline["partitions"] = "[0]"
    with own.running():
        grown = half_grown(own)
        own.send_to(0, "late-0", "late-1")
        consumer = make_consumer((own.kafka,))
        appended = lambda: sum(end_offsets(consumer, grown.name, range(4)).values())  # noqa: E731
        wait_for(lambda: appended() >= 4 + 2, "both to be copied, behind the first close of each partition")
        consumer.close()
        own.eat(0, own.end(0))
    go_over(own, grown)
    with own.running():
        wait_for(lambda: own.usage() == {"host.cpu": 10 + 2}, "what came late")
        assert own.completeness().repairs == ()
