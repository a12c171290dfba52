"""What a case is, what it plans to do, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tallyman.meter import Meter
from tests.vectors.json_text import read_json, write_json

if TYPE_CHECKING:
    from tests.vectors.books import Books

Form = Literal["single", "batch", "lines", "binary", "arrow"]
FORMS: tuple[Form, ...] = ("single", "batch", "lines", "binary")
Limit = Literal["oldest_accepted", "furthest_ahead"]
Wire = dict[str, Any]


class Mismatch(Exception):
    """The case fails; the message says what was expected and what came."""


class Unknown(Mismatch):
    """The case asks for something that this runner does not know."""


class Incomparable(Unknown):
    """The case expects nothing that this runner could compare."""


class NotOffered(Exception):
    """Tallyman does not offer the semantics of an optional case; the message says why."""


class Query(dict[str, Any]):
    """A case's query or answer, which remembers what of it was looked at: what nobody reads, nobody has judged."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._read: set[object] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._read.add(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def having(self, fields: Mapping[str, Any]) -> Query:
        """Return the same with other fields; what is looked at there was looked at here."""
        other = Query({**self, **fields})
        other._read = self._read
        return other

    @property
    def unread(self) -> list[str]:
        return [name for name in self if name not in self._read]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One case of a file.

    Attributes:
        number: Its place in the file.
        expected: What it expects of us; of a case in which we differ, `ours`.
        theirs: Of a case in which we differ, the peer's answer.
        problem: Why it is no case that can be planned, "" if it is one.
    """

    number: int
    id: str
    kind: str
    stance: str
    events: Sequence[Any] = ()
    query: Query = field(default_factory=lambda: Query({}))
    expected: Any = None
    theirs: Any = None
    tolerance: Decimal | None = None
    note: str = ""
    problem: str = ""

    @property
    def slug(self) -> str:
        """Name its meters, types and sources, so that no case meets another's."""
        return f"v{self.number:04d}"


class Place(NamedTuple):
    """Where an event stands in the log."""

    partition: int
    offset: int
    row: int


@dataclass(eq=False, slots=True, kw_only=True)
class Outgoing:
    """One event, or what should have been one.

    Attributes:
        wire: The event as JSON, unless only `body` is known.
        content_type: As announced; empty for what the form of the record says.
        corrects: Of a correction, the version that it makes.
        place: Where it stands, once sent.
        problem: Why it could not be sent.
        is_too_large: Whether the log refused it for its size.
    """

    body: bytes
    wire: Wire | None = None
    content_type: str = ""
    corrects: int = 0
    place: Place | None = None
    problem: str = ""
    is_too_large: bool = False

    @classmethod
    def of(cls, wire: Wire) -> Outgoing:
        return cls(body=write_json(wire), wire=wire)


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a case sends and how its answer is judged once everything is booked.

    Attributes:
        forms: In which its events may travel; one of them is chosen.
        check: Raises `Mismatch` or `NotOffered`; returns our answer in words.
        remarks: What a reader of the result must know, e.g. where our rule is another one.
        breaks: Whether it kills a part; such cases run after all others.
        keeps: The limits that are not to be widened for it.
    """

    check: Callable[[Books], str]
    meters: list[Meter] = field(default_factory=list)
    events: list[Outgoing] = field(default_factory=list)
    forms: Sequence[Form] = FORMS
    remarks: list[str] = field(default_factory=list)
    breaks: bool = False
    keeps: frozenset[Limit] = frozenset()


Outcome = Literal["passed", "failed", "diverges", "not offered"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a case."""

    vector: Vector
    outcome: Outcome
    text: str = ""
    remarks: Sequence[str] = ()


def read_vectors(path: Path) -> list[Vector]:
    """Read a file of cases.

    Raises:
        OSError, ValueError: It cannot be read, or holds no list of cases.
    """
    document = read_json(path.read_text("utf-8-sig"))
    cases = document.get("vectors", document.get("cases")) if isinstance(document, dict) else document
    if not isinstance(cases, list):
        raise ValueError(f'{path}: expected a list of cases under "vectors", got {type(cases).__name__}')
    return [_vector(number, case) for number, case in enumerate(cases, 1)]


def _vector(number: int, told: Any) -> Vector:
    case: Mapping[str, Any] = told if isinstance(told, dict) else {}
    expected, stance = case.get("expected"), str(case.get("stance", ""))
    sides = expected if stance == "diverge" and isinstance(expected, dict) and "ours" in expected else None
    tolerance = case.get("tolerance")
    return Vector(
        number=number,
        id=str(case.get("id", f"case {number}")),
        kind=str(case.get("kind", "")),
        stance=stance,
        events=case.get("events") or (),
        query=Query(case["query"] if isinstance(case.get("query"), dict) else {}),
        expected=_remembering(sides["ours"] if sides else expected),
        theirs=sides.get("peer") if sides else None,
        tolerance=None if tolerance is None or not _is_number(tolerance) else Decimal(str(tolerance)),
        note=str(case.get("note", "")),
        problem=_problem(told),
    )


def _remembering(expected: Any) -> Any:
    return Query(expected) if isinstance(expected, dict) else expected


def _problem(case: Any) -> str:
    """Return why something in a list of cases is none, "" if it is one."""
    if not isinstance(case, dict):
        return f"expected a case, an object, got {type(case).__name__}"
    if not isinstance(case.get("events") or [], list):
        return f"events: expected a list, got {type(case['events']).__name__}"
    if not isinstance(case.get("query") or {}, dict):
        return f"query: expected an object, got {type(case['query']).__name__}"
    tolerance = case.get("tolerance")
    if tolerance is not None and not _is_number(tolerance):
        return f"tolerance: expected a number, got {tolerance!r}"
    return ""


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and Decimal(str(value)).is_finite()
    except InvalidOperation:
        return False
