"""The record that lets a dead letter in again: at home, judged before, with the identity that it had."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest

from tallyman.admission import admit
from tallyman.dead_letters import DeadLetter
from tallyman.errors import EventError
from tallyman.event import ARROW, BATCH, LINES, SINGLE, home_key, split_record
from tallyman.kafka import TopicInfo, partition_of
from tallyman.mend import parse_changes

TOPIC = TopicInfo("usage.events.v1", "Qo8f0rXvS1y", 4)
BODY = msgspec.json.encode({"id": "e-1", "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström",
                            "time": "2026-10-31T12:00:00Z", "data": {"hours": "lots"}})  # fmt: skip
LETTER = DeadLetter(
    topic_id=TOPIC.topic_id, partition=3, offset=18211, event_index=7, appended_at=datetime(2026, 11, 1, tzinfo=UTC),
    booking=20757000, reason="too_old", detail="", content_type=SINGLE, type="server", source="nova/berlin-1",
    subject="Zoë Åström", size_bytes=len(BODY), body=BODY,
)  # fmt: skip
NUMBER = {"tallyman-collector": b"host-01", "tallyman-epoch": b"spool-7", "tallyman-sequence": b"9"}
JUDGED = ("tallyman-admitted", b"1")
CONTENT = ("content-type", SINGLE.encode())
BINARY = {"ce_specversion": b"1.0", "ce_id": b"e-1", "ce_source": b"nova", "ce_type": b"server",
          "ce_time": b"2026-10-31T12:00:00Z"}  # fmt: skip


def test_a_foreign_event_goes_to_its_home_with_the_bytes_that_it_had() -> None:
    (record,) = admit(replace(LETTER, headers={"content-type": LINES.encode()}), {}, TOPIC)
    key = home_key("Zoë Åström", "nova/berlin-1")
    assert record.key == key and record.partition == partition_of(key, 4)
    assert (record.value, record.headers) == (BODY, (CONTENT, JUDGED))


@pytest.mark.parametrize("content", [ARROW, LINES, SINGLE])
def test_an_event_of_a_numbered_batch_goes_with_its_number_and_place(content: str) -> None:
    (record,) = admit(replace(LETTER, headers={"content-type": content.encode(), **NUMBER}), {}, TOPIC)
    assert record.partition == partition_of(b"host-01", 4)
    assert record.headers == (CONTENT, *NUMBER.items(), ("tallyman-index", b"7"), JUDGED)


def test_an_event_that_was_let_in_before_keeps_the_place_that_it_had_in_its_batch() -> None:
    headers = {"content-type": SINGLE.encode(), **NUMBER, "tallyman-index": b"41"}
    (record,) = admit(replace(LETTER, event_index=0, headers=headers), {}, TOPIC)
    assert ("tallyman-index", b"41") in record.headers


def test_a_batch_that_was_dead_as_a_whole_goes_whole_with_its_number() -> None:
    headers = {"content-type": ARROW.encode(), **NUMBER}
    letter = replace(LETTER, reason="bad_schema", content_type=ARROW, body=b"\xff\xff", event_index=0, headers=headers)
    (record,) = admit(letter, {}, TOPIC)
    assert (record.value, record.headers) == (b"\xff\xff", (("content-type", ARROW.encode()), *NUMBER.items(), JUDGED))


def test_an_event_in_binary_mode_goes_as_a_structured_one_and_gets_the_attribute_that_it_lacked() -> None:
    letter = replace(LETTER, reason="missing_field", content_type="application/json", body=b'{"hours": 1.50}',
                     headers=BINARY)  # fmt: skip
    with pytest.raises(EventError, match="subject"):
        admit(letter, {}, TOPIC)
    (record,) = admit(letter, parse_changes(["subject=Zoë Åström"]), TOPIC)
    assert b'"data":{"hours": 1.50}' in record.value and record.key == home_key("Zoë Åström", "nova")


def test_a_wrong_content_type_can_be_put_right_for_a_whole_record() -> None:
    letter = replace(LETTER, reason="unknown_format", content_type="text/plain", body=BODY + b"\n" + BODY,
                     headers={"content-type": b"text/plain"})  # fmt: skip
    with pytest.raises(EventError, match="content-type"):
        admit(letter, {}, TOPIC)
    (record,) = admit(letter, parse_changes([f"content-type={LINES}"]), TOPIC)
    assert record.partition == partition_of(home_key("Zoë Åström", "nova/berlin-1"), 4) != letter.partition
    assert record.headers == (("content-type", LINES.encode()), JUDGED)
    assert (record.events, record.types) == (2, {"server": 2})


@pytest.mark.parametrize("content", [LINES, BATCH])
def test_a_whole_record_goes_to_the_homes_of_its_events_and_what_is_none_stays(content: str) -> None:
    """Where they are not at home they would be sent on, and nobody could say that they count."""
    other = BODY.replace("Zoë Åström".encode(), b"tenant-7")
    parts = [BODY, b'{"no": "event"}', other, BODY]
    joined = b"\n".join(parts) if content == LINES else b"[" + b", ".join(parts) + b"]"
    headers = {"content-type": content.encode()}
    letter = replace(LETTER, reason="unknown_format", content_type=content, body=joined, headers=headers)
    found = {record.partition: split_record(content, record.value) for record in admit(letter, {}, TOPIC)}
    homes = [partition_of(home_key(subject, "nova/berlin-1"), 4) for subject in ("Zoë Åström", "tenant-7")]
    assert found == {homes[0]: [BODY, BODY], homes[1]: [other], 3: [b'{"no": "event"}']}


def test_a_numbered_batch_that_was_dead_as_a_whole_says_how_many_events_it_has() -> None:
    letter = replace(LETTER, content_type=LINES, body=BODY + b"\n{", headers={"content-type": LINES.encode(), **NUMBER})
    (record,) = admit(letter, {}, TOPIC)
    assert (record.events, record.types, record.whole, record.value) == (2, {"server": 1}, True, letter.body)


@pytest.mark.parametrize("letter, said", [
    (replace(LETTER, topic_id="older"), "is not the one that is booked"),
    (replace(LETTER, reason="number_reused"), "its number belongs to other content"),
    (replace(LETTER, size_bytes=5_000_000), "send it again in smaller records"),
    (replace(LETTER, body=BODY[:-3]), "truncated"),
    (replace(LETTER, content_type=ARROW), "without a number"),
    (replace(LETTER, headers={"tallyman-collector": b"host-01"}), "together"),
    (replace(LETTER, headers={**BINARY, "tallyman-collector": b"host-01"}), "ce_subject"),
])  # fmt: skip
def test_what_cannot_be_let_in_is_refused_with_a_sentence(letter: DeadLetter, said: str) -> None:
    with pytest.raises(EventError, match=said):
        admit(letter, {}, TOPIC)
