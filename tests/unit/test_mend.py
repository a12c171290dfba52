"""Mending changes what it is told to change, and nothing that says which event it is."""

from __future__ import annotations

import pytest

from tallyman.errors import EventError, UsageQueryError
from tallyman.event import decode_event
from tallyman.mend import mend, parse_changes

BODY = (
    '{"specversion":"1.0","id":"e-1","source":"nova/berlin-1","type":"serverr","subject":"Zoë Åström",'
    '"time":"2026-10-31T12:00:00Z","data":{"value": 0.10000000000000000555, "size":{"gb": "a lot"}},"note":[1.50]}'
).encode()


def mended(*texts: str, body: bytes = BODY, own_identity: bool = True) -> bytes:
    return mend(body, parse_changes(texts), own_identity=own_identity)


def test_without_changes_the_bytes_stay() -> None:
    assert mended() is BODY


def test_fields_change_and_every_other_value_keeps_its_digits() -> None:
    body = mended("type=server", "data.size.gb=12.50", 'data.zone="12"', "data.region=Malmö")
    event = decode_event(body)
    assert (event.type, str(event.data["value"]), str(event.data["size"]["gb"])) == (
        "server",
        "0.10000000000000000555",
        "12.50",
    )
    assert (event.data["zone"], event.data["region"]) == ("12", "Malmö") and b"[1.50]" in body


def test_an_attribute_is_always_text() -> None:
    assert decode_event(mended("type=12")).type == "12"


@pytest.mark.parametrize("change", ["id=e-2", "source=nova", "subject=Łukasz"])
def test_what_says_which_event_it_is_is_never_changed(change: str) -> None:
    with pytest.raises(EventError, match="is never changed, only added"):
        mended(change)


def test_saying_the_same_identity_again_changes_nothing() -> None:
    assert decode_event(mended("id=e-1")).id == "e-1"


@pytest.mark.parametrize("broken", [b'"Zo\xc3\xab \xc3\x85str\xc3\xb6m"', b'""', b"17", b"null"])
def test_a_subject_that_is_missing_or_none_can_be_given(broken: bytes) -> None:
    body = BODY.replace(
        '"subject":"Zoë Åström",'.encode(), b"" if broken[:3] == b'"Zo' else b'"subject":' + broken + b","
    )
    assert decode_event(mended("subject=Zoë Åström", body=body)).subject == "Zoë Åström"


def test_an_event_with_its_identity_elsewhere_may_get_another_subject() -> None:
    assert decode_event(mended("subject=Łukasz", own_identity=False)).subject == "Łukasz"


def test_what_is_no_object_cannot_be_mended() -> None:
    with pytest.raises(EventError, match="expected a JSON object to mend"):
        mended("type=server", body=BODY[:-1])
    with pytest.raises(EventError, match="gb: expected a JSON object to mend"):
        mended("data.size.gb.x=1")


@pytest.mark.parametrize("texts, said", [
    (["sourze=x"], 'did you mean "source"'), (["type"], "expected FIELD=VALUE"),
    (["data..x=1"], "expected FIELD=VALUE"),
    (["type=a", "type=b"], "is set twice"), (["data=1", "data.x=1"], "is set twice"),
])  # fmt: skip
def test_a_change_that_is_none_is_refused_with_a_sentence(texts: list[str], said: str) -> None:
    with pytest.raises(UsageQueryError, match=said):
        parse_changes(texts)


def test_what_is_no_object_is_shown_as_it_is() -> None:
    with pytest.raises(EventError, match=r'got "\{nonsense\\xff"$'):
        mended("data.value=1", body=b"{nonsense\xff")
