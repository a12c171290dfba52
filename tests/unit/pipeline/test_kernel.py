"""The compiled loops give what hashlib, crc32c and the contract give, and without them everything reads the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import compiled
from pipeline.catalog import Catalog
from pipeline.compiled import load_kernel
from pipeline.json_events import JsonDecoder
from pipeline.lines import PADDING, Lines
from pipeline.stretch import LogRows, read_alike, sizes_of
from tallyman.errors import EventError
from tallyman.event import LINES, MAX_RECORD_EVENTS, identity, parse_time, split_record
from tallyman.headers import kind_of
from tallyman.meter import Definitions, Meter

KERNEL: Any = load_kernel()
needs_numba = pytest.mark.skipif(KERNEL is None, reason="numba is absent")
METER = Meter(meter="hours", event_type="server", aggregation="sum", value="hours", scale=6)
PARTS = [b"{}", b'{"a":1}', b"", b" ", b"\r", b"\t\x0b", b"\n", b"\x00", b"x" * 40]
NDJSON = (("content-type", LINES.encode()),)


def packed(texts: list[bytes]) -> tuple[Any, Any, Any]:
    """Return texts one behind the other, and where each begins and ends."""
    ends = np.cumsum([len(text) for text in texts])
    return np.frombuffer(b"".join(texts) + bytes(PADDING), np.uint8), ends - [len(text) for text in texts], ends


@needs_numba
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=64), st.binary(max_size=64)), min_size=1, max_size=20))
def test_identities_are_those_of_hashlib(pairs: list[tuple[bytes, bytes]]) -> None:
    prefixes, _, edges = packed([prefix for prefix, _ in pairs])
    text, starts, ends = packed([event_id for _, event_id in pairs])
    words = np.empty((len(pairs), 2), np.uint64)
    KERNEL.identify(text, np.stack([starts, ends], axis=1), np.arange(len(pairs)), prefixes,
                    np.concatenate([[0], edges]), words)  # fmt: skip
    expected = [hashlib.blake2b(prefix + event_id, digest_size=16).digest() for prefix, event_id in pairs]
    assert words.tobytes() == b"".join(expected)


@needs_numba
@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=70), min_size=1, max_size=20))
def test_digests_are_those_of_crc32c(texts: list[bytes]) -> None:
    if not KERNEL.HAS_CRC:
        pytest.skip("this processor has no instruction for it")
    text, starts, ends = packed(texts)
    digests = np.empty(len(texts), np.uint64)
    KERNEL.digest_lines(text, starts, ends, digests)
    assert digests.tolist() == [crc32c(each) for each in texts]


def event(number: int, **changed: str) -> bytes:
    parts = {"id": f"e-{number}", "subject": "Zoë", "time": "2026-10-31T12:00:00Z", "hours": "1.5"} | changed
    return (f'{{"id":"{parts["id"]}","source":"nova","type":"server","subject":"{parts["subject"]}",'
            f'"time":"{parts["time"]}","data":{{"hours":"{parts["hours"]}"}}}}').encode()  # fmt: skip


def decode(bodies: list[bytes], kernel: Any = KERNEL) -> Any:
    count = len(bodies)
    decoder = JsonDecoder(Catalog(Definitions(number=1, meters=(METER,))), 3, few=2, kernel=kernel)
    lines = Lines(bodies, list(range(count)), [0] * count, [1] * count, [2] * count, [False] * count)
    return decoder.decode(lines, "", 7)


@pytest.mark.parametrize("subject", ["a", "x" * 60, "å" * 70, "x" * 400])
def test_an_identity_of_any_length_is_the_contracts(subject: str) -> None:
    """Short ones fit in one block of the hash, longer ones do not."""
    ids = ["i" * size for size in range(1, 300, 7)]
    events, dead, _ = decode([event(0, id=each, subject=subject) for each in ids])
    expected = np.frombuffer(b"".join(identity(subject, "nova", each) for each in ids), "<u8").reshape(-1, 2)
    assert not dead
    assert np.stack([events.high, events.low], axis=1).tolist() == expected.tolist()


def test_every_day_of_a_century_has_its_own_microsecond() -> None:
    times = [f"20{year:02d}-{month:02d}-{day:02d}T23:59:59.{'123456'[: 1 + day % 6]}Z"
             for year in range(100) for month in range(1, 13) for day in range(1, 32)]  # fmt: skip
    expected = {}
    for number, text in enumerate(times):
        try:
            expected[number] = parse_time(text)
        except EventError:
            continue
    events, dead, _ = decode([event(n, time=text) for n, text in enumerate(times)])
    assert dict(zip(events.offsets.tolist(), events.times_us.tolist(), strict=True)) == expected
    assert len(dead) == len(times) - len(expected)


def rows_of(values: list[bytes]) -> LogRows:
    count, kind = len(values), kind_of(NDJSON)
    offsets = np.arange(7, 7 + count)
    zeros = np.zeros(count, np.int64)
    sizes = sizes_of(list(values), [kind] * count, {kind.format})
    return LogRows([kind] * count, offsets, zeros + 1, zeros + 2, zeros, zeros, list(values), [NDJSON] * count, sizes)


@needs_numba
@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PARTS)), max_size=6))
def test_records_are_cut_into_lines_as_the_contract_cuts_them(records: list[list[bytes]]) -> None:
    """Blank lines are no events; indexes count within a record."""
    values = [b"\n".join(lines) for lines in records]
    stretch = read_alike(rows_of(values), 0, len(values))
    expected = [(7 + n, index, line) for n, value in enumerate(values)
                for index, line in enumerate(split_record(LINES, value))]  # fmt: skip
    found = [] if stretch is None else list(
        zip(stretch.places[0].tolist(), stretch.places[1].tolist(), list(stretch.bodies), strict=True)
    )  # fmt: skip
    assert found == expected


@needs_numba
def test_a_record_with_too_many_lines_is_left_to_the_contract() -> None:
    assert read_alike(rows_of([b"{}\n" * (MAX_RECORD_EVENTS + 1)]), 0, 1) is None


def test_a_kernel_that_hashes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> None:
        return None

    kernel = SimpleNamespace(BLOCK=128, PADDING=PADDING, HAS_CRC=False, identify=wrong)
    monkeypatch.setattr(compiled, "_import", lambda: kernel)
    assert load_kernel.__wrapped__() is None


WITHOUT = """
import sys
sys.modules["numba"] = None
from pipeline.compiled import load_kernel
from tests.unit.pipeline.test_kernel import decode, event
assert load_kernel() is None
events, dead, _ = decode([event(n) for n in range(40)], load_kernel())
print(len(dead), [int(n) for n in events.high])
"""


def test_without_numba_events_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    events, dead, _ = decode([event(n) for n in range(40)])
    assert done.stdout.split(" ", 1) == [str(len(dead)), f"{events.high.tolist()}\n"]


def test_the_compiled_loops_can_be_switched_off() -> None:
    code = "from pipeline.compiled import load_kernel; print(load_kernel())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "TALLYMAN_COMPILED": "no"})  # fmt: skip
    assert done.stdout == "None\n"
