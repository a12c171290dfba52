"""`tallyman audit`: prove that the books are what the log says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.context import LazyGroup, Options, clickhouse, leave, load_room, project_options
from tallyman.cli.output import count, print_json, print_table, progress_line, result, say
from tallyman.cli.repair import gap_line, repair_object

if TYPE_CHECKING:
    from tallyman.reconcile import ChunkCounts

EQUAL, DIFFERENT, UNCHECKED = 0, 1, 3  # 2 is wrong usage, as everywhere
_COMMANDS = {
    "usage": "tallyman.cli.audit:usage",
    "counts": "tallyman.cli.audit:counts",
    "conflicts": "tallyman.cli.conflicts:conflicts",
}
_OUTCOMES = ("received", "aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict", "letters", "conflicts")
_ROWS_OF = {"letters": "dead", "conflicts": "conflict"}  # how many rows there are, and how many were counted
_SHOWN = 20


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
@project_options
def audit(options: Options) -> None:
    """Prove that the books are what the log says.

    \b
    Examples:
      tallyman audit counts
      tallyman audit conflicts --since 24h
      tallyman audit usage
      tallyman audit usage --meter server.hours --from 2026-10 --to 2026-11 --source archive
    """


@click.command()
@click.option("--meter", "meters", multiple=True, metavar="METER", help="Only this meter; repeatable.")
@click.option("--from", "from_", metavar="WHEN", help="Only usage from here on: 2026-10-01, 2026-10, or an age.")
@click.option("--to", metavar="WHEN", help="Only usage before.")
@click.option("--source", type=click.Choice(["log", "archive"]), metavar="log|archive",
              help="Count again from Kafka or the raw archive.  [default: archive if it is on]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def usage(options: Options, meters: tuple[str, ...], from_: str | None, to: str | None, source: str | None,
          as_json: bool) -> None:  # fmt: skip
    """Count usage again, and compare every row of it with the books.

    Exit code 0: equal. 1: different, with a table of differences and the offsets where the first one comes from.
    3: equal as far as could be checked; it says what could not, and from which offset on it could.

    \b
    Examples:
      tallyman audit usage --from 7d
      tallyman audit usage --meter server.hours --from 2026-10 --to 2026-11 --source archive --json
    """
    from tallyman.cli.times import parse_moment

    project = options.load()
    now = datetime.now(UTC)
    question = load_room("pipeline.audit:AuditQuestion")(
        meters=meters,
        start=parse_moment("--from", from_, "UTC", now) if from_ else None,
        end=parse_moment("--to", to, "UTC", now) if to else None,
        source=source or ("archive" if project.config.pipeline.archive else "log"),
    )
    line = progress_line("audit")
    show = lambda what, done, of: line(f"{what}, {done:,} of {of:,} chunks")  # noqa: E731
    with clickhouse(project):  # what ClickHouse refuses is a sentence
        report = load_room("pipeline.audit:audit_usage")(project, question, show)
    line("done", done=True)
    if as_json:
        print_json(_document(report))
    else:
        _print(report)
    leave(DIFFERENT if report.different else UNCHECKED if report.unchecked else EQUAL)


def _print(report: Any) -> None:
    if report.meters:
        print_table(
            ["meter", "rows", "events booked", "events counted again", "different rows"],
            [[each.meter, each.rows, each.booked_events, each.recounted_events, each.different]
             for each in report.meters],
        )  # fmt: skip
    if report.differences:
        result()
        print_table(["meter", "subject", "dimensions", "minute", "booking", "booked", "counted again"],
                    [difference_row(each) for each in report.differences])  # fmt: skip
        _print_first(report)
    if report.chunks:
        result()
        print_table(["offsets", "what", "booked", "counted again"],
                    [[_span(each.span), each.what, each.booked, each.recounted]
                     for each in report.chunks[:_SHOWN]])  # fmt: skip
    _print_derived(report)
    if report.unchecked:
        result()
        print_table(["not checked", "bookings", "because"],
                    [[_span(each.span), f"{each.bookings[0]} to {each.bookings[1]}", each.reason]
                     for each in report.unchecked])  # fmt: skip
        for (topic, partition), offset in sorted(report.reach.items()):
            say(f"{topic}, partition {partition}: checked from offset {offset} on")
    for generation in report.rebuilt:
        say(f"this is about what was booked; generation {generation} counts in this range instead of some of it, to "
            f"prove that: tallyman rebuild check {generation}")  # fmt: skip
    checked = f"{count(report.checked_events, 'event')} in {count(report.checked_chunks, 'chunk')}"
    checked += f" of the {report.source}"
    if report.different:
        say(f"different: {count(report.different, 'difference')}; counted again {checked}")
    elif report.unchecked:
        say(f"equal as far as could be checked: {checked}")
    else:
        say(f"equal: {checked}")


def _print_derived(report: Any) -> None:
    """Show where blocks and seals do not say what sealed usage holds, and say what to do."""
    if report.seals:
        result()
        print_table(["sealed booking", "its seal says", "it holds"],
                    [[each.booking, _extent(each.sealed), _extent(each.held)]
                     for each in report.seals[:_SHOWN]])  # fmt: skip
        say("usage, or its seal, is not what was sealed: restore the database from a backup; see docs/operations.md, "
            '"When a part of a table is damaged"')  # fmt: skip
    if report.blocks:
        result()
        print_table(["blocks of booking", "hours", "meter", "definitions", "events", "in blocks", "what differs"],
                    [[each.booking, each.seconds / 3600, each.meter, each.definitions, each.events, each.in_blocks,
                      ", ".join(each.differs)] for each in report.blocks[:_SHOWN]])  # fmt: skip
        say("blocks are not what the minutes of their booking are, and long ranges are read from them. If nothing else "
            "is different, throw the blocks away, and they are made anew: see docs/operations.md, "
            '"Backups"')  # fmt: skip



def _extent(extent: Any) -> str:
    if extent is None:
        return "nothing"
    minutes = f"{extent.first_minute:%Y-%m-%d %H:%M} to {extent.last_minute:%Y-%m-%d %H:%M}Z"
    return f"{count(extent.rows, 'row')}, {count(extent.events, 'event')}, {minutes}"


def _print_first(report: Any) -> None:
    """Say where the first difference comes from."""
    result()
    if not any(each.offsets for each in report.first):
        result("No record counts for the first one. Its booking lies in:")
        for each in report.first:
            result(f"  {each.topic}, partition {each.partition}, offsets {each.first} to {each.last}")
        return
    result("The first one comes from:")
    for each in report.first:
        offsets = ", ".join(map(str, each.offsets[:_SHOWN])) + (", ..." if len(each.offsets) > _SHOWN else "")
        result(f"  {each.topic}, partition {each.partition}, offset {offsets}")


def difference_row(difference: Any) -> list[object]:
    minute = difference.minute.strftime("%Y-%m-%d %H:%MZ")
    labels = difference.dimensions + (f" {difference.item}" if difference.item else "")
    both = (_figures(side, difference.differs) for side in (difference.booked, difference.recounted))
    return [difference.meter, difference.subject, labels, minute, difference.booking, *both]


def _figures(figures: Any, differs: Sequence[str]) -> str:
    """Say what a side has: events and value, and whatever else differs."""
    from tallyman.cli.output import plain

    if figures is None:
        return "nothing"
    words = [count(figures.count, "event"), plain(figures.value)]
    rest = [name for name in differs if name not in ("count", "sum", "min", "max", "latest")]
    return ", ".join(words + [f"{name} {getattr(figures, name)}" for name in rest])


def _span(span: Any) -> str:
    return f"{span.topic}, partition {span.partition}, offsets {span.first} to {span.last}"


def _document(report: Any) -> dict[str, object]:
    """Return a report as `--json` prints it; its fields are a contract."""
    return {
        "equal": not report.different,
        "complete": not report.unchecked,
        "source": report.source,
        "generation": 0,
        "rebuilt": report.rebuilt,
        "checked": {"events": report.checked_events, "chunks": report.checked_chunks},
        "meters": [asdict(each) for each in report.meters],
        "differences": [
            {**asdict(each), "differs": each.differs, "booked": _side(each.booked), "recounted": _side(each.recounted)}
            for each in report.differences
        ],
        "first_difference_from": [asdict(each) for each in report.first],
        "chunks": [asdict(each) for each in report.chunks],
        "blocks": [asdict(each) for each in report.blocks],
        "seals": [asdict(each) for each in report.seals],
        "unchecked": [asdict(each) for each in report.unchecked],
        "checked_from": [
            {"topic": topic, "partition": partition, "offset": offset}
            for (topic, partition), offset in sorted(report.reach.items())
        ],
    }


def _side(figures: Any) -> dict[str, object] | None:
    """Return one side's figures; what may leave 64 bits are texts."""
    if figures is None:
        return None
    wide = ("sum", "min", "max", "latest")
    return {name: str(value) if name in wide else value for name, value in asdict(figures).items()} | {
        "value": figures.value
    }


@click.command()
@click.option("--by", type=click.Choice(["partition", "chunk"]), default="partition", show_default=True,
              help="One row for each.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every chunk.")
@project_options
def counts(options: Options, by: str, as_json: bool) -> None:
    """Reconcile what became of every event that was received.

    received = aggregated + duplicate + dead + ignored + forwarded, in every chunk of every partition, and every dead
    letter and conflict that was counted is there. Exit code 1 if something does not reconcile. Offsets that a repair
    skipped, or that were not copied from behind the end of a topic, were never received; they are named.

    \b
    Examples:
      tallyman audit counts
      tallyman audit counts --by chunk
    """
    from tallyman.reconcile import read_counts
    from tallyman.repairs import read_lost, read_repairs

    with clickhouse(options.load()) as client:
        chunks, repairs = read_counts(client), (*read_repairs(client), *read_lost(client))
    faulty = [chunk for chunk in chunks if chunk.faults]
    if as_json:
        print_json({"reconciles": not faulty, "chunks": [asdict(each) | {"faults": each.faults} for each in chunks],
                    "repaired": [repair_object(each) for each in repairs]})  # fmt: skip
        leave(DIFFERENT if faulty else EQUAL)
    if by == "chunk":
        rows = [[each.topic_id, each.partition, each.chunk, each.first, each.behind,
                 *(getattr(each, name) for name in _OUTCOMES)] for each in chunks]  # fmt: skip
        _print_counts(["topic", "partition", "chunk", "from", "to", *_OUTCOMES], rows)
    else:
        _print_counts(["topic", "partition", "up to", *_OUTCOMES], list(_by_partition(chunks)))
    for chunk in faulty:
        for fault in chunk.faults:
            result(f"partition {chunk.partition}, offsets {chunk.first} to {chunk.behind - 1}: {fault}")
    for repair in repairs:
        say(gap_line(repair))
    if any(chunk.conflict for chunk in chunks):
        say("copies with other content than what counts: tallyman audit conflicts")
    if faulty:
        say(f"does not reconcile: {count(len(faulty), 'chunk')}; see which rows differ: tallyman audit usage")
    else:
        say(f"reconciles: {count(sum(each.received for each in chunks), 'event')} received, each has one outcome")
    leave(DIFFERENT if faulty else EQUAL)


def _print_counts(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print the columns that tell something, so that they fit a terminal; of the others only the names."""
    column = dict(zip(header, zip(*rows, strict=True), strict=False))
    zeros = [name for name in _OUTCOMES[2:7] if not any(column.get(name, ()))]
    left_out = {*zeros, *(name for name, as_counted in _ROWS_OF.items() if column.get(name) == column.get(as_counted))}
    if len({*column.get("topic", ())}) == 1:
        left_out.add("topic")
    places = [place for place, name in enumerate(header) if name not in left_out]
    print_table([header[place] for place in places], [[row[place] for place in places] for row in rows])
    if zeros:
        say(f"0 everywhere: {', '.join(zeros)}")


def _by_partition(chunks: Iterable[ChunkCounts]) -> Iterable[list[object]]:
    groups: dict[tuple[str, int], list[ChunkCounts]] = {}
    for chunk in chunks:
        groups.setdefault((chunk.topic_id, chunk.partition), []).append(chunk)
    for (topic_id, partition), mine in groups.items():
        sums = [sum(getattr(each, name) for each in mine) for name in _OUTCOMES]
        yield [topic_id, partition, max(each.behind for each in mine), *sums]
