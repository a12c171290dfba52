"""What goes over the wire: bodies, and signatures by Standard Webhooks 1.0 (spec/standard-webhooks.md).

Signed is `id.timestamp.body`; the id stays the same for every attempt, the timestamp is the attempt's. With several
live secrets each signs, so that they can be changed without a moment in which receivers refuse.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256

import msgspec

from rules.alarm import Transition, identity_of, plain
from rules.model import AlarmRule
from tallyman.errors import ConfigError, DeliveryError

BODY_VERSION = 1
TOLERANCE_S = 300
_NEVER = "0001-01-01T00:00:00Z"  # what Alertmanager says for "has not ended"


class SignatureError(DeliveryError):
    """A webhook is not from who holds the secret, or is too old; a receiver answers 401."""

    retriable = False


def parse_secret(secret: str) -> bytes:
    """Return the key of a "whsec_..." secret.

    Raises:
        ConfigError: It is none; the message does not show it.
    """
    try:
        key = b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "make one with: openssl rand -base64 32"
        raise ConfigError(f'expected "whsec_" and base64, got something else; {hint}') from error
    if not 24 <= len(key) <= 64:
        raise ConfigError(f"expected 24 to 64 bytes, got {len(key)}; make one with: openssl rand -base64 32")
    return key


def sign(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` header: one signature for each secret."""
    content = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    signatures = [hmac.digest(parse_secret(secret), content, "sha256") for secret in secrets]
    return " ".join(f"v1,{b64encode(signature).decode()}" for signature in signatures)


def verify(secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: int) -> str:
    """Return a webhook's id if one of the secrets has signed it lately.

    Args:
        headers: Names in lower case.

    Raises:
        SignatureError: With what is wrong, never with what would be right.
    """
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not headers.get(name)]
    if missing:
        raise SignatureError(f"expected the header {missing[0]}, got none")
    given_id, said = headers["webhook-id"], headers["webhook-timestamp"]
    if not (said.isascii() and said.isdigit() and len(said) < 16):
        raise SignatureError("webhook-timestamp: expected seconds since 1970, got something else")
    if abs(now - int(said)) > TOLERANCE_S:
        raise SignatureError(f"webhook-timestamp: expected within {TOLERANCE_S} s of now, got {now - int(said)} s ago")
    right = [signature.encode() for signature in sign(secrets, given_id, int(said), body).split()]
    given = [each.encode("utf-8", "replace") for each in headers["webhook-signature"].split(" ")]
    # Every pair is compared, each in constant time, so that time tells nothing about the secret.
    matches = sum(hmac.compare_digest(one, other) for one in right for other in given)
    if not matches:
        raise SignatureError("webhook-signature: expected one made with a live secret, got none")
    return given_id


def message_id_of(transition: Transition) -> str:
    """Return the id of a transition's message: the same for every endpoint and attempt."""
    state = transition.state
    what = msgspec.json.encode([state.rule, state.identity, state.episode, transition.to])
    return f"msg_{sha256(what).hexdigest()[:32]}"


def compose(transition: Transition, rule: AlarmRule | None) -> bytes:
    """Write the standard body of a transition: `{type, timestamp, data}`.

    Args:
        rule: None when the rule is gone from the files.
    """
    state = transition.state
    data: dict[str, object] = {
        "version": BODY_VERSION,
        "rule": state.rule,
        "alert": transition.alert,
        "identity": state.identity,
        "episode": identity_of({"episode": state.episode}),
        "state": transition.to,
        "previous_state": transition.previous,
        "reason": transition.reason,
        "labels": dict(sorted(state.labels.items())),
        "annotations": dict(transition.annotations),
        "value": None if transition.value is None else plain(transition.value),
        "active_at": write_time(state.active_at),
        "fired_at": None if state.fired_at is None else write_time(state.fired_at),
        "window": {
            "from": write_time(state.window_start),
            "to": write_time(state.window_end),
            "complete": transition.complete,
        },
    }
    if rule is not None:
        data["condition"] = {
            "meter": rule.usage.meter,
            "unit": rule.unit,
            rule.condition.comparison: plain(rule.condition.threshold),
        }
    body = {"type": f"alarm.{transition.to}", "timestamp": write_time(transition.at), "data": data}
    return msgspec.json.encode(body)


def as_alertmanager(body: bytes, endpoint: str) -> bytes:
    """Write a standard body as Alertmanager's webhook receivers expect it (version 4)."""
    message = msgspec.json.decode(body)
    data = message["data"]
    status = "resolved" if data["state"] == "resolved" else "firing"
    name = {"alertname": data["alert"]}
    alert = {
        "status": status,
        "labels": data["labels"],
        "annotations": data["annotations"],
        "startsAt": data["fired_at"] or data["active_at"],
        "endsAt": message["timestamp"] if status == "resolved" else _NEVER,
        "generatorURL": "",
        "fingerprint": data["identity"][:16],
    }
    return msgspec.json.encode({
        "version": "4", "groupKey": f'{{}}:{{alertname="{data["alert"]}"}}', "truncatedAlerts": 0,
        "receiver": endpoint, "status": status, "alerts": [alert], "groupLabels": name,
        "commonLabels": data["labels"], "commonAnnotations": data["annotations"], "externalURL": "",
    })  # fmt: skip


def write_time(instant: datetime) -> str:
    """Write an instant as RFC 3339 in UTC."""
    return instant.isoformat().replace("+00:00", "Z")
