"""CloudEvents in binary mode: the attributes are Kafka headers (`ce_id`, `ce_source`, ...), the value is the data.

Such a record is written anew as the structured event that it stands for, so that everything behind knows one form only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from tallyman.errors import EventError
from tallyman.nesting import MAX_NESTING, check_nesting

PREFIX = "ce_"
REQUIRED = ("specversion", "id", "source", "type", "subject", "time")
# An attribute's name as CloudEvents 1.0 has it; "data" would be one too, and the value is the data.
_NAME = re.compile(r"(?!data$)[a-z0-9]+")


def is_binary(named: Mapping[str, bytes], content_type: str) -> bool:
    """Tell whether a record is in binary mode: it has attributes in headers, and its value is no CloudEvent itself.

    Args:
        named: Headers by their names in lower case.
    """
    if not any(name.startswith(PREFIX) for name in named):
        return False
    return not content_type.strip().lower().startswith("application/cloudevents")


def read_attributes(named: Mapping[str, bytes], content_type: str) -> dict[str, str]:
    """Return the attributes of a record in binary mode.

    Raises:
        EventError: `missing_field`, `not_utf8`, or `unknown_format`: the data is announced as something else than JSON.
    """
    media_type = content_type.split(";", 1)[0].strip().lower()
    if media_type and not media_type.endswith(("/json", "+json")):  # as CloudEvents' JSON format 1.0 has it, 3.1.1
        raise EventError(
            "unknown_format", f'content-type: expected application/json beside ce_ headers, got "{content_type[:100]}"'
        )
    attributes = gather_attributes(named)
    missing = [PREFIX + name for name in REQUIRED if not attributes.get(name)]
    if missing:
        raise EventError("missing_field", f"headers: expected {', '.join(missing)} beside the other ce_ headers")
    return attributes


def gather_attributes(named: Mapping[str, bytes]) -> dict[str, str]:
    """Return the attributes that are there.

    Raises:
        EventError: `not_utf8`.
    """
    attributes = {}
    for header, value in named.items():
        name = header.removeprefix(PREFIX)
        if header.startswith(PREFIX) and _NAME.fullmatch(name):
            try:
                attributes[name] = value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise EventError("not_utf8", f"header {header}: {error.reason} at byte {error.start}") from error
    return attributes


def compose(attributes: Mapping[str, str], data: bytes) -> bytes:
    """Write attributes and JSON data as one structured event; the same record always gives the same bytes.

    Raises:
        EventError: `malformed`, `not_utf8`, `too_deep`: the data cannot be read. (What it must hold, the decoder of
            events says.)
    """
    wire: dict[str, object] = {name: attributes[name] for name in sorted(attributes)}
    if data.strip():
        try:
            if not data.isascii():
                data.decode("utf-8")
            check_nesting(data, MAX_NESTING - 1)
            # Read, not pasted: data that closes its own brace could bring attributes of its own along.
            wire["data"] = msgspec.json.decode(data, type=msgspec.Raw)
        except UnicodeDecodeError as error:
            raise EventError("not_utf8", f"data: expected UTF-8, got {error.reason} at byte {error.start}") from error
        except msgspec.DecodeError as error:
            raise EventError("malformed", f"data: {error}"[:300]) from error
    return msgspec.json.encode(wire)
