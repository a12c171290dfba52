"""CloudEvents in binary mode: the same event, however its attributes came."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tallyman.binary import compose, read_attributes
from tallyman.errors import EventError
from tallyman.event import decode_event
from tallyman.headers import RecordKind, kind_of

NAMED: Mapping[str, bytes] = {
    "ce_specversion": b"1.0", "ce_id": b"e-1", "ce_source": b"nova/berlin-1", "ce_type": b"server",
    "ce_subject": "Zoë Åström".encode(), "ce_time": b"2026-10-31T12:00:00Z",
}  # fmt: skip


def kind(**changed: bytes | None) -> RecordKind:
    headers = {name: value for name, value in {**NAMED, **changed}.items() if value is not None}
    return kind_of(tuple(headers.items()))


def test_attributes_and_data_make_the_event_and_its_digits_stay() -> None:
    event = decode_event(compose(read_attributes(NAMED, "application/json"), b'{"hours": 0.1000000000000000055}'))
    assert (event.id, event.subject, str(event.data["hours"])) == ("e-1", "Zoë Åström", "0.1000000000000000055")


@pytest.mark.parametrize("name", sorted(NAMED))
def test_each_attribute_is_needed(name: str) -> None:
    problem = kind(**{name: None}).problem
    assert problem is not None and problem.reason == "missing_field" and name in problem.detail


@pytest.mark.parametrize("content", [
    None, b"application/json", b"Application/JSON; charset=utf-8", b"text/v1+json", b"text/json", b"Text/JSON ;a=b",
])  # fmt: skip
def test_the_data_may_be_any_kind_of_json(content: bytes | None) -> None:
    assert kind(**{"content-type": content}).problem is None


@pytest.mark.parametrize("content", [b"application/avro", b"json", b"text/plain", b"application/x-json", b"/ndjson"])
def test_data_that_is_announced_as_something_else_is_an_unknown_format(content: bytes) -> None:
    problem = kind(**{"content-type": content}).problem
    assert problem is not None and problem.reason == "unknown_format"


def test_a_structured_event_may_be_announced_by_the_type_of_its_data() -> None:
    """The CloudEvents SDK for Python 1 writes `datacontenttype` into the header."""
    assert [kind_of((("content-type", name),)).format for name in (b"application/json", b"text/json")] == ["single"] * 2


def test_a_structured_event_may_repeat_its_attributes_in_headers() -> None:
    read = kind(**{"content-type": b"application/cloudevents+json; charset=UTF-8", "ce_id": None})
    assert read.attributes is None and read.problem is None


@pytest.mark.parametrize("data, reason", [
    (b'{}, "id": "another"', "malformed"), (b'{"hours": ', "malformed"), (b'{"name": "\xff"}', "not_utf8"),
    ('{"hours": 1}'.encode("utf-16"), "not_utf8"), (b'{"na\xefve": 1, }', "not_utf8"),
    (b"\xff" + b"[" * 70, "not_utf8"),
])  # fmt: skip
def test_data_that_is_not_one_json_value_makes_no_event(data: bytes, reason: str) -> None:
    with pytest.raises(EventError) as caught:
        compose(read_attributes(NAMED, ""), data)
    assert caught.value.reason == reason


def test_an_attribute_named_data_does_not_replace_the_data() -> None:
    named = {**NAMED, "ce_data": b"9", "ce_traceparent": b"00-4bf9"}
    assert decode_event(compose(read_attributes(named, ""), b'{"hours": 1}')).data == {"hours": 1}
