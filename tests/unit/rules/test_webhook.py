"""Webhooks are signed as Standard Webhooks 1.0 says, and bodies are what receivers can rely on."""

from __future__ import annotations

import json

import pytest

from rules.webhook import SignatureError, as_alertmanager, compose, message_id_of, sign, verify
from tests.unit.rules.alarms import ZOE, Alarms, make_rule

SECRET, NEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "Wm/DqyDDhXN0cm9tLCBCasO2cm4gw55vcnN0ZWlu"
ID, TIME, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'


def headers(**changes: str) -> dict[str, str]:
    made = {"webhook-id": ID, "webhook-timestamp": str(TIME), "webhook-signature": sign([SECRET], ID, TIME, BODY)}
    return made | {name.replace("_", "-"): value for name, value in changes.items()}


def test_the_specifications_vector_is_signed_as_it_says() -> None:
    assert sign([SECRET], ID, TIME, BODY) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_live_secrets_sign_so_that_either_receiver_agrees() -> None:
    both = headers(webhook_signature=sign([NEXT, SECRET], ID, TIME, BODY))
    assert both["webhook-signature"].count("v1,") == 2
    assert verify([SECRET], both, BODY, TIME) == verify([NEXT], both, BODY, TIME) == ID


@pytest.mark.parametrize("late", [-300, 0, 300])
def test_a_signature_holds_for_five_minutes_either_way(late: int) -> None:
    assert verify([SECRET], headers(), BODY, TIME + late) == ID


@pytest.mark.parametrize(
    ("given", "body", "now"),
    [
        (headers(webhook_id=""), BODY, TIME),
        (headers(webhook_id="msg_other"), BODY, TIME),
        (headers(webhook_timestamp=""), BODY, TIME),
        (headers(webhook_timestamp="hello"), BODY, TIME),
        (headers(webhook_timestamp="٣"), BODY, TIME),
        (headers(webhook_timestamp="9" * 5000), BODY, TIME),
        (headers(webhook_timestamp=str(TIME + 1)), BODY, TIME),
        (headers(webhook_signature=""), BODY, TIME),
        (headers(webhook_signature="v1"), BODY, TIME),
        (headers(webhook_signature="v1,not base64 ¿"), BODY, TIME),
        (headers(webhook_signature="v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="), BODY, TIME),
        (headers(webhook_signature=sign([NEXT], ID, TIME, BODY)), BODY, TIME),
        (headers(), BODY + b" ", TIME),
        (headers(), b"\xff\xfe", TIME),
        (headers(), BODY, TIME + 301),
        (headers(), BODY, TIME - 301),
    ],
)
def test_what_is_not_signed_right_is_refused(given: dict[str, str], body: bytes, now: int) -> None:
    with pytest.raises(SignatureError):
        verify([SECRET], given, body, now)


def test_a_signature_among_strangers_is_found() -> None:
    several = headers(webhook_signature="v1a,AAAA v1,BBBB " + sign([SECRET], ID, TIME, BODY))
    assert verify([SECRET], several, BODY, TIME) == ID


def fired() -> Alarms:
    alarms = Alarms(make_rule(annotations={"summary": "{{ labels.subject }} used {{ value }} {{ unit }}"}, unit="s"))
    alarms.usage(0, {ZOE: "123456789012345678901.50"})
    alarms.usage(60, {ZOE: 1})
    return alarms


def test_the_body_says_what_happened_with_exact_figures() -> None:
    alarms = fired()
    assert json.loads(compose(alarms.transitions[0], alarms.rule)) == {
        "type": "alarm.firing",
        "timestamp": "2026-10-31T23:00:00Z",
        "data": {
            "version": 1,
            "rule": "tenants/busy",
            "alert": "busy",
            "identity": alarms.transitions[0].state.identity,
            "episode": json.loads(compose(alarms.transitions[1], alarms.rule))["data"]["episode"],
            "state": "firing",
            "previous_state": "inactive",
            "reason": "condition",
            "labels": {"alertname": "busy", "subject": ZOE},
            "annotations": {"summary": "Zoë Åström used 123456789012345678901.5 s"},
            "value": "123456789012345678901.5",
            "active_at": "2026-10-31T23:00:00Z",
            "fired_at": "2026-10-31T23:00:00Z",
            "window": {"from": "2026-10-31T22:59:00Z", "to": "2026-10-31T23:00:00Z", "complete": True},
            "condition": {"meter": "compute.seconds", "unit": "s", "above": "100"},
        },
    }


def test_alertmanagers_receivers_get_alertmanagers_body() -> None:
    alarms = fired()
    firing, resolved = (
        json.loads(as_alertmanager(compose(each, alarms.rule), "ops")) for each in alarms.transitions
    )
    assert (firing["version"], firing["receiver"], firing["status"]) == ("4", "ops", "firing")
    assert firing["alerts"][0]["endsAt"] == "0001-01-01T00:00:00Z"
    assert resolved["status"] == resolved["alerts"][0]["status"] == "resolved"
    assert resolved["alerts"][0]["startsAt"] == "2026-10-31T23:00:00Z"
    assert resolved["alerts"][0]["endsAt"] == "2026-10-31T23:01:00Z"
    assert firing["alerts"][0]["fingerprint"] == resolved["alerts"][0]["fingerprint"]


def test_the_same_transition_has_the_same_id_and_body() -> None:
    one, other = fired(), fired()
    for a, b in zip(one.transitions, other.transitions, strict=True):
        assert (message_id_of(a), compose(a, one.rule)) == (message_id_of(b), compose(b, other.rule))
