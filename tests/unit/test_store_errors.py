"""What each refusal of ClickHouse becomes: a sentence that names the next step, or another try."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from clickhouse_driver.errors import ErrorCodes, ServerException, SocketTimeoutError

from tallyman.clickhouse import HINTS, REFUSALS, STORE_ERRORS, next_step, store_error, store_errors
from tallyman.errors import FencedError, StoreError, StoreRefusedError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
HEADING = "When ClickHouse refuses"
# What a server says while it is busy, small, or half away.
PASSES = {
    159: "TIMEOUT_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    252: "TOO_MANY_PARTS",
    285: "TOO_FEW_LIVE_REPLICAS",
    319: "UNKNOWN_STATUS_OF_INSERT",
    394: "QUERY_WAS_CANCELLED",
    999: "KEEPER_EXCEPTION",
    1002: "UNKNOWN_EXCEPTION",
    99_999: "a code of a later version",
}


def said(code: int, text: str = "no") -> ServerException:
    return ServerException(f"DB::Exception: {text}. (NAME). Stack trace:\n\n0. somewhere", code)


@pytest.mark.parametrize("code", REFUSALS)
def test_what_stays_as_it_is_until_somebody_mends_it_ends_with_a_sentence(code: int) -> None:
    name, step = REFUSALS[code]
    found = store_error(said(code, "Table t does not exist"), "INSERT INTO t")
    assert isinstance(found, StoreRefusedError) and not found.retriable
    assert str(found) == (
        f"INSERT INTO t: ClickHouse refuses: Table t does not exist. (NAME). (code {code}, {name}); {step}"
    )
    assert step.endswith("then start again") or step.endswith("then start the pipeline again")


@pytest.mark.parametrize("code", PASSES, ids=PASSES.values())
def test_what_passes_is_tried_again(code: int) -> None:
    found = store_error(said(code), "INSERT INTO t")
    assert isinstance(found, StoreError) and found.retriable
    assert str(found) == "INSERT INTO t: ClickHouse did not acknowledge: no. (NAME)."


@pytest.mark.parametrize("code", HINTS)
def test_what_may_be_a_damaged_part_or_a_full_disk_is_tried_again_and_says_what_to_look_at(code: int) -> None:
    found = store_error(said(code), "INSERT INTO t")
    name, hint = HINTS[code]
    assert isinstance(found, StoreError) and found.retriable and code not in REFUSALS
    assert str(found) == f"INSERT INTO t: ClickHouse did not acknowledge: no. (NAME). (code {code}, {name}); {hint}"


@pytest.mark.parametrize(
    "error", [SocketTimeoutError("timed out"), EOFError("closed"), ConnectionResetError("reset"), TimeoutError()]
)
def test_a_connection_that_breaks_is_tried_again(error: Exception) -> None:
    """Whether the write was done is not known then, and need not be: the same rows replace themselves."""
    assert isinstance(error, STORE_ERRORS)
    assert isinstance(store_error(error, "INSERT INTO t"), StoreError)
    assert next_step(error) == ""


@pytest.mark.parametrize("code", [*REFUSALS, *HINTS])
def test_each_code_has_the_name_that_clickhouse_gives_it(code: int) -> None:
    known = {number: name for name, number in vars(ErrorCodes).items() if isinstance(number, int)}
    later = {452: "SETTING_CONSTRAINT_VIOLATION", 469: "VIOLATED_CONSTRAINT", 497: "ACCESS_DENIED"}
    later[516] = "AUTHENTICATION_FAILED"  # newer than the driver's list
    assert {**REFUSALS, **HINTS}[code][0] == {**later, **known}[code]


@pytest.mark.parametrize("table", ["usage_hot", "progress", "ids"])
def test_the_fence_of_a_repair_names_the_partition(table: str) -> None:
    text = f"Constraint `repaired_7a6f_12_3` for table books.{table} (UUID) is violated at row 7. Expression: (a)"
    found = store_error(said(469, text), f"INSERT INTO {table}")
    assert isinstance(found, FencedError) and found.retriable and (found.partition, found.number) == (12, 3)


def test_an_error_leaves_no_connection_behind_that_holds_half_an_answer() -> None:
    client = Client("127.0.0.1")
    closed = []
    client.disconnect = lambda: closed.append(True)
    refuses = pytest.raises(StoreRefusedError, match="sealing into usage: ClickHouse refuses")
    with refuses, store_errors(client, "sealing into usage"):
        raise said(60)
    with pytest.raises(StoreError), store_errors(client, "sealing into usage"):
        raise driver_errors.NetworkError("gone")
    assert closed == [True, True]


def test_the_docs_list_every_refusal_and_no_other() -> None:
    section = PAGE.read_text(encoding="utf-8").split(f"## {HEADING}\n")[1].split("\n## ")[0]
    listed = {int(code): name for code, name in re.findall(r"(\d+) `([A-Z_]+)`", section.split("passes by itself")[0])}
    assert listed == {code: name for code, (name, _) in REFUSALS.items()}
    passes = {int(code): name for code, name in re.findall(r"(\d+) `([A-Z_]+)`", section.split("passes by itself")[1])}
    assert len(passes) > 5 and not passes.keys() & REFUSALS.keys()
    assert any(HEADING in step for _, step in REFUSALS.values())


def test_the_docs_list_every_code_that_may_be_a_damaged_part_and_no_other() -> None:
    heading = "When a part of a table is damaged"
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    listed = {int(code): name for code, name in re.findall(r"(\d+)\s+`([A-Z_]+)`", section)}
    assert listed == {code: name for code, (name, hint) in HINTS.items() if heading in hint}


def test_a_server_that_takes_a_connection_and_says_nothing_has_a_sentence() -> None:
    found = store_error(SocketTimeoutError("(ch-1:9000)"), "INSERT INTO t")
    assert str(found) == "INSERT INTO t: ClickHouse did not acknowledge: no answer in time (ch-1:9000)"
