"""`tallyman audit conflicts`: copies of accepted events that came with other content."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import click

from tallyman.cli.context import Options, clickhouse, project_options
from tallyman.cli.output import count, print_json, print_table, say, show_time


@click.command()
@click.option("--since", metavar="WHEN", help="Only those that arrived since: 2026-10-01, or an age such as 24h.")
@click.option("--until", metavar="WHEN", help="Only those that arrived before.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the later copies' bytes.")
@project_options
def conflicts(options: Options, since: str | None, until: str | None, limit: int, as_json: bool) -> None:
    """List later copies of counted events that say other things, with the positions of both: the first one counts.

    A position is partition:offset:index. Behind the growth of a topic the first copy may stand in the earlier one,
    there in a partition that only its id tells. If the later copy is the right one: tallyman event amend.

    \b
    Examples:
      tallyman audit conflicts --since 24h
      tallyman audit conflicts --since 2026-10-01 --until 2026-11-01 --json
    """
    from tallyman.cli.times import parse_moment
    from tallyman.conflicts import ConflictChoice, count_conflicts, read_conflicts

    now = datetime.now(UTC)
    choice = ConflictChoice(
        since=parse_moment("--since", since, "UTC", now) if since else None,
        until=parse_moment("--until", until, "UTC", now) if until else None,
    )
    with clickhouse(options.load()) as client:
        found, number = read_conflicts(client, choice, limit), count_conflicts(client, choice)
    if as_json:
        objects = [asdict(each) | {"body": each.body.decode("utf-8", "backslashreplace")} for each in found]
        print_json({"count": number, "conflicts": objects})
        return
    if found:
        print_table(["position", "first", "arrived", "subject", "source", "id"],
                    [[each.position, each.first, show_time(each.appended_at, UTC), each.subject or None,
                      each.source or None, each.id or None] for each in found])  # fmt: skip
    say(count(number, "conflict") + (": the first copy counts" if number else ""))
