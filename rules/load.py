"""Read alarm rules from a project's `alarms/*.yaml` and fit them to its meters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rules.model import AlarmEntry, AlarmFile, AlarmGroup, AlarmRule, Expression, rule_key
from rules.template import find_problem
from tallyman.errors import ConfigError
from tallyman.files import Marked, load_marked_folder, nearest, refuse_repeats
from tallyman.meter import Meter

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def load_rules(folder: Path, meters: Sequence[Meter], endpoints: Iterable[str] = ()) -> tuple[AlarmRule, ...]:
    """Read all alarm rules of a folder, in the order of files and places in them.

    Args:
        endpoints: The names that `notify` may use.

    Raises:
        ConfigError: Every problem with file and line: unknown keys, meters, dimensions, endpoints and names in
            texts, two rules that nothing tells apart.
    """
    files = load_marked_folder(folder, AlarmFile)
    by_slug = {meter.meter: meter for meter in meters}
    known = tuple(endpoints)
    problems = [problem for file in files for problem in _find_problems(file, by_slug, known)]
    if problems:
        raise ConfigError("\n".join(problems))
    refuse_repeats("group", [
        (group.name, file.place(f"groups[{g}].name")) for file in files for g, group in enumerate(file.value.groups)
    ])  # fmt: skip
    placed = [
        (_make(group, entry, by_slug[entry.expr.usage.meter]), file.place(f"{path}.alert"))
        for file in files
        for path, group, entry in _entries(file.value)
    ]
    refuse_repeats("alarm rule", [(rule.key, place) for rule, place in placed])
    return tuple(rule for rule, _ in placed)


def _entries(file: AlarmFile) -> Iterator[tuple[str, AlarmGroup, AlarmEntry]]:
    for g, group in enumerate(file.groups):
        for r, entry in enumerate(group.rules):
            yield f"groups[{g}].rules[{r}]", group, entry


def _make(group: AlarmGroup, entry: AlarmEntry, meter: Meter) -> AlarmRule:
    labels = {**group.labels, **entry.labels}
    monotone = entry.monotone if entry.monotone is not None else is_monotone(entry.expr, meter)
    return AlarmRule(
        key=rule_key(group.name, entry.alert, labels),
        group=group.name,
        alert=entry.alert,
        usage=entry.expr.usage,
        condition=entry.expr.condition,
        for_=entry.for_,
        keep_firing_for=entry.keep_firing_for,
        labels=labels,
        annotations=entry.annotations,
        resolve=entry.resolve,
        no_data=entry.no_data,
        monotone=monotone,
        unit=meter.unit if entry.expr.usage.aggregate == "value" else "events",
        interval=group.interval,
        notify=entry.notify or group.notify,
    )


def is_monotone(expr: Expression, meter: Meter) -> bool:
    """Whether more usage can only confirm the condition.

    A sum counts as such even if the meter takes negative corrections: they are rare, an alarm that comes late is
    not; whoever sees it otherwise writes `monotone: false`.
    """
    if expr.usage.aggregate == "events":
        return expr.condition.rising
    return meter.aggregation in (("sum", "count", "max") if expr.condition.rising else ("min",))


def _find_problems(file: Marked[AlarmFile], meters: Mapping[str, Meter], endpoints: Sequence[str]) -> Iterator[str]:
    for g, group in enumerate(file.value.groups):
        for below, problem in _check_endpoints(group.notify, endpoints):
            yield f"{file.place(f'groups[{g}].{below}')}: {problem}"
        for below, problem in (*_check_labels(group.labels), *_check_group_texts(group)):
            yield f"{file.place(f'groups[{g}].{below}')}: {problem}"
    for path, _group, entry in _entries(file.value):
        for below, problem in _check_entry(entry, meters, endpoints):
            yield f"{file.place(f'{path}.{below}')}: {problem}"


def _check_entry(
    entry: AlarmEntry, meters: Mapping[str, Meter], endpoints: Sequence[str]
) -> Iterator[tuple[str, str]]:
    usage = entry.expr.usage
    meter = meters.get(usage.meter)
    if meter is None:
        yield "expr.usage.meter", f'unknown meter "{usage.meter}"{nearest(usage.meter, meters)}'
    else:
        for place, name in enumerate(usage.by):
            if name != "subject" and name not in meter.dimensions:
                hint = nearest(name, ["subject", *meter.dimensions])
                yield f"expr.usage.by[{place}]", f'unknown dimension "{name}" of {meter.meter}{hint}'
        for name, values in usage.where.items():
            if not values:
                yield f"expr.usage.where.{name}", "expected one value at least, got none: no usage is like that"
            if name not in meter.dimensions:
                hint = nearest(name, meter.dimensions)
                yield f"expr.usage.where.{name}", f'unknown dimension "{name}" of {meter.meter}{hint}'
    if len(set(usage.by)) < len(usage.by):
        yield "expr.usage.by", f"expected each name once, got {', '.join(usage.by)}"
    names = _names_in_texts(entry)
    for kind, texts in (("labels", entry.labels), ("annotations", entry.annotations)):
        for name, text in texts.items():
            problem = find_problem(text, names)
            if problem:
                yield f"{kind}.{name}", problem
    yield from _check_labels(entry.labels)
    yield from _check_endpoints(entry.notify, endpoints)


def _names_in_texts(entry: AlarmEntry) -> dict[str, str]:
    """Return the names that texts of an alarm may use."""
    return dict.fromkeys(
        ["value", "threshold", "unit", "meter", *(f"labels.{name}" for name in entry.expr.usage.by)], ""
    )


def _check_group_texts(group: AlarmGroup) -> Iterator[tuple[str, str]]:
    """Check the labels of a group against each of its alarms, which all have them unless they say otherwise."""
    for name, text in group.labels.items():
        for entry in group.rules:
            problem = None if name in entry.labels else find_problem(text, _names_in_texts(entry))
            if problem:
                yield f"labels.{name}", f"{problem}, in alarm {entry.alert}"
                break


def _check_labels(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in labels:
        if not _LABEL.match(name):
            yield f"labels.{name}", f'expected a label name of letters, digits and "_", got "{name}"'
        elif name == "alertname":
            yield f"labels.{name}", "alertname is the alarm's own name; give the label another one"


def _check_endpoints(notify: Sequence[str], endpoints: Sequence[str]) -> Iterator[tuple[str, str]]:
    for place, name in enumerate(notify):
        if name not in endpoints:
            hint = nearest(name, endpoints) or "; there is none in rules.endpoints of tallyman.yaml"
            yield f"notify[{place}]", f'unknown endpoint "{name}"{hint}'
