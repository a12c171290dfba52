"""`tallyman topic`: the topics that usage travels in, and how one grows into the next."""

from __future__ import annotations

from typing import Any

import click

from tallyman.cli.context import LazyGroup, Options, clickhouse, load_room, project_options
from tallyman.cli.output import print_json, print_table, result, say

_COMMANDS = {"list": "tallyman.cli.topic:list_", "grow": "tallyman.cli.topic:grow"}


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
@project_options
def topic(options: Options) -> None:
    """Show the topics that usage travels in, or go on in one with more partitions.

    \b
    Examples:
      tallyman topic list
      tallyman topic grow --partitions 16
    """


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def list_(options: Options, as_json: bool) -> None:
    """List the topics of which each follows the one before, and how far each is booked to its end."""
    project = options.load()
    with clickhouse(project) as client:
        states = load_room("pipeline.growth:read_states")(project, client)
    if as_json:
        print_json([
            {"topic": each.name, "topic_id": each.topic_id, "partitions": each.partitions,
             "chunk_size": each.chunk_size, "ended": each.ended, "state": each.state}
            for each in states
        ])  # fmt: skip
    elif states:
        header = ["topic", "id", "partitions", "chunk size", "ended", "state"]
        print_table(header, [
            [each.name, each.topic_id, each.partitions, each.chunk_size, each.ended, each.state] for each in states
        ])  # fmt: skip
    else:
        result(f"nothing of {project.config.kafka.topic} was booked yet")


@click.command()
@click.option("--partitions", type=click.IntRange(1), required=True, metavar="N", help="Of the topic that follows.")
@click.option("--name", metavar="TOPIC", help="Of the topic that follows.  [default: the next number behind .v]")
@click.option("--yes", is_flag=True, help="Do it; else only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def grow(options: Options, partitions: int, name: str | None, yes: bool, as_json: bool) -> None:
    """Go on in a new topic with more partitions; without --yes only say what would be done.

    Nothing stops: senders may write to the old topic until they are told of the new one, and every event counts once.
    What to tell whom is in docs/operations/topic-growth.md.

    \b
    Example:
      tallyman topic grow --partitions 16 && tallyman topic grow --partitions 16 --yes
    """
    project = options.load()
    plan = load_room("pipeline.growth:plan_growth")(project, partitions, name)
    for line in steps(plan):
        say(line)
    if yes:
        load_room("pipeline.growth:grow")(project, plan)
    else:
        say("nothing was done. To do it, add --yes")
    if as_json:
        print_json({"old": plan.old.name, "new": plan.name, "partitions": plan.partitions, "done": yes})
    elif yes:
        result(f"{plan.old.name} ends and {plan.name} follows; set kafka.topic: {plan.name} and "
               f"kafka.partitions: {plan.partitions} in tallyman.yaml, and start what sends again")  # fmt: skip


def steps(plan: Any) -> list[str]:
    """Say what growing does, in order."""
    lines = [
        f"make {plan.name} with {plan.partitions} partitions and chunks of {plan.old.chunk_size}",
        "write its first close, with the definitions in force",
        f"write an end marker into each partition of {plan.old.name}; the pipeline books it up to that",
    ]
    if plan.found > plan.old.partitions:
        added = plan.found - plan.old.partitions
        lines.append(
            f"{plan.old.name} was made with {plan.old.partitions} partitions and has {plan.found}: what stands in the "
            f"{added} that were added is sent on to {plan.name}"
        )
    return lines
