"""The peer of `bench.ingest`: ClickHouse inserting the same events itself, one thread, 65,000 rows at a time.

    python -m bench.peer native 4000000
    python -m bench.peer json 400000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from chdb.session import Session

from bench.events import events

ROWS = 65_000
SETTINGS = (
    "max_threads=1, max_insert_threads=1, max_block_size=65000, max_insert_block_size=65000,"
    " min_insert_block_size_rows=65000, input_format_parallel_parsing=0, async_insert=0, optimize_on_insert=1"
)
COLUMNS = "type String, subject String, flavor String, region String, time_us Int64, value Decimal(38, 9)"
JSON_COLUMNS = (
    "id String, source String, type String, subject String, time DateTime64(6),"
    " data Tuple(flavor String, region String, value Decimal(38, 9))"
)
TOTALS = (
    "CREATE TABLE totals (meter LowCardinality(String), subject String, flavor String, region String, minute DateTime,"
    " count SimpleAggregateFunction(sum, UInt64), sum SimpleAggregateFunction(sum, Decimal(38, 9)))"
    " ENGINE = AggregatingMergeTree ORDER BY (meter, subject, flavor, region, minute)"
)
IDS = "CREATE TABLE ids (identity UInt128, time_us Int64, digest UInt64) ENGINE = ReplacingMergeTree ORDER BY identity"


def native(session: Session, folder: Path, count: int) -> tuple[str, list[str]]:
    session.query(f"CREATE TABLE incoming ({COLUMNS}) ENGINE = Null")
    session.query(TOTALS)
    session.query(
        "CREATE MATERIALIZED VIEW summing TO totals AS SELECT type AS meter, subject, flavor, region,"
        " toStartOfMinute(fromUnixTimestamp64Micro(time_us)) AS minute, count() AS count, sum(value) AS sum"
        " FROM incoming GROUP BY meter, subject, flavor, region, minute"
    )
    lines = folder / "rows.jsonl"
    with lines.open("w") as out:
        for event in events(min(count, ROWS)):
            row = {"type": event.type, "subject": event.subject, "flavor": event.data["flavor"],
                   "region": event.data["region"], "time_us": event.time_us, "value": event.data["value"]}  # fmt: skip
            out.write(json.dumps(row) + "\n")
    file = folder / "rows.native"
    session.query(f"SELECT * FROM file('{lines}', JSONEachRow, '{COLUMNS}') INTO OUTFILE '{file}' FORMAT Native")
    insert = f"INSERT INTO incoming SELECT * FROM file('{file}', Native, '{COLUMNS}') SETTINGS {SETTINGS}"
    return "Native + MV", [insert] * max(1, count // ROWS)


def json_rows(session: Session, folder: Path, count: int) -> tuple[str, list[str]]:
    session.query(f"CREATE TABLE incoming ({JSON_COLUMNS}) ENGINE = Null")
    session.query(TOTALS)
    session.query(IDS)
    session.query(
        "CREATE MATERIALIZED VIEW summing TO totals AS SELECT type AS meter, subject, data.flavor AS flavor,"
        " data.region AS region, toStartOfMinute(time) AS minute, count() AS count, sum(data.value) AS sum"
        " FROM incoming GROUP BY meter, subject, flavor, region, minute"
    )
    session.query(
        "CREATE MATERIALIZED VIEW remembering TO ids AS SELECT reinterpretAsUInt128(sipHash128(subject, source, id)) AS"
        " identity, toUnixTimestamp64Micro(time) AS time_us, cityHash64(data.value, time) AS digest FROM incoming"
    )
    files = list(_json_files(folder, count))
    return "JSONEachRow + MV + ids", [
        f"INSERT INTO incoming SELECT * FROM file('{file}', JSONEachRow, '{JSON_COLUMNS}') SETTINGS {SETTINGS},"
        " date_time_input_format='best_effort', input_format_skip_unknown_fields=1"
        for file in files
    ]


def _json_files(folder: Path, count: int) -> Iterator[Path]:
    from tallyman.event import encode_event

    lines: list[bytes] = []
    for number, event in enumerate(events(count), start=1):
        lines.append(encode_event(event))
        if len(lines) == ROWS or number == count:
            file = folder / f"rows-{number}.jsonl"
            file.write_bytes(b"\n".join(lines) + b"\n")
            lines = []
            yield file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("native", "json"), help="columns, or lines with ids")
    parser.add_argument("events", type=int, help="how many")
    told = parser.parse_args()
    kind, count = told.kind, told.events
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        session = Session(str(folder / "db"))
        label, inserts = (native if kind == "native" else json_rows)(session, folder, count)
        session.query(inserts[0])  # warm
        session.query("TRUNCATE TABLE totals")
        if kind != "native":
            session.query("TRUNCATE TABLE ids")
        began = time.perf_counter(), time.process_time()
        for insert in inserts:
            session.query(insert)
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        stored = int(str(session.query("SELECT sum(count) FROM totals", "TSV")).strip())
        print(json.dumps({"label": label, "events": stored, "cpu_s": cpu, "wall_s": wall}))


if __name__ == "__main__":
    main()
