"""`tallyman close` and `tallyman apply`: end a booking now; put new meter definitions in force now."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING

import click

from tallyman.cli.context import Options, clickhouse, load_room, project_options
from tallyman.cli.output import print_json, print_table, progress_line, result, say

if TYPE_CHECKING:
    from tallyman.meter import Definitions
    from tallyman.project import Project


@click.command()
@click.option("--preview", is_flag=True, help="Only say what would be closed.")
@click.option("--no-wait", is_flag=True, help="Return when the close is written, without waiting for the seal.")
@click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True, metavar="SECONDS",
              help="Wait at most so long for the seal.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def close(options: Options, preview: bool, no_wait: bool, timeout: float, as_json: bool) -> None:
    """End the open booking now, and have it sealed.

    Bookings end at midnight UTC by themselves; this is for when somebody cannot wait. What arrives later is booked
    later, with its own minute on it.

    \b
    Examples:
      tallyman close --preview
      tallyman close && tallyman invoice run --month 2026-10
    """
    project = options.load()
    if preview:
        _preview_close(project, as_json)
        return
    report = load_room("pipeline.close:close_books")(project)
    closed = report.booking - 1
    say(f"closed: booking {report.booking} is open now")
    sealed_to = None
    if not no_wait:
        show = progress_line("sealing")
        wait = load_room("pipeline.close:wait_until_sealed")
        sealed_to = wait(project, closed, timeout_s=timeout, on_wait=lambda sealed: show(f"up to booking {sealed}"))
        show(f"up to booking {sealed_to}", done=True)
    if as_json:
        print_json({"booking": report.booking, "definitions": report.definitions, "sealed_to": sealed_to})
    elif sealed_to is not None:
        result(f"sealed up to booking {sealed_to}")
    else:
        result(f"booking {report.booking}")


def _preview_close(project: Project, as_json: bool) -> None:
    """Show what is booked and not sealed: all of it would be, when every partition is booked up to the close."""
    with clickhouse(project):  # what ClickHouse refuses is a sentence
        desk = load_room("pipeline.sealing:SealDesk")(project)
        try:
            report = desk.look()
        finally:
            desk.close()
    waiting = [{"booking": each.booking, "rows": each.rows, "events": each.events} for each in report.unsealed]
    if as_json:
        print_json({"would_seal": waiting, "sealed_to": report.sealed_to or None})
        return
    if waiting:
        print_table(["would be sealed", "rows", "events"], [list(each.values()) for each in waiting])
    else:
        result("nothing is booked that is not sealed; what comes until the close would be")
    say("nothing was closed. To do it: tallyman close")


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def apply(options: Options, yes: bool, as_json: bool) -> None:
    """Put changed meter definitions in force now.

    They hold for usage that arrives from here on. Shows what changes first. What is booked stays as it was booked.

    \b
    Example:
      tallyman check && tallyman apply
    """
    project = options.load()
    before, after = load_room("pipeline.close:pending_definitions")(project)
    changes = difference(before, after)
    if not changes:
        say("nothing to apply: the definitions in force are those of the project")
        if as_json:
            print_json({"applied": False, "definitions": before.number if before else None, "booking": None})
        return
    for line in (*changes, *forgotten(before, after)):
        say(line)
    if not yes and not _agreed():
        raise click.Abort
    report = load_room("pipeline.close:apply_definitions")(project)
    if as_json:
        print_json(
            {
                "applied": report is not None,
                "definitions": report.definitions if report else None,
                "booking": report.booking if report else None,
            }
        )
    elif report is not None:
        result(f"definitions {report.definitions} are in force from booking {report.booking}")
    else:
        say("somebody else has applied them meanwhile")


def _agreed() -> bool:
    """Ask the person who typed the command.

    Raises:
        UsageError: There is none.
    """
    try:
        return click.confirm("Put these definitions in force now?", err=True)
    except click.Abort as error:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("nobody answered; to apply without being asked: tallyman apply --yes") from error


def difference(before: Definitions | None, after: Definitions) -> list[str]:
    """Return what changes between two definitions, as lines of a diff; nothing when they mean the same."""
    lines = difflib.unified_diff(_lines(before), _lines(after), "in force", "project", lineterm="", n=2)
    return list(lines)


def forgotten(before: Definitions | None, after: Definitions) -> list[str]:
    """Say of which meters the past is not in later figures, because another aggregation kept it."""
    from tallyman.figures import can_read

    booked = {meter.meter: meter.aggregation for meter in before.meters} if before else {}
    return [
        f"{meter.meter}: what was booked as {booked[meter.meter]} is not known as {meter.aggregation}, so figures of a "
        "range that has both leave it out from now on; to keep it, give the new meter another name, or afterwards "
        f"count the past again: tallyman rebuild --meter {meter.meter} --from WHEN --to WHEN"
        for meter in after.meters
        if meter.meter in booked and not can_read(meter.aggregation, booked[meter.meter])
    ]


def _lines(definitions: Definitions | None) -> list[str]:
    import msgspec

    from tallyman.files import write_duration

    if definitions is None:
        return []
    lines = [
        f"oldest_accepted: {write_duration(definitions.oldest_accepted)}",
        f"furthest_ahead: {write_duration(definitions.furthest_ahead)}",
        f"ignore: {', '.join(definitions.ignore)}",
    ]
    for meter in sorted(definitions.meters, key=lambda each: each.meter):
        plain = msgspec.to_builtins(meter)
        lines += [f"meter {meter.meter}", *(f"  {name}: {plain[name]}" for name in plain if name != "meter")]
    return lines
