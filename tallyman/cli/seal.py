"""`tallyman seal`: seal what can be sealed, and say what the rest waits for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from tallyman.cli.context import Options, clickhouse, load_room, project_options
from tallyman.cli.output import count, print_json, print_table, progress_line, result, say, show_time
from tallyman.cli.services import stopped_by_signals


@click.command()
@click.option("--preview", is_flag=True, help="Only say what could be sealed.")
@click.option("--watch", is_flag=True, help="Go on sealing, until stopped.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, one object a line.")
@project_options
def seal(options: Options, preview: bool, watch: bool, as_json: bool) -> None:
    """Seal the bookings that every partition has left, and say what the others wait for.

    The pipeline does the same beside its work; any number of sealers may run. To end the open booking: tallyman close.

    \b
    Examples:
      tallyman seal
      tallyman seal --preview --json
      tallyman seal --watch
    """
    if preview and watch:
        raise click.UsageError("--preview, --watch: expected one of them, got both")
    project = options.load()
    with clickhouse(project):  # what ClickHouse refuses is a sentence
        desk = load_room("pipeline.sealing:SealDesk")(project)
        try:
            if watch:
                with stopped_by_signals() as stop:
                    for report in desk.watch(stop):
                        click.echo(json.dumps(_document(report))) if as_json else _print(report)
                return
            if preview:
                report = desk.look()
            else:
                shown = progress_line("seal")
                report = desk.seal(shown)
                shown("done", done=True)
        finally:
            desk.close()
    if as_json:
        print_json(_document(report))
    else:
        _print(report)


def _print(report: Any) -> None:
    for each in report.sealed:
        result(f"sealed booking {each.booking}: {count(each.rows, 'row')}, {count(each.events, 'event')}")
    if report.unsealed:
        print_table(["not sealed", "rows", "events", "because"],
                    [[each.booking, each.rows, each.events, _because(each)] for each in report.unsealed])  # fmt: skip
    say(f"sealed up to booking {report.sealed_to}" if report.sealed_to else "nothing is sealed yet")


def _because(unsealed: Any) -> str:
    if not unsealed.laggards:
        return "it can be sealed now: tallyman seal"
    behind = [each for each in unsealed.laggards if each.behind]
    if behind:
        worst = max(behind, key=lambda each: each.behind)
        return (
            f"partition {worst.partition} is booked up to offset {worst.offset}, {count(worst.behind, 'record')} behind"
            + _more(behind) + "; does the pipeline run?"
        )  # fmt: skip
    oldest = min(unsealed.laggards, key=lambda each: each.clock_ms)
    if not oldest.clock_ms:
        return f"nothing is booked of partition {oldest.partition}{_more(unsealed.laggards)}"
    clock = datetime.fromtimestamp(oldest.clock_ms / 1000, UTC)
    return (
        f"the log of partition {oldest.partition} stands at {show_time(clock, UTC)}{_more(unsealed.laggards)}; "
        "it ends at midnight UTC, or now: tallyman close"
    )


def _more(laggards: Any) -> str:
    return f" (and {len(laggards) - 1} more)" if len(laggards) > 1 else ""


def _document(report: Any) -> dict[str, object]:
    """Return a report as `--json` prints it; its fields are a contract."""
    return {
        "sealed": [{"booking": each.booking, "rows": each.rows, "events": each.events} for each in report.sealed],
        "sealed_to": report.sealed_to or None,
        "unsealed": [
            {
                "booking": each.booking,
                "rows": each.rows,
                "events": each.events,
                "waits_for": [
                    {"partition": lag.partition, "offset": lag.offset, "behind": lag.behind, "booking": lag.booking}
                    for lag in each.laggards
                ],
            }
            for each in report.unsealed
        ],
    }
