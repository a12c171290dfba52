"""What chDB does that a server must not: each trap that the front walks around, shown on chDB itself.

If one of these fails after an update of chDB, the trap may be gone and the way around it may go, too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("chdb")

pytestmark = pytest.mark.integration

OPEN = """
import sys
from chdb.state.sqlitelike import Connection
c = Connection(sys.argv[1])
"""


def run_chdb(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script on chDB in a process of its own: one process can open one folder only."""
    command = [sys.executable, "-c", OPEN + script, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_send_insert_reports_rows_as_written_that_were_refused(tmp_path: Path) -> None:
    done = run_chdb(
        tmp_path,
        """
c.query("CREATE TABLE t (a Int64, CONSTRAINT positive CHECK a > 0) ENGINE = MergeTree ORDER BY a")
insert = c.send_insert("INSERT INTO t (a)", "TSV")
insert.append("1\\n-1\\n")
print(insert.finish().rows_written, int(c.query("SELECT count() FROM t").bytes()))
""",
    )
    assert done.stdout.split() == ["2", "0"], done.stderr


def test_reading_a_file_raises_for_the_same_rows(tmp_path: Path) -> None:
    done = run_chdb(
        tmp_path,
        """
import os
c.query("CREATE TABLE t (a Int64, CONSTRAINT positive CHECK a > 0) ENGINE = MergeTree ORDER BY a")
file = os.memfd_create("rows")
os.write(file, c.query("SELECT toInt64(number) - 1 AS a FROM numbers(3)", "Native").bytes())
try:
    c.query(f"INSERT INTO t (a) FROM INFILE '/proc/self/fd/{file}' FORMAT Native")
except Exception as error:
    print(str(error)[:9], int(c.query("SELECT count() FROM t").bytes()))
""",
    )
    assert done.stdout.split() == ["Code:", "469", "0"], done.stderr


def test_a_failed_kafka_table_makes_the_folder_unopenable(tmp_path: Path) -> None:
    run_chdb(
        tmp_path,
        """
c.query("CREATE DATABASE d ENGINE = Atomic")
try:
    c.query("CREATE TABLE d.k (a Int8) ENGINE = Kafka('127.0.0.1:1', 't', 'g', 'JSONEachRow')")
except Exception:
    pass
""",
    )
    assert run_chdb(tmp_path, "print('opened')").stdout == ""


def test_native_output_without_rows_has_no_header(tmp_path: Path) -> None:
    done = run_chdb(tmp_path, "print(c.query('SELECT 1 AS a WHERE 0', 'Native').bytes())")
    assert done.stdout == "b''\n", done.stderr


def test_native_output_leaves_the_zone_of_a_time_out(tmp_path: Path) -> None:
    done = run_chdb(tmp_path, "print(c.query(\"SELECT toDateTime(0, 'UTC') AS a\", 'Native').bytes())")
    assert "DateTime\\x00" in done.stdout, done.stderr


def test_a_statement_ends_the_stream_that_is_open(tmp_path: Path) -> None:
    done = run_chdb(
        tmp_path,
        """
stream = c.send_query("SELECT number FROM numbers(1000000)", "Native")
stream.fetch()
c.query("SELECT 1")
try:
    stream.fetch()
except Exception as error:
    print("No active" in str(error))
""",
    )
    assert done.stdout == "True\n", done.stderr


def test_each_fetch_of_a_stream_is_one_block(tmp_path: Path) -> None:
    """The front sends each as one packet; two blocks in one would be lost rows."""
    done = run_chdb(
        tmp_path,
        """
from tallyman.local.clickhouse.blocks import split_blocks
stream = c.send_query("SELECT number, toString(number) FROM numbers(300000) UNION ALL SELECT 1, 'a'", "Native")
blocks = []
while (chunk := stream.fetch()) is not None:
    blocks.append(len(split_blocks(chunk.bytes())))
print(set(blocks))
""",
    )
    assert done.stdout == "{1}\n", done.stderr
