"""Texts of alarms with values in them: `{{ value }}`, `{{ labels.subject }}`. No logic, so nothing to escape from.

The names of Prometheus (`{{ $value }}`, `{{ $labels.subject }}`) mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

_HOLE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_NAME = re.compile(r"\s*\$?([A-Za-z_][\w.-]*)\s*\Z")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Fill the holes of a text. What cannot be filled becomes a visible text: it never stops an alarm.

    >>> expand("{{ labels.subject }} used {{ value }}", {"labels.subject": "Zoë Åström", "value": "12.5"})
    'Zoë Åström used 12.5'
    >>> expand("{{ labels.region }}", {"value": "1"})
    '<error expanding template: "labels.region" is not known; known: value>'
    """

    def fill(hole: re.Match[str]) -> str:
        problem = _problem(hole[1], values)
        if problem:
            return f"<error expanding template: {problem}>"
        return values[hole[1].strip().removeprefix("$")]

    return _HOLE.sub(fill, text)


def find_problem(text: str, names: Mapping[str, str]) -> str | None:
    """Return what is wrong with a text that may use these names, or None."""
    problems = (_problem(hole, names) for hole in _HOLE.findall(text))
    return next((problem for problem in problems if problem), None)


def _problem(inside: str, names: Mapping[str, str]) -> str | None:
    found = _NAME.match(inside)
    if not found:
        return f'expected a name such as labels.subject, got "{inside.strip()[:40]}"'
    if found[1] in names:
        return None
    near = get_close_matches(found[1], names, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(sorted(names))}"
    return f'"{found[1]}" is not known; {hint}'
