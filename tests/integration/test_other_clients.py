"""Records of another client than ours: kcat (librdkafka), with its own partitioner, codecs and habits."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lz4.frame
import msgspec
import pytest
from kafka.codec import snappy_encode
from kafka.record import default_records

from pipeline.close import found_books
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject
from tests.stack import not_here

pytestmark = pytest.mark.integration
METERS = "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 0}\n"
NOW = datetime.now(UTC).isoformat()
PARTITIONS = 4


def event(number: int | str, **changed: Any) -> bytes:
    wire = {"specversion": "1.0", "id": f"e-{number}", "source": f"nova/{number}", "type": "server",
            "subject": "Zoë Åström", "time": NOW, "data": {"hours": 1}}  # fmt: skip
    return msgspec.json.encode(wire | changed)


class Kcat:
    """A shell with kcat in it, in front of a project whose pipeline runs."""

    def __init__(self, own: OwnProject) -> None:
        self.own = own

    def send(self, *records: bytes, options: tuple[str, ...] = (), headers: tuple[str, ...] = ()) -> None:
        """Produce records; kcat parts them at the byte 0x1e, so that a record may have lines."""
        words = ["kcat", "-P", "-b", self.own.kafka, "-t", str(self.own.settings["topic"]), "-D", r"\x1e", *options]
        words += [word for header in headers for word in ("-H", header)]
        done = subprocess.run(words, input=b"\x1e".join(records), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def hours(self) -> int:
        """Return what is counted, also what was sent home meanwhile."""
        for _ in range(2):
            self.own.wait_until_booked()
        return self.own.usage().get("compute.hours", 0)

    def total(self, name: str) -> int:
        return sum(row[name] for row in self.own.counts())

    def reasons(self) -> list[str]:
        return [row[0] for row in self.own.ask("SELECT reason FROM dead_letters FINAL ORDER BY reason")]


@pytest.fixture
def kcat(kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path) -> Iterator[Kcat]:
    if shutil.which("kcat") is None:
        not_here("kcat is not installed; on Debian: apt-get install kcat")
    own = OwnProject(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, partitions=PARTITIONS, chunk_size=64)
    with own.running():
        found_books(own.project)
        yield Kcat(own)


def test_every_codec_is_read(kcat: Kcat) -> None:
    codecs = ("none", "gzip", "snappy", "lz4", "zstd")
    for codec in codecs:
        kcat.send(*(event(f"{codec}-{n}", subject=codec) for n in range(300)), options=("-z", codec))
    assert kcat.hours() == 300 * len(codecs) and kcat.reasons() == []


def test_what_another_partitioner_put_elsewhere_is_sent_home_and_counts_once(kcat: Kcat) -> None:
    """By key with CRC32, again by other keys, and without any key: three copies of each event, most of them strays."""
    events = [event(n) for n in range(200)]
    kcat.send(*(b"host-%d\t%s" % (n, each) for n, each in enumerate(events)), options=("-K", r"\t"))
    kcat.send(*(b"rack-%d\t%s" % (n % 7, each) for n, each in enumerate(events)), options=("-K", r"\t"))
    kcat.send(*events)
    assert kcat.hours() == 200
    assert kcat.total("forwarded") > 100 and kcat.total("conflict") == 0
    assert all(row["received"] == sum(row[name] for name in ("aggregated", "duplicate", "dead", "ignored", "forwarded"))
               for row in kcat.own.counts())  # fmt: skip


def test_an_empty_value_is_a_dead_letter_and_disturbs_nobody(kcat: Kcat) -> None:
    """kcat -Z sends null for it, a tombstone to those who compact."""
    kcat.send(b"host-1\t", b"host-2\t" + event(2), options=("-K", r"\t", "-Z"))
    assert (kcat.hours(), kcat.reasons()) == (1, ["malformed"])


@pytest.mark.parametrize("header, records, hours", [
    ("content-type=Application/CloudEvents+JSON; charset=UTF-8", [event(1)], 1),
    ("Content-Type=application/json;charset=utf-8", [event(1)], 1),
    ("CONTENT-TYPE=application/X-NDJSON ; charset=utf-8", [b"\n".join([event(1), b"", event(2)]) + b"\n"], 2),
    ("content-type=application/cloudevents-BATCH+json;charset=utf-8", [b"[" + event(1) + b" ,\n" + event(2) + b"]"], 2),
])  # fmt: skip
def test_content_types_have_parameters_and_odd_letters(
    kcat: Kcat, header: str, records: list[bytes], hours: int
) -> None:
    kcat.send(*records, headers=(header, "traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    assert (kcat.hours(), kcat.reasons()) == (hours, [])


def test_binary_mode_counts_as_the_event_that_it_is(kcat: Kcat) -> None:
    attributes = {"specversion": "1.0", "id": "e-1", "source": "nova/1", "type": "server", "subject": "Zoë Åström",
                  "time": NOW}  # fmt: skip
    headers = tuple(f"ce_{name}={value}" for name, value in attributes.items())
    kcat.send(b'{"hours": 1}', headers=(*headers, "content-type=application/json; charset=utf-8"))
    kcat.send(b'{"hours": 1}', headers=tuple(name.replace("ce_", "CE_") for name in headers))
    kcat.send(b'{"hours": 1}', headers=headers[1:])
    assert (kcat.hours(), kcat.total("duplicate"), kcat.reasons()) == (1, 1, ["missing_field"])
    assert kcat.own.ask("SELECT body, headers['ce_id'] FROM dead_letters FINAL") == [('{"hours": 1}', "e-1")]


ODD_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data) + b"behind it",
    "snappy": lambda data: bytes(snappy_encode(data)) + b"gar",
    "lz4": lambda data: lz4.frame.compress(data, content_checksum=True, block_linked=False)[:-4] + b"none",
}


def test_a_batch_that_the_broker_takes_stops_no_partition(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnProject(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, chunk_size=64)
    with own.running():
        found_books(own.project)
        for codec, encode in ODD_CODECS.items():
            monkeypatch.setattr(default_records, f"{codec}_encode", lambda data, encode=encode: encode(bytes(data)))
            own.send(*((event(f"{codec}-{n}"), ()) for n in range(50)), compression_type=codec, linger_ms=100)
        own.wait_until_booked()
    assert own.usage() == {"compute.hours": 50 * len(ODD_CODECS)}
