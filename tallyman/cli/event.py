"""`tallyman event`: what one event counts as, its history, and how it is taken back or amended."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tallyman.cli.context import LazyGroup, Options, clickhouse, leave, load_room, project_options
from tallyman.cli.output import print_json, print_table, progress_line, result, say, show_time

if TYPE_CHECKING:
    from tallyman.corrections import History
    from tallyman.project import Project

Function = TypeVar("Function", bound=Callable[..., Any])
_COMMANDS = {
    "history": "tallyman.cli.event:history",
    "void": "tallyman.cli.event:void",
    "amend": "tallyman.cli.event:amend",
}


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
@project_options
def event(options: Options) -> None:
    """Look at one event that was counted, take it back, or put it right.

    An event is named by its tenant (SUBJECT), its SOURCE and its ID. A correction goes through Kafka like any usage and
    is booked today, with the event's own minute: closed books stay as they are, and both stay visible.

    \b
    Examples:
      tallyman event history tenant-zoe nova/berlin-1 e-17
      tallyman event void tenant-zoe nova/berlin-1 e-17 --reason "test machine" --yes
      tallyman event amend tenant-zoe nova/berlin-1 e-17 --set data.value=12.5 --reason "wrong flavor" --yes
    """


def _naming(function: Function) -> Function:
    for argument in ("event_id", "source", "subject"):
        name = "ID" if argument == "event_id" else argument.upper()
        function = click.argument(argument, metavar=name)(function)
    return function


def _doing(function: Function) -> Function:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--wait", is_flag=True, help="Wait until the correction is counted."),
        click.option("--yes", is_flag=True, help="Do it; else only say what would be done."),
        click.option("--reason", required=True, metavar="TEXT", help="Why; it stays with the correction."),
    ):
        function = option(function)
    return function


@click.command()
@_naming
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def history(options: Options, subject: str, source: str, event_id: str, as_json: bool) -> None:
    """Show what an event counts as, and every correction of it.

    \b
    Example:
      tallyman event history tenant-zoe nova/berlin-1 e-17
    """
    from tallyman.corrections import read_history

    project = options.load()
    with clickhouse(project) as client:
        found = read_history(project, client, subject, source, event_id)
    if as_json:
        print_json(_document(found))
        return
    rows = [[version.number, show_time(version.at, UTC) if version.at else None, version.booking or None,
             version.position, version.reason or None, version.text.decode() or "void"]
            for version in found.versions]  # fmt: skip
    print_table(["version", "since", "booking", "position", "reason", "counts as"], rows)


@click.command()
@_naming
@_doing
@project_options
def void(options: Options, subject: str, source: str, event_id: str, **wishes: Any) -> None:
    """Take an event back: it counts for nothing from now on. Without --yes only say what would be done.

    \b
    Example:
      tallyman event void tenant-zoe nova/berlin-1 e-17 --reason "test machine" --yes --wait
    """
    _correct(options.load(), (subject, source, event_id), None, wishes)


@click.command()
@_naming
@click.option("--set", "changes", multiple=True, required=True, metavar="FIELD=VALUE",
              help="What was wrong: data.value=12.5, time=2026-10-01T00:00:00Z.")  # fmt: skip
@_doing
@project_options
def amend(
    options: Options, subject: str, source: str, event_id: str, changes: tuple[str, ...], **wishes: Any
) -> None:
    """Put an event right: what it counted for is taken back, and it counts anew. Without --yes only say what would
    be done. A voided event comes back this way too. What would be a dead letter is refused, with exit code 3.

    \b
    Example:
      tallyman event amend tenant-zoe nova/berlin-1 e-17 --set data.value=12.5 --reason "wrong flavor" --yes
    """
    from tallyman.mend import parse_changes

    _correct(options.load(), (subject, source, event_id), parse_changes(changes), wishes)


def _correct(
    project: Project, names: tuple[str, str, str], changes: dict[str, bytes] | None, wishes: dict[str, Any]
) -> None:
    from tallyman import corrections
    from tallyman.errors import EventError, UsageQueryError
    from tallyman.send import wait_for

    with clickhouse(project) as client:
        found = corrections.read_history(project, client, *names)
        load_room("pipeline.rebuilt:refuse_rebuilt")(project, client, found.now.text, found.now.booking)
    try:
        now = b"" if changes is None else corrections.amended(found, changes)
    except EventError as error:
        raise UsageQueryError(f"--set: {error.detail}") from error
    corrections.refuse_same(found, now)
    dead = _foresee(project, found, now)
    document: dict[str, Any] = {"was": found.now.text.decode(), "now": now.decode(), "done": wishes["yes"] and not dead,
                                "refused": dead or None}  # fmt: skip
    if not wishes["as_json"]:
        say(f"was: {document['was'] or 'void'}")
        say(f"now: {document['now'] or 'void'}")
    if dead:
        if wishes["as_json"]:
            print_json(document)
        say(f"it would be a dead letter, {dead}; nothing was sent")
        leave(3)
    fate, outrun = None, ""
    if wishes["yes"]:
        with clickhouse(project) as client:
            sent = corrections.correct(project, client, found, now, wishes["reason"])
        if wishes["wait"]:
            waiting = progress_line("counting")
            fate = wait_for(project, sent, on_progress=lambda left: waiting(f"{left:,} records to go"))
            waiting("done", done=True)
            document |= {"aggregated": fate.aggregated, "duplicate": fate.duplicate, "dead": fate.dead}
            if not fate.aggregated and not fate.dead:
                outrun = _outrun(project, found, now)
                document |= {"done": not outrun, "refused": outrun or None}
    if wishes["as_json"]:
        print_json(document)
    elif fate is not None:
        result(f"{fate.aggregated} aggregated, {fate.duplicate} duplicate, {fate.dead} dead")
        if outrun:
            say(f"it does not count: {outrun}")
        if fate.dead:
            say("see why: tallyman dead list")
    elif wishes["yes"]:
        result("1 sent")
    else:
        say("nothing was sent. To do it, add --yes")
    leave(3 if outrun or (fate is not None and fate.dead) else 0)


def _outrun(project: Project, found: History, now: bytes) -> str:
    """Say why a correction that was judged a copy does not count; nothing if the event counts as was asked."""
    from tallyman import corrections

    names = found.subject, found.source, found.id
    with clickhouse(project) as client:
        newest = corrections.read_history(project, client, *names).now
    if newest.text == now:
        return ""
    look = shlex.join(["tallyman", "event", "history", *names])
    return f"the event was corrected by somebody else meanwhile; see {look}"


def _foresee(project: Project, found: History, now: bytes) -> str:
    """Say why a correction would be a dead letter under the definitions in force; nothing if it would not."""
    from tallyman.errors import EventError
    from tallyman.in_force import definitions_in_force, definitions_numbered

    definitions = definitions_in_force(project)
    then = definitions_numbered(project, found.definitions) if found.definitions else None
    try:
        load_room("pipeline.corrections:refuse_dead")(found.now.text, now, found.now.number + 1, definitions, then)
    except EventError as error:
        return f"{error.reason}: {error.detail}"
    return ""


def _document(found: History) -> dict[str, object]:
    return {
        "subject": found.subject,
        "source": found.source,
        "id": found.id,
        "versions": [
            {"version": version.number, "since": version.at, "booking": version.booking or None,
             "position": version.position, "reason": version.reason or None, "counts_as": version.text.decode() or None}
            for version in found.versions
        ],
    }  # fmt: skip
