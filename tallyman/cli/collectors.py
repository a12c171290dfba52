"""`tallyman collectors`: who sends, how far each has sent, and what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.context import LazyGroup, Options, clickhouse, project_options
from tallyman.cli.output import print_json, print_table, result, say, show_time
from tallyman.terminal import one_line

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from tallyman.usage import CollectorSeen, Gap

_COMMANDS = {"list": "tallyman.cli.collectors:list_", "retire": "tallyman.cli.collectors:retire"}


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
@project_options
def collectors(options: Options) -> None:
    """See who sends, how far each has sent, and what did not come.

    \b
    Examples:
      tallyman collectors list
      tallyman collectors retire node-17
    """


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def list_(options: Options, as_json: bool) -> None:
    """List the collectors whose numbered batches were booked, and what is missing of them.

    A collector is silent when the log went on for 30 seconds (three heartbeats) without it; then usage is complete only
    as far as it said. It is retired by hand, or after seven days of silence, and holds nothing back any more. Missing
    are numbers that did not come; if they come later, they are missing no more.

    \b
    Example:
      tallyman collectors list
    """
    from tallyman.heard import read_gaps

    with clickhouse(options.load()) as client:
        found = _read(client)
        gaps = read_gaps(client)
    missing: dict[str, list[Gap]] = {each.name: [] for each in found}
    for gap in gaps:
        missing.setdefault(gap.collector, []).append(gap)
    if as_json:
        print_json([_document(each, missing[each.name]) for each in found])
        return
    if not found:
        say("no collector was heard yet")
        return
    header = ["collector", "state", "watermark", "last heard", "missing batches", "possible gaps"]
    print_table(header, [
        [each.name, each.state, None if each.watermark is None else show_time(each.watermark, UTC),
         show_time(each.last_heard, UTC), _missing(missing[each.name]),
         sum(gap.last is None for gap in missing[each.name])]
        for each in found
    ])  # fmt: skip
    for gap in gaps:
        result(gap_text(gap, UTC))
    silent = next((each for each in found if each.state == "silent"), None)
    if silent is not None:
        name = one_line(silent.name)
        say(f"Next: start the agent of {name} again, or: {shlex.join(['tallyman', 'collectors', 'retire', name])}")


@click.command()
@click.argument("name")
@project_options
def retire(options: Options, name: str) -> None:
    """Say that the collector NAME will not come back: it holds nothing back any more.

    Only one that is silent can be retired. If it is heard again all the same, it lives. Running this twice changes
    nothing.

    \b
    Example:
      tallyman collectors retire node-17
    """
    from tallyman.heard import retire as write

    with clickhouse(options.load()) as client:
        found = write(client, _read(client), name)
    result(f"{found.name} is retired; it was last heard at {show_time(found.last_heard, UTC)}")


def _read(client: Client) -> Sequence[CollectorSeen]:
    from tallyman.completeness import clocks_of, read_completeness
    from tallyman.heard import read_collectors

    return read_collectors(client, clocks_of(read_completeness(client)))


def _missing(gaps: Sequence[Gap]) -> int:
    return sum(gap.last - gap.first + 1 for gap in gaps if gap.last is not None)


def _document(found: CollectorSeen, gaps: Sequence[Gap]) -> dict[str, Any]:
    return {
        "collector": found.name,
        "state": found.state,
        "watermark": found.watermark,
        "last_heard": found.last_heard,
        "epoch": found.epoch,
        "sequence": found.sequence,
        "epochs": found.epochs,
        "missing_batches": _missing(gaps),
        "gaps": [gap_as_object(gap) for gap in gaps],
    }


def held_as_object(held: CollectorSeen) -> dict[str, object]:
    """Return a collector that holds usage back, as `--json` prints it."""
    return {"collector": held.name, "watermark": held.watermark, "silent_since": held.last_heard}


def behind_as_object(behind: CollectorSeen) -> dict[str, object]:
    """Return a collector that still sends what it kept, as `--json` prints it."""
    return {"collector": behind.name, "watermark": behind.watermark}


def gap_as_object(gap: Gap) -> dict[str, object]:
    """Return what is missing, as `--json` prints it."""
    return {
        "collector": gap.collector,
        "epoch": gap.epoch,
        "kind": "possible" if gap.last is None else "missing",
        "first": gap.first,
        "last": gap.last,
        "from": gap.start,
        "to": gap.end,
    }


def held_text(held: CollectorSeen, zone: Any) -> str:
    """Name a collector that holds usage back, and since when."""
    return f"{one_line(held.name)}, silent since {show_time(held.last_heard, zone)}"


def behind_text(behind: CollectorSeen, zone: Any) -> str:
    """Name a collector that still sends what it kept, and how far it has come."""
    return f"{one_line(behind.name)} still sends what it kept, so far up to {show_time(behind.watermark, zone)}"


def gap_text(gap: Gap, zone: Any) -> str:
    """Say what is missing, and when it was used."""
    name = one_line(gap.collector)
    when = f"usage between {show_time(gap.start, zone)} and {show_time(gap.end, zone)}"
    if gap.last is None:
        return f"perhaps missing: batches of {name} from {gap.first} on, before its spool was made anew ({when})"
    numbers = f"batch {gap.first}" if gap.first == gap.last else f"batches {gap.first} to {gap.last}"
    return f"missing: {numbers} of {name} ({when})"
