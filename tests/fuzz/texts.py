"""JSON events as text: good ones as different clients write them, and odd ones that no encoder would write."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from datetime import UTC, datetime, timedelta, timezone

from tallyman.event import format_time
from tests.fuzz.odd import KEYS, LITERALS, NAMES, QUANTITIES, TIMES, TYPES

Pairs = list[tuple[str, str]]  # keys and values as they stand in JSON
_EVENTS = ('"deleted"', "null", '"resized"')
_REGIONS = ("Genève", "Łódź", "eu-north", "")
_TYPES = ("server",) * 5 + ("store", "balancer", "balancer.host", "cpu", "cpu", "login", "request", "volume", "state",
                            "network", "heartbeat")  # fmt: skip


class Texts:
    """Writes JSON events around a moment.

    Args:
        people: The (subject, source) pairs that most events have.
    """

    def __init__(self, rng: random.Random, people: list[tuple[str, str]]) -> None:
        self._rng, self.people = rng, people
        self._number = 0

    def good(self, now_ms: int, **fixed: str) -> bytes:
        """Return an event that counts, as some client writes it. `fixed` are JSON values of attributes."""
        event = self._event(now_ms, fixed)
        return self._spell(event, self._data(dict(event)["type"]))

    def odd(self, now_ms: int) -> bytes:
        """Return an event with one to three oddities, the same text every time it is sent."""
        rng = self._rng
        event = self._event(now_ms, {})
        data = self._data(dict(event)["type"])
        for _ in range(rng.choice((1, 1, 2, 3))):
            event, data = self._make_odd(event, data)
        return self._spell(event, data)

    def _event(self, now_ms: int, fixed: dict[str, str]) -> Pairs:
        rng = self._rng
        self._number += 1
        subject, source = rng.choice(self.people)
        named = {
            "specversion": '"1.0"',
            "id": f'"e-{self._number}"',
            "source": self._text(source),
            "type": f'"{rng.choice(_TYPES)}"',
            "subject": self._text(subject),
            "time": f'"{self._time(now_ms)}"',
        } | fixed
        pairs = list(named.items())
        if rng.random() < 0.2:
            rng.shuffle(pairs)
        return pairs if rng.random() < 0.9 else pairs[1:] if pairs[0][0] == "specversion" else pairs

    def _time(self, now_ms: int) -> str:
        rng = self._rng
        time_us = now_ms * 1000 - int(rng.expovariate(1 / 300e6)) + rng.choice((0, 0, 0, 1_000_000, 3_500_000_000))
        way = rng.random()
        if way < 0.7:
            return format_time(time_us)
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
        if way < 0.8:
            zone = timezone(timedelta(minutes=rng.choice((0, 60, 330, -570, 345))))
            return moment.astimezone(zone).isoformat()
        if way < 0.9:
            return format_time(time_us // 1_000_000 * 1_000_000).replace("Z", f".{rng.randrange(10**9):09}Z")
        return f"{time_us // 1_000_000}" if way < 0.95 else f"{time_us // 1_000_000}.{rng.randrange(1000):03}"

    def _data(self, kind: str) -> Pairs:
        """Return data that the meters of a type (as JSON) want."""
        rng, name = self._rng, kind.strip('"')
        amount, whole = self._quantity(rng.choice((2, 6))), self._quantity(0)
        by_type: dict[str, Pairs] = {
            "server": [("hours", amount), ("region", self._text(rng.choice(_REGIONS))), ("size", '"L"')],
            "store": [("bytes", whole)],
            "balancer": [("usage", f'{{"requests":{whole}}}'), ("host", '{"name":"lb-1"}')],
            "balancer.host": [("host", rng.choice(('"1"', "1", "true", "1.0", "null")))],
            "cpu": [("value", amount), ("mode", rng.choice(('"user"', '"system"')))],
            "login": [("user", self._text(rng.choice(NAMES[2:12])))],
            "request": [("ms", amount)],
            "volume": [("gb", amount), ("volume", f'"v{rng.randrange(9)}"'), ("event", rng.choice(_EVENTS))],
            "state": [("state", rng.choice(('"active"', '"stopped"'))), ("server", f'"s{rng.randrange(9)}"')],
            "network": [("total", whole), ("port", '"eth0"'), ("boot", f'"b{rng.randrange(3)}"')],
        }  # fmt: skip
        return [*by_type.get(name, []), *([("note", '"[{,}]"')] if rng.random() < 0.2 else [])]

    def _quantity(self, digits: int) -> str:
        number = f"{self._rng.randrange(10**9) / 10**digits:.{digits}f}" if digits else str(self._rng.randrange(10**12))
        return f'"{number}"' if self._rng.random() < 0.5 else number

    def _text(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=self._rng.random() < 0.15)

    def _make_odd(self, event: Pairs, data: Pairs) -> tuple[Pairs, Pairs]:
        rng, way = self._rng, self._rng.randrange(10)
        if way == 0:
            return _with(event, "time", f'"{rng.choice(TIMES)}"'), data
        if way == 1:
            return _with(event, rng.choice(("id", "source", "subject")), self._text(rng.choice(NAMES))), data
        if way == 2:
            return _with(event, "type", json.dumps(rng.choice(TYPES))), data
        if way == 3:
            return _with(event, rng.choice(KEYS), rng.choice(LITERALS)), data
        if way == 4:
            return [*event, (rng.choice(KEYS), rng.choice(LITERALS))], data
        if way == 5 and event:
            place = rng.randrange(len(event))
            return event[:place] + event[place + 1 :], data
        if way == 6 and data:
            place = rng.randrange(len(data))
            return event, data[:place] + data[place + 1 :]
        if way == 7 and data:
            return event, _with(data, rng.choice(data)[0], json.dumps(rng.choice(QUANTITIES)))
        if way == 8:
            return event, [*data, (rng.choice(data)[0] if data else "value", rng.choice(LITERALS))]
        name = rng.choice(("region", "size", "host", "mode", "note", "value", *(name for name, _ in data)))
        return event, _with(data, name, rng.choice(LITERALS))

    def _spell(self, event: Pairs, data: Pairs) -> bytes:
        rng = self._rng
        style = (",", ":") if rng.random() < 0.7 else rng.choice(((", ", ": "), (" ,\t", " : "), (",\r", ":")))
        inner = "{" + style[0].join(f'"{name}"{style[1]}{value}' for name, value in data) + "}"
        pairs = list(event)
        named = ("data", inner)
        if rng.random() < 0.05:
            named = ("data_base64", json.dumps(b64encode(inner.encode("utf-8", "surrogatepass")).decode()))
        pairs.insert(len(pairs) if rng.random() < 0.8 else rng.randint(0, len(pairs)), named)
        text = "{" + style[0].join(f'"{name}"{style[1]}{value}' for name, value in pairs) + "}"
        return text.encode("utf-8", "surrogatepass")


def _with(pairs: Pairs, name: str, value: str) -> Pairs:
    """Return pairs in which a name has another value, in its place or behind the others."""
    if name in dict(pairs):
        return [(other, value if other == name else old) for other, old in pairs]
    return [*pairs, (name, value)]
