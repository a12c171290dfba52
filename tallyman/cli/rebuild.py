"""`tallyman rebuild`: past usage under the definitions in force now; looked at first, then switched to, or back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.audit import difference_row
from tallyman.cli.context import Options, clickhouse, is_number, leave, load_room, project_options, who
from tallyman.cli.output import count, print_json, print_table, progress_line, result, say, show_time
from tallyman.errors import RebuildError

if TYPE_CHECKING:
    from clickhouse_driver import Client
    from sqlalchemy import Connection, Engine

    from tallyman.generations import May
    from tallyman.meter import Meter
    from tallyman.project import Project

_WITH_NUMBER = ("use", "undo", "check", "again")


@click.command()
@click.argument("words", nargs=-1, metavar="[list | use N | undo N | check N | again N]")
@click.option("--meter", "meters", multiple=True, metavar="METER", help="Rebuild this meter; repeatable.")
@click.option("--from", "from_", metavar="WHEN", help="Usage from here on: 2026-10-01, 2026-10, or an age.")
@click.option("--to", metavar="WHEN", help="Usage before.")
@click.option("--source", type=click.Choice(["log", "archive"]), metavar="log|archive",
              help="Count again from Kafka or the raw archive.  [default: archive if it is on]")  # fmt: skip
@click.option("--yes", is_flag=True, help="Put it in force; else only show what it would change.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def rebuild(options: Options, words: tuple[str, ...], meters: tuple[str, ...], from_: str | None, to: str | None,
            source: str | None, yes: bool, as_json: bool) -> None:  # fmt: skip
    """Count past usage again under the definitions in force now, beside what was booked.

    Shows what would change; with --yes it counts from then on, at once for all readers. What was booked stays, and
    can be had back (undo). Only sealed usage is rebuilt: after tallyman apply, wait for the seal. Which events count,
    and which are copies, stays as it was judged when they came. See docs/operations/rebuild.md.

    \b
    Examples:
      tallyman rebuild --meter server.hours --from 2026-10-01 --to 2026-11-01
      tallyman rebuild list
      tallyman rebuild use 1
      tallyman usage --meter server.hours --from 2026-10 --to 2026-11 --generation 0
      tallyman rebuild undo 1
      tallyman rebuild check 1
      tallyman rebuild again 1
    """
    project = options.load()
    what, number = _command(words, asked=bool(meters or from_ or to))
    with clickhouse(project) as client:
        if what == "list":
            _list(project, client, as_json)
        elif what == "use":
            _use(project, client, number, as_json)
        elif what == "undo":
            _undo(project, client, number, as_json)
        elif what == "check":
            _check(project, client, number, _source(project, source), as_json)
        elif what == "again":
            _again(project, client, number, _source(project, source), as_json)
        else:
            _build(project, client, _question(project, meters, from_, to, source), yes, as_json)


def _command(words: Sequence[str], *, asked: bool) -> tuple[str, int]:
    """Return which command the words are, and its number."""
    if not words and asked:
        return "build", 0
    what = words[0] if words else ""
    if what == "list" and len(words) == 1 and not asked:
        return what, 0
    if what in _WITH_NUMBER and len(words) == 2 and is_number(words[1]) and not asked:
        return what, int(words[1])
    raise click.UsageError(
        'expected --meter, --from and --to, or one of "list", "use N", "undo N", "check N" and "again N", got '
        + (f'"{" ".join(words)}"' if words else "nothing")
    )


def _question(project: Project, meters: tuple[str, ...], from_: str | None, to: str | None, source: str | None) -> Any:
    from tallyman.cli.times import parse_moment

    if not (meters and from_ and to):
        raise click.UsageError("expected --meter, --from and --to: what is not said is not rebuilt")
    now = datetime.now(UTC)
    return load_room("pipeline.rebuild:RebuildQuestion")(
        meters=tuple(dict.fromkeys(meters)),
        start=parse_moment("--from", from_, "UTC", now),
        end=parse_moment("--to", to, "UTC", now),
        source=_source(project, source),
    )


def _source(project: Project, source: str | None) -> str:
    return source or ("archive" if project.config.pipeline.archive else "log")


def _build(project: Project, client: Client, question: Any, yes: bool, as_json: bool) -> None:
    may = _refuse_invoiced(project, question.meters, question.start, question.end)
    line = progress_line("rebuild")
    show = lambda what, done, of: line(f"{what}, {done:,} of {of:,} chunks")  # noqa: E731
    attempt = load_room("pipeline.rebuild:rebuild")(project, client, question, who=who(), show=show)
    line("done", done=True)
    number = attempt.switch.generation
    changes = load_room("pipeline.switch:compare")(project, client, number)
    if yes:
        load_room("pipeline.switch:put_in_force")(project, client, number, may)
    if as_json:
        print_json(_document(attempt, "in force" if yes else "ready", changes))
        return
    _print(attempt, changes)
    if yes:
        say(f"generation {number} is in force. To have back what counted before: tallyman rebuild undo {number}")
    else:
        say(f"nothing was changed. To let generation {number} count: tallyman rebuild use {number}")


def _use(project: Project, client: Client, number: int, as_json: bool) -> None:
    switch = load_room("pipeline.switch:find_switch")(project, client, number)
    may = _refuse_invoiced(project, switch.meters, switch.start, switch.end)
    listed = load_room("pipeline.switch:put_in_force")(project, client, number, may)
    if as_json:
        print_json({"generation": number, "in_force": listed.generations})
    else:
        result(f"generation {number} is in force. To have back what counted before: tallyman rebuild undo {number}")


def _undo(project: Project, client: Client, number: int, as_json: bool) -> None:
    switch = load_room("pipeline.switch:find_switch")(project, client, number)
    may = _refuse_invoiced(project, switch.meters, switch.start, switch.end)
    listed = load_room("pipeline.switch:undo")(project, client, number, may)
    if as_json:
        print_json({"generation": number, "in_force": listed.generations})
    else:
        result(f"generation {number} was taken back; it stays to be looked at: tallyman usage --generation {number}")


def _check(project: Project, client: Client, number: int, source: str, as_json: bool) -> None:
    """Prove the rows of a rebuild; exit code 1 if they are others than the log says."""
    line = progress_line("check")
    show = lambda what, done, of: line(f"{what}, {done:,} of {of:,} chunks")  # noqa: E731
    meters, differences = load_room("pipeline.rebuild:check")(project, client, number, source, show)
    line("done", done=True)
    different = sum(each.different for each in meters)
    if as_json:
        print_json({
            "generation": number, "source": source, "equal": not different,
            "meters": [{"meter": each.meter, "rows": each.rows, "events": each.booked_events,
                        "recounted_events": each.recounted_events, "different": each.different} for each in meters],
        })  # fmt: skip
    else:
        print_table(
            ["meter", "rows", "events", "events counted again", "different rows"],
            [[each.meter, each.rows, each.booked_events, each.recounted_events, each.different] for each in meters],
        )
        if differences:
            print_table(["meter", "subject", "dimensions", "minute", "booking", "rebuilt", "counted again"],
                        [difference_row(each) for each in differences])  # fmt: skip
        differ = f"different, {count(different, 'row')}" if different else "equal"
        say(f"generation {number} against the {source}: {differ}")
    leave(1 if different else 0)


def _again(project: Project, client: Client, number: int, source: str, as_json: bool) -> None:
    """Make the rows of a rebuild once more, which a restored ClickHouse has lost."""
    line = progress_line("rebuild")
    show = lambda what, done, of: line(f"{what}, {done:,} of {of:,} chunks")  # noqa: E731
    attempt = load_room("pipeline.rebuild:make_again")(project, client, number, source, show=show)
    line("done", done=True)
    say(f"generation {number}: all its rows are there again")
    states = {each.attempt.switch.generation: each.state  # readers get the list, if it was these rows that it lacked
              for each in load_room("pipeline.switch:read_attempts")(project, client)}  # fmt: skip
    if as_json:
        print_json(_document(attempt, states[number], ()))
    else:
        result(f"generation {number} is {states[number]}")


def _refuse_invoiced(project: Project, meters: Sequence[str], start: datetime, end: datetime) -> May:
    """Refuse to change usage that an invoice says already.

    Returns:
        What asks the same once more, in the transaction that switches: a month may become final meanwhile.

    Raises:
        RebuildError: Names the invoice.
    """
    from tallyman.control import open_control, read

    find, count_final = load_room("invoices.closed:find_invoiced_in"), load_room("invoices.closed:count_final")

    def look(connection: Connection) -> None:
        for felt_to, some in _felt_to(defined, meters, end).items():
            found = find(connection, some, start, felt_to)
            if found is not None:
                carried = f", which follows from {found.meter} before it, too" if found.start >= end else ""
                raise RebuildError(
                    f"{found.meter}: invoice {found.number} of account {found.account} says what was used from "
                    f"{show_time(found.start, UTC)} to {show_time(found.end, UTC)}{carried}, and what is invoiced "
                    "stays as it is; choose a range outside"
                )

    engine = open_control(project.control_url)
    try:
        load_room("invoices.store:prepare")(engine)
        defined = [*_ever_defined(engine), *project.meters]
        with read(engine) as connection:
            known = count_final(connection)
            look(connection)
    finally:
        engine.dispose()

    def look_again(connection: Connection) -> None:
        if count_final(connection) != known:  # what is final stays: as many are the same ones
            look(connection)

    return look_again


def _ever_defined(engine: Engine) -> list[Meter]:
    """Return the meters of all definitions: what counts now was booked by any of them, and is felt as these say."""
    from tallyman import books

    books.prepare(engine)
    newest = books.newest_definitions(engine)
    numbers = range(1, newest.number + 1) if newest else ()
    return [meter for number in numbers for meter in books.load_definitions(engine, number).meters]


def _felt_to(defined: Sequence[Meter], names: Sequence[str], end: datetime) -> dict[datetime, list[str]]:
    """Return up to where answers may change when usage before `end` does: levels go on, counters count on.

    Args:
        defined: A meter may be among them several times, of which the longest counts.
    """
    from tallyman.period import LAST_MOMENT

    found: dict[datetime, list[str]] = {}
    for name in names:
        felt_for = [meter.felt_for for meter in defined if meter.meter == name]
        longest = max((span for span in felt_for if span is not None), default=timedelta(0))
        found.setdefault(LAST_MOMENT if None in felt_for else min(LAST_MOMENT, end + longest), []).append(name)
    return found


def _list(project: Project, client: Client, as_json: bool) -> None:
    attempts = load_room("pipeline.switch:read_attempts")(project, client)
    if as_json:
        print_json([_document(each.attempt, each.state, ()) for each in attempts])
        return
    if not attempts:
        result("nothing was rebuilt yet: all usage counts as it was booked")
        return
    print_table(
        ["generation", "state", "meters", "from", "to", "up to booking", "definitions", "who", "begun"],
        [_row(each.attempt, each.state) for each in attempts],
    )


def _row(attempt: Any, state: str) -> list[object]:
    switch, begun = attempt.switch, attempt.made_at.replace(microsecond=0)
    return [switch.generation, state, ", ".join(switch.meters), show_time(switch.start, UTC),
            show_time(switch.end, UTC), switch.last, switch.definitions, attempt.who,
            show_time(begun, UTC)]  # fmt: skip


def _print(attempt: Any, changes: Sequence[Any]) -> None:
    switch = attempt.switch
    say(f"generation {switch.generation}: definitions {switch.definitions}, {show_time(switch.start, UTC)} to "
        f"{show_time(switch.end, UTC)}, bookings up to {switch.last}")  # fmt: skip
    print_table(
        ["meter", "unit", "series", "minutes", "events", "old total", "new total", "difference"],
        [[each.meter, each.unit, _both(each.before.series, each.after.series),
          _both(each.before.minutes, each.after.minutes), _both(each.before.events, each.after.events),
          each.before.total, each.after.total, each.difference] for each in changes],
    )  # fmt: skip
    if not any(each.before != each.after for each in changes):
        say(f"nothing would change in {count(len(changes), 'meter')}")


def _both(before: int, after: int) -> str:
    return f"{after:,}" if before == after else f"{before:,} → {after:,}"


def _document(attempt: Any, state: str, changes: Sequence[Any]) -> dict[str, object]:
    """Return a rebuild as `--json` prints it; its fields are a contract."""
    switch = attempt.switch
    return {
        "generation": switch.generation, "state": state, "definitions": switch.definitions, "meters": switch.meters,
        "from": switch.start, "to": switch.end, "up_to_booking": switch.last, "who": attempt.who,
        "begun": attempt.made_at,
    } | ({"changes": [_change(each) for each in changes]} if changes else {})  # fmt: skip


def _change(each: Any) -> dict[str, object]:
    sides = {name: {"series": side.series, "minutes": side.minutes, "events": side.events, "total": side.total}
             for name, side in (("before", each.before), ("after", each.after))}  # fmt: skip
    return {"meter": each.meter, "unit": each.unit, **sides, "difference": each.difference}
