"""How fairly one process reads many partitions, and what it costs when nothing happens.

    python -m bench.turns [--seconds 6]

For 4 and 16 partitions: CPU of an idle pipeline; then all partitions but one are full of single events that take 5 µs
each to fold, and one gets an event now and then: how long that waits, from acknowledged to folded.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam

from pipeline.batches import Fetch
from pipeline.read import STOP, ReadUsage
from pipeline.source import close_readers
from tallyman.kafka import make_producer, read_topic
from tallyman.local.kafka import Broker

FOLD_S = 5e-6
NEXT: Counter[int] = Counter()
TOUCHED: dict[int, float] = {}
LONGEST: Counter[int] = Counter()  # partition -> longest time between two turns, in ms
SENT: dict[bytes, float] = {}
WAITS: list[float] = []


def next_position(topic_id: str, partition: int) -> int:
    """Return where the fold stands."""
    return NEXT[partition]


class Fold(beam.DoFn):
    """Takes as long as a real fold would."""

    def process(self, fetch: Fetch) -> Iterator[None]:
        began = time.perf_counter()
        last = TOUCHED.get(fetch.partition, began)
        LONGEST[fetch.partition] = max(LONGEST[fetch.partition], int((began - last) * 1000))
        NEXT[fetch.partition] = fetch.next
        if fetch.partition == 0:
            WAITS.extend(began - SENT[value] for value in fetch.values if value in SENT)
        while time.perf_counter() - began < len(fetch) * FOLD_S:
            pass
        TOUCHED[fetch.partition] = time.perf_counter()
        return iter(())


def run(brokers: list[str], topic: str, partitions: int, seconds: float) -> tuple[float, int]:
    """Run the pipeline for a while; return the CPU per second and how many turns there were."""
    info = read_topic(brokers, topic)
    assert info is not None
    STOP.clear()
    TOUCHED.clear()
    LONGEST.clear()
    threading.Timer(seconds, STOP.ask).start()
    wall, cpu = time.perf_counter(), time.process_time()
    place = next_position
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        read = ReadUsage(brokers, topic, info.topic_id, range(partitions), positions=place, restart=place)
        _ = pipeline | read | beam.ParDo(Fold())
    return (time.process_time() - cpu) / (time.perf_counter() - wall), STOP.turns


def trickle(producer: Any, topic: str, stop: threading.Event) -> None:
    """Send an event into partition 0 every 50 ms."""
    while not stop.wait(0.05):
        value = b"%.6f" % time.time()
        producer.send(topic, value, partition=0).get(30)
        SENT[value] = time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6)
    seconds = parser.parse_args().seconds
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            print("partitions  idle CPU  turns/s   busy: longest between turns   trickle p50   p99")
            for partitions in (4, 16):
                measure(broker, partitions, seconds)
        finally:
            broker.stop()


def measure(broker: Broker, partitions: int, seconds: float) -> None:
    """Print the line for so many partitions."""
    topic = broker.create_topic("turns", partitions=partitions)
    NEXT.clear()
    WAITS.clear()
    cpu, turns = run([broker.bootstrap], topic, partitions, seconds)
    producer = make_producer([broker.bootstrap])
    count = int(seconds / FOLD_S / max(partitions - 1, 1))
    for number in range(1, partitions):
        for _ in range(count):
            producer.send(topic, b"x" * 300, partition=number)
        producer.flush()
    stop = threading.Event()
    sending = threading.Thread(target=trickle, args=(producer, topic, stop))
    sending.start()
    run([broker.bootstrap], topic, partitions, seconds)
    stop.set()
    sending.join()
    close_readers()
    producer.close()
    waits = sorted(WAITS) or [0.0]
    p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
    longest = max(LONGEST.values())
    idle = f"{partitions:>10}{cpu:>9.1%}{turns / seconds:>9.1f}"
    print(f"{idle}{longest:>24} ms{p50 * 1000:>14.0f} ms{p99 * 1000:>5.0f} ms", flush=True)


if __name__ == "__main__":
    from bench import turns  # the DoFn must live in an importable module: from __main__ it is pickled by value

    turns.main()
