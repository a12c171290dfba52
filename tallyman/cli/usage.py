"""`tallyman usage`: exact usage per window, and how complete it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.collectors import gap_as_object, gap_text, held_as_object, held_text
from tallyman.cli.context import Options, clickhouse, project_options
from tallyman.cli.output import plain, print_csv, print_json, print_table, result, say, show_time
from tallyman.cli.repair import gap_line, repair_object
from tallyman.usage import WINDOWS

if TYPE_CHECKING:
    from tallyman.usage import UsageAnswer, UsageRow

_WHOLE_DAYS = ("day", "week", "month")
_PROOF = ("resets", "holes", "decreases")  # of counters
_MOST_TOLD = 5  # lines about each; --json has all
_SEVERAL = re.compile(r"(?<!&)&(?!&)")


@click.command()
@click.argument("tenants", nargs=-1, metavar="[TENANT]...")
@click.option("--meter", required=True, metavar="METER", help="Which meter; see meters/.")
@click.option("--from", "from_", default="today", show_default=True, metavar="WHEN",
              help="First moment: 2026-10-01, 2026-10, 2026-10-01T14:30, today, or an age such as 24h.")  # fmt: skip
@click.option("--to", metavar="WHEN", help="First moment that no longer counts.  [default: this minute, included]")
@click.option("--window", type=click.Choice(WINDOWS), default="total", show_default=True,
              help="One row for each; weeks begin on Monday.")  # fmt: skip
@click.option("--zone", default="UTC", show_default=True, metavar="ZONE",
              help="Where days begin: an IANA name such as Europe/Berlin.")  # fmt: skip
@click.option("--by", multiple=True, metavar="NAME", help="Tell rows apart by a dimension, or by subject; repeatable.")
@click.option("--where", multiple=True, metavar="NAME=VALUE",
              help="Only this value of a dimension; repeatable. NAME alone: only where it is missing.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="NAME=VALUE[&NAME=VALUE]...",
              help="Leave out what fits all of these; repeatable. && stands for one & in a value.")  # fmt: skip
@click.option("--as-of", type=click.IntRange(min=0), metavar="BOOKING",
              help="Only what was booked up to this booking and in it.")  # fmt: skip
@click.option("--generation", type=click.IntRange(min=0), metavar="N",
              help="As if this rebuild were in force; 0: as it was booked.")  # fmt: skip
@click.option("--sealed", is_flag=True, help="Only what sealed bookings hold, as invoices do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@project_options
def usage(options: Options, as_json: bool, as_csv: bool, zone: str, generation: int | None, **asked: Any) -> None:
    """Show what TENANTs used, exactly; without a name, each tenant.

    A level or state that holds over a window without events is carried over it, as far as usage is complete; with
    --sealed or --as-of to where the day of the next booking begins. Of a counter it is told, too, how often it began
    again (resets), how often readings were further apart than its meter allows (holes), and how many lay below an
    earlier one of the same incarnation (decreases). JSON and CSV say of each row whether it is complete: usage is as
    far as its end, and nothing of it is missing; with --sealed and --as-of they do not say.

    \b
    Examples:
      tallyman usage tenant-zoe --meter host.cpu --from 24h --window hour
      tallyman usage tenant-zoe --meter host.network --from 2026-10-01 --to 2026-11-01 \\
          --window day --zone Europe/Berlin --by direction --json
      tallyman usage --meter host.cpu --where mode=user
      tallyman usage --meter host.network --exclude "direction=in&interface=lo" --as-of 20751000
    """
    from tallyman.aggregates import read_usage
    from tallyman.rebuilds import read_switches_with

    if as_json and as_csv:
        raise click.UsageError("--json, --csv: expected one of them, got both")
    project = options.load()
    query = make_query(zone=zone, now=datetime.now(UTC), **asked)
    with clickhouse(project) as client:
        answer = read_usage(
            client,
            query,
            meters=project.meters,
            expected_delay=project.config.usage.expected_delay,
            partitions=project.config.kafka.partitions,
            switches=None if generation is None else read_switches_with(client, generation),
        )
    if as_json:
        print_json(as_document(answer))
    elif as_csv:
        header, rows = as_rows(answer, [])
        complete = [answer.is_complete(row) for row in answer.rows]
        told = ["" if each is None else str(each).lower() for each in complete]
        print_csv([*header, "complete"], [[*row, each] for row, each in zip(rows, told, strict=True)])
        for line in completeness(answer):
            say(line)
    else:
        _print(answer)


def make_query(
    *,
    tenants: Sequence[str],
    meter: str,
    from_: str,
    to: str | None,
    window: str,
    zone: str,
    by: Sequence[str],
    where: Sequence[str],
    exclude: Sequence[str],
    as_of: int | None,
    sealed: bool,
    now: datetime,
) -> Any:
    """Return the question that the options ask.

    Raises:
        UsageQueryError: A time is none, or there is no such zone.
    """
    from tallyman.cli.times import next_minute, parse_moment
    from tallyman.period import find_zone
    from tallyman.usage import UsageQuery

    find_zone(zone)
    names = list(dict.fromkeys(by))
    if len(tenants) != 1 and "subject" not in names:
        names.insert(0, "subject")
    return UsageQuery(
        meter=meter,
        start=parse_moment("--from", from_, zone, now),
        end=parse_moment("--to", to, zone, now) if to else next_minute(now),
        subjects=tuple(tenants),
        where=_condition(where),
        exclude=tuple(_condition([part.replace("&&", "&") for part in _SEVERAL.split(text)]) for text in exclude),
        group_by=tuple(names),
        window=window,  # type: ignore[arg-type]
        zone=zone,
        sealed_only=sealed,
        up_to_booking=as_of,
    )


def _condition(texts: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
    """Read NAME=VALUE texts; a name alone is a dimension that is missing."""
    condition: dict[str, tuple[str | None, ...]] = {}
    for text in texts:
        name, given, value = text.partition("=")
        condition[name] = (*condition.get(name, ()), value if given else None)
    return condition


def as_document(answer: UsageAnswer) -> dict[str, object]:
    """Return an answer as `--json` prints it; its fields are a contract."""
    query = answer.query
    return {
        "meter": query.meter,
        "unit": answer.unit,
        "from": query.start.astimezone(UTC),
        "to": query.end.astimezone(UTC),
        "window": query.window,
        "zone": query.zone,
        "complete_to": answer.complete_to,
        "held_by": [held_as_object(each) for each in answer.held_by],
        "gaps": [gap_as_object(each) for each in answer.gaps],
        "sealed_to": answer.sealed_to,
        "as_of": query.up_to_booking,
        "repaired": [repair_object(each) for each in answer.repaired],
        "generations": answer.rebuilt,
        "rows": [_as_object(row) | {"complete": answer.is_complete(row)} for row in answer.rows],
    }


def _as_object(row: UsageRow) -> dict[str, object]:
    named = {"from": row.start, "to": row.end, "groups": row.groups, "value": row.value, "events": row.events}
    return named | {name: getattr(row, name) for name in _PROOF if getattr(row, name) is not None}


def as_rows(answer: UsageAnswer, shown: Sequence[tuple[str, str]]) -> tuple[list[str], list[list[object]]]:
    """Return header and rows; `shown` has each row's times as texts, else they are instants in UTC."""
    names = answer.query.group_by
    proof = [name for name in _PROOF if any(getattr(row, name) is not None for row in answer.rows)]
    header = ["from", "to", *names, "value", "events", *proof]
    rows: list[list[object]] = []
    for n, row in enumerate(answer.rows):
        start, end = shown[n] if shown else (row.start.isoformat(), row.end.isoformat())
        value = row.value if shown else plain(row.value)
        told = [getattr(row, name) for name in proof]
        rows.append([start, end, *(row.groups[name] for name in names), value, row.events, *told])
    return header, rows


def _print(answer: UsageAnswer) -> None:
    header, rows = as_rows(answer, [_times(answer, row) for row in answer.rows])
    value_at = 2 + len(answer.query.group_by)
    header[value_at] = f"{answer.query.meter} [{answer.unit}]" if answer.unit else answer.query.meter
    if rows:
        print_table(header, rows)
    else:
        result(f"no usage of {answer.query.meter} in this range")
    for line in completeness(answer):
        result(line)


def _times(answer: UsageAnswer, row: UsageRow) -> tuple[str, str]:
    """Show a day by its date alone where it is a whole one."""
    from tallyman.period import find_zone

    zone = find_zone(answer.query.zone)
    moments = row.start.astimezone(zone), row.end.astimezone(zone)
    if answer.query.window in _WHOLE_DAYS and all(moment.time() == time() for moment in moments):
        return moments[0].date().isoformat(), moments[1].date().isoformat()
    return show_time(moments[0], zone), show_time(moments[1], zone)


def completeness(answer: UsageAnswer) -> list[str]:
    """Say up to where nothing is missing, what is sealed, and what did not come."""
    from tallyman.period import find_zone

    zone = find_zone(answer.query.zone)
    lines = [_complete_to(answer)]
    lines += [f"held back by {held_text(each, zone)}" for each in answer.held_by[:_MOST_TOLD]]
    lines += [gap_text(each, zone) for each in answer.gaps[:_MOST_TOLD]]
    lines += [gap_line(each) for each in answer.repaired]
    if answer.rebuilt:
        named = ", ".join(map(str, answer.rebuilt))
        lines.append(f"rebuilt: some of it counts by generation {named}; see: tallyman rebuild list")
    rest = max(len(answer.held_by) - _MOST_TOLD, 0) + max(len(answer.gaps) - _MOST_TOLD, 0)
    return [*lines, f"and {rest:,} more; see: tallyman collectors list"] if rest else lines


def _complete_to(answer: UsageAnswer) -> str:
    from tallyman.period import find_zone

    zone = find_zone(answer.query.zone)
    sealed = f"sealed up to booking {answer.sealed_to}" if answer.sealed_to else "nothing is sealed yet"
    if answer.query.up_to_booking is not None:
        return f"as of booking {answer.query.up_to_booking}, without what was booked later; {sealed}"
    if answer.query.sealed_only:  # how complete all usage is says nothing of these rows
        return f"only what is sealed, without what was booked later; {sealed}"
    if answer.complete_to is None:
        return f"complete up to: unknown, the pipeline has not reached every partition yet; {sealed}"
    return f"complete up to {show_time(answer.complete_to, zone)} ({answer.query.zone}); {sealed}"
