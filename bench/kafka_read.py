"""Records a second from a real Kafka: the bare loop over consumer records beside the batch walk and the Beam source.

    python -m bench.kafka_read [--records 200000] [--brokers HOST:PORT]

Prints a table; CPU is that of this process alone, its network thread included.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition

from pipeline.read import read_range
from tallyman.kafka import make_consumer, make_producer, read_topic
from tallyman.local.kafka import Broker

JSON = [("content-type", b"application/cloudevents+json")]


@dataclass(frozen=True)
class Load:
    """What is in a topic: `count` records of `size` bytes, `events` in each."""

    name: str
    count: int
    size: int
    events: int = 1
    headers: tuple[tuple[str, bytes], ...] = ()
    codec: str | None = "lz4"


def loads(records: int) -> list[Load]:
    """Return the shapes that matter: single events, with and without header and compression, and full records."""
    return [
        Load("single, no header, plain", records, 300, codec=None),
        Load("single, no header, lz4", records, 300),
        Load("single, header, lz4", records, 300, headers=tuple(JSON)),
        Load("single, header, zstd", records, 300, headers=tuple(JSON), codec="zstd"),
        Load("NDJSON of 500, lz4", max(records // 100, 100), 150_000, 500, tuple(JSON)),
    ]


def fill(brokers: list[str], load: Load, name: str) -> None:
    """Write the load into a new topic of one partition."""
    admin = KafkaAdminClient(bootstrap_servers=brokers)
    settings = {"message.timestamp.type": "LogAppendTime"}
    options = {"num_partitions": 1, "replication_factor": 1, "configs": settings}
    admin.create_topics({name: options}, wait_for_metadata=True)
    admin.close()
    producer = make_producer(brokers, compression_type=load.codec, linger_ms=20)
    future = None
    for number in range(load.count):
        body = b'{"id":"%012d","subject":"tenant-%03d","value":"%d.%d",' % (number, number % 97, number, number % 7)
        value = (body * (load.size // len(body) + 1))[: load.size]
        future = producer.send(name, value, partition=0, headers=list(load.headers))
    producer.flush()
    assert future is not None
    future.get(60)
    producer.close()


def bare(brokers: list[str], name: str, end: int) -> int:
    """Read as every kafka-python program does."""
    consumer = make_consumer(brokers)
    place = TopicPartition(name, 0)
    consumer.assign([place])
    consumer.seek(place, 0)
    count = 0
    while count < end:
        for records in consumer.poll(1000).values():
            for record in records:
                if record.value and record.offset >= 0:
                    count += 1
    consumer.close()
    return count


def walked(brokers: list[str], name: str, end: int) -> int:
    """Read with the batch walk."""
    info = read_topic(brokers, name)
    assert info is not None
    return sum(len(fetch) for fetch in read_range(brokers, name, info.topic_id, 0, 0, end))


def timed(read: Callable[[list[str], str, int], int], brokers: list[str], name: str, end: int) -> tuple[float, float]:
    """Return (CPU, wall) seconds of the best of three runs."""
    best = (1e9, 1e9)
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        count = read(brokers, name, end)
        assert count == end, f"expected {end} records, got {count}"
        best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--brokers", default="", help="a running Kafka; one is started when not given")
    options = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        broker = None if options.brokers else Broker(Path(folder))
        if broker:
            broker.start()
        try:
            run([options.brokers] if broker is None else [broker.bootstrap], options.records)
        finally:
            if broker:
                broker.stop()


def run(brokers: list[str], records: int) -> None:
    """Print one line for each load."""
    print(f"{'load':<26}{'bare loop':>12}{'batch walk':>12}{'ratio':>7}   events/s by CPU (wall)")
    for load in loads(records):
        name = f"bench-{abs(hash((load.name, time.time()))):x}"
        fill(brokers, load, name)
        rates = {}
        for read in (bare, walked):
            cpu, wall = timed(read, brokers, name, load.count)
            rates[read.__name__] = load.count * load.events / cpu, load.count * load.events / wall
        cells = "".join(f"{rates[key][0] / 1e3:>11,.0f}k" for key in ("bare", "walked"))
        walls = " / ".join(f"{rates[key][1] / 1e3:,.0f}k" for key in ("bare", "walked"))
        print(f"{load.name:<26}{cells}{rates['walked'][0] / rates['bare'][0]:>6.1f}x   ({walls})", flush=True)


if __name__ == "__main__":
    main()
