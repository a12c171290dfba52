"""What all commands share: where the project is, how rooms are reached, and the options that every command takes."""

from __future__ import annotations

import functools
import getpass
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from tallyman.project import Project

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Options:
    """What every command is told."""

    project: Path = Path()
    data: Path | None = None
    debug: bool = False

    def load(self) -> Project:
        """Read the project.

        Raises:
            ConfigError: With every problem of its settings and meters.
        """
        from tallyman.project import load_project

        return load_project(self.project, self.data)

    def data_folder(self) -> Path:
        """Return the data folder; a project need not be there to stop what runs in it."""
        from tallyman.project import find_data

        return find_data(self.project, self.data)


def project_options(function: Function) -> Function:
    """Give a command `--project`, `--data` and `--debug`, before or after its name, as one value `options`."""

    @click.option("--project", "project_", type=click.Path(path_type=Path), metavar="FOLDER",
                  help="The project's folder, which has tallyman.yaml.  [default: this folder]")  # fmt: skip
    @click.option("--data", "data_", type=click.Path(path_type=Path), metavar="FOLDER",
                  help="Its data folder.  [default: $TALLYMAN_DATA, else .tallyman in the project]")  # fmt: skip
    @click.option("--debug", "debug_", is_flag=True, help="Show the traceback of what goes wrong.")
    @functools.wraps(function)
    def wrapped(*args: Any, project_: Path | None, data_: Path | None, debug_: bool, **values: Any) -> Any:
        context = click.get_current_context()
        before = context.find_object(Options) or Options()
        options = Options(project_ or before.project, data_ or before.data, debug_ or before.debug)
        context.obj = options
        return function(*args, options=options, **values)

    return wrapped  # type: ignore[return-value]


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for, and listed in the order of the table."""

    def __init__(self, *args: Any, commands_by_name: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._targets = commands_by_name

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self._targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        target = self._targets.get(cmd_name)
        if target is None:
            return None
        command = load_room(target)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; name the nearest one for a name that is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self._targets, n=1)
            raise click.UsageError(error.message + (f' Did you mean "{near[0]}"?' if near else ""), ctx) from error


def who() -> str:
    """Return who types, for what is kept with a decision; in a container nobody may know the user by name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def is_number(text: str) -> bool:
    """Whether a text is a whole number as we write it; of ², ٣ and others `int` knows only some."""
    return text.isascii() and text.isdecimal()


def leave(code: int) -> NoReturn:
    """End the command with an exit code."""
    click.get_current_context().exit(code)


def load_room(target: str) -> Any:
    """Import "module:name" now: rooms are named as strings, so that none is loaded for another's command."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def clickhouse(project: Project) -> Iterator[Client]:
    """Connect to the project's ClickHouse for a block; what it refuses is a sentence.

    Raises:
        StoreError: ClickHouse does not answer, or said no.
        StoreRefusedError: It will say no until somebody mends what the message names.
    """
    from clickhouse_driver import errors

    from tallyman.clickhouse import NETWORK_ERRORS, connect, is_of_the_network, said_by, store_error
    from tallyman.errors import StoreError, StoreRefusedError

    endpoint = project.clickhouse
    client = connect(endpoint)
    try:
        yield client
    except (errors.Error, *NETWORK_ERRORS) as error:
        if isinstance(error, OSError) and not is_of_the_network(error):
            raise  # of a file: the block writes some, too
        told = store_error(error, f"{endpoint.host}:{endpoint.port}")
        if isinstance(told, StoreRefusedError):
            raise told from error
        place = f"{endpoint.host}:{endpoint.port}"
        raise StoreError(f"ClickHouse at {place}: {said_by(error)}; see: tallyman status") from error
    finally:
        client.disconnect()
