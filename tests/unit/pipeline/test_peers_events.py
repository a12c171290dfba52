"""Events as other systems' clients write them mean the same on every way of decoding: alone, and in crowds."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from tallyman.meter import Definitions, Meter
from tests.unit.pipeline.events import NDJSON, Walk, body

COUNT = {"event_type": "server", "aggregation": "count"}
METERS = Definitions(number=1, meters=(
    Meter(meter="calls", dimensions={"k": "k"}, **COUNT),
    Meter(meter="pods", dimensions={"ns": "k8s.ns", "pod": "k8s.pod.name"}, **COUNT),
))  # fmt: skip
HOST = Meter(meter="hosts", event_type="server", aggregation="unique_count", value="k")
HOSTS = Definitions(number=1, meters=(HOST,))
PLAIN = Definitions(number=1, meters=METERS.meters[:1])


def data_base64(content: bytes, **more: Any) -> dict[str, Any]:
    return {"data_base64": base64.b64encode(content).decode(), **more}


def bodies(count: int, changed: dict[str, Any]) -> list[bytes]:
    found = []
    for number in range(count):
        event = msgspec.json.decode(body(number, data={}))
        del event["data"]
        text = msgspec.json.encode(event | {name: value for name, value in changed.items() if name != "text"})
        found.append(text[:-1] + changed.get("text", b"") + b"}")
    return found


def sent(definitions: Definitions, lines: list[bytes]) -> Walk:
    return Walk(definitions).send(b"\n".join(lines), headers=NDJSON).flush()


@pytest.mark.parametrize("definitions", [PLAIN, METERS], ids=["plain", "deep"])
@pytest.mark.parametrize("count", [1, 40, 3000])
@pytest.mark.parametrize("changed, k", [
    ({"data": None}, None),
    ({"text": b',"data":{"k":1e3}'}, "1000"),
    ({"text": b',"data":{"k":0.00000001}'}, "0.00000001"),
    ({"text": b',"data":{"k":1.50}'}, "1.50"),
    ({"data": {"k": "0.0000001"}}, "0.0000001"),
    (data_base64(b'{"k":"a"}'), "a"),
    (data_base64('{"k":"Zoë"}'.encode(), datacontenttype="application/json"), "Zoë"),
    (data_base64(b'{"k":"a","n":' + b"9" * 700 + b"}"), "a"),
    ({"data": {"k": "a"}, "specversion": None, "datacontenttype": None, "dataschema": None, "tenant": None}, "a"),
], ids=["no data", "thousand", "tiny", "zero behind", "a text", "bytes", "bytes of json", "long integer",
        "unset attributes"])  # fmt: skip
def test_what_other_clients_write_counts(
    definitions: Definitions, count: int, changed: dict[str, Any], k: str | None
) -> None:
    others = [body(f"other-{number}", data={"k": "other"}) for number in range(3)]
    walk = sent(definitions, others[:1] + bodies(count, changed) + others[1:])
    calls = {key: total for key, total in walk.totals.items() if key[1] == "calls"}
    assert {msgspec.json.decode(key[3])["k"]: total for key, total in calls.items()} == {k: count, "other": 3}


@pytest.mark.parametrize("count", [1, 40, 3000])
@pytest.mark.parametrize("changed, reason", [
    (data_base64(b"<a/>"), "wrong_type"),
    (data_base64(b'["k"]'), "wrong_type"),
    (data_base64(b'{"k":"\xff"}'), "not_utf8"),
    (data_base64(b'{"k":"a"}', data={"k": "b"}), "wrong_type"),
    ({"data_base64": "{"}, "wrong_type"),
    ({"data_base64": 7}, "wrong_type"),
    ({"data": "text"}, "wrong_type"),
    ({"text": b',"data":{"k":1e5000}'}, "out_of_range"),
    ({"subject": None}, "missing_field"),
    ({"time": None}, "missing_field"),
    ({"text": b',"source":null'}, "missing_field"),
    ({"specversion": 1.0}, "wrong_type"),
], ids=["xml", "a list", "not UTF-8", "both", "no Base64", "a number", "a text", "too long",
        "no subject", "no time", "no source", "a version that is a number"])  # fmt: skip
def test_what_nobody_can_read_is_a_dead_letter_and_never_counts(
    count: int, changed: dict[str, Any], reason: str
) -> None:
    walk = sent(PLAIN, bodies(count, changed))
    assert (walk.reasons, walk.counts["aggregated"]) == ([reason] * count, 0)


@pytest.mark.parametrize("count", [1, 40, 3000])
def test_names_with_dots_of_their_own_are_found_and_paths_still_are(count: int) -> None:
    datas: list[dict[str, Any]] = [
        {"k8s.ns": "a", "k8s.pod.name": "p"},
        {"k8s": {"ns": "a", "pod": {"name": "p"}}},
        {"k8s": {"ns": "a", "pod.name": "p"}},
        {"k8s.ns": None, "k8s": {"ns": "a", "pod": {"name": "p"}}},
    ]
    lines = [body(f"{n}-{i}", data=data) for n, data in enumerate(datas) for i in range(count)]
    pods = {key: total for key, total in sent(METERS, lines).totals.items() if key[1] == "pods"}
    assert {key[3]: total for key, total in pods.items()} == {'{"ns":"a","pod":"p"}': 4 * count}


def test_a_number_and_its_text_are_one_value() -> None:
    texts = (b"0.0000001", b'"0.0000001"', b"1e-7")
    lines = [body(number)[:-1].rsplit(b',"data"', 1)[0] + b',"data":{"k":' + text + b"}}" for number, text in
             enumerate(texts)]  # fmt: skip
    hosts = [key for key in sent(HOSTS, lines).totals if key[1] == "hosts"]
    assert len(hosts) == 1
