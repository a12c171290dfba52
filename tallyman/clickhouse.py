"""The door to ClickHouse: connections that carry every setting on which correctness depends, the schema, and what each
of its refusals means.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from graphlib import TopologicalSorter
from importlib import resources
from typing import Any, Protocol

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from tallyman.errors import FencedError, SealedError, StoreError, StoreRefusedError

# ClickHouse's defaults moved in 2025 and 2026 (async inserts, deduplication of every insert): say what we rely on.
SETTINGS: Mapping[str, Any] = {
    "async_insert": 0,
    "deduplicate_insert": "disable",
    "insert_deduplicate": 0,
    "max_insert_block_size": 1_048_449,
    "optimize_on_insert": 1,
    "do_not_merge_across_partitions_select_final": 1,
    "use_skip_indexes_if_final": 0,  # it may leave out the newer of two rows of a key, and so show the older one
    "session_timezone": "UTC",
    # A booking of two billion rows is larger than what a server drops unless told: 50 GB.
    "max_table_size_to_drop": 0,
    "max_partition_size_to_drop": 0,
    "max_query_size": 1 << 28,  # ids, series and epochs are asked for in lists; the default refuses 12,000 ids
    # With replicas (tests/model/replica_model.py); without them ClickHouse has nothing to do for these. What is
    # acknowledged most replicas have, what is read they have, and a partition is replaced when all have replaced it.
    "insert_quorum": "auto",
    "insert_quorum_parallel": 0,  # else reads cannot be sequentially consistent
    "select_sequential_consistency": 1,
    "alter_sync": 2,
}
# What a client raises. The driver wraps errors of the socket only while it connects: a server that falls silent in the
# middle of a query is a bare TimeoutError, one that cannot be reached any more another OSError.
NETWORK_ERRORS = (driver_errors.NetworkError, driver_errors.SocketTimeoutError, EOFError, OSError)
STORE_ERRORS = (driver_errors.Error, EOFError, OSError)
_NO_WAY = frozenset((errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH))

TYPE_MISMATCH, UNKNOWN_TABLE = 53, 60
_NOTE = "INSERT INTO schema_migrations (name) VALUES"
_SCHEMA = (
    "the table is not as tallyman/schema makes it: put back what was dropped, renamed or altered"
    ' (docs/operations.md, "When ClickHouse refuses"), then start the pipeline again'
)
_NO_TABLE = (
    'the table is not there: if no pipeline ever ran here, start one, which makes it ("tallyman up", or "tallyman'
    ' pipeline"); else put back what was dropped or renamed (docs/operations.md, "When ClickHouse refuses"), then start'
    " the pipeline again"
)
_NAME = "clickhouse.database names no database of this server: correct it, or put the database back, then start again"
_LOGIN = "check clickhouse.user and clickhouse.password, then start again"
_RIGHTS = "give clickhouse.user the right to read, write and alter this database, then start again"
_VERSION = "this server is too old, or forbids a setting on which correctness depends: change that, then start again"
VIOLATED_CONSTRAINT = 469
_FENCE = re.compile(r"`repaired_[0-9a-f]+_(\d+)_(\d+)`")  # as `pipeline.repair` names it
_SEALED = re.compile(r"`sealed_(\d+)_[0-9a-f]+`")  # as `pipeline.fences` names it
_VIEW = re.compile(r"CREATE (?:OR REPLACE )?VIEW (?:IF NOT EXISTS )?(\w+) AS\b")
_READS = re.compile(r"\b(?:FROM|JOIN)\s+(\w+)")
# By ClickHouse's code (`Common/ErrorCodes.cpp`): what stays as it is until somebody mends it, and how. Every other
# code, also one that nobody has met yet, passes: rows replace themselves by key, so writing them again is always safe,
# and to stop for what passes would be an outage.
REFUSALS: Mapping[int, tuple[str, str]] = {
    8: ("THERE_IS_NO_COLUMN", _SCHEMA),
    10: ("NOT_FOUND_COLUMN_IN_BLOCK", _SCHEMA),
    16: ("NO_SUCH_COLUMN_IN_TABLE", _SCHEMA),
    20: ("NUMBER_OF_COLUMNS_DOESNT_MATCH", _SCHEMA),
    43: ("ILLEGAL_TYPE_OF_ARGUMENT", _SCHEMA),
    44: ("ILLEGAL_COLUMN", _SCHEMA),
    46: ("UNKNOWN_FUNCTION", _VERSION),
    47: ("UNKNOWN_IDENTIFIER", _SCHEMA),
    48: ("NOT_IMPLEMENTED", _SCHEMA),  # something else stands under the table's name, e.g. a view
    50: ("UNKNOWN_TYPE", _VERSION),
    TYPE_MISMATCH: ("TYPE_MISMATCH", _SCHEMA),
    56: ("UNKNOWN_STORAGE", _VERSION),
    UNKNOWN_TABLE: ("UNKNOWN_TABLE", _NO_TABLE),
    62: ("SYNTAX_ERROR", _VERSION),
    70: ("CANNOT_CONVERT_TYPE", _SCHEMA),
    80: ("INCORRECT_QUERY", _VERSION),
    81: ("UNKNOWN_DATABASE", _NAME),
    115: ("UNKNOWN_SETTING", _VERSION),
    164: ("READONLY", _RIGHTS),
    192: ("UNKNOWN_USER", _LOGIN),
    193: ("WRONG_PASSWORD", _LOGIN),
    194: ("REQUIRED_PASSWORD", _LOGIN),
    195: ("IP_ADDRESS_NOT_ALLOWED", _LOGIN),
    291: ("DATABASE_ACCESS_DENIED", _RIGHTS),
    452: ("SETTING_CONSTRAINT_VIOLATION", _VERSION),
    VIOLATED_CONSTRAINT: ("VIOLATED_CONSTRAINT", _SCHEMA),
    497: ("ACCESS_DENIED", _RIGHTS),
    516: ("AUTHENTICATION_FAILED", _LOGIN),
}
_DAMAGE = (
    'if it says so for minutes, a part of a table is damaged: docs/operations.md, "When a part of a table is damaged",'
    " says how to find it and bring it back"
)
# What mostly passes, since a broken connection or a merge that ended says the same, and who should look if it does not.
HINTS: Mapping[int, tuple[str, str]] = {
    32: ("ATTEMPT_TO_READ_AFTER_EOF", _DAMAGE),
    33: ("CANNOT_READ_ALL_DATA", _DAMAGE),
    40: ("CHECKSUM_DOESNT_MATCH", _DAMAGE),
    74: ("CANNOT_READ_FROM_FILE_DESCRIPTOR", _DAMAGE),
    107: ("FILE_DOESNT_EXIST", _DAMAGE),
    117: ("INCORRECT_DATA", _DAMAGE),
    226: ("NO_FILE_IN_DATA_PART", _DAMAGE),
    228: ("BAD_SIZE_OF_FILE_IN_DATA_PART", _DAMAGE),
    243: ("NOT_ENOUGH_SPACE", "make room on ClickHouse's disk"),
    246: ("CORRUPTED_DATA", _DAMAGE),
    271: ("CANNOT_DECOMPRESS", _DAMAGE),
}


def next_step(error: BaseException) -> str:
    """Return what somebody must mend before ClickHouse takes it; "" if trying again may help.

    >>> next_step(driver_errors.ServerException("Unknown table", 60)).split(":")[0]
    'the table is not there'
    >>> next_step(ConnectionResetError())
    ''
    """
    return REFUSALS.get(int(getattr(error, "code", None) or 0), ("", ""))[1]


def store_error(error: BaseException, doing: str) -> StoreError | StoreRefusedError:
    """Say what it means that ClickHouse, or the way to it, failed.

    Args:
        doing: What was asked for, with the name of its table.
    """
    said = said_by(error)
    code = int(getattr(error, "code", None) or 0)
    if code == VIOLATED_CONSTRAINT and (fence := _FENCE.search(str(error))):
        partition, number = map(int, fence.groups())
        return FencedError(partition, number, f"{doing}: a repair fenced the partition since it was read ({said})")
    if code == VIOLATED_CONSTRAINT and (sealed := _SEALED.search(str(error))):
        return SealedError(int(sealed[1]), f"{doing}: another line of topics seals that booking ({said})")
    if code in REFUSALS:
        return refusal(code, doing, said)
    hint = f" (code {code}, {HINTS[code][0]}); {HINTS[code][1]}" if code in HINTS else ""
    return StoreError(f"{doing}: ClickHouse did not acknowledge: {said}{hint}")


def said_by(error: BaseException) -> str:
    """Return the sentence of a server's or a driver's error, without the stack trace that a server adds."""
    first = (str(getattr(error, "message", "") or error) or type(error).__name__).splitlines()[0]
    if isinstance(error, driver_errors.SocketTimeoutError) and first.startswith("("):
        return f"no answer in time {first}"  # of who takes a connection and says nothing, a driver names the place only
    return first.removeprefix("DB::Exception: ").removesuffix(" Stack trace:")[:300]


def refusal(code: int, doing: str, said: str) -> StoreRefusedError:
    """Return the sentence of one of `REFUSALS`."""
    name, step = REFUSALS[code]
    return StoreRefusedError(f"{doing}: ClickHouse refuses: {said} (code {code}, {name}); {step}")


def is_of_the_network(error: BaseException) -> bool:
    """Whether an error is of a connection and not of a file; for blocks that do both.

    >>> is_of_the_network(TimeoutError("timed out")), is_of_the_network(OSError(errno.ENOSPC, "No space left"))
    (True, False)
    """
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return error.errno in _NO_WAY
    return isinstance(error, NETWORK_ERRORS)


@contextmanager
def store_errors(client: Client, doing: str) -> Iterator[None]:
    """Turn what goes wrong on a connection into our own errors, and begin it anew.

    Raises:
        StoreError: It may be tried again, as it is.
        StoreRefusedError: It will be refused until somebody mends what the sentence names.
    """
    try:
        yield
    except STORE_ERRORS as error:
        client.disconnect()
        raise store_error(error, doing) from error


class Endpoint(Protocol):
    """Where ClickHouse answers: `tallyman.config.ClickHouseConfig`."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def password(self) -> str: ...
    @property
    def database(self) -> str: ...


def connect(endpoint: Endpoint, *, numpy: bool = False, timeout_s: float = 60) -> Client:
    """Return a client with our settings. It connects at its first query; one client serves one thread."""
    return Client(
        host=endpoint.host,
        port=endpoint.port,
        user=endpoint.user,
        password=endpoint.password,
        database=endpoint.database,
        connect_timeout=10,
        send_receive_timeout=timeout_s,
        client_name="tallyman",
        settings={**SETTINGS, "use_numpy": numpy, "insert_block_size": 1_000_000},
    )


def migrate(client: Client) -> list[str]:
    """Apply the numbered files of `tallyman/schema` that were not applied yet, in order, then make the views that are
    missing or not as their newest file has them; return the files' names.

    Every statement can be run twice, so that a migration that was cut off is simply run again. Two may run at once, and
    one of them may have been paused for long: see docs/decisions/0068.
    """
    with store_errors(client, "schema"):
        return _migrate(client)


def _migrate(client: Client) -> list[str]:
    replicated = _replicated(client)
    journal = (
        "CREATE TABLE IF NOT EXISTS schema_migrations (name String, applied_at DateTime('UTC') DEFAULT now())"
        " ENGINE = ReplacingMergeTree ORDER BY name"
    )
    client.execute(replicated_tables(journal) if replicated else journal)
    applied = _applied(client)
    fresh = []
    for name, statements in schema_files():
        if name in applied:
            continue
        for statement in statements:
            if not _VIEW.match(statement):
                with store_errors(client, f"schema/{name}"):
                    client.execute(replicated_tables(statement) if replicated else statement)
        fresh.append(name)
        if applied:  # of a store that holds usage each may take long
            client.execute(_NOTE, [(name,)])
    if fresh and not applied:
        client.execute(_NOTE, [(name,) for name in fresh])
    keep_views(client)
    return fresh


def keep_views(client: Client) -> list[str]:
    """Make the views that are missing or not as their newest file has them; return their names.

    A view that a newer version of Tallyman made is left alone.
    """
    names = [name for name, _ in schema_files()]
    if max(_applied(client), default="") > names[-1]:
        return []
    there = {
        name: (engine, comment)
        for name, engine, comment in client.execute(
            "SELECT name, engine, comment FROM system.tables WHERE database = currentDatabase()"
        )
    }
    made = []
    for name, text in newest_views().items():
        comment = f"tallyman/schema {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        engine, stands = there.get(name, ("View", ""))
        if engine == "View" and stands != comment:  # what somebody put in a view's place is not thrown away
            with store_errors(client, f"view {name}"):
                client.execute(f"CREATE OR REPLACE VIEW {name} AS\n{text}\nCOMMENT '{comment}'")
            made.append(name)
    return made


def newest_views() -> dict[str, str]:
    """Return what each view of the schema selects, by its newest file; those that others read come first."""
    texts: dict[str, str] = {}
    for _, statements in schema_files():
        for statement in statements:
            if found := _VIEW.match(statement):
                texts[found[1]] = statement[found.end() :].strip()
    reads = {name: set(_READS.findall(text)) & texts.keys() for name, text in texts.items()}
    return {name: texts[name] for name in TopologicalSorter(reads).static_order()}


def schema_files() -> list[tuple[str, list[str]]]:
    """Return the name and the statements of each numbered file, in order."""
    files = sorted(resources.files("tallyman.schema").iterdir(), key=lambda entry: entry.name)
    return [(file.name, split_statements(file.read_text("utf-8"))) for file in files if file.name.endswith(".sql")]


def _replicated(client: Client) -> bool:
    engine = client.execute("SELECT engine FROM system.databases WHERE name = currentDatabase()")
    return bool(engine == [("Replicated",)])


def _applied(client: Client) -> set[str]:
    return {row[0] for row in client.execute("SELECT name FROM schema_migrations")}


def replicated_tables(statement: str) -> str:
    """Return a statement of the schema as a database of the engine Replicated needs it.

    >>> replicated_tables("CREATE TABLE t (a Int8) ENGINE = ReplacingMergeTree(a) ORDER BY a")
    'CREATE TABLE t (a Int8) ENGINE = ReplicatedReplacingMergeTree(a) ORDER BY a'
    """
    return re.sub(r"\bENGINE = (\w*MergeTree)\b", r"ENGINE = Replicated\1", statement)


def split_statements(text: str) -> list[str]:
    """Cut an SQL file at its semicolons; comments go."""
    lines = [re.sub(r"--.*$", "", line) for line in text.splitlines()]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]
