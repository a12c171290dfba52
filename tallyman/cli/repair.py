"""`tallyman repair`: which partitions are set aside, and how booking goes on behind a damaged place."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.context import Options, clickhouse, is_number, load_room, project_options, who
from tallyman.cli.output import print_json, print_table, progress_line, result, say, show_time
from tallyman.repairs import LATE

if TYPE_CHECKING:
    from tallyman.completeness import Completeness
    from tallyman.project import Project
    from tallyman.usage import Repair

_PROBLEMS = {
    "retention": "records that are needed to go on were removed from Kafka before they were booked",
    "cut": "the log ends before the place up to which it is booked: acknowledged records were lost",
    "digest": "other records stand in the log where booked ones stood",
    "bytes": "records are damaged on the broker's disk",
    "clock": "records were appended in the future: the clock of the partition's leader was ahead",
    "sealed": "the booking that it stands in was sealed while another topic was booked in its place",
    "fenced": "a repair was begun and not decided, and until it is the database takes no rows of it",
}


@click.command()
@click.argument("what", metavar="list|PARTITION", default="list")
@click.option("--at", type=click.IntRange(min=0), metavar="OFFSET",
              help="Go on at this offset.  [default: the first that can be read]")  # fmt: skip
@click.option("--note", default="", metavar="TEXT", help="Why; it is kept with the decision.")
@click.option("--yes", is_flag=True, help="Decide it; else only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def repair(options: Options, what: str, at: int | None, note: str, yes: bool, as_json: bool) -> None:
    """List damaged partitions, or go on behind the damaged place of one; without --yes only say what would be done.

    When the log of a partition is not what was booked (retention removed records, a broker lost some), the pipeline
    sets this partition aside and books the others; nothing is sealed, and usage is complete only up to there. First try
    to bring the broker's data back and start the pipeline again. If it is gone, decide here to go on without it.

    What is booked stays. What is skipped is written down for ever, and every figure that it may touch says so. Senders
    may send what was skipped again: it counts, once. See docs/operations/repair.md.

    \b
    Examples:
      tallyman repair list
      tallyman repair 3
      tallyman repair 3 --note "disk of broker 2 was lost" --yes
    """
    project = options.load()
    if what == "list":
        _list(project, as_json)
        return
    if not is_number(what):
        raise click.UsageError(f'PARTITION: expected a number, or "list", got "{what}"')
    with clickhouse(project) as client:
        plan = load_room("pipeline.repair:plan_repair")(project, client, int(what), at)
        if plan is None:
            say(f"partition {what}: nothing is wrong with it, nothing was done. See: tallyman repair list")
            if as_json:
                print_json({"partition": int(what), "problem": None, "done": False})
            return
        for line in preview(plan):
            say(line)
        done = None
        if yes:
            shown = progress_line(f"repair of partition {what}")
            done = load_room("pipeline.repair:repair")(project, client, plan, who=who(), note=note, show=shown)
            shown("done", done=True)
        else:
            say("nothing was done. To do it, add --yes")
    if as_json:
        print_json(as_object(plan) | {"done": done is not None, "repair": done and repair_object(done)})
    elif done is not None:
        result(f"partition {what} goes on at offset {done.to_offset} in booking {done.booking}; "
               f"{done.skipped} offsets are skipped (repair {done.number})")  # fmt: skip


def preview(plan: Any) -> list[str]:
    """Say what is there, what would be lost, and what would be done."""
    if plan.decided is not None:
        return _left_to_do(plan)
    clock = datetime.fromtimestamp(plan.booked.reached.clock_ms / 1000, UTC)
    behind = datetime.fromtimestamp(plan.to_clock_ms / 1000, UTC)
    lines = [
        f"partition {plan.partition} of {plan.topic.name}: {_PROBLEMS[plan.problem]}",
        f"booked: up to offset {plan.first}, log clock {show_time(clock, UTC)}, in booking "
        f"{plan.booked.reached.booking} ({plan.open_events} events of the open chunk); it stays",
        f"in Kafka: offsets {plan.log_start} to {plan.log_end}",
    ]
    if plan.problem == "clock" and plan.skipped:
        lines.append(
            f"sent again: what stands at offsets {plan.first} to {plan.goes_on_at - 1}, at most {plan.skipped} "
            "records, behind all others, so that it has a right time; it counts once. Set the clock of the "
            "partition's leader before"
        )
    elif plan.skipped:
        lines.append(
            f"skipped: offsets {plan.first} to {plan.goes_on_at - 1}, at most {plan.skipped} records, appended between "
            f"{show_time(clock, UTC)} and {show_time(behind, UTC)}; when their usage happened nobody can tell, "
            "mostly shortly before that"
        )
    else:
        why = "; what was removed is booked already" if plan.problem == "retention" else ""
        lines.append(f"skipped: nothing{why}")
    if plan.ticks:
        lines.append(
            f"written first: {plan.ticks} empty records, so that the log reaches offset {plan.goes_on_at} again; what "
            "is sent meanwhile stands among them and is skipped, too: stop the senders"
        )
    lines.append(f"then: the books are closed, and booking goes on at offset {plan.goes_on_at} in a booking of its own")
    return lines


def _left_to_do(plan: Any) -> list[str]:
    """Say what is left to do of a repair that was killed behind its decision."""
    decided: Repair = plan.decided
    return [
        f"partition {plan.partition} of {plan.topic.name}: {_PROBLEMS[plan.problem]}",
        f"decided: repair {decided.number}, by {decided.who or 'somebody'}, {show_time(decided.decided_at, UTC)}; it "
        "was killed before ClickHouse was told, and until that is nobody books the partition",
        f"skipped: offsets {decided.from_offset} to {decided.to_offset - 1}, at most {decided.skipped} records"
        if decided.skipped else "skipped: nothing",
        f"then: ClickHouse is told, and booking goes on at offset {decided.to_offset} in booking {decided.booking}",
    ]  # fmt: skip


def as_object(plan: Any) -> dict[str, object]:
    """Return a preview as `--json` prints it."""
    return {
        "topic": plan.topic.name, "topic_id": plan.topic.topic_id, "partition": plan.partition,
        "problem": plan.problem, "booked_to": plan.first, "goes_on_at": plan.goes_on_at, "skipped": plan.skipped,
        "log_start": plan.log_start, "log_end": plan.log_end, "ticks": plan.ticks,
        "booking": plan.booked.reached.booking,
        "from_clock": datetime.fromtimestamp(plan.booked.reached.clock_ms / 1000, UTC),
        "to_clock": datetime.fromtimestamp(plan.to_clock_ms / 1000, UTC),
        "decided": plan.decided and repair_object(plan.decided),
    }  # fmt: skip


def repair_object(each: Repair) -> dict[str, object]:
    """Return a decision as `--json` prints it."""
    return {
        "topic_id": each.topic_id, "partition": each.partition, "number": each.number, "reason": each.reason,
        "from_offset": each.from_offset, "to_offset": each.to_offset, "skipped": each.skipped,
        "from_clock": each.from_clock, "to_clock": each.to_clock, "from_booking": each.from_booking,
        "booking": each.booking, "who": each.who, "note": each.note, "decided_at": each.decided_at,
    }  # fmt: skip


def gap_line(each: Repair) -> str:
    """Say what a figure may lack because of a decision."""
    if each.reason == "clock":
        return (
            f"repaired: partition {each.partition}: offsets {each.from_offset} to {each.to_offset - 1} had a time in "
            f"the future and were sent again (repair {each.number}, {each.reason})"
        )
    if each.reason == LATE:
        return (
            f"lost: partition {each.partition} of topic {each.topic_id}, which has ended: offsets {each.from_offset} "
            f"to {each.to_offset - 1} were not copied (retention took them before, or a record is too large), appended "
            f"between {show_time(each.from_clock, UTC)} and {show_time(each.to_clock, UTC)}"
        )
    return (
        f"repaired: partition {each.partition} lacks offsets {each.from_offset} to {each.to_offset - 1}, appended "
        f"between {show_time(each.from_clock, UTC)} and {show_time(each.to_clock, UTC)} (repair {each.number}, "
        f"{each.reason})"
    )


def aside_lines(found: Completeness) -> list[str]:
    """Say which partitions are set aside."""
    return [
        f"partition {each.partition} is set aside at offset {each.offset} ({each.reason}): "
        + (f"run tallyman repair {each.partition} again" if each.reason == "fenced" else
           f"see tallyman repair {each.partition}")
        for each in found.quarantines
    ]


def _list(project: Project, as_json: bool) -> None:
    from tallyman.completeness import read_completeness

    with clickhouse(project) as client:
        found = read_completeness(client)
    if as_json:
        aside = [
            {"topic_id": each.topic_id, "partition": each.partition, "offset": each.offset, "reason": each.reason,
             "detail": each.detail, "noticed_at": each.noticed_at}
            for each in found.quarantines
        ]  # fmt: skip
        print_json({"quarantined": aside, "repairs": [repair_object(each) for each in found.repairs]})
        return
    for line in aside_lines(found) or ["no partition is set aside"]:
        result(line)
    if found.repairs:
        header = ["partition", "repair", "from", "to", "reason", "who", "when", "note"]
        print_table(header, [
            [each.partition, each.number or None, each.from_offset, each.to_offset, each.reason, each.who,
             show_time(each.decided_at, UTC), each.note or None]
            for each in found.repairs
        ])  # fmt: skip
