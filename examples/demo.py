"""Run all of Tallyman once, on this machine: `make demo`.

The host agent measures this very machine, an alarm on it fires and resolves; a month of a small cloud goes through
Kafka, is counted, closed, sealed and invoiced. It ends well only if every total equals the generator's own sum.
"""

from __future__ import annotations

import argparse
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from examples import live, month, stage
from examples.cloud.inventory import previous_month
from examples.compare import read_expected
from examples.display import Display
from examples.report.page import write_page
from examples.report.story import Story
from examples.show import show_story
from rules.receiver import Received, Receiver, describe
from tallyman import log
from tallyman.errors import TallymanError
from tallyman.local.stack import Stack
from tallyman.local.supervise import ChildEvent
from tallyman.project import Project

STOPPED_BY_HAND = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 only if all of it happened."""
    options = _options(arguments)
    console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 140)
    display = Display(console)
    signal.signal(signal.SIGTERM, _interrupt)
    began_s = time.monotonic()
    try:
        with display.running():
            story = run_demo(display, options.out.absolute(), options.month, options.days)
        show_story(console, story)
        _say_where(console, options.out, time.monotonic() - began_s)
    except KeyboardInterrupt:
        console.print("[yellow]stopped by hand; everything that was started is stopped[/]")
        return STOPPED_BY_HAND
    except (TallymanError, OSError) as error:
        console.print(f"[bold red]the demo failed:[/] {escape(str(error))}", highlight=False)
        console.print(f"logs: {options.out}/data/logs, {options.out}/data/kafka/logs", highlight=False)
        return 1
    return 0


def run_demo(display: Display, folder: Path, of_month: str, days: int | None) -> Story:
    """Run every step in order, and stop whatever was started, come what may."""
    with display.step("prepare", "stop and remove what an earlier run left") as step:
        stage.clear_folder(folder)
        step.said(f"an empty {folder.name}/")
    log.setup(stream=(folder / "demo.log").open("a", encoding="utf-8"))  # the terminal shows what it means
    now = datetime.now().astimezone()
    story = Story(month=month.span_of(of_month), operator="", started=now, host=platform.node() or "a host")
    receiver = Receiver(stage.demo_secrets(), on_message=lambda message: _tell_webhook(display, message))
    generator = stage.start_generator(folder, of_month, days)
    stack: Stack | None = None
    try:
        project = stage.copy_project(folder, receiver.port)
        story.operator = project.config.operator
        stack = _start_stack(display, project)
        with live.Watch(project, live.find_rule(project)) as watch:
            live.wait_for_usage(display, project, story)
            minute_ends_s = live.raise_alarm(display, project, receiver)
            _run_month(display, project, generator, story)
            live.wait_until_resolved(display, project, receiver, minute_ends_s)
        with display.step("read back", "what the page shows") as step:
            live.tell_alarms(project, story, watch, receiver)
            story.host_usage = live.read_host_usage(project)
            story.charts = month.read_charts(project, of_month, month.read_tenants(project))
            step.said(f"{len(story.alarms)} alarm steps, {len(story.charts)} charts")
    finally:
        with display.step("stop", "everything that was started") as step:
            _end(generator)
            if stack:
                stack.stop()
            receiver.close()
            step.said("nothing is left running")
    story.steps = display.steps
    write_page(folder, story)
    return story


def _start_stack(display: Display, project: Project) -> Stack:
    """Start Kafka, ClickHouse and the three services, saying how each comes up."""
    with display.step("start", "Kafka, ClickHouse, pipeline, rules, agent") as step:
        ready: list[str] = []

        def watch(event: ChildEvent) -> None:
            if event.what == "ready":
                ready.append(f"{event.name} {event.detail}")
            _tell_part(display, event)

        stack = stage.make_stack(project, watch)
        stack.start()
        step.said(f"each its own process: {', '.join(ready)}")
    return stack


def _run_month(display: Display, project: Project, generator: subprocess.Popen[str], story: Story) -> None:
    """Send, count, close, send what is late, compare, invoice."""
    month.wait_for_generator(display, generator)
    folder = project.data.parent / "month"
    expected = read_expected(folder / "expected.json")
    tenants = month.read_tenants(project)
    reports = month.send_files(
        display, project, "send", [(folder / "usage.ndjson", False), (folder / "single.ndjson", True)]
    )
    counted = month.wait_until_counted(display, project, "count", reports)
    month.close_and_seal(display, project, "close")
    reports = month.send_files(display, project, "send late", [(folder / "late.ndjson", False)])
    late = month.wait_until_counted(display, project, "count late", reports)
    month.refuse_counts(expected, counted, late)
    story.counts |= {
        "lines sent": expected.counts["lines"],
        "events counted once": counted.aggregated + late.aggregated,
        "duplicates set aside": counted.duplicate + late.duplicate,
        "late, in the next booking": late.aggregated,
        "dead letters": counted.dead + late.dead,
    }
    month.compare_totals(display, project, story, expected, tenants)
    month.write_invoices(display, project, story, expected, tenants)


def _tell_part(display: Display, event: ChildEvent) -> None:
    if event.what in ("ended", "crash_loop"):
        display.note(f"[yellow]{event.name} {event.what}[/] {escape(event.detail)}")
    else:
        display.tell(f"{event.name} {event.what} {event.detail}")


def _tell_webhook(display: Display, message: Received) -> None:
    display.note(f"[magenta]webhook[/] {escape(describe(message))} [dim]{message.message_id}, signature verified[/]")


def _end(generator: subprocess.Popen[str]) -> None:
    if generator.poll() is None:
        generator.terminate()
        generator.wait(timeout=10)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say_where(console: Console, out: Path, took_s: float) -> None:
    """Print the paths of what was left, the page first."""
    console.print(f"\n[bold green]All of it happened, and every total is the generator's, in {took_s:.0f} s.[/]")
    for path, what in (
        (out / "index.html", "open this first: charts, alarms, invoices"),
        (out / "data" / "invoices", "the invoices, HTML and JSON"),
        (out / "project", "the project: meters, alarms, plans, accounts"),
        (out / "month", "the generated events, and expected.json"),
        (out / "data" / "logs", "the logs of the services"),
    ):
        console.print(f"  {path}  [dim]{what}[/]", highlight=False, soft_wrap=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__.splitlines()[0])
    default = previous_month(datetime.now(UTC))
    parser.add_argument("--month", default=default, help="the month that is generated and invoiced (default: the last)")
    parser.add_argument("--days", type=int, help="generate only the first days of it")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
