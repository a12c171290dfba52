"""`tallyman up`, `down`, `status`: the embedded stack with all services, on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.context import Options, leave, load_room, project_options
from tallyman.cli.output import print_json, print_table, result, say, show_time
from tallyman.terminal import one_line

if TYPE_CHECKING:
    from tallyman.local.folder import Endpoints
    from tallyman.local.supervise import ChildEvent
    from tallyman.project import Project

# In this order, each when the one before is ready: the pipeline makes the topic and puts definitions in force, and what
# an agent sends before that no meter would want.
SERVICES = ("pipeline", "rules", "agent")


@click.command()
@click.option("--detach", is_flag=True, help="Return when everything runs, and leave it running.")
@click.option("--without", multiple=True, type=click.Choice(SERVICES), help="Do not run this service; repeatable.")
@click.option("--kafka-port", type=click.IntRange(1, 65535), help="Kafka's port.  [default: a free one]")
@click.option("--clickhouse-port", type=click.IntRange(1, 65535), help="ClickHouse's port.  [default: a free one]")
@project_options
def up(
    options: Options, detach: bool, without: Sequence[str], kafka_port: int | None, clickhouse_port: int | None
) -> None:
    """Run Kafka, ClickHouse and all services here; of these two only what tallyman.yaml does not name elsewhere.

    Needs no Java, Docker or root. Everything listens on loopback and keeps its data in the data folder; Ctrl-C stops
    it cleanly. Run only one for each data folder.

    \b
    Examples:
      tallyman up
      tallyman up --detach --without agent && tallyman status
    """
    from tallyman.local.stack import StackOptions, default_services
    from tallyman.local.updown import up as start

    project = options.load()
    own = project.config
    for option, port, setting, value in (
        ("--kafka-port", kafka_port, "kafka.brokers", own.kafka.brokers),
        ("--clickhouse-port", clickhouse_port, "clickhouse.host", own.clickhouse.host),
    ):
        if port and value:
            raise click.UsageError(f"{option}: {setting} is set in tallyman.yaml, so none is started here")
    names = [name for name in SERVICES if name not in without]
    began = time.monotonic()

    def ready(endpoints: Endpoints) -> None:
        prepare(project)
        say(f"ready after {time.monotonic() - began:.0f} s; data in {project.data}")
        print_endpoints(project, endpoints)
        _say_next(detach)

    start(
        project.data,
        default_services(project.folder, project.data, names),
        options=StackOptions(
            kafka=not own.kafka.brokers,
            clickhouse=not own.clickhouse.host,
            kafka_port=kafka_port,
            clickhouse_port=clickhouse_port,
        ),
        detach=detach,
        on_event=tell,
        on_ready=ready,
    )
    if not detach:
        say("stopped")


def prepare(project: Project) -> None:
    """Make schema, topics and books where a service has not done so yet: definitions 1 are in force from the start."""
    from tallyman.clickhouse import connect, migrate

    client = connect(project.clickhouse)
    try:
        migrate(client)
    finally:
        client.disconnect()
    load_room("pipeline.close:found_books")(project)


def tell(event: ChildEvent) -> None:
    """Say what a part of the stack does."""
    say(f"{event.name:<11} {event.what:<10} {event.detail}".rstrip())


def print_endpoints(project: Project, endpoints: Endpoints) -> None:
    """Print where everything answers."""
    clickhouse = project.clickhouse
    result(f"kafka       {', '.join(project.kafka_brokers)}")
    result(f"clickhouse  {clickhouse.host}:{clickhouse.port} database {clickhouse.database}")
    # One's own may hold a password.
    result(f"control     {'control.url of tallyman.yaml' if project.config.control.url else endpoints.control}")
    for name, entry in endpoints.services.items():
        if entry.metrics:
            result(f"{name:<11} {entry.metrics}")


def _say_next(detach: bool) -> None:
    say("Next: tallyman usage --meter host.cpu --window minute, in another terminal" if not detach else
        "Next: tallyman status, tallyman usage --meter host.cpu --window minute, tallyman down")  # fmt: skip
    if not detach:
        say("Ctrl-C stops everything")


@click.command()
@project_options
def down(options: Options) -> None:
    """Stop what `tallyman up` started.

    Cleanly, and also what a killed one has left behind.

    \b
    Example:
      tallyman down
    """
    from tallyman.local.updown import down as stop

    data = options.data_folder()
    say("stopped" if stop(data, on_event=tell) else f"nothing runs in {data}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def status(options: Options, as_json: bool) -> None:
    """Show what runs here and how complete usage is.

    Exit code 0 when all of it is ready, 1 when nothing runs, 3 when something is not ready. With a ClickHouse of your
    own (clickhouse.host) and no stack here: how complete usage is, and 1 when it does not answer. With --json also how
    far each partition is booked, and its watermark.

    \b
    Example:
      tallyman status
    """
    from tallyman.local.updown import status as look

    found = look(options.data_folder())
    elsewhere = None if found.running else _elsewhere(options)
    books = _read_books(elsewhere) if elsewhere else _books(options) if found.running else {}
    if as_json:
        parts = [{name: getattr(part, name) for name in part.__slots__} for part in found.parts]
        print_json({"running": found.running, "pid": found.pid, "since": found.since, "parts": parts, **books})
    elif elsewhere:
        where = elsewhere.config.clickhouse
        say(f"no stack runs in {options.data_folder()}; usage is that of ClickHouse at {where.host}:{where.port}")
        _print_books(books)
    elif not found.running:
        say(f"nothing runs in {options.data_folder()}; start it with: tallyman up")
    else:
        print_table(
            ["part", "state", "pid", "address", "up for", "restarts"],
            [
                [part.name, part.state, part.pid, part.endpoint or None, _duration(part.uptime_s), part.restarts]
                for part in found.parts
            ],
        )
        for part in found.parts:
            if part.why:
                result(f"{part.name} is {part.state}: {part.why}")
        _print_books(books)
    all_ready = bool(found.parts) and all(part.state == "ready" for part in found.parts)
    leave(0 if elsewhere else 1 if not found.running else 0 if all_ready else 3)


def _elsewhere(options: Options) -> Project | None:
    """Return the project if its ClickHouse is one's own, so that there is something to say without a stack here."""
    from tallyman.errors import ConfigError

    try:
        project = options.load()
    except ConfigError:
        return None
    return project if project.config.clickhouse.host else None


def _books(options: Options) -> dict[str, Any]:
    """Return how complete usage is; nothing where that cannot be said."""
    from tallyman.errors import TallymanError

    try:
        return _read_books(options.load())
    except TallymanError:
        return {}


def _read_books(project: Project) -> dict[str, Any]:
    """Return how complete usage is.

    Raises:
        StoreError, StoreRefusedError: ClickHouse does not tell.
    """
    from tallyman.cli.collectors import held_as_object
    from tallyman.cli.context import clickhouse
    from tallyman.cli.repair import aside_lines
    from tallyman.completeness import read_completeness

    with clickhouse(project) as client:
        found = read_completeness(
            client,
            expected_delay=project.config.usage.expected_delay,
            partitions=project.config.kafka.partitions,
        )
    delay = project.config.usage.expected_delay
    return {
        "partitions": [
            {"topic_id": each.topic_id, "partition": each.partition, "offset": each.offset, "booking": each.booking,
             "log_clock": each.clock, "watermark": each.clock and each.clock - delay}
            for each in found.partitions
        ],
        "complete_to": found.complete_to,
        "sealed_to": found.sealed_to,
        "held_by": [held_as_object(each) for each in found.held_by],
        "quarantined": aside_lines(found),
    }


def _print_books(books: dict[str, Any]) -> None:
    if not books:
        return
    result(_complete_line(books["complete_to"], books["sealed_to"]))
    for line in books["quarantined"]:
        result(line)
    for held in books["held_by"]:
        result(f"held back by {one_line(held['collector'])}, silent since {show_time(held['silent_since'], UTC)}")


def _complete_line(complete_to: datetime | None, sealed_to: int) -> str:
    """Return how complete usage is, also in the first seconds, when nobody knows and nothing is sealed.

    >>> _complete_line(None, 0)
    'up to when usage is complete is not known, the pipeline has not reached every partition yet; nothing is sealed yet'
    """
    sealed = f"sealed up to booking {sealed_to}" if sealed_to else "nothing is sealed yet"
    if complete_to is None:
        return f"up to when usage is complete is not known, the pipeline has not reached every partition yet; {sealed}"
    return f"usage is complete up to {show_time(complete_to, UTC)}, {sealed}"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (n, _) in enumerate(parts) if n), 3)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2])
