"""What a log line promises: an event, its fields, no secrets, no flood."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tallyman import log


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_terminal_obeys_is_written_as_an_escape(lines: io.StringIO, as_json: bool) -> None:
    """The name of a collector is whatever its sender says."""
    log.setup("info", json=as_json, stream=lines)
    logging.getLogger("pipeline.heard").info("collector_heard", extra={"collector": "\x1b[31mÅsa\x9b2J"})
    told = lines.getvalue()
    assert told.rstrip("\n").isprintable() and "Åsa" in told
    assert not as_json or json.loads(told)["collector"] == "\x1b[31mÅsa\x9b2J"


def test_a_text_line_is_an_event_with_fields(lines: io.StringIO) -> None:
    log.setup("info", stream=lines)
    logging.getLogger("collectors.send").info(
        "batch_sent", extra={"topic": "usage.events.v1", "who": "Zoë Åström"}
    )
    assert lines.getvalue().endswith(
        'Z INFO collectors.send batch_sent topic=usage.events.v1 who="Zoë Åström"\n'
    )


def test_a_json_line_keeps_unicode_and_numbers(lines: io.StringIO) -> None:
    log.setup("info", json=True, stream=lines)
    logging.getLogger("invoices.batch").info("issued", extra={"account": "Zoë Åström", "invoices": 3})
    line = json.loads(lines.getvalue())
    assert (line["event"], line["account"], line["invoices"]) == ("issued", "Zoë Åström", 3)
    assert (line["level"], line["logger"]) == ("info", "invoices.batch")
    assert "Zoë" in lines.getvalue()


def test_secrets_are_masked_by_name_and_cut_out_of_addresses(lines: io.StringIO) -> None:
    log.setup("info", stream=lines)
    extra = {"webhook_secret": "whsec_abc", "url": "postgresql://tally:hunter2@db/control"}
    logging.getLogger("rules.engine").info("started", extra=extra)
    assert "whsec_abc" not in lines.getvalue()
    assert "hunter2" not in lines.getvalue()
    assert "url=postgresql://tally:***@db/control" in lines.getvalue()


def test_a_library_that_repeats_itself_is_heard_once_a_minute() -> None:
    now = [0.0]
    quiet = log.QuietLibraries(lambda: now[0])

    def heard(text: str) -> logging.LogRecord | None:
        record = logging.makeLogRecord({"name": "kafka.conn", "levelno": logging.ERROR, "msg": text})
        return record if quiet.filter(record) else None

    assert heard("connect to node 1 failed, attempt 1")
    assert heard("connect to node 1 failed, attempt 2") is None
    now[0] = 61.0
    last = heard("connect to node 1 failed, attempt 3")
    assert last is not None and vars(last)["held_back"] == 1


def test_our_own_lines_are_never_held_back(lines: io.StringIO) -> None:
    log.setup("info", stream=lines)
    for _ in range(3):
        logging.getLogger("collectors.agent").warning("spool_full")
    assert lines.getvalue().count("spool_full") == 3


def test_an_unknown_level_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match='expected one of debug, info, warning, error, got "loud"'):
        log.setup("loud")


def test_a_command_lets_no_library_talk_even_one_that_sets_up_logging_by_itself() -> None:
    """In a process of its own, because here pytest listens. `logging.warning` is what apitools is missed with."""
    code = (
        "import logging; from tallyman.log import hush_libraries; hush_libraries(); hush_libraries();"
        "logging.warning('apitools not found'); logging.getLogger('clickhouse_driver').warning('Failed to connect');"
        "logging.getLogger('tallyman.kafka').warning('crc32c_missing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "crc32c_missing\n"
