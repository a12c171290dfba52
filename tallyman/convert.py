"""Turn a tree of YAML nodes into typed values, with line and path in each problem, for `tallyman.files` only."""

from __future__ import annotations

import dataclasses
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Annotated, Any, NewType, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from tallyman.errors import TallymanError
from tallyman.scalars import (
    Mistake,
    Problem,
    got,
    hint,
    is_kind,
    is_null,
    is_plain,
    name_of,
    natural_scalar,
    problem_at,
    read_scalar,
)

# A text that may be written as ${NAME}, the name of an environment variable, so that no secret has to stand in a file.
Secret = NewType("Secret", str)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}\Z")


class Failed(Exception):
    """Something below this place is wrong and has been noted already."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    key: str
    type: Any
    required: bool


class Converter:
    """Converts one file's tree. Collects every problem, so that a file is corrected in one go."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.problems: list[Mistake] = []
        self.lines: dict[str, int] = {}
        self._environment = environment

    def note(self, problem: Problem | Failed) -> None:
        """Keep a problem; what has failed was kept where it happened."""
        if isinstance(problem, Problem):
            self.problems.append(problem.found)

    def convert(self, root: yaml.Node | None, into: Any) -> Any:
        """Return the file's value.

        Raises:
            Problem, Failed: What was found before is in `problems`.
        """
        if root is None:
            root = yaml.MappingNode("tag:yaml.org,2002:map", [], yaml.Mark("", 0, 0, 0, None, 0))
        return self._read(root, into, "")

    def _read(self, node: yaml.Node, into: Any, path: str) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rsplit(":", 1)[1] not in ("str", "map", "seq"):
            raise problem_at(node, path, f"expected no tag, got {'one' if into is Secret else node.tag}")
        origin = get_origin(into)
        if into is Secret:
            return self._secret(node, path)
        if isinstance(into, NewType):
            return self._read(node, into.__supertype__, path)
        if isinstance(node, yaml.ScalarNode) and not is_null(node) and _holds_secrets(into):
            raise problem_at(node, path, f"expected {name_of(into)}, got a value")  # it may be the secret: not shown
        if origin is Annotated:
            return self._constrained(node, into, path)
        if origin is Union or origin is types.UnionType:
            return self._read(node, self._choose(node, get_args(into), path), path)
        if into is Any or into is object:
            return self._natural(node, path)
        if dataclasses.is_dataclass(into) or (isinstance(into, type) and issubclass(into, msgspec.Struct)):
            return self._record(node, into, path)
        if is_kind(origin or into, Mapping):
            return self._mapping(node, get_args(into), path)
        if is_kind(origin or into, Sequence, Set) and into not in (str, bytes):
            return self._list(node, into, path)
        return read_scalar(node, into, path)

    def _record(self, node: yaml.Node, into: Any, path: str) -> Any:
        fields = {field.key: field for field in _fields(into)}
        values, failed = {}, False
        for key, key_node, value_node in self._pairs(node, path):
            field = fields.get(key)
            here = _below(path, key)
            try:
                if field is None:
                    raise problem_at(key_node, here, f"unknown key{hint(key, fields)}")
                self.lines[here] = key_node.start_mark.line + 1
                value = self._read(value_node, field.type, here)
                if field.name:
                    values[field.name] = value
            except (Problem, Failed) as problem:
                self.note(problem)
                failed = True
        keys = {key for key, _, _ in self._pairs(node, path)}
        for field in fields.values():
            if field.required and field.key not in keys:
                self.note(problem_at(node, path, f'missing key "{field.key}"'))
                failed = True
        if failed:
            raise Failed
        try:
            return into(**values)
        except (ValueError, TypeError, TallymanError) as error:  # what __post_init__ refuses
            # "chunk_size: expected ..." is about that key: say its line.
            key, _, rest = str(error).partition(": ")
            line = self.lines.get(_below(path, key)) if rest and key in fields else None
            if line is None:
                raise problem_at(node, path, str(error)) from error
            raise Problem(line, _below(path, key), rest) from error

    def _mapping(self, node: yaml.Node, arguments: tuple[Any, ...], path: str) -> dict[Any, Any]:
        key_type, value_type = arguments or (str, Any)
        values: dict[Any, Any] = {}

        def read(key: str, key_node: yaml.Node, value_node: yaml.Node) -> None:
            self.lines[_below(path, key)] = key_node.start_mark.line + 1
            name = key if key_type is str else self._read(key_node, key_type, _below(path, key))
            values[name] = self._read(value_node, value_type, _below(path, key))

        self._each(partial(read, *pair) for pair in self._pairs(node, path))
        return values

    def _list(self, node: yaml.Node, into: Any, path: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            raise problem_at(node, path, f"expected a list, got {got(node)}")
        arguments = get_args(into)
        kind = get_origin(into) or into
        item_types = [arguments[0] if arguments else Any] * len(node.value)
        if kind is tuple and arguments and arguments[-1] is not Ellipsis:
            item_types = list(arguments)
            if len(item_types) != len(node.value):
                raise problem_at(node, path, f"expected {len(item_types)} items, got {len(node.value)}")
        items: list[Any] = []

        def read(i: int, item: yaml.Node) -> None:
            items.append(self._read(item, item_types[i], f"{path}[{i}]"))

        self._each(partial(read, i, item) for i, item in enumerate(node.value))
        if is_kind(kind, Set):
            return frozenset(items) if kind is not set else set(items)
        return items if kind is list else tuple(items)

    def _each(self, steps: Iterator[Callable[[], None]]) -> None:
        failed = False
        for step in steps:
            try:
                step()
            except (Problem, Failed) as problem:
                self.note(problem)
                failed = True
        if failed:
            raise Failed

    def _pairs(self, node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise problem_at(node, path, f"expected keys and values, got {got(node)}")
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise problem_at(key_node, path, "expected a text as key, got a list or mapping")
            key, line = key_node.value, key_node.start_mark.line + 1
            if key == "<<" and is_plain(key_node):
                raise problem_at(key_node, path, 'the merge key "<<" is not read; write the keys out')
            if key in seen:
                raise problem_at(key_node, _below(path, key), f"given twice, first in line {seen[key]}; remove one")
            seen[key] = line
            yield key, key_node, value_node

    def _choose(self, node: yaml.Node, options: tuple[Any, ...], path: str) -> Any:
        if is_null(node) and type(None) in options:
            return type(None)
        rest = [option for option in options if option is not type(None)]
        if len(rest) == 1:
            return rest[0]
        if isinstance(node, yaml.MappingNode):
            structs = [option for option in rest if isinstance(option, type) and issubclass(option, msgspec.Struct)]
            if len(structs) > 1:
                return self._tagged(node, structs, path)
            fitting = [o for o in rest if dataclasses.is_dataclass(o) or is_kind(get_origin(o) or o, Mapping)] + structs
        elif isinstance(node, yaml.SequenceNode):
            fitting = [o for o in rest if is_kind(get_origin(o) or o, Sequence, Set) and o is not str]
        else:
            for option in rest:  # the first one that takes it
                try:
                    Converter(self._environment)._read(node, option, path)
                except (Problem, Failed):
                    continue
                return option
            fitting = [option for option in rest if not is_kind(get_origin(option) or option, Mapping)]
        if not fitting:
            raise problem_at(node, path, f"expected {' or '.join(map(name_of, rest))}, got {got(node)}")
        return fitting[0]

    def _tagged(self, node: yaml.MappingNode, structs: list[Any], path: str) -> Any:
        field = structs[0].__struct_config__.tag_field
        tags = {struct.__struct_config__.tag: struct for struct in structs}
        for key, _, value in self._pairs(node, path):
            if key == field and isinstance(value, yaml.ScalarNode):
                if value.value in tags:
                    return tags[value.value]
                expected = f"expected one of {', '.join(map(str, tags))}, got {got(value)}"
                raise problem_at(value, _below(path, key), expected + hint(value.value, tags, listed=False))
        raise problem_at(node, path, f'missing key "{field}"')

    def _constrained(self, node: yaml.Node, into: Any, path: str) -> Any:
        value = self._read(node, get_args(into)[0], path)
        try:
            return msgspec.convert(value, into)
        except msgspec.ValidationError as error:
            raise problem_at(node, path, f"{str(error).lower()[:1]}{str(error)[1:]}, got {got(node)}") from error

    def _secret(self, node: yaml.Node, path: str) -> str:
        try:
            value = str(read_scalar(node, str, path))
        except Problem:
            is_value = isinstance(node, yaml.ScalarNode) and not is_null(node)
            said = "a value that is none; write it in quotes" if is_value else got(node)
            raise problem_at(node, path, f"expected a text, got {said}") from None
        variable = _VARIABLE.match(value)
        if variable is None:
            return value
        if variable[1] not in self._environment:
            raise problem_at(node, path, f"the environment variable {variable[1]} is not set")
        return self._environment[variable[1]]

    def _natural(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, (str, Any), path)
        if isinstance(node, yaml.SequenceNode):
            return self._list(node, list[Any], path)
        return natural_scalar(node, path)


def _holds_secrets(into: Any) -> bool:
    if dataclasses.is_dataclass(into):
        return any(_holds_secrets(field.type) for field in _fields(into))
    return into is Secret or any(map(_holds_secrets, get_args(into)))


def _fields(into: Any) -> list[_Field]:
    hints = get_type_hints(into, include_extras=True)
    if isinstance(into, type) and issubclass(into, msgspec.Struct):
        found = [_Field(f.name, f.encode_name, hints[f.name], f.required) for f in msgspec.structs.fields(into)]
        config = into.__struct_config__
        if config.tag_field:  # the tag says which struct it is; it is no argument
            found.append(_Field("", config.tag_field, Any, False))
        return found
    return [
        _Field(
            field.name,
            field.name.rstrip("_"),
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(into)
        if field.init
    ]


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
