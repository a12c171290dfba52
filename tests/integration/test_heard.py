"""Who sends, how far, and what is missing, read from the real engine."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from clickhouse_driver import Client

from pipeline.join import join_heard
from tallyman.aggregates import read_completeness, read_usage
from tallyman.books import Topic
from tallyman.cli import run
from tallyman.completeness import clocks_of
from tallyman.errors import UsageQueryError
from tallyman.heard import RETIRED_AFTER, SILENT_AFTER, count_collectors, read_collectors, read_gaps, retire
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.topics import ENDED, note_line
from tallyman.usage import CollectorSeen, Gap, UsageQuery
from tests.usage_rows import DAY, TOPIC, Booked, book, progress, seal

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
AT_ONCE = timedelta(0)


def micros(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000


def hear(
    client: Client,
    first: int,
    last: int,
    *,
    collector: str = "värd-1",
    epoch: str = "e1",
    chunk: int = 0,
    start: datetime = NOON,
    subjects: tuple[str, ...] = ("tenant-zoë",),
    marks: bool = True,
    clock: datetime | None = None,
    booking: int = DAY,
) -> None:
    """Write a run of batches; number n says that all is sent up to n minutes behind `start`, and came just then."""
    edges = [start + n * MINUTE for n in (first, last)]
    watermarks = [micros(edge) if marks else 0 for edge in edges]
    client.execute(
        "INSERT INTO heard (collector, epoch, topic_id, partition, chunk, booking, definitions, first, last,"
        " first_watermark_us, last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered) VALUES",
        [
            (
                collector, epoch, TOPIC, 0, chunk, booking, 1, first, last, *watermarks,
                *(micros(clock or edge) // 1000 for edge in edges), list(subjects), ["vm"] if subjects else [], 5,
            )
        ],
    )  # fmt: skip


def gaps(client: Client) -> list[tuple[int, int | None]]:
    return [(gap.first, gap.last) for gap in found_gaps(client)]


def seen(client: Client) -> tuple[CollectorSeen, ...]:
    return read_collectors(client, clocks_of(read_completeness(client)))


def found_gaps(client: Client) -> tuple[Gap, ...]:
    return read_gaps(client)


def ask(client: Client, *subjects: str, start: datetime = NOON) -> object:
    query = UsageQuery(
        meter="compute.vcpu_seconds", start=start, end=start + HOUR, group_by=("subject",), subjects=subjects
    )
    return read_usage(client, query, expected_delay=AT_ONCE)


def test_a_silent_collector_holds_back_what_it_measures_and_nothing_else(client: Client) -> None:
    book(client, Booked(minute=NOON))
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 5)
    hear(client, 1, 20, collector="värd-2", subjects=("tenant-b",))
    answer = ask(client, "tenant-zoë")
    assert answer.complete_to == NOON + 5 * MINUTE
    assert [(each.name, each.state, each.last_heard) for each in answer.held_by] == [
        ("värd-1", "silent", NOON + 5 * MINUTE)
    ]
    other = ask(client, "tenant-b")
    assert (other.complete_to, other.held_by) == (NOON + 20 * MINUTE, ())
    assert ask(client).complete_to == NOON + 5 * MINUTE


def hear_many(
    client: Client, number: int, epoch: str, first: datetime, last: datetime, *, numbers: tuple[int, int] = (0, 20)
) -> None:
    """Write a run of each of so many collectors."""
    client.execute(
        "INSERT INTO heard (collector, epoch, topic_id, partition, chunk, booking, definitions, first, last,"
        " first_watermark_us, last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered)"
        f" SELECT concat('host-', toString(number)), '{epoch}', '{TOPIC}', 0, 0, {DAY}, 1,"
        f" {numbers[0]}, {numbers[1]}, {micros(first)},"
        f" {micros(last)}, {micros(first) // 1000}, {micros(last) // 1000},"
        f" [concat('tenant-', toString(number))], ['vm'], 5 FROM numbers({number})"
    )


def test_sixty_thousand_collectors_that_began_anew_are_asked_for_at_once(client: Client) -> None:
    """Hosts that were installed anew: each may have had more to send, between what two epochs said."""
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear_many(client, 60_000, "an-epoch-as-long-as-they-are-in-life-1", NOON, NOON + 9 * MINUTE)
    hear_many(client, 60_000, "an-epoch-as-long-as-they-are-in-life-2", NOON + 10 * MINUTE, NOON + 20 * MINUTE)
    found = found_gaps(client)
    assert len(found) == 60_000
    assert {(gap.first, gap.last, gap.start, gap.end) for gap in found} == {
        (21, None, NOON + 9 * MINUTE, NOON + 10 * MINUTE)
    }


def test_of_hundreds_of_collectors_with_gaps_those_are_named_that_may_matter(client: Client) -> None:
    """So many are not told by their names."""
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear_many(client, 250, "e1", NOON, NOON + 9 * MINUTE)
    hear_many(client, 250, "e1", NOON + 10 * MINUTE, NOON + 20 * MINUTE, numbers=(22, 30))
    hear(client, 1, 2, subjects=())  # which may measure anybody's
    hear(client, 5, 6, subjects=())
    assert len(found_gaps(client)) == 251
    assert {gap.collector for gap in read_gaps(client, ["tenant-7"], "vm")} == {"host-7", "värd-1"}
    assert {gap.collector for gap in read_gaps(client, ["tenant-7"], "disk")} == {"värd-1"}
    assert len(read_gaps(client, event_type="vm", start=NOON + 9 * MINUTE)) == 250
    assert read_gaps(client, event_type="vm", start=NOON + 10 * MINUTE) == ()


def test_twenty_thousand_collectors_are_looked_through_and_only_those_behind_are_fetched(client: Client) -> None:
    book(client, Booked(minute=NOON))
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear_many(client, 20_000, "e1", NOON, NOON + 20 * MINUTE)
    hear(client, 1, 5)
    hear(client, 8, 9)
    found = read_completeness(client, expected_delay=AT_ONCE)
    assert (found.collectors, found.epochs, [each.name for each in found.lagging]) == (20_001, 20_001, ["värd-1"])
    assert count_collectors(client) == {"live": 20_000, "silent": 1}
    for subjects, complete_to, missing in (
        ((), NOON + 9 * MINUTE, 1),
        (("tenant-zoë",), NOON + 9 * MINUTE, 1),
        (("tenant-7",), NOON + 20 * MINUTE, 0),
    ):
        answer = ask(client, *subjects)
        assert (answer.complete_to, len(answer.gaps)) == (complete_to, missing)


def test_of_two_epochs_heard_at_one_time_the_one_behind_is_not_overlooked(client: Client) -> None:
    """Which of them is the newest is known when their rows are merged; who lags is looked for before."""
    late = NOON + 20 * MINUTE
    progress(client, 0, 0, 5, late)
    client.execute("SYSTEM STOP MERGES heard_newest")
    hear(client, 1, 1, epoch="e2")
    hear(client, 20, 20, epoch="e2", chunk=1)
    hear(client, 4, 5, clock=late)
    assert read_completeness(client, expected_delay=AT_ONCE).complete_to == NOON + 5 * MINUTE


def test_gaps_are_those_of_collectors_that_may_feed_what_is_asked_for(client: Client) -> None:
    """As it is decided of who holds back how complete usage is."""
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    whom = [(), ("",), ("tenant-a",), ("tenant-a", "tenant-b"), ("tenant-b", "")]
    for number, subjects in enumerate(whom):
        for first in (1, 4):
            hear(client, first, first, collector=f"värd-{number}", subjects=subjects)
    everybody = seen(client)
    for subjects in ((), ("tenant-a",), ("tenant-b", "tenant-c"), ("tenant-c",)):
        for kind in (None, "vm", "lb"):
            wanted = [each.name for each in everybody if each.may_feed(subjects, kind)]
            assert [gap.collector for gap in read_gaps(client, subjects, kind)] == wanted


def test_who_was_silent_for_a_week_holds_nothing_back_by_the_clock_of_his_own_partition(client: Client) -> None:
    hear(client, 1, 5)
    progress(client, 0, 0, 5, NOON + RETIRED_AFTER)
    progress(client, 1, 0, 5, NOON + RETIRED_AFTER + HOUR)
    note_line(client, [Topic(TOPIC, "usage", 2, 16, founded=True)])
    assert read_completeness(client).complete_to == NOON + 5 * MINUTE
    progress(client, 0, 0, 6, NOON + 5 * MINUTE + RETIRED_AFTER + SECOND)
    assert read_completeness(client, expected_delay=AT_ONCE).complete_to == NOON + 5 * MINUTE + RETIRED_AFTER + SECOND


def test_a_watermark_of_years_ahead_that_was_written_once_counts_until_the_next_epoch(client: Client) -> None:
    """What an older version wrote cannot be taken back; what the next epoch says counts alone."""
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 5, start=NOON + 2000 * 24 * HOUR, clock=NOON)
    assert read_completeness(client, expected_delay=AT_ONCE).complete_to == NOON + 20 * MINUTE
    hear(client, 1, 3, epoch="e2")
    assert read_completeness(client, expected_delay=AT_ONCE).complete_to == NOON + 3 * MINUTE
    assert client.execute("SELECT watermark FROM collectors") == [(NOON + 3 * MINUTE,)]


@pytest.mark.parametrize("ended", [False, True])
def test_who_was_heard_in_a_topic_that_another_follows_or_replaced_is_judged_by_its_clock(
    client: Client, *, ended: bool
) -> None:
    fresh = "PqL1mTn0Rk6wYx8cVb2aZg"
    old, new = Topic(TOPIC, "usage", 1, 16, founded=True), Topic(fresh, "usage.again", 1, 16, founded=True)
    note_line(client, [old])
    progress(client, 0, 0, 5, NOON + 5 * MINUTE, booking=ENDED if ended else DAY)
    hear(client, 1, 5)
    note_line(client, [old, new] if ended else [new])
    progress(client, 0, 0, 5, NOON + HOUR, topic=fresh)
    for state, clock in (("silent", NOON + HOUR), ("retired", NOON + HOUR + RETIRED_AFTER)):
        progress(client, 0, 0, 5 + len(state), clock, topic=fresh)
        assert [each.state for each in seen(client)] == [state]
        assert client.execute("SELECT state FROM collectors") == [(state,)]


def test_a_living_collector_is_believed_and_not_called_silent(client: Client) -> None:
    progress(client, 0, 0, 5, NOON + 5 * MINUTE + SILENT_AFTER)
    hear(client, 1, 5)
    found = read_completeness(client, expected_delay=AT_ONCE)
    assert (found.complete_to, found.held_by) == (NOON + 5 * MINUTE, ())
    assert [each.state for each in seen(client)] == ["live"]


def test_a_collector_of_which_no_reading_is_known_holds_everybody_back(client: Client) -> None:
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 5, subjects=())
    assert read_completeness(client).about(("tenant-b",), "vm").complete_to == NOON + 5 * MINUTE


def test_who_carries_no_watermark_promised_none(client: Client) -> None:
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 5, marks=False, clock=NOON)
    found = read_completeness(client, expected_delay=AT_ONCE)
    assert (found.complete_to, found.held_by) == (NOON + 20 * MINUTE, ())
    assert [(each.state, each.watermark) for each in seen(client)] == [("silent", None)]


def test_a_retired_collector_holds_nothing_back_until_it_is_heard_again(client: Client) -> None:
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 5)
    assert retire(client, seen(client), "värd-1").name == "värd-1"
    found = read_completeness(client, expected_delay=AT_ONCE)
    assert (found.complete_to, [each.state for each in seen(client)]) == (NOON + 20 * MINUTE, ["retired"])
    hear(client, 1, 6)
    assert read_completeness(client).complete_to == NOON + 6 * MINUTE
    progress(client, 0, 0, 6, NOON + 6 * MINUTE + RETIRED_AFTER + SECOND)
    assert [each.state for each in seen(client)] == ["retired"]


def test_only_one_that_was_heard_and_is_silent_can_be_retired(client: Client) -> None:
    progress(client, 0, 0, 5, NOON + 5 * MINUTE)
    hear(client, 1, 5)
    known = seen(client)
    with pytest.raises(UsageQueryError, match='collector "värd-1" still sends'):
        retire(client, known, "värd-1")
    with pytest.raises(UsageQueryError, match='expected one that was heard, got "värd-2"; did you mean "värd-1"'):
        retire(client, known, "värd-2")


def test_missing_numbers_are_found_across_chunks_with_the_time_between_which_their_usage_lies(client: Client) -> None:
    hear(client, 3, 5)
    hear(client, 9, 12, chunk=1)
    hear(client, 13, 14, chunk=2)
    [gap] = found_gaps(client)
    assert (gap.first, gap.last, gap.start, gap.end) == (6, 8, NOON + 5 * MINUTE, NOON + 9 * MINUTE)


def test_numbers_that_come_later_close_their_gap_whole_or_in_part(client: Client) -> None:
    hear(client, 1, 2)
    hear(client, 9, 10, chunk=1)
    hear(client, 5, 6, chunk=2)
    assert gaps(client) == [(3, 4), (7, 8)]
    hear(client, 2, 4, chunk=3)
    assert gaps(client) == [(7, 8)]
    hear(client, 1, 12, chunk=4)
    assert gaps(client) == []


def joined(client: Client, booking: int) -> None:
    """Seal a booking, join what was heard in it, and let readers go by that at once."""
    seal(client, booking)
    assert join_heard(client) == booking
    client.execute(
        "INSERT INTO heard_joined_to (booking, joined_at) SELECT max(booking), now64(3) - INTERVAL 1 HOUR"
        " FROM heard_joined_to"
    )


def test_runs_are_joined_when_their_booking_is_sealed_and_gaps_stay_what_they_are(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers in any order, over eight bookings of which the last is not sealed, in two epochs of two collectors."""
    monkeypatch.setattr("pipeline.join._SORTED_AT_ONCE", 7)
    rng = Random(8)
    sent = {("värd-1", "e1"): range(3, 90), ("värd-1", "e2"): range(20), ("värd-2", "e9"): range(60)}
    numbers = {key: rng.sample(all_of_it, len(all_of_it) * 5 // 6) for key, all_of_it in sent.items()}
    for booking in range(DAY, DAY + 8):
        for (name, epoch), left in numbers.items():
            for _ in range(min(len(left), rng.choice([3, 12]))):
                first = left.pop()
                start = NOON + (100 * MINUTE if epoch == "e2" else timedelta(0))
                hear(client, first, first, collector=name, epoch=epoch, booking=booking, start=start)
        before = found_gaps(client)
        if booking < DAY + 7:
            joined(client, booking)
        assert found_gaps(client) == before, booking - DAY
    assert join_heard(client) == 0
    (runs,) = client.execute("SELECT count() FROM heard_runs WHERE collector = 'värd-2'")[0]
    (all_rows,) = client.execute("SELECT count() FROM heard WHERE collector = 'värd-2'")[0]
    assert 0 < runs < all_rows
    client.execute("ALTER TABLE heard DELETE WHERE booking < %(b)s", {"b": DAY + 7}, settings={"mutations_sync": 1})
    assert found_gaps(client) == before, "what was joined is needed no more"


def test_what_is_joined_this_moment_is_still_read_where_it_was(client: Client) -> None:
    """A reader may have looked at the one table before it was joined, and at the other afterwards."""
    hear(client, 1, 2)
    hear(client, 5, 6, chunk=1)
    seal(client, DAY)
    assert join_heard(client) == DAY
    client.execute("TRUNCATE TABLE heard_joined")
    assert gaps(client) == [(3, 4)]


def test_months_that_were_joined_long_ago_are_dropped(client: Client) -> None:
    hear(client, 1, 2, booking=DAY)
    hear(client, 5, 6, booking=DAY + 100_000, chunk=1)
    joined(client, DAY)
    assert client.execute("SELECT count() FROM heard") == [(2,)]
    joined(client, DAY + 100_000)
    assert client.execute("SELECT first FROM heard") == [(5,)]
    assert gaps(client) == [(3, 4)]


def test_where_an_epoch_was_followed_by_another_more_may_be_missing(client: Client) -> None:
    hear(client, 1, 5)
    hear(client, 1, 3, epoch="e2", start=NOON + 30 * MINUTE, chunk=1)
    [gap] = found_gaps(client)
    assert (gap.epoch, gap.first, gap.last) == ("e1", 6, None)
    assert (gap.start, gap.end) == (NOON + 5 * MINUTE, NOON + 31 * MINUTE)
    assert not gap.touches(NOON + 31 * MINUTE, None) and not gap.touches(None, NOON + 5 * MINUTE)


def test_an_answer_says_that_more_may_be_missing_of_an_epoch_that_another_followed(client: Client) -> None:
    book(client, Booked(minute=NOON))
    progress(client, 0, 0, 5, NOON + 40 * MINUTE)
    hear(client, 1, 5, collector="värd-2")
    hear(client, 1, 5)
    assert ask(client, "tenant-zoë").gaps == ()
    hear(client, 1, 3, epoch="e2", start=NOON + 30 * MINUTE, chunk=1)
    for subjects in (("tenant-zoë",), ()):
        assert [(gap.epoch, gap.last) for gap in ask(client, *subjects).gaps] == [("e1", None)]
    assert ask(client, "tenant-b").gaps == ()


def test_two_that_send_under_one_name_at_the_same_time_follow_no_one(client: Client) -> None:
    hear(client, 1, 5)
    hear(client, 1, 5, epoch="e2", clock=NOON + 4 * MINUTE)
    assert gaps(client) == []


def test_an_answer_names_only_the_gaps_of_its_range(client: Client) -> None:
    book(client, Booked(minute=NOON))
    hear(client, 1, 2)
    hear(client, 4, 200)
    assert [(gap.first, gap.last) for gap in ask(client, "tenant-zoë").gaps] == [(3, 3)]
    assert ask(client, "tenant-b").gaps == ()
    assert ask(client, "tenant-zoë", start=NOON + HOUR).gaps == ()


def test_the_views_say_what_python_says(client: Client) -> None:
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 5)
    hear(client, 8, 10)
    hear(client, 1, 20, collector="värd-2")
    rows = client.execute("SELECT collector, state, last_heard, watermark FROM collectors ORDER BY collector")
    found = seen(client)
    assert rows == [(each.name, each.state, each.last_heard, each.watermark) for each in found]
    assert client.execute("SELECT first, last FROM collector_gaps") == gaps(client) == [(6, 7)]
    minutes = {
        (row[0] - NOON) // MINUTE: row[1:]
        for row in client.execute(
            "SELECT minute, collectors, passed, missing_batches, complete FROM completeness_minute"
        )
    }
    assert minutes[4] == (2, 2, 0, 1)
    assert minutes[6] == (2, 2, 2, 0)
    assert minutes[10] == (2, 1, 0, 0)  # värd-1 has not said so
    assert minutes[20] == (2, 0, 0, 0)  # the log has not come so far


def test_the_views_say_nothing_of_an_empty_store(client: Client) -> None:
    assert client.execute("SELECT count() FROM collectors") == [(0,)]
    assert client.execute("SELECT countIf(complete) FROM completeness_minute") == [(0,)]


@pytest.fixture
def folder(client: Client, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch) -> Path:
    endpoint = clickhouse_endpoint
    place = f"{{host: {endpoint.host}, port: {endpoint.port}, database: {client.connection.database}}}"
    (tmp_path / "tallyman.yaml").write_text(f"clickhouse: {place}\nkafka: {{partitions: 1}}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_person_sees_who_sends_what_is_missing_and_what_to_do(
    client: Client, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 2)
    hear(client, 5, 6)
    hear(client, 1, 20, collector="värd-2")
    assert run(["collectors", "list"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "collector  state   watermark                last heard               missing batches  possible gaps",
        "─────────  ──────  ───────────────────────  ───────────────────────  ───────────────  ─────────────",
        "värd-1     silent  2026-10-05 12:06 +00:00  2026-10-05 12:06 +00:00                2              0",
        "värd-2     live    2026-10-05 12:20 +00:00  2026-10-05 12:20 +00:00                0              0",
        "missing: batches 3 to 4 of värd-1 (usage between 2026-10-05 12:02 +00:00 and 2026-10-05 12:05 +00:00)",
    ]
    assert "tallyman collectors retire 'värd-1'" in captured.err
    assert run(["collectors", "retire", "värd-1"]) == run(["collectors", "retire", "värd-1"]) == 0
    capsys.readouterr()
    assert run(["collectors", "list", "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [(each["collector"], each["state"], each["missing_batches"]) for each in documents] == [
        ("värd-1", "retired", 2),
        ("värd-2", "live", 0),
    ]
    assert documents[0]["gaps"][0] | {"epoch": ""} == {
        "collector": "värd-1", "epoch": "", "kind": "missing", "first": 3, "last": 4,
        "from": "2026-10-05T12:02:00+00:00", "to": "2026-10-05T12:05:00+00:00",
    }  # fmt: skip


def test_usage_says_who_holds_it_back_and_what_is_missing(
    client: Client, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book(client, Booked(minute=NOON))
    progress(client, 0, 0, 5, NOON + 20 * MINUTE)
    hear(client, 1, 2)
    hear(client, 5, 6)
    asked = ["usage", "tenant-zoë", "--meter", "compute.vcpu_seconds", "--from", "2026-10-05", "--to", "2026-10-06"]
    assert run(asked) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "complete up to 2026-10-05 12:06 +00:00 (UTC); nothing is sealed yet",
        "held back by värd-1, silent since 2026-10-05 12:06 +00:00",
        "missing: batches 3 to 4 of värd-1 (usage between 2026-10-05 12:02 +00:00 and 2026-10-05 12:05 +00:00)",
    ]
    assert run([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["held_by"] == [
        {
            "collector": "värd-1",
            "watermark": "2026-10-05T12:06:00+00:00",
            "silent_since": "2026-10-05T12:06:00+00:00",
        }
    ]
    assert [(gap["kind"], gap["first"], gap["last"]) for gap in answer["gaps"]] == [("missing", 3, 4)]
