"""Every type goes in and comes out as it was: by rows, by columns and by numpy, plain and compressed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

import pytest

pytest.importorskip("chdb")
from clickhouse_driver import Client

from tests.integration.clickhouse_front import Front

pytestmark = pytest.mark.integration

BERLIN = datetime(2026, 10, 25, 2, 30, 0)  # noqa: DTZ001 a DateTime without zone is naive; the hour that comes twice
SECOND = datetime(2026, 2, 28, 23, 59, 59)  # noqa: DTZ001 a DateTime without zone is naive
MICRO = datetime(2026, 2, 28, 23, 59, 59, 123456)  # noqa: DTZ001 a DateTime without zone is naive

TYPES: dict[str, list[Any]] = {
    "Int8": [-128, 0, 127],
    "Int16": [-(2**15), 2**15 - 1],
    "Int32": [-(2**31), 2**31 - 1],
    "Int64": [-(2**63), 2**63 - 1],
    "Int128": [-(2**127), 2**127 - 1],
    "Int256": [-(2**255), 2**255 - 1],
    "UInt8": [0, 255],
    "UInt16": [0, 2**16 - 1],
    "UInt32": [0, 2**32 - 1],
    "UInt64": [0, 2**64 - 1],
    "UInt128": [0, 2**128 - 1],
    "UInt256": [0, 2**256 - 1],
    "Float32": [0.5, -1.25],
    "Float64": [0.1, 1e300, float("inf")],
    "Bool": [True, False],
    "Decimal32(4)": [Decimal("-99999.9999")],
    "Decimal64(9)": [Decimal("123456789.123456789")],
    "Decimal128(9)": [Decimal("-12345678901234567890123456789.123456789")],
    "Decimal256(20)": [Decimal(10) ** 50 + Decimal("0.00000000000000000001")],
    "Decimal(38, 18)": [Decimal("0.000000000000000001"), Decimal("-1.5")],
    "String": ["Zoë Åström", "", "x" * 300, "日本語 \x00\n\t'"],
    "FixedString(5)": ["abcde", "Zoë!"],
    "Date": [date(1970, 1, 1), date(2026, 2, 28), date(2149, 6, 6)],
    "Date32": [date(1925, 1, 1), date(2283, 11, 11)],
    "DateTime": [SECOND],
    "DateTime('UTC')": [SECOND.replace(tzinfo=UTC)],
    "DateTime64(6)": [MICRO],
    "DateTime64(3, 'UTC')": [MICRO.replace(microsecond=123000, tzinfo=UTC)],
    "UUID": [UUID("61f0c404-5cb3-11e7-907b-a6006ad3dba0"), UUID(int=0)],
    "IPv4": [IPv4Address("10.0.0.1"), IPv4Address("255.255.255.255")],
    "IPv6": [IPv6Address("2001:db8::1"), IPv6Address("::")],
    "Enum8('up' = 1, 'a, (b)' = -2)": ["up", "a, (b)"],
    "Enum16('x' = 1000)": ["x"],
    "Nullable(Int32)": [1, None, 3],
    "Nullable(String)": [None, "å", None],
    "Nullable(Decimal(18, 6))": [Decimal("1.000001"), None],
    "Array(Int32)": [[1, 2], [], [3]],
    "Array(Array(Nullable(String)))": [[["a", None], []], [], [["ö"]]],
    "Array(LowCardinality(String))": [["a", "b"], [], ["a"]],
    "Tuple(Int8, String)": [(1, "a"), (2, "ß")],
    "Tuple(a Int8, b Array(String))": [(1, ["x", "y"]), (2, [])],
    "Map(String, Int64)": [{"a": 1, "b": 2}, {}],
    "Map(LowCardinality(String), Array(UInt8))": [{"k": [1, 2]}, {}],
    "LowCardinality(String)": ["eu-north", "eu-north", "us", ""],
    "LowCardinality(Nullable(String))": ["a", None, "a"],
    "LowCardinality(UInt32)": [7, 7, 8],
    "SimpleAggregateFunction(sum, Int64)": [5, -5],
    "Array(Tuple(name String, size UInt64))": [[("vda", 10), ("vdb", 2**63)], []],
    "Point": [(1.5, -2.5)],
    "Polygon": [[[(0.0, 0.0), (1.0, 1.0)]]],
    "IntervalDay": [timedelta(days=3)],
}
ODD = {"allow_suspicious_low_cardinality_types": 1}
NO_COLUMN = {"Polygon", "Point", "IntervalDay"}  # the driver cannot write these


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    server = Front(tmp_path_factory.mktemp("types"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def client(front: Front) -> Client:
    return front.client()


def make_table(client: Client, *types: str) -> None:
    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(types))
    client.execute(f"CREATE OR REPLACE TABLE v (n UInt32, {columns}) ENGINE = MergeTree ORDER BY n", settings=ODD)


@pytest.mark.parametrize("compression", [False, "lz4"], ids=["plain", "lz4"])
@pytest.mark.parametrize("type_name", [name for name in TYPES if name not in NO_COLUMN])
def test_a_value_comes_back_as_it_went_in(front: Front, type_name: str, compression: Any) -> None:
    client = front.client(compression=compression)
    make_table(client, type_name)
    values = TYPES[type_name]
    client.execute("INSERT INTO v VALUES", list(enumerate(values)))
    rows, columns = client.execute("SELECT c0 FROM v ORDER BY n", with_column_types=True)
    assert [row[0] for row in rows] == values
    assert columns[0][0] == "c0"
    client.disconnect()


@pytest.mark.parametrize("type_name", [name for name in TYPES if name not in NO_COLUMN])
def test_columns_go_in_and_out_whole(client: Client, type_name: str) -> None:
    make_table(client, type_name)
    values = TYPES[type_name]
    client.execute("INSERT INTO v VALUES", [list(range(len(values))), list(values)], columnar=True)
    (column,) = client.execute("SELECT c0 FROM v ORDER BY n", columnar=True)
    assert list(column) == values


@pytest.mark.parametrize("type_name", [name for name in TYPES if name not in NO_COLUMN])
def test_a_result_without_rows_still_has_names_and_types(client: Client, type_name: str) -> None:
    make_table(client, type_name)
    rows, columns = client.execute("SELECT c0 AS amount FROM v", with_column_types=True)
    expected = client.execute("SELECT type FROM system.columns WHERE table = 'v' AND name = 'c0'")[0][0]
    assert rows == []
    assert columns == [("amount", expected)]


def test_a_block_of_all_types_at_once_is_cut_in_the_right_places(client: Client) -> None:
    names = [name for name in TYPES if name not in NO_COLUMN]
    make_table(client, *names)
    rows = [(n, *(TYPES[name][n % len(TYPES[name])] for name in names)) for n in range(1000)]
    client.execute("INSERT INTO v VALUES", rows)
    assert client.execute("SELECT * FROM v ORDER BY n") == rows


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("NULL", None),
        ("[]", []),
        ("(1, 'a')", (1, "a")),
        ("(1.5, 2.5)::Point", (1.5, 2.5)),
        ("[[(0., 0.), (1., 1.)]]::Polygon", [[(0.0, 0.0), (1.0, 1.0)]]),
        ("toIntervalDay(3)", 3),
        ("toDateTime64('2026-10-25 02:30:00', 0)", BERLIN),
        ("map('a', map('b', 1))", {"a": {"b": 1}}),
        ("toDecimal256('1.5', 2) * 2", Decimal("3.00")),
        ("1 = 1", 1),
        ("CAST('x', 'Enum8(\\'x\\' = 1)')", "x"),
        ("'a' || NULL", None),
        ("[NULL, 1]", [None, 1]),
    ],
)
def test_an_expression_of_every_kind_is_answered(client: Client, expression: str, expected: Any) -> None:
    assert client.execute(f"SELECT {expression}") == [(expected,)]


@pytest.mark.parametrize("table", ["plain", "left out"])
def test_nested_columns_are_arrays_of_equal_length(client: Client, table: str) -> None:
    client.execute("CREATE OR REPLACE TABLE nest (n UInt8, disk Nested(name String, size UInt64)) ENGINE = Memory")
    names = "(n, disk.name, disk.size)" if table == "plain" else ""
    client.execute(f"INSERT INTO nest {names} VALUES", [(1, ["vda", "vdb"], [10, 20]), (2, [], [])])
    assert client.execute("SELECT * FROM nest ORDER BY n") == [(1, ["vda", "vdb"], [10, 20]), (2, [], [])]


def test_numpy_columns_go_in_and_out(front: Front) -> None:
    numpy = pytest.importorskip("numpy")
    client = front.client(settings={"use_numpy": True})
    client.execute("CREATE OR REPLACE TABLE np (a Int64, f Float64, s String, t DateTime) ENGINE = Memory")
    minutes = numpy.arange("2026-02-28T23:00", "2026-03-01T00:40", dtype="datetime64[m]").astype("datetime64[s]")
    columns = [numpy.arange(100), numpy.linspace(0, 1, 100), numpy.array(["ö"] * 100, dtype=object), minutes]
    client.execute("INSERT INTO np VALUES", columns, columnar=True)
    back = client.execute("SELECT * FROM np ORDER BY a", columnar=True)
    assert all((ours == theirs).all() for ours, theirs in zip(columns, back, strict=True))


def test_json_variants_and_dynamic_values_go_in_and_out(client: Client) -> None:
    client.execute("CREATE OR REPLACE TABLE j (n UInt8, j JSON) ENGINE = Memory")
    documents = [{"a": 1, "b": {"c": "ö"}, "d": [1, 2]}, {}, {"b": {"c": 7.5}}]
    client.execute("INSERT INTO j VALUES", list(enumerate(documents)))
    assert [row for _, row in client.execute("SELECT * FROM j ORDER BY n")] == documents
    sql = "SELECT 1 AS a, 'x'::Variant(Int64, String) AS v, 5::Dynamic AS d, j.a.:Int64 AS p, 2 AS z FROM j WHERE n = 0"
    _, columns = client.execute(f"SELECT a, p, z FROM ({sql})", with_column_types=True)
    assert [name for name, _ in columns] == ["a", "p", "z"]
    assert client.execute(f"SELECT v::String, d::Int64, p FROM ({sql})") == [("x", 5, 1)]


def test_aggregate_states_are_finalised_in_sql(client: Client) -> None:
    client.execute(
        "CREATE OR REPLACE TABLE agg (k Int8, s AggregateFunction(sum, Int64)) ENGINE = AggregatingMergeTree ORDER BY k"
    )
    client.execute("INSERT INTO agg SELECT 1, sumState(toInt64(number)) FROM numbers(10)")
    assert client.execute("SELECT k, sumMerge(s) FROM agg GROUP BY k") == [(1, 45)]
