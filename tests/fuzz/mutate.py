"""Spoil bytes and headers: bits flipped, slices cut, doubled and spliced, things put where they do not belong."""

from __future__ import annotations

import random

from tallyman.headers import Headers
from tests.fuzz.odd import CONTENT_TYPES, DEEP, PIECES

_LONGEST = 1 << 20
_OWN = ("tallyman-collector", "tallyman-epoch", "tallyman-sequence", "tallyman-index", "tallyman-admitted",
        "tallyman-corrects", "ce_id", "ce_source", "ce_time", "ce_data", "ce_", "content-type", "x-trace")  # fmt: skip
_VALUES = (b"", b"0", b"1", b"-1", b" 1", b"1.0", b"9" * 18, b"9" * 19, b"\xff", b"host-01", b"\0", b"1" * 5000,
           "²".encode(), "١".encode(), b"true", b"x" * 1025)  # fmt: skip


def spoil(rng: random.Random, body: bytes, other: bytes) -> bytes:
    """Return bytes that differ from `body` in one to three ways; `other` is spliced in now and then."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        body = rng.choice(_WAYS)(rng, body, other)[:_LONGEST]
    return body


def _flip(rng: random.Random, body: bytes, other: bytes) -> bytes:
    if not body:
        return b"\x01"
    spoiled = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8))):
        spoiled[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def _cut_off(rng: random.Random, body: bytes, other: bytes) -> bytes:
    return body[: rng.randint(0, len(body))] if rng.random() < 0.7 else body[rng.randint(0, len(body)) :]


def _take_out(rng: random.Random, body: bytes, other: bytes) -> bytes:
    start, stop = _slice(rng, body)
    return body[:start] + body[stop:]


def _double(rng: random.Random, body: bytes, other: bytes) -> bytes:
    start, stop = _slice(rng, body)
    return body[:stop] * rng.choice((1, 1, 2)) + body[start:stop] * rng.choice((1, 2, 20)) + body[stop:]


def _splice(rng: random.Random, body: bytes, other: bytes) -> bytes:
    start, stop = _slice(rng, other)
    place = rng.randint(0, len(body))
    return body[:place] + other[start:stop] + body[place + rng.choice((0, stop - start)) :]


def _put_in(rng: random.Random, body: bytes, other: bytes) -> bytes:
    place, piece = rng.randint(0, len(body)), rng.choice(PIECES)
    return body[:place] + piece + body[place + rng.choice((0, 0, len(piece))) :]


def _nest(rng: random.Random, body: bytes, other: bytes) -> bytes:
    """Put something deep where a value begins."""
    depth, (opened, closed) = rng.choice(DEEP), rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[{}, ", b"]")))
    deep = opened * depth + b"1" + closed * (depth if rng.random() < 0.8 else depth // 2)
    place = body.find(b":", rng.randint(0, len(body))) + 1
    return body[:place] + deep + (b"," if rng.random() < 0.5 else b"") + body[place:]


def _renumber(rng: random.Random, body: bytes, other: bytes) -> bytes:
    """Put one digit in the place of another: ids collide, times and values move."""
    places = [place for place, octet in enumerate(body[:4096]) if 48 <= octet <= 57]
    if not places:
        return body
    place = rng.choice(places)
    return body[:place] + b"%d" % rng.randrange(10) + body[place + 1 :]


def _slice(rng: random.Random, body: bytes) -> tuple[int, int]:
    start = rng.randint(0, len(body))
    return start, min(len(body), start + rng.choice((1, 2, 8, 40, 400)))


_WAYS = (_flip, _flip, _cut_off, _take_out, _double, _splice, _put_in, _put_in, _nest, _renumber)


def spoil_headers(rng: random.Random, headers: Headers) -> Headers:
    """Return headers of which one is missing, changed, doubled, spelled otherwise or new."""
    found, way = list(headers), rng.randrange(8)
    place = rng.randrange(len(found)) if found else -1
    if way == 0 or place < 0:
        found.insert(rng.randint(0, len(found)), (rng.choice(_OWN), rng.choice(_VALUES)))
    elif way == 1:
        del found[place]
    elif way == 2:
        found[place] = found[place][0], rng.choice(_VALUES)
    elif way == 3:
        found[place] = found[place][0].swapcase(), found[place][1]
    elif way == 4:
        found.append((found[place][0].title(), rng.choice((found[place][1], *_VALUES))))
    elif way == 5:
        found[place] = found[place][0], _flip(rng, found[place][1], b"")
    else:
        content_type = rng.choice(CONTENT_TYPES).encode()
        found = [(name, content_type if name.lower() == "content-type" else value) for name, value in found]
    return tuple(found)
