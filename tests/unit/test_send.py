"""Files of events on their way to Kafka: what is read from them, and which record and partition each line goes to."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clickhouse_driver.errors import NetworkError, ServerException
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaTimeoutError

from tallyman.config import KafkaConfig, TallymanConfig
from tallyman.errors import BrokerError, ConfigError, EventFileError, StoreError, UsageQueryError
from tallyman.event import home_key
from tallyman.event_file import EventFile, open_events
from tallyman.kafka import TopicInfo, partition_of
from tallyman.line import TopicNow
from tallyman.packing import BYTES_PER_RECORD, LINES_PER_RECORD, Packer
from tallyman.project import Project
from tallyman.send import SendReport, _ask, _Sending, _wait_until_booked, runs_of, send_file

LONGEST = 8 * 1024 * 1024


def event(number: int, subject: str = "Zoë Åström", source: str = "compute/malmö") -> bytes:
    wire = {"specversion": "1.0", "id": f"e-{number}", "source": source, "type": "compute.hours", "subject": subject}
    return json.dumps(wire | {"time": "2026-10-31T23:59:59Z", "data": {"value": "0.25"}}, ensure_ascii=False).encode()


def read(content: bytes, longest: int = LONGEST) -> tuple[list[bytes], EventFile]:
    file = EventFile(io.BytesIO(content), None, None, longest)
    return [line for lines in file for line in lines], file


def test_lines_are_read_as_they_are_and_blank_ones_are_none() -> None:
    lines = [event(1), b"not an event", b'{"cut": ', "株式会社".encode(), b"\xff\xfe"]
    assert read(b"\n".join([lines[0], b"", *lines[1:], b"  "]))[0] == lines


def test_the_last_line_needs_no_end_and_windows_ends_do_no_harm() -> None:
    assert read(event(1) + b"\r\n" + event(2))[0] == [event(1) + b"\r", event(2)]


def test_a_byte_order_mark_is_no_part_of_the_first_event() -> None:
    assert read(b"\xef\xbb\xbf" + event(1))[0] == [event(1)]


def test_an_array_is_its_events() -> None:
    assert read(b"[" + event(1) + b",\n" + event(2) + b"]\n")[0] == [event(1), event(2)]


def test_an_event_written_over_many_lines_is_one_with_all_its_digits() -> None:
    content = b'{\n  "id": "1",\n  "data": {\n    "value": 0.10000000000000000000000000001\n  }\n}\n'
    assert read(content)[0] == [b'{"id":"1","data":{"value":0.10000000000000000000000000001}}']
    assert read(b"[" + content + b"," + content + b"]")[0] == 2 * [read(content)[0][0]]


def test_events_written_over_many_lines_may_follow_one_another() -> None:
    """As `jq .` writes them, also with bytes that are no UTF-8 in one of them."""
    first, second = (json.dumps(json.loads(event(n)), indent=2, ensure_ascii=False).encode() for n in (1, 2))
    odd = b'{\n  "id": "\xff"\n}'
    assert [json.loads(each) for each in read(first + b"\n" + second + b"\n\n")[0]] == [
        json.loads(event(1)), json.loads(event(2))
    ]  # fmt: skip
    assert read(first + b" " + odd)[0][1:] == [b'{"id":"\xff"}']
    assert b"\n".join(read(first + b"\n{oops\n" + second)[0]) == first + b"\n{oops\n" + second


def test_events_over_many_lines_that_are_too_large_to_be_read_at_once_are_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the part that was read ends: also right behind one of them."""
    pretty = b'{\n"id": "1234"\n}\n'  # 16 bytes
    monkeypatch.setattr("tallyman.event_file._PIECE", 1 << 10)
    for whole in range(4000, 4040):
        monkeypatch.setattr("tallyman.event_file._WHOLE", whole)
        for lead in (b"", b" ", b"\n" * 7):
            with pytest.raises(UsageQueryError, match=r"written over many lines; write one event a line \(jq -c \.\)"):
                read(lead + pretty * 1000)
    assert len(read(pretty * 200)[0]) == 200
    assert read(b'{"cut": \n' + (event(2) + b"\n") * 1000)[0] == [b'{"cut": ', *[event(2)] * 1000]


def test_numbers_of_any_length_are_handed_on_as_they_are() -> None:
    digits = b"9" * 5000
    assert read(b'{\n"a": ' + digits + b"\n}\n{\n}")[0] == [b'{"a":' + digits + b"}", b"{}"]


def test_an_array_that_is_cut_off_becomes_lines_so_that_nothing_is_dropped() -> None:
    content = b"[" + event(1) + b",\n" + event(2)
    assert b"\n".join(read(content)[0]) == content


@pytest.mark.parametrize("between", [b",\n", b","])
def test_an_array_that_is_too_large_to_be_read_at_once_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, between: bytes
) -> None:
    """Its lines end with commas: each would have become a dead letter."""
    monkeypatch.setattr("tallyman.event_file._WHOLE", 2 << 20)
    monkeypatch.setattr("tallyman.event_file._PIECE", 1 << 18)
    fits = b"[" + between.join(event(number) for number in range(10_000)) + b"]"
    assert len(read(fits)[0]) == 10_000
    file = EventFile(io.BytesIO(b"[" + between.join([fits[1:-1], fits[1:]])), None, None, LONGEST, name="october.json")
    with pytest.raises(UsageQueryError, match=r"october.json: an array of more than 2 MiB; write one event a line"):
        next(iter(file))


def test_lines_of_which_the_first_is_an_array_of_its_own_may_be_as_many_as_they_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tallyman.event_file._WHOLE", 1 << 18)
    monkeypatch.setattr("tallyman.event_file._PIECE", 1 << 16)
    assert len(read(b"\n".join([b"[1]", *(event(number) for number in range(10_000))]))[0]) == 10_001


def test_a_broken_first_line_does_not_hide_the_others() -> None:
    assert read(b'{"cut": \n' + event(2))[0] == [b'{"cut": ', event(2)]


def test_a_line_that_no_record_holds_is_named_and_the_others_are_read() -> None:
    lines, file = read(b"\n".join([event(1), b"x" * 5000, event(3), b"y" * 5001]), longest=4096)
    assert lines == [event(1), event(3)]
    assert file.too_long == [2, 4]


def test_a_line_longer_than_memory_is_given_up_and_reading_goes_on() -> None:
    lines, file = read(event(1) + b"\n" + b"x" * (5 << 20) + b"\n" + event(3), longest=1 << 20)
    assert lines == [event(1), event(3)]
    assert file.too_long == [2]


@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line and not line.isspace())))
def test_any_lines_come_back(lines: list[bytes]) -> None:
    """Behind a first line that is plainly one."""
    assert read(b"\n".join([event(0), *lines]))[0] == [event(0), *lines]


def test_a_gzipped_file_is_told_by_its_bytes_and_its_progress_is_in_bytes_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "october.ndjson"
    path.write_bytes(gzip.compress(b"\n".join(event(number) for number in range(5000))))
    file = open_events(path, LONGEST)
    assert sum(map(len, file)) == 5000
    assert file.done == file.total == path.stat().st_size
    file.close()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda whole: whole[:-2000], "Compressed file ended before the end-of-stream marker was reached"),
        (lambda whole: whole[:-8] + bytes(8), "CRC check failed"),
        (lambda whole: whole[:10] + b"\xff" + whole[11:], "Error -3 while decompressing data"),
    ],
    ids=["cut off", "other content", "damaged"],
)
def test_a_gzipped_file_that_cannot_be_read_to_its_end_says_so(
    tmp_path: Path, damage: Callable[[bytes], bytes], told: str
) -> None:
    """No EOFError, which looks like Ctrl-C, and no OSError, which looks like a server that is away."""
    path = tmp_path / "b.gz"
    path.write_bytes(damage(gzip.compress(b"\n".join(event(number) for number in range(20_000)))))
    with closing(open_events(path, LONGEST)) as file, pytest.raises(EventFileError) as error:
        list(file)
    assert str(error.value).startswith(f"{path}: cannot be read to its end ({told}")


def test_a_file_that_becomes_shorter_while_it_is_read_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    """It is written anew, or cut by a log's rotation; the line that it ends in now is no event."""
    path = tmp_path / "october.ndjson"
    path.write_bytes((event(1) + b"\n") * 20_000)
    whole = path.stat().st_size
    found: list[bytes] = []
    with (
        closing(open_events(path, LONGEST)) as file,
        pytest.raises(EventFileError, match=rf"had {whole:,} bytes when it was opened, and became shorter"),
    ):
        for lines in file:
            found += lines
            os.truncate(path, whole // 2 - 7)
    assert found and set(found) == {event(1)}


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_standard_input_may_be_gzipped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: Callable[[bytes], bytes]
) -> None:
    """As it is, each piece of it between two line ends would be a dead letter."""
    path = tmp_path / "piped"
    path.write_bytes(packed(b"\n".join([event(1), event(2)])))
    with path.open() as piped:
        monkeypatch.setattr("sys.stdin", piped)
        with closing(open_events("-", LONGEST)) as file:
            assert [line for lines in file for line in lines] == [event(1), event(2)]


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_a_pipe_that_a_shell_names_is_read_like_standard_input(packed: Callable[[bytes], bytes]) -> None:
    """As in: tallyman send <(jq -c .events[] export.json)"""
    out, into = os.pipe()
    os.write(into, packed(b"\n".join([event(1), event(2)])))
    os.close(into)
    with closing(open_events(f"/dev/fd/{out}", LONGEST)) as found:
        assert [line for lines in found for line in lines] == [event(1), event(2)]
    os.close(out)


class Broker:
    """Acknowledges everything."""

    def send(self, *_: Any, **__: Any) -> Broker:
        return self

    is_done, offset = True, 0

    def get(self, timeout: float) -> Broker:
        return self

    def flush(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        pass


def test_a_file_that_is_cut_off_says_how_much_of_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.gz"
    path.write_bytes(gzip.compress(b"\n".join(event(number) for number in range(20_000)))[:-100])
    now = TopicNow(TopicInfo("usage.events.v1", "t", 4), ())
    monkeypatch.setattr("tallyman.send.read_topic_now", lambda project: now)
    monkeypatch.setattr("tallyman.send.make_producer", lambda brokers: Broker())
    project = Project(folder=tmp_path, data=tmp_path, meters=(),
                      config=TallymanConfig(kafka=KafkaConfig(brokers=("k:9092",))))  # fmt: skip
    with pytest.raises(EventFileError, match=r"\); [1-9]\d*,\d00 events are acknowledged; get the whole file and send"):
        send_file(project, path)


class AwayBroker(Broker):
    """Acknowledges nothing; a producer of kafka-python that has batches left cannot be closed without an error."""

    is_done = False

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def get(self, timeout: float) -> Broker:
        raise self._error

    def close(self, timeout: float) -> None:
        raise KafkaTimeoutError("Failed to flush")


@pytest.mark.parametrize(
    ("error", "told"),
    [(KafkaTimeoutError("batch expired"), BrokerError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["expired", "Ctrl-C"],
)
def test_a_kafka_that_went_away_is_a_sentence_and_not_the_error_of_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, told: type[BaseException]
) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(event(1))
    now = TopicNow(TopicInfo("usage.events.v1", "t", 4), ())
    monkeypatch.setattr("tallyman.send.read_topic_now", lambda project: now)
    monkeypatch.setattr("tallyman.send.make_producer", lambda brokers: AwayBroker(error))
    project = Project(folder=tmp_path, data=tmp_path, meters=(),
                      config=TallymanConfig(kafka=KafkaConfig(brokers=("k:9092",))))  # fmt: skip
    with pytest.raises(told):
        send_file(project, path)


def pack(lines: list[bytes], partitions: int = 4, most_lines: int = LINES_PER_RECORD) -> list[tuple[int, list[bytes]]]:
    packer = Packer(partitions, most_lines)
    records = [*packer.pack(lines), *packer.rest()]
    return [(record.partition, record.value.split(b"\n")) for record in records]


def test_every_line_goes_to_its_home() -> None:
    subjects = [f"tenant-{number % 37}" for number in range(2000)]
    found = pack([event(number, subject) for number, subject in enumerate(subjects)])
    for partition, lines in found:
        for line in lines:
            wire = json.loads(line)
            assert partition == partition_of(home_key(wire["subject"], wire["source"]), 4)
    assert sum(len(lines) for _, lines in found) == 2000


def test_lines_of_one_home_keep_their_order() -> None:
    lines = [event(number) for number in range(1300)]
    assert [line for _, some in pack(lines) for line in some] == lines


def test_a_record_is_full_at_500_lines_or_half_a_mebibyte() -> None:
    assert [len(lines) for _, lines in pack([event(number) for number in range(1100)])] == [500, 500, 100]
    big = [event(number, source="s" * 100_000) for number in range(11)]
    packed = pack(big)
    assert [len(lines) for _, lines in packed] == [5, 5, 1]
    assert all(len(b"\n".join(lines)) <= BYTES_PER_RECORD for _, lines in packed)


def test_a_line_larger_than_a_record_should_be_travels_alone() -> None:
    large = event(1, source="s" * 2 * BYTES_PER_RECORD)
    assert [len(lines) for _, lines in pack([event(0, source="s" * 2 * BYTES_PER_RECORD), large])] == [1, 1]


def test_what_is_no_event_is_sent_all_the_same() -> None:
    bad = [b"{", b"null", b'{"subject": 1}', b"\xff\xfe\xfd", b"[" * 2000, '{"subject": "Zoë"}'.encode()]
    assert sorted(line for _, lines in pack(bad) for line in lines) == sorted(bad)
    assert pack(bad) == pack(bad)


def test_single_records_carry_the_key_of_their_home() -> None:
    (record,) = Packer(4, 1).pack([event(1)])
    assert (record.key, record.value, record.events) == (home_key("Zoë Åström", "compute/malmö"), event(1), 1)


def test_types_are_counted_for_what_is_ignored() -> None:
    packer = Packer(4)
    list(packer.pack([event(1), event(2), b"nonsense"]))
    assert packer.types == {"compute.hours": 2}


@given(st.sets(st.integers(0, 60)))
def test_runs_hold_exactly_their_offsets(offsets: set[int]) -> None:
    runs = runs_of(list(offsets))
    assert [place for first, last in runs for place in range(first, last + 1)] == sorted(offsets)
    assert all(runs[at][1] + 1 < runs[at + 1][0] for at in range(len(runs) - 1))


def test_a_stream_without_an_end_is_remembered_by_runs() -> None:
    """Each record by itself would fill the memory in the end."""
    offsets = iter([*range(5000), 6000, 6001])

    class Broker:
        is_done = True

        def send(self, *_: Any, **__: Any) -> Broker:
            return self

        def get(self, timeout: float) -> Any:
            return SimpleNamespace(offset=next(offsets))

    sending = _Sending(Broker(), TopicInfo("usage.events.v1", "t", 4), "-", SimpleNamespace(done=0, total=None),
                       lambda done, total: None)  # fmt: skip
    for record in Packer(4, 1).pack([event(1)] * 5002):
        sending.send(record)
    (runs,) = sending.runs.values()
    assert runs == [(0, 4999), (6000, 6001)]


@pytest.mark.parametrize("path", ["no/such/file.ndjson"])
def test_a_file_that_is_not_there_says_so(path: str) -> None:
    with pytest.raises(OSError, match=path):
        open_events(path, LONGEST)


class Returning:
    """A ClickHouse that is started again: refuses twice, then answers."""

    def __init__(self, error: Exception) -> None:
        self.error, self.asked = error, 0

    def execute(self, sql: str, values: object) -> list[tuple[int]]:
        self.asked += 1
        if self.asked < 3:
            raise self.error
        return [(7,)]

    def disconnect(self) -> None:
        pass


@pytest.mark.parametrize(
    "error",
    [
        NetworkError("Connection refused"),
        ServerException("Database tallyman does not exist", 81),
        ServerException("Table progress does not exist", 60),
    ],
    ids=["started again", "no database yet", "no table yet"],
)
def test_waiting_outlasts_a_clickhouse_that_is_started_again_and_a_pipeline_that_has_yet_to_make_its_tables(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("tallyman.send._ASK_AGAIN_S", 0.0)
    client = Returning(error)
    assert _ask(client, 60.0, "SELECT 7", {}) == [(7,)]
    assert client.asked == 3


def test_a_table_that_never_comes_ends_the_waiting_with_a_sentence() -> None:
    client = Returning(ServerException("Table ids does not exist", 60))
    with pytest.raises(StoreError, match="Table ids does not exist; everything sent is safe"):
        _ask(client, -1.0, "SELECT count() FROM ids", {})


def test_what_clickhouse_refuses_is_not_asked_again() -> None:
    client = Returning(ServerException("Authentication failed", 516))
    with pytest.raises(StoreError, match="Authentication failed; everything sent is safe"):
        _ask(client, 60.0, "SELECT count() FROM ids", {})
    assert client.asked == 1


@pytest.mark.parametrize(("last", "booked"), [(6, True), (7, False), (9, False)])
def test_nobody_waits_for_what_stands_behind_the_end_of_a_topic(last: int, booked: bool) -> None:
    """Partition 0 has its end marker at offset 7: what stands there or behind it counts in the topic that follows."""
    report = SendReport(topic=TopicInfo("usage.v1", "t", 1), events=1, records=1, bytes=1, took_s=0,
                        offsets={0: [(3, last)]}, types={})  # fmt: skip

    def wait() -> None:
        _wait_until_booked(lambda sql, values: [(0, 7 if "turned" in sql else 20)], report, lambda left: None, 0)

    if booked:
        wait()
    else:
        with pytest.raises(ConfigError, match=r'kafka.topic: "usage.v1" has ended; .*"tallyman topic list" names it'):
            wait()
