"""`tallyman dead`: what could not be accepted, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tallyman.cli.context import LazyGroup, Options, clickhouse, leave, project_options
from tallyman.cli.output import count, print_json, print_table, progress_line, result, say, show_time
from tallyman.terminal import one_line, printable

if TYPE_CHECKING:
    from tallyman.dead_actions import ActionReport
    from tallyman.dead_letters import DeadLetter, LetterChoice

Function = TypeVar("Function", bound=Callable[..., Any])
_COMMANDS = {
    "list": "tallyman.cli.dead:list_",
    "show": "tallyman.cli.dead:show",
    "retry": "tallyman.cli.dead:retry",
    "discard": "tallyman.cli.dead:discard",
}
_REFUSALS_SHOWN, _GROUPS_SHOWN = 5, 50
_FATES = ("aggregated", "duplicate", "dead", "ignored")


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
@project_options
def dead(options: Options) -> None:
    """Look at events that were not accepted, mend them, let them in again.

    Nothing is dropped in silence: each dead letter has a reason, its bytes and its position in the log.

    \b
    Examples:
      tallyman dead list --reason too_old
      tallyman dead show 3:18211:0
      tallyman dead retry --reason unknown_meter
      tallyman dead discard --source nova/test --yes
    """


def choice_options(function: Function) -> Function:
    """Give a command the options that choose dead letters."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="Also those that were retried or discarded."),
        click.option("--until", metavar="WHEN", help="Only those that arrived before."),
        click.option("--since", metavar="WHEN",
                     help="Only those that arrived since: 2026-10-01, or an age such as 24h."),
        click.option("--type", "type_", metavar="TYPE", help="Only events of this type."),
        click.option("--source", metavar="SOURCE", help="Only events of this source."),
        click.option("--reason", metavar="REASON", help="Only this reason, e.g. malformed, too_old, unknown_meter."),
    ):  # fmt: skip
        function = option(function)
    return function


def _choice(wishes: dict[str, Any], positions: tuple[str, ...] = ()) -> LetterChoice:
    from tallyman.cli.times import parse_moment
    from tallyman.dead_letters import LetterChoice

    now = datetime.now(UTC)
    since, until = (
        parse_moment(f"--{name}", wishes[name], "UTC", now) if wishes[name] else None for name in ("since", "until")
    )
    return LetterChoice(reason=wishes["reason"], type=wishes["type_"], source=wishes["source"],
                        since=since, until=until, positions=positions, handled=wishes["everything"])  # fmt: skip


@click.command("list")
@choice_options
@click.option("--groups", is_flag=True, help="Only how many there are for each reason, type and source.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def list_(options: Options, groups: bool, limit: int, as_json: bool, **wishes: Any) -> None:
    """List open dead letters, the newest first, and how many there are for each reason.

    \b
    Examples:
      tallyman dead list --since 24h
      tallyman dead list --reason unknown_meter --groups
    """
    from tallyman.dead_letters import count_dead_letters, read_dead_letters

    choice = _choice(wishes)
    if groups:
        _list_groups(options, choice, as_json)
        return
    with clickhouse(options.load()) as client:
        letters = read_dead_letters(client, choice, limit)
        counts = count_dead_letters(client, choice)
    if as_json:
        print_json({"counts": dict(counts), "dead_letters": [_document(letter) for letter in letters]})
        return
    if not letters:
        say("no dead letters")
        return
    header = ["position", "arrived", "reason", "subject", "type", "detail", *(["handled"] if choice.handled else [])]
    print_table(header, [
        [each.position, show_time(each.appended_at, UTC), each.reason, each.subject or None, each.type or None,
         each.detail, *([each.handled or None] if choice.handled else [])]
        for each in letters
    ])  # fmt: skip
    total = count(sum(number for _, number in counts), "dead letter")
    say(f"{total}: " + ", ".join(f"{number:,} {name}" for name, number in counts))
    say(f"Next: tallyman dead show {letters[0].position}")


def _list_groups(options: Options, choice: LetterChoice, as_json: bool) -> None:
    from tallyman.dead_letters import count_groups

    with clickhouse(options.load()) as client:
        groups = count_groups(client, choice)
    if as_json:
        print_json(_group_objects(groups))
    elif not groups:
        say("no dead letters")
    else:
        _print_groups(groups)


@click.command()
@click.argument("position")
@click.option("--raw", is_flag=True, help="Print only its bytes, as they came.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def show(options: Options, position: str, raw: bool, as_json: bool) -> None:
    """Show the dead letter at POSITION (partition:offset:index), with its bytes.

    \b
    Example:
      tallyman dead show 3:18211:0 --raw > event.json
    """
    from tallyman.dead_letters import read_dead_letter
    from tallyman.event import REASONS

    with clickhouse(options.load()) as client:
        letters = read_dead_letter(client, position)
    if raw:
        sys.stdout.buffer.write(letters[0].body)
        return
    if as_json:
        print_json([{**_document(letter), "body": _body(letter)} for letter in letters])
        return
    for letter in letters:
        result(f"position      {letter.position} of topic {letter.topic_id}, booking {letter.booking}")
        result(f"arrived       {show_time(letter.appended_at, UTC)}")
        result(f"reason        {letter.reason}: {REASONS.get(letter.reason, 'a reason of a newer version')}")
        result(f"detail        {one_line(letter.detail)}")
        for name in ("type", "source", "subject", "content_type"):
            if value := getattr(letter, name):
                result(f"{name.replace('_', ' '):<13} {one_line(value)}")
        for header, value in letter.headers.items():
            result(f"header        {one_line(header)}: {one_line(value.decode('utf-8', 'backslashreplace'))}")
        if letter.handled:
            result(f"handled       {letter.handled} on {show_time(letter.handled_at, UTC)}")
        result(f"{letter.size_bytes} bytes:")
        result(_body(letter))


@click.command()
@click.argument("positions", nargs=-1, metavar="[POSITION]...")
@choice_options
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE",
              help="Mend it: data.value=12.5, type=cloud.server.usage, content-type=application/json.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do it; else only say what would be done.")
@click.option("--wait", is_flag=True, help="Wait until all is counted, and say what became of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def retry(
    options: Options,
    positions: tuple[str, ...],
    changes: tuple[str, ...],
    yes: bool,
    wait: bool,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Let dead letters in again, mended if need be; without --yes only say what would be done.

    They go through Kafka again as judged before: how old they are is not asked any more. Each counts once, however
    often it is retried, and not at all if it was counted meanwhile. What is still wrong with it makes it a
    dead letter again. The exit code is 3 when some cannot be let in.

    \b
    Examples:
      tallyman apply && tallyman dead retry --reason unknown_meter --yes --wait
      tallyman dead retry 3:18211:0 --set data.value=12.5 --set type=cloud.server.usage
    """
    from tallyman import dead_actions
    from tallyman.mend import parse_changes
    from tallyman.send import wait_for

    project, choice, mending = options.load(), _choice(wishes, positions), parse_changes(changes)
    show = progress_line("retrying")
    with clickhouse(project) as client:
        report = dead_actions.retry(project, client, choice, mending, preview=not yes,
                                    on_progress=lambda done, chosen: show(f"{done:,} of {chosen:,}"))  # fmt: skip
    outcome = None
    if wait and report.sent is not None and report.sent.records:
        waiting = progress_line("counting")
        outcome = wait_for(project, report.sent, on_progress=lambda left: waiting(f"{left:,} records to go"))
        waiting("done", done=True)
    document = _report(report, done=yes, what="sent")
    if outcome is not None:
        document |= {name: getattr(outcome, name) for name in _FATES}
    if as_json:
        print_json(document)
    else:
        _tell(report)
        for position, sentence in report.examples[:_REFUSALS_SHOWN]:
            say(f"{position} cannot be let in: {one_line(sentence)}")
        if report.refused:
            say(f"{count(report.refused, 'dead letter')} cannot be let in: mend with --set, or tallyman dead discard")
        if yes:
            result(f"{report.accepted:,} sent")
            if outcome is not None:
                result(", ".join(f"{document[name]:,} {name}" for name in _FATES))
        elif report.accepted:
            say(f"{count(report.accepted, 'dead letter')} would be sent; nothing was. To do it, add --yes")
    leave(3 if report.refused or (outcome is not None and outcome.dead) else 0)


@click.command()
@click.argument("positions", nargs=-1, metavar="[POSITION]...")
@choice_options
@click.option("--yes", is_flag=True, help="Do it; else only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def discard(options: Options, positions: tuple[str, ...], yes: bool, as_json: bool, **wishes: Any) -> None:
    """Set dead letters aside for good; without --yes only say what would be done.

    Nothing is deleted: they are listed with --all, and can still be retried.

    \b
    Example:
      tallyman dead discard --reason malformed --until 2026-10-01 --yes
    """
    from tallyman import dead_actions

    with clickhouse(options.load()) as client:
        report = dead_actions.discard(client, _choice(wishes, positions), preview=not yes)
    if as_json:
        print_json(_report(report, done=yes, what="discarded"))
        return
    _tell(report)
    if yes:
        result(f"{report.chosen:,} discarded")
    elif report.chosen:
        say(f"{count(report.chosen, 'dead letter')} would be discarded; nothing was. To do it, add --yes")


def _tell(report: ActionReport) -> None:
    if not report.chosen:
        say("no dead letters")
    elif report.groups:
        _print_groups(report.groups)


def _print_groups(groups: Mapping[tuple[str, str, str], int]) -> None:
    """Print the largest groups: a tenant may send each event under a type of its own."""
    rows = [[number, *(name or None for name in names)] for names, number in groups.items()]
    print_table(["letters", "reason", "type", "source"], rows[:_GROUPS_SHOWN])
    rest = list(groups.values())[_GROUPS_SHOWN:]
    if rest:
        say(f"and {count(sum(rest), 'dead letter')} in {count(len(rest), 'smaller group')}; all of them are in --json")


def _group_objects(groups: Mapping[tuple[str, str, str], int]) -> list[dict[str, object]]:
    return [dict(zip(("reason", "type", "source", "letters"), (*names, number), strict=True))
            for names, number in groups.items()]  # fmt: skip


def _report(report: ActionReport, *, done: bool, what: str) -> dict[str, object]:
    groups = _group_objects(report.groups)
    refused = [{"position": position, "why": sentence} for position, sentence in report.examples]
    return {"done": done, "chosen": report.chosen, what: report.accepted if done else 0, "groups": groups,
            "refused": report.refused, "refused_examples": refused}  # fmt: skip


def _document(letter: DeadLetter) -> dict[str, object]:
    names = ("topic_id", "position", "booking", "reason", "detail", "type", "source", "subject", "content_type")
    return {
        **{name: getattr(letter, name) for name in names},
        "arrived": letter.appended_at,
        "bytes": letter.size_bytes,
        "handled": letter.handled or None,
    }


def _body(letter: DeadLetter) -> str:
    return printable(letter.body.decode("utf-8", "backslashreplace"))
