"""The batch walk: what a fetch's bytes hold, to the last offset, and what it refuses."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.memory_records import MemoryRecords

from pipeline import records as records_module
from pipeline.batches import BatchWalk, Fetch, empty_fetch, join
from tallyman.errors import LogError
from tests.fetches import CODECS, NOON_MS, TOPIC_ID, TRANSACTIONAL, batch_of, fetch_of, marker_of, seal

TENANT = "Zoë Åström".encode()
JSON = ("content-type", b"application/cloudevents+json")


def walk(
    *batches: bytes, position: int = 0, aborted: tuple[tuple[int, int], ...] = (), about: int = 1 << 30
) -> list[Fetch]:
    walking = BatchWalk(b"".join(batches), TOPIC_ID, 3, position, aborted)
    fetches = []
    while (fetch := walking.next_fetch(about)) is not None:
        fetches.append(fetch)
    return fetches


def only(fetches: list[Fetch]) -> Fetch:
    assert len(fetches) == 1
    return fetches[0]


def events(count: int, first: int = 0) -> list[tuple[bytes, bytes, tuple[tuple[str, bytes], ...]]]:
    return [(TENANT, b'{"id": "%d"}' % number, ()) for number in range(first, first + count)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [3, 500])
def test_records_come_with_offset_key_value_and_the_brokers_time(codec: str, count: int) -> None:
    fetch = only(walk(batch_of(events(count), base=70, codec=codec), position=70))
    assert fetch.offsets.tolist() == list(range(70, 70 + count))
    assert fetch.values == [b'{"id": "%d"}' % number for number in range(count)]
    assert set(fetch.keys) == {TENANT}
    assert set(fetch.appended_ms.tolist()) == {NOON_MS}
    assert (fetch.topic_id, fetch.partition, fetch.first, fetch.next) == (TOPIC_ID, 3, 70, 70 + count)
    assert fetch.headers is None


def test_the_size_of_a_fetch_counts_each_record_and_header() -> None:
    """They take room also where they have hardly any bytes."""
    bare, headed = (only(walk(batch_of([(None, b"1", (("", b""),) * count)] * 50))) for count in (0, 9))
    assert bare.size - 50 * 64 < 50 * 10 + 70
    assert headed.size - bare.size == 50 * 9 * (64 + 2)


def test_a_topic_without_log_append_time_shows_the_senders_times() -> None:
    times = [NOON_MS + 7, NOON_MS - 3_600_000, NOON_MS]
    fetch = only(walk(batch_of(events(3), appended_ms=None, created_ms=times)))
    assert fetch.appended_ms.tolist() == times


def test_batches_of_both_kinds_of_time_keep_their_own() -> None:
    created = batch_of(events(2), appended_ms=None, created_ms=[NOON_MS - 9, NOON_MS - 8])
    fetch = only(walk(created, batch_of(events(2), base=2)))
    assert fetch.appended_ms.tolist() == [NOON_MS - 9, NOON_MS - 8, NOON_MS, NOON_MS]


@pytest.mark.parametrize("count", [2, 200])
def test_headers_keep_their_order_and_a_null_value_is_empty(count: int) -> None:
    headers = (JSON, ("tallyman-collector", TENANT), ("trace", None), ("trace", b"2"))
    rows = [(None, b"{}", headers), *[(None, b"{}", ()) for _ in range(count)]]
    fetch = only(walk(batch_of(rows)))
    assert fetch.headers_of(0) == (JSON, ("tallyman-collector", TENANT), ("trace", b""), ("trace", b"2"))
    assert fetch.headers_of(1) == ()


def test_a_header_name_that_is_no_utf8_does_not_stop_the_others() -> None:
    batch = bytearray(batch_of([(None, b"{}", (("name", b"value"),))]))
    at = bytes(batch).index(b"name")
    batch[at : at + 4] = b"n\xff\xfee"
    seal(batch)
    assert only(walk(bytes(batch))).headers_of(0) == (("n��e", b"value"),)


@pytest.mark.parametrize("count", [4, 400])
def test_null_keys_and_values_are_told_from_empty_ones(count: int) -> None:
    rows = [(None, None, ()), (b"", b"", ()), *[(b"key", None, ())] * count]
    fetch = only(walk(batch_of(rows)))
    assert fetch.keys[:3] == [None, b"", b"key"]
    assert fetch.values[:3] == [None, b"", None]


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_begins_below_the_wanted_offset_is_cut(codec: str) -> None:
    """Kafka answers with whole batches."""
    rows = [(TENANT, b"%d" % number, (JSON,) if number < 30 else ()) for number in range(100)]
    fetch = only(walk(batch_of(rows, base=1000, codec=codec, epoch=4), position=1040))
    assert (fetch.first, fetch.next) == (1040, 1100)
    assert fetch.offsets.tolist() == list(range(1040, 1100))
    assert fetch.values[0] == b"40"
    assert fetch.headers is None
    assert fetch.digests[0][:2] == (1000, 4)


def test_holes_between_and_behind_the_records_of_a_batch_move_the_position() -> None:
    fetch = only(walk(batch_of(events(3), base=10, deltas=[1, 5, 6], last_delta=9), position=10))
    assert fetch.offsets.tolist() == [11, 15, 16]
    assert (fetch.first, fetch.next) == (10, 20)


def test_a_batch_whose_records_are_all_gone_moves_the_position() -> None:
    batch = bytearray(batch_of(events(1), base=10, last_delta=4))
    empty = batch[:61]
    struct.pack_into(">i", empty, 8, 61 - 12)
    struct.pack_into(">i", empty, 57, 0)
    seal(empty)
    fetch = only(walk(bytes(empty), position=10))
    assert (len(fetch), fetch.first, fetch.next) == (0, 10, 15)


def test_every_batch_leaves_its_digest_also_markers_and_aborted_ones() -> None:
    aborted = batch_of(events(2), base=0, producer=9, flags=TRANSACTIONAL, epoch=2)
    fetch = only(walk(aborted, marker_of("abort", base=2, producer=9), batch_of(events(1), base=3), aborted=((9, 0),)))
    assert [base for base, _, _ in fetch.digests] == [0, 2, 3]
    assert [epoch for _, epoch, _ in fetch.digests] == [2, 0, 0]
    assert len({crc for _, _, crc in fetch.digests}) == 3


def test_aborted_records_are_skipped_and_committed_ones_are_not() -> None:
    """Two producers at once, one aborts and then commits."""
    fetch = only(
        walk(
            batch_of(events(2, 0), base=0, producer=7, flags=TRANSACTIONAL),
            batch_of(events(2, 2), base=2, producer=8, flags=TRANSACTIONAL),
            batch_of(events(1, 4), base=4, producer=7, flags=TRANSACTIONAL),
            marker_of("abort", base=5, producer=7),
            batch_of(events(1, 6), base=6),
            marker_of("commit", base=7, producer=8),
            batch_of(events(1, 8), base=8, producer=7, flags=TRANSACTIONAL),
            marker_of("commit", base=9, producer=7),
            aborted=((7, 0),),
        )
    )
    assert fetch.offsets.tolist() == [2, 3, 6, 8]
    assert fetch.next == 10


def test_a_producer_that_aborts_twice_is_skipped_twice() -> None:
    fetch = only(
        walk(
            batch_of(events(1), base=0, producer=7, flags=TRANSACTIONAL),
            marker_of("abort", base=1, producer=7),
            batch_of(events(1), base=2, producer=7, flags=TRANSACTIONAL),
            marker_of("abort", base=3, producer=7),
            batch_of(events(1), base=4, producer=7, flags=TRANSACTIONAL),
            marker_of("commit", base=5, producer=7),
            aborted=((7, 2), (7, 0)),
        )
    )
    assert fetch.offsets.tolist() == [4]


def test_a_transaction_that_began_below_the_fetch_is_aborted_in_it() -> None:
    fetch = only(
        walk(batch_of(events(3), base=50, producer=7, flags=TRANSACTIONAL), position=50, aborted=((7, 11),))
    )
    assert (len(fetch), fetch.next) == (0, 53)


def test_an_aborted_producers_plain_batches_are_kept() -> None:
    fetch = only(walk(batch_of(events(1), base=0, producer=7), aborted=((7, 0),)))
    assert len(fetch) == 1


def test_a_fetch_of_nothing_but_markers_is_no_idle_poll() -> None:
    fetch = only(walk(marker_of("commit", base=5, producer=7), position=5))
    assert (len(fetch), fetch.first, fetch.next) == (0, 5, 6)


def test_a_batch_that_is_cut_off_is_left_for_the_next_fetch() -> None:
    whole, cut = batch_of(events(2)), batch_of(events(2), base=2)
    for missing in (1, 40, len(cut) - 5):
        assert only(walk(whole, cut[:-missing])).next == 2
    assert walk(whole[:-1]) == []


def test_portions_follow_each_other_without_a_gap() -> None:
    batches = [batch_of(events(10), base=10 * number, codec="lz4") for number in range(8)]
    fetches = walk(*batches, about=400)
    assert len(fetches) > 3
    assert [fetch.first for fetch in fetches[1:]] == [fetch.next for fetch in fetches[:-1]]
    assert [offset for fetch in fetches for offset in fetch.offsets.tolist()] == list(range(80))


def test_a_record_of_four_mebibytes_comes_whole() -> None:
    record = bytes(range(256)) * (4 * 4096)
    for codec in CODECS:
        assert only(walk(batch_of([(None, record, ())], codec=codec))).values == [record]


def test_damaged_bytes_are_refused_with_the_place() -> None:
    batch = bytearray(batch_of(events(5), base=40))
    batch[-3] ^= 1
    with pytest.raises(LogError, match="near offset 40: expected whole record batches, got: the checksum"):
        walk(bytes(batch), position=40)


@pytest.mark.parametrize("damage", [-3, 11])
def test_what_came_whole_before_damaged_bytes_is_read(damage: int) -> None:
    """The next call comes to the place itself, again and again."""
    batch = bytearray(batch_of(events(5), base=43))
    batch[damage] = 7
    walk = BatchWalk(batch_of(events(3), base=40) + bytes(batch), TOPIC_ID, 3, 40)
    fetch = walk.next_fetch(1 << 20)
    assert fetch is not None
    assert (fetch.first, fetch.next, len(fetch)) == (40, 43, 3)
    for _ in range(2):
        with pytest.raises(LogError, match="near offset 43: expected whole record batches"):
            walk.next_fetch(1 << 20)


def test_an_old_message_format_is_refused() -> None:
    batch = bytearray(batch_of(events(1)))
    batch[16] = 1
    with pytest.raises(LogError, match="message format 1, expected 2"):
        walk(bytes(batch))


def test_a_batch_that_denies_its_records_is_refused() -> None:
    batch = bytearray(batch_of(events(2)))
    struct.pack_into(">i", batch, 57, 0)
    seal(batch)
    with pytest.raises(LogError, match="bytes behind the last record"):
        walk(bytes(batch))


def test_an_unknown_codec_is_refused() -> None:
    batch = bytearray(batch_of(events(1)))
    batch[22] |= 7
    seal(batch)
    with pytest.raises(LogError, match="codec 7, which nobody knows"):
        walk(bytes(batch))


def test_a_codec_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka.codec.snappy", None)
    batch = bytearray(batch_of(events(1)))
    batch[22] |= 2
    seal(batch)
    with pytest.raises(LogError, match=r"pip install 'kafka-python\[snappy\]'"):
        walk(bytes(batch))


@pytest.mark.parametrize("count", [3, 300])
def test_a_record_whose_fields_do_not_fill_it_is_refused(count: int) -> None:
    """The checksum is right: somebody wrote it so."""
    batch = bytearray(batch_of([(b"k", b"value", ())] * count))
    batch[-1] = 2  # the last record claims a header that is not there
    seal(batch)
    with pytest.raises(LogError):
        walk(bytes(batch))


rows = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=80),
        st.none() | st.binary(max_size=300),
        st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=200)), max_size=3),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(rows, st.sampled_from(sorted(CODECS)), st.integers(0, 5), st.booleans(), st.integers(-9, 10**10)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 40),
    st.sampled_from([0, 10**9]),
)
def test_any_batches_read_as_kafka_python_reads_them(batches: list, position: int, few: int) -> None:  # type: ignore[type-arg]
    """Both ways, the one for few records and the one for many, against kafka-python's own record loop."""
    base, buffers = 0, []
    for records, codec, hole, by_broker, shift in batches:
        times = [NOON_MS + shift * index for index in range(len(records))]
        last = len(records) - 1 + hole
        appended = NOON_MS if by_broker else None
        made = batch_of(records, base=base, codec=codec, last_delta=last, appended_ms=appended, created_ms=times)
        buffers.append(made)
        base += last + 1
    expected = []
    reading = MemoryRecords(b"".join(buffers))
    while (batch := reading.next_batch()) is not None:
        for record in batch:
            if record.offset >= position:
                headers = tuple((name, value or b"") for name, value in record.headers)
                expected.append((record.offset, record.timestamp, record.key, record.value, headers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "FEW", few)
        fetch = only(walk(*buffers, position=position))
    found = zip(
        fetch.offsets.tolist(),
        fetch.appended_ms.tolist(),
        fetch.keys,
        fetch.values,
        [fetch.headers_of(index) for index in range(len(fetch))],
        strict=True,
    )
    assert list(found) == expected
    assert fetch.next == max(base, position)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_bytes_that_somebody_changed_are_refused_or_read_but_never_crash(data: st.DataObject) -> None:
    """With a right checksum, so that only the structure can tell."""
    count = data.draw(st.sampled_from([2, 60]))
    batch = bytearray(batch_of([(b"key", b"value", (JSON,))] * count))
    for _ in range(data.draw(st.integers(1, 4))):
        batch[data.draw(st.integers(57, len(batch) - 1))] = data.draw(st.integers(0, 255))
    seal(batch)
    try:
        fetches = walk(bytes(batch))
    except LogError:
        return
    assert sum(map(len, fetches)) <= count


def test_a_fetch_is_cut_at_an_offset_within_it() -> None:
    fetch = fetch_of([(b"%d" % number, (JSON,), NOON_MS) for number in range(5)], first=10, behind=20)
    part = fetch.below(13)
    assert (part.first, part.next, part.values) == (10, 13, [b"0", b"1", b"2"])
    assert fetch.below(17).next == 17
    assert len(fetch.below(17)) == 5
    assert fetch.below(20) is fetch


def test_a_fetch_travels_between_processes() -> None:
    fetch = only(walk(batch_of(events(3), base=5), position=5))
    copy = pickle.loads(pickle.dumps(fetch))
    assert copy.offsets.tolist() == fetch.offsets.tolist()
    assert (copy.values, copy.digests, copy.next) == (fetch.values, fetch.digests, fetch.next)


def test_an_idle_poll_is_an_empty_fetch() -> None:
    fetch = empty_fetch(TOPIC_ID, 1, 42)
    assert (fetch.first, fetch.next, len(fetch), fetch.digests) == (42, 42, 0, ())


def test_small_fetches_that_follow_each_other_are_read_as_one_large_one() -> None:
    """Records with and without headers, and the digests of their batches."""
    one_with_headers = batch_of([(TENANT, b"{}", (JSON,))], base=73)
    batches = [batch_of(events(3), base=70), one_with_headers, batch_of(events(2), base=74)]
    whole, parts = only(walk(*batches, position=70)), walk(*batches, position=70, about=1)
    joined = join(parts)
    assert len(parts) == 3
    assert (joined.first, joined.next, joined.digests) == (whole.first, whole.next, whole.digests)
    assert (joined.values, joined.keys, joined.headers) == (whole.values, whole.keys, whole.headers)
    assert joined.offsets.tolist() == whole.offsets.tolist()
    assert joined.appended_ms.tolist() == whole.appended_ms.tolist()
