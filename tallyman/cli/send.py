"""`tallyman send`: usage events from a file to Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tallyman.cli.context import Options, leave, project_options
from tallyman.cli.output import count, print_json, progress_line, result, say, size


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--wait", is_flag=True, help="Wait until all is counted, and say what became of it.")
@click.option("--single", is_flag=True, help="One Kafka record for each event, instead of up to 500.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def send(options: Options, file: Path, wait: bool, single: bool, as_json: bool) -> None:
    """Send a file of usage events to Kafka.

    CloudEvents as NDJSON or JSON, gzipped or not; - is standard input. Done when every line is acknowledged by every
    replica. May simply be run again: an event counts once.
    With --wait the exit code is 3 when something became a dead letter.

    \b
    Examples:
      tallyman send events.ndjson --wait
      zcat october.ndjson.gz | tallyman send -
    """
    from tallyman.send import send_file, wait_for

    project = options.load()
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
