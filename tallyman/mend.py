"""Mend an event that was not accepted: fields get new values, every other value keeps its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tallyman.errors import EventError, UsageQueryError
from tallyman.files import nearest

ATTRIBUTES = ("id", "source", "type", "subject", "time")
CONTENT_TYPE_CHANGE = "content-type"
_IDENTITY = ("id", "source", "subject")
_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse_changes(texts: Sequence[str]) -> dict[str, bytes]:
    """Return field -> JSON, of texts such as `data.value=12.5` and `type=cloud.server.usage`.

    A value of `data` is JSON if it can be read as such, else text; attributes and the content type are text.

    Raises:
        UsageQueryError: There is no such field, or one is set twice.
    """
    changes: dict[str, bytes] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        in_data = name == "data" or (name.startswith("data.") and all(name.split(".")))
        if not equals or not (in_data or name in (*ATTRIBUTES, CONTENT_TYPE_CHANGE)):
            known = (*ATTRIBUTES, CONTENT_TYPE_CHANGE, "data")
            raise UsageQueryError(
                f"--set: expected FIELD=VALUE with a field of {', '.join(known)} or data.NAME, got"
                f' "{text}"{nearest(name, known)}'
            )
        if any(name == other or f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")
               for other in changes):  # fmt: skip
            raise UsageQueryError(f'--set: "{name}" is set twice')
        changes[name] = _json(value) if in_data else _encode(value)
    return changes


def _json(text: str) -> bytes:
    try:
        return bytes(msgspec.json.decode(text.encode(), type=msgspec.Raw))
    except msgspec.DecodeError:
        return _encode(text)


def mend(body: bytes, changes: Mapping[str, bytes], *, own_identity: bool) -> bytes:
    """Return an event's bytes with changed fields; without changes the same bytes.

    Args:
        own_identity: The event is counted once by its id, source and subject. They can be given where they are missing,
            never changed: a mended copy must not count beside the original.

    Raises:
        EventError: The bytes are no JSON object, or the change would make another event of it.
    """
    if not changes:
        return body
    wire = _object(body, "event")
    for path, value in changes.items():
        if own_identity and path in _IDENTITY and _is_text(wire.get(path)) and wire[path] != msgspec.Raw(value):
            raise EventError("wrong_type", f"{path}: it says which event this is and is never changed, only added")
        _set(wire, path.split("."), value)
    return _encode(wire)


def _set(wire: dict[str, msgspec.Raw], path: Sequence[str], value: bytes) -> None:
    name, *rest = path
    if rest:
        inner = _object(bytes(wire[name]), name) if name in wire else {}
        _set(inner, rest, value)
        value = _encode(inner)
    wire[name] = msgspec.Raw(value)


def _object(body: bytes, name: str) -> dict[str, msgspec.Raw]:
    try:
        return _decode_object(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = body[:40].decode("utf-8", "backslashreplace")
        raise EventError("malformed", f'{name}: expected a JSON object to mend, got "{said}"') from error


def _is_text(value: msgspec.Raw | None) -> bool:
    try:
        return value is not None and msgspec.json.decode(value, type=str) != ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
