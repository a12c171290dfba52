"""`tallyman send`: usage events from a file to Kafka."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.context import Options, clickhouse, leave, load_room, project_options
from tallyman.cli.output import count, print_json, print_table, progress_line, result, say, size

if TYPE_CHECKING:
    from tallyman.project import Project


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--wait", is_flag=True, help="Wait until all is counted, and say what became of it.")
@click.option("--single", is_flag=True, help="One Kafka record for each event, instead of up to 500.")
@click.option("--preview", is_flag=True, help="Send nothing: say what would become of it, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def send(options: Options, file: Path, wait: bool, single: bool, preview: bool, as_json: bool) -> None:
    """Send a file of usage events to Kafka.

    CloudEvents as NDJSON or JSON, gzipped or not; - is standard input. Done when every line is acknowledged by every
    replica. May simply be run again: an event counts once.
    With --wait the exit code is 3 when something became a dead letter, with --preview when something would.

    \b
    Examples:
      tallyman send last-month.ndjson --preview
      tallyman send events.ndjson --wait
      zcat october.ndjson.gz | tallyman send -
    """
    from tallyman.send import send_file, wait_for

    project = options.load()
    if preview:
        if wait:
            raise click.UsageError("--preview, --wait: expected one of them, got both")
        leave(_preview(project, file, as_json))
    show = progress_line("sending")

    def progress(done: int, total: int | None) -> None:
        show(size(done) + (f" of {size(total)}" if total else ""))

    report = send_file(project, file, progress, single=single)
    show(f"{report.events:,} events", done=True)
    document: dict[str, Any] = {"events": report.events, "records": report.records, "bytes": report.bytes,
                                "took_s": round(report.took_s, 3), "too_long_lines": list(report.too_long)}  # fmt: skip
    say(
        f"{file}: {count(report.events, 'event')} acknowledged in {count(report.records, 'record')}, "
        f"{size(report.bytes)} in {report.took_s:.1f} s"
    )
    if report.too_long:
        lines = ", ".join(map(str, report.too_long[:10]))
        say(f"{len(report.too_long)} lines are too long for any record and were not sent: {lines}")
    bad = len(report.too_long)
    if wait:
        waiting = progress_line("counting")
        outcome = wait_for(project, report, on_progress=lambda left: waiting(f"{left:,} records to go"))
        waiting("done", done=True)
        counts = {name: getattr(outcome, name) for name in ("aggregated", "duplicate", "dead", "ignored")}
        document.update(counts)
        bad += outcome.dead
        if not as_json:
            result(", ".join(f"{number:,} {name}" for name, number in counts.items()))
        if outcome.dead:
            say("Next: tallyman dead list")
    elif not as_json:
        result(f"{report.events:,} sent")
    if as_json:
        print_json(document)
    leave(3 if bad else 0)


def _preview(project: Project, file: Path, as_json: bool) -> int:
    """Say what a file would become; return the exit code."""
    show = progress_line("reading")
    with clickhouse(project):  # what ClickHouse refuses is a sentence
        told = load_room("pipeline.preview:preview_file")(
            project, file, datetime.now(UTC), lambda done, of: show(size(done) + (f" of {size(of)}" if of else ""))
        )
    show(f"{told.events:,} events", done=True)
    if as_json:
        print_json(asdict(told))
        return 3 if told.dead or told.too_long else 0
    if told.meters:
        print_table(["meter", "unit", "day (UTC)", "events", "total"],
                    [[each.meter, each.unit, each.day.isoformat(), each.events, each.total]
                     for each in told.meters])  # fmt: skip
    if told.letters:
        print_table(["dead letters", "events", "first", "because"],
                    [[each.reason, each.events, each.first, each.detail] for each in told.letters])  # fmt: skip
    counts = {name: getattr(told, name) for name in ("aggregated", "duplicate", "dead", "ignored")}
    result(", ".join(f"{number:,} {name}" for name, number in counts.items()))
    if told.conflict:
        say(f"{count(told.conflict, 'duplicate')} with other content than what was accepted: the first one counts")
    if any(each.reason == "too_old" for each in told.letters):
        say("too old: sent all the same, they are let in by: tallyman dead retry --reason too_old")
    if told.too_long:
        say(f"{count(len(told.too_long), 'line')} too long for any record: {', '.join(map(str, told.too_long[:10]))}")
    say(f"nothing was sent; judged by definitions {told.definitions} and this machine's clock")
    return 3 if told.dead or told.too_long else 0
