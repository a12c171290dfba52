"""`tallyman init` and `tallyman check`: a project on disk."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tallyman.cli.context import Options, leave, load_room, project_options
from tallyman.cli.output import count, print_json, result, say

if TYPE_CHECKING:
    from tallyman.project import Project

_IGNORED = ".tallyman/\n"
_FOLDERS = ("meters", "alarms", "plans", "accounts")
# What else an operator writes: (what it is, who checks it, the extra that brings it).
_CHECKS = (
    ("collectors", "collectors.check:check_collectors", "collector"),
    ("alarms", "rules.check:check_alarms", "rules"),
    ("plans and accounts", "invoices.check:check_plans_and_accounts", "invoices"),
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@project_options
def init(options: Options, folder: Path) -> None:
    """Make a project with a small working example in FOLDER.

    What is there already is left as it is, so it may be run twice.

    \b
    Example:
      tallyman init my-cloud
    """
    made: list[str] = []
    kept: list[str] = []
    for name, body in _template_files():
        path = folder / name
        (kept if path.exists() else made).append(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    for name in made:
        result(str(folder / name))
    note = f", left {len(kept)} that were there" if kept else ""
    say(f"{folder}: made {count(len(made), 'file')}{note}")
    if made:
        say(f"Next: cd {shlex.quote(str(folder))} && tallyman check && tallyman up")


def _template_files() -> Iterator[tuple[str, bytes]]:
    yield from sorted(_walk(resources.files("tallyman") / "template", ""))
    yield ".gitignore", _IGNORED.encode()
    yield "usage.ndjson", example_events(datetime.now(UTC))


def example_events(now: datetime) -> bytes:
    """Return some usage of the last six hours, as a cloud would report it every quarter of an hour: NDJSON."""
    quarter = timedelta(minutes=15)
    last = now.astimezone(UTC).replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
    lines = []
    for n in range(24):
        time = last - (24 - n) * quarter
        for server, flavor in (("web-1", "m1.small"), ("db-1", "m1.large")):
            event = {
                "specversion": "1.0",
                "id": f"{server}/{time:%Y%m%dT%H%M}",  # from what happened: sent again it counts once
                "source": "nova/compute-1",
                "type": "cloud.server.usage",
                "subject": "zoë-åström",
                "time": f"{time:%Y-%m-%dT%H:%M:%SZ}",
                "data": {"seconds": "900", "flavor": flavor, "region": "hamburg"},
            }
            lines.append(json.dumps(event, ensure_ascii=False))
    return ("\n".join(lines) + "\n").encode()


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/") if entry.name != "__pycache__" else ()
        elif entry.name.endswith((".yaml", ".md", ".ndjson")):
            yield f"{prefix}{entry.name}", entry.read_bytes()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def check(options: Options, as_json: bool) -> None:
    """Check every file of the project, without starting anything.

    Names each problem with file, line and what to do. Exit code 1 for problems, 3 for warnings only.

    \b
    Example:
      tallyman check --project my-cloud
    """
    problems, warnings = find_problems(options)
    if as_json:
        print_json({"problems": problems, "warnings": warnings})
    else:
        for problem in problems:
            result(problem)
        for warning in warnings:
            result(f"warning: {warning}")
        say(
            f"{count(len(problems), 'problem')}, {count(len(warnings), 'warning')}"
            if problems or warnings
            else "all well"
        )
    leave(1 if problems else 3 if warnings else 0)


def find_problems(options: Options) -> tuple[list[str], list[str]]:
    """Return problems and warnings of a project, one line each."""
    from tallyman.errors import ConfigError
    from tallyman.files import find_left_out
    from tallyman.project import find_doubtful

    try:
        project = options.load()
    except ConfigError as error:
        return str(error).splitlines(), []
    problems: list[str] = []
    warnings = [] if project.meters else ["meters/: no meter is defined, so every event will be a dead letter"]
    problems += _partition_problems(project)
    warnings += _ignored_in_vain(project)
    warnings += find_doubtful(project.folder / "meters")
    warnings += [told for name in _FOLDERS for told in find_left_out(project.folder / name)]
    for what, target, extra in _CHECKS:
        try:
            problems += load_room(target)(project)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("collectors", "rules", "invoices", "tallyman"):
                raise
            warnings.append(f'{what}: not checked, since {error.name} is missing; pip install "tallyman[{extra}]"')
    if not project.config.operator:
        warnings.append('tallyman.yaml: operator: no name is set; write one, e.g. operator: "Nimbus Compute GmbH"')
    return problems, warnings


def _partition_problems(project: Project) -> list[str]:
    """Refuse partitions that this process is to read and that the topic does not have."""
    from tallyman.project import settings_place

    have = project.config.kafka.partitions
    beyond = [number for number in project.config.pipeline.partitions if number >= have]
    if not beyond:
        return []
    place = settings_place(project, "pipeline.partitions")
    return [f"{place}: expected numbers from 0 to {have - 1} (kafka.partitions: {have}), got {beyond[0]}"]


def _ignored_in_vain(project: Project) -> list[str]:
    """Name types on the ignore list that are counted all the same."""
    from tallyman.project import settings_place

    wanted = {meter.event_type: meter.meter for meter in project.meters}
    place = settings_place(project, "usage.ignore")
    return [
        f'{place}: "{name}" is counted all the same, for {wanted[name]}; remove it here, or the meter'
        for name in project.config.usage.ignore
        if name in wanted
    ]
