"""Read the project's YAML files into frozen dataclasses: strictly, with file and line in every complaint.

The type says what a scalar means, so none of YAML 1.1's guesses happen: `no` is a text, `1:30` is a text, and a
number that becomes a Decimal keeps all its digits because it never is a float.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Generic, TypeVar

import yaml

from tallyman.convert import Converter, Failed, Secret
from tallyman.errors import ConfigError
from tallyman.scalars import Problem, parse_duration, write_duration

__all__ = [
    "Marked",
    "Secret",
    "load_folder",
    "load_marked",
    "load_marked_folder",
    "load_yaml",
    "nearest",
    "parse_duration",
    "refuse_repeats",
    "show_path",
    "write_duration",
]

T = TypeVar("T")
_NO_YAML = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")  # YAML 1.1, 5.1


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Builds the tree of nodes only: every plain scalar stays the text that stands in the file."""

    yaml_implicit_resolvers: dict[str, list[object]] = {}  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Marked(Generic[T]):
    """What a file says, and where it says it.

    Attributes:
        value: The file's content.
        lines: Path inside the file ("meters[0].unit") -> line, from 1.
    """

    file: Path
    value: T
    lines: Mapping[str, int]

    def place(self, path: str = "") -> str:
        """Return "meters/compute.yaml:12: meters[0].unit"; a path that is not there has the line of its parent."""
        near = path
        while near and near not in self.lines:
            near = near[: max(near.rfind("."), near.rfind("["), 0)]
        text = f"{show_path(self.file)}:{self.lines.get(near, 1)}"
        return f"{text}: {path}" if path else text


def load_yaml(path: Path, into: type[T]) -> T:
    """Read one file; every problem in it is named at once, one line each.

    Args:
        into: A dataclass, a msgspec Struct, or any type made of them, of lists, mappings and scalars. A field
            named `from_` stands for the key `from`. Durations (`timedelta`) are written "200ms", "30s", "35d".

    Raises:
        ConfigError: "meters/compute.yaml:12: meters[0].agregation: unknown key; did you mean "aggregation"?"
    """
    return load_marked(path, into).value


def load_marked(path: Path, into: type[T]) -> Marked[T]:
    """Read one file as `load_yaml` does, and keep the lines for checks that come later."""
    shown = show_path(path)
    converter = Converter()
    try:
        root = _compose(path, shown)
        value = converter.convert(root, into)
    except (Problem, Failed) as problem:
        converter.note(problem)
        raise ConfigError("\n".join(f"{shown}:{found.line}: {found.text}" for found in converter.problems)) from None
    except RecursionError:
        raise ConfigError(f"{shown}: expected a tree, got an alias that contains itself; write the value out") from None
    return Marked(path, value, converter.lines)


def load_folder(folder: Path, into: type[T]) -> list[tuple[Path, T]]:
    """Read every *.yaml of a folder and the folders below it, in order of their names; no folder is no files.

    Links are followed. What begins with a dot is left out: editors and Kubernetes keep copies there.

    Raises:
        ConfigError: All problems of all files; also for a *.yml, which would otherwise be missed in silence, and for a
            folder that cannot be read.
    """
    return [(marked.file, marked.value) for marked in load_marked_folder(folder, into)]


def load_marked_folder(folder: Path, into: type[T]) -> list[Marked[T]]:
    """Read a folder as `load_folder` does, and keep the lines for checks that come later."""
    loaded, problems = [], []
    for path in _entries(folder):
        if not path.is_file():
            continue
        if path.suffix == ".yml":
            problems.append(f"{show_path(path)}: expected the ending .yaml, got .yml; rename the file")
        elif path.suffix == ".yaml":
            try:
                loaded.append(load_marked(path, into))
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return loaded


def find_left_out(folder: Path) -> list[str]:
    """Return what looks like a file of the project and is not read, with the reason: for warnings."""
    found = []
    for path in _entries(folder):
        if path.suffix == ".yaml" and not path.exists():
            found.append(f"{show_path(path)}: a link to nothing; correct or remove it")
        elif path.suffix.lower() in (".yaml", ".yml") and path.suffix not in (".yaml", ".yml"):
            found.append(f"{show_path(path)}: not read; expected the ending .yaml, got {path.suffix}; rename the file")
    return found


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder and those below it, without folders, in order of their names."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"{show_path(Path(error.filename))}: cannot be read: {error.strerror}") from error

    if not folder.is_dir():
        return []
    found, seen = [], {_identity(folder)}
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        found += [Path(root, name) for name in names if not name.startswith(".")]
        # A folder that links lead to twice is read once, so that none goes round for ever.
        below = {_identity(Path(root, name)): name for name in sorted(folders, reverse=True) if name[0] != "."}
        folders[:] = sorted(name for which, name in below.items() if which not in seen)
        seen |= below.keys()
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    told = folder.stat()
    return told.st_dev, told.st_ino


def refuse_repeats(kind: str, found: Iterable[tuple[Hashable, str]]) -> None:
    """Check that no name is given twice.

    Args:
        kind: What is named, for the message: "meter".
        found: (name, place) pairs in the order of reading.

    Raises:
        ConfigError: With both places.
    """
    first: dict[Hashable, str] = {}
    problems = []
    for name, place in found:
        if name in first:
            problems.append(f'{place}: {kind} "{name}" is defined twice, first at {first[name]}; rename or remove one')
        first.setdefault(name, place)
    if problems:
        raise ConfigError("\n".join(problems))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the words "; did you mean ...?" for a name that is not known, or what is known when nothing is near."""
    choices = list(known)
    near = get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(choices)}" if 0 < len(choices) <= 12 else ""


def show_path(path: Path) -> str:
    """Return a path as a person in this folder would type it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _compose(path: Path, shown: str) -> yaml.Node | None:
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror}") from error
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}:{line}: expected UTF-8, got the byte 0x{body[error.start]:02x}") from error
    if odd := _NO_YAML.search(text):  # what libyaml says of it has no line
        line = text.count("\n", 0, odd.start()) + 1
        raise ConfigError(f"{shown}:{line}: no YAML: found the character U+{ord(odd[0]):04X}; remove it")
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{shown}:{mark.line + 1 if mark else 1}: no YAML: {what}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown}: no YAML: {str(error).splitlines()[0]}") from error
    return node
