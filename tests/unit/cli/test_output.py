"""What commands print: tables that never cut a number, exact decimals, times in the asked zone."""

from __future__ import annotations

import csv
import io
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from tallyman.cli import run
from tallyman.cli.output import cells, count, plain, print_csv, print_json, result, say, show_time, size, table_lines
from tallyman.cli.times import next_minute, parse_moment
from tallyman.errors import UsageQueryError

NOW = datetime(2026, 10, 5, 12, 7, 31, tzinfo=UTC)


def test_decimals_line_up_at_the_point() -> None:
    rows = [[Decimal("1.5")], [Decimal(100)], [Decimal("0.000000001")], [None]]
    assert table_lines(["value"], rows, None)[2:] == ["  1.5", "100", "  0.000000001", "  –"]


def test_a_number_is_never_cut_however_narrow_the_terminal() -> None:
    value = Decimal("123456789012345678901234567890.123456789")
    lines = table_lines(["tenant", "value"], [["a tenant with quite a long name", value]], 50)
    assert any(plain(value) in line for line in lines)


def test_a_long_text_is_folded_at_words_and_nothing_of_it_is_lost() -> None:
    text = "type: no meter wants tallyman.host.cpu and that is why it is here"
    lines = table_lines(["position", "detail"], [["1:1:0", text]], 40)
    assert max(map(cells, lines)) <= 40
    assert " ".join(line[10:].strip() for line in lines[2:]) == text


def test_wide_letters_take_two_columns() -> None:
    lines = table_lines(["tenant", "n"], [["さくらデータ", 1], ["zoë", 2]], None)
    assert cells(lines[2]) == cells(lines[3])


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in "".join(table_lines(["name"], [["\x1b[31mred"]], None))


@pytest.mark.parametrize("odd", ["\x1b]0;owned\x07", "\x9b31m", "\r", "\u202e", "\x7f", "\ud800"])
def test_nothing_that_a_terminal_obeys_is_printed_in_any_way(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"Zoë\u00a0{odd}Åström"
    say(text)
    result(text)
    print_json({text: text})
    told = capsys.readouterr()
    assert all(c.isprintable() or c in "\n\u00a0" for c in told.out + told.err)
    assert told.out.splitlines()[0] == told.err.rstrip("\n") and "Åström" in told.err
    assert json.loads(told.out.partition("\n")[2]) == {text: text}


def test_a_csv_file_keeps_each_letter_and_a_terminal_gets_none_that_it_obeys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_csv(["subject"], [["\x1b[8mhidden"]])
    assert "\x1b[8mhidden" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_csv(["subject"], [["\x1b[8mhidden"]])
    assert "\\x1b[8mhidden" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_a_name_with_an_end_of_line_stays_one_field_of_a_csv_file(capsys: pytest.CaptureFixture[str], end: str) -> None:
    """Spreadsheets begin a row at each of these, also at one that is not the file's own end of line."""
    tenant = f"zoë{end}another tenant"
    print_csv(["subject", "value"], [[tenant, Decimal(2)]])
    printed = capsys.readouterr().out
    assert list(csv.reader(io.StringIO(printed, newline=""))) == [["subject", "value"], [tenant, "2"]]
    assert printed.endswith(",2\n") and printed.startswith("subject,value\n")


@pytest.mark.parametrize("width", [None, 80])
def test_a_text_of_megabytes_is_laid_out_in_seconds(width: int | None) -> None:
    """Each letter is looked at once, and the rows beside it are not as wide."""
    text = "x" * (2 << 20)
    began = time.process_time()
    lines = table_lines(["subject", "type"], [[text, "server"], ["zoë", "server"]], width)
    assert time.process_time() - began < 5
    assert "".join(lines[2:]).count("x") == len(text) and max(map(cells, lines)) <= (width or 1100)


@pytest.mark.parametrize(
    ("value", "text"),
    [("1.500E+3", "1500"), ("0.10", "0.1"), ("-0", "0"), ("1E-18", "0.000000000000000001"), ("10", "10")],
)
def test_a_decimal_is_written_plainly(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text


def test_numbers_of_things_are_written_for_people() -> None:
    assert [count(1, "event"), count(0, "event"), size(11_543)] == ["1 event", "0 events", "11.5 kB"]


def test_a_time_is_shown_with_its_offset() -> None:
    assert show_time(NOW, ZoneInfo("Asia/Kolkata")) == "2026-10-05 17:37:31 +05:30"
    assert show_time(None, UTC) == "unknown"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-10", "2026-09-30T22:00+00:00"),
        ("2026-10-25", "2026-10-24T22:00+00:00"),
        ("2026-10-01T14:30", "2026-10-01T12:30+00:00"),
        ("2026-10-25T02:30+01:00", "2026-10-25T01:30+00:00"),
        ("2026-10-01T14:30:00Z", "2026-10-01T14:30+00:00"),
        ("today", "2026-10-04T22:00+00:00"),
        ("now", "2026-10-05T12:07+00:00"),
        ("24h", "2026-10-04T12:07+00:00"),
    ],
)
def test_a_moment_is_typed_as_people_say_it(text: str, moment: str) -> None:
    assert parse_moment("--from", text, "Europe/Berlin", NOW) == datetime.fromisoformat(moment)


@pytest.mark.parametrize("text", ["", "2026", "2026-02-30", "2026-13", "soon", "99999999999d", "١٢h"])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageQueryError, match=r"--from: expected a day \(2026-10-01\)"):
        parse_moment("--from", text, "Europe/Berlin", NOW)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Tokyo", "Pacific/Auckland", "UTC"])
@pytest.mark.parametrize("text", ["1970-01", "1970-01-01", "1970-01-01T00:00"])
def test_where_1970_began_before_utc_it_begins_with_utc(text: str, zone: str) -> None:
    """Nothing is stored from before; the first window is so much shorter."""
    assert parse_moment("--from", text, zone, NOW) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["1960-01-01", "1969-12-30", "0001-01-01T00:00+14:00", "2106-02-08", "2200-01", "9999-12-31T23:59-12:00"]
)
def test_a_moment_that_the_store_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(UsageQueryError, match=r"--from: expected a (time from 1970 to 2106|day)"):
        parse_moment("--from", text, "Europe/Berlin", NOW)


@pytest.mark.parametrize("month", ["0001-01", "1970-01", "2106-01", "9999-12"])
def test_a_month_that_the_store_cannot_hold_is_wrong_usage(month: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["invoice", "preview", "--month", month]) == 2
    assert f'expected one of 1971 to 2105, got "{month}"' in capsys.readouterr().err


def test_this_minute_is_included() -> None:
    assert next_minute(NOW) == datetime(2026, 10, 5, 12, 8, tzinfo=UTC)
