"""Run a file of cases through Kafka, the Beam job and ClickHouse: all in one run of the pipeline, then ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from pipeline.close import found_books
from tallyman.errors import ConfigError, TallymanError
from tallyman.local.clickhouse_child import ClickHouse
from tallyman.local.kafka import Broker
from tallyman.meter import Meter
from tallyman.project import load_meters
from tests.integration.booking import OwnProject
from tests.vectors.books import Books
from tests.vectors.building import moments_of
from tests.vectors.clock import at_our_time, limits_of
from tests.vectors.kinds import KINDS
from tests.vectors.model import Incomparable, Limit, Mismatch, NotOffered, Plan, Query, Unknown, Vector, Verdict
from tests.vectors.sending import Record, pack, send
from tests.vectors.worker import Worker

_ASIDES = ("peer", "peer_digits", "note", "unclamped_variant", "invariant")  # told for whoever reads the file
_DEFAULTS = {field.name: field.default for field in fields(Meter)}


@dataclass(frozen=True, slots=True)
class _Ready:
    """A case with all that it needs: its query as it is asked, what it sends, and its meters in a project's form."""

    vector: Vector
    query: Query
    expected: Any
    plan: Plan
    records: Sequence[Record]
    meters: str


@contextmanager
def real_parts(folder: Path) -> Iterator[tuple[Broker, ClickHouse]]:
    """Run a broker and ClickHouse of our own.

    Raises:
        StackError: They cannot run here.
    """
    broker, clickhouse = Broker(folder / "kafka"), ClickHouse(folder / "clickhouse")
    try:
        broker.start()
        clickhouse.start()
        yield broker, clickhouse
    finally:
        clickhouse.stop()
        broker.stop()


def run(vectors: Sequence[Vector], broker: Broker, clickhouse: ClickHouse, folder: Path) -> list[Verdict]:
    """Send what all cases send, wait until it is booked, and judge each case by what the books say."""
    ready, verdicts = _plan_all(vectors, folder)
    for keeps in sorted({case.plan.keeps for case in ready}, key=sorted):
        cases = [case for case in ready if case.plan.keeps == keeps]
        place = folder / "-".join(("run", *sorted(keeps)))
        verdicts += _run_project(cases, _accepted(cases, keeps), broker, clickhouse, place)
    return sorted(verdicts, key=lambda verdict: verdict.vector.number)


def _run_project(
    ready: Sequence[_Ready], usage: Mapping[str, str], broker: Broker, clickhouse: ClickHouse, folder: Path
) -> list[Verdict]:
    """Run cases in one project, with these settings of what is accepted."""
    meters = _meters_file([case.meters for case in ready])
    own = OwnProject(folder / "project", broker.bootstrap, clickhouse.endpoint, meters, chunk_size=65536)
    if usage:
        own.sections["usage"] = dict(usage)
    pipeline = Worker(own)
    pipeline.start()
    try:
        found_books(own.project)
        send(broker.bootstrap, str(own.settings["topic"]), [record for case in ready for record in case.records])
        _wait_until_booked(own)
        books = Books(own, {"broker": broker, "clickhouse": clickhouse, "pipeline": pipeline}, folder)
        try:
            return [_judge(case, books) for case in sorted(ready, key=lambda case: case.plan.breaks)]
        finally:
            books.close()
    finally:
        pipeline.stop()


def _wait_until_booked(own: OwnProject) -> None:
    """Wait as long as the pipeline makes progress, however many events there are."""
    before: dict[int, int] = {}
    while True:
        try:
            return own.wait_until_booked()
        except AssertionError:
            reached = own.reached()
            if reached == before:
                raise
            before = reached


def _plan_all(vectors: Sequence[Vector], folder: Path) -> tuple[list[_Ready], list[Verdict]]:
    """Return the cases that can be sent, and the verdicts on those that cannot."""
    ready: list[_Ready] = []
    verdicts: list[Verdict] = []
    for vector in vectors:
        try:
            ready.append(_prepare(vector, folder))
        except Exception as error:  # noqa: BLE001 - a case of a shape that nobody thought of must not stop the others
            verdicts.append(_verdict_on(vector, error))
    return ready, verdicts


def _prepare(vector: Vector, folder: Path) -> _Ready:
    if vector.problem:
        raise Unknown(vector.problem)
    if vector.kind not in KINDS:
        raise Unknown(f'unknown kind "{vector.kind}"')
    if not isinstance(vector.expected, Mapping):
        raise Incomparable(f"expected holds nothing to compare: {vector.expected!r}")
    keeps = limits_of(vector)
    planned = at_our_time(vector) if keeps else vector
    plan = KINDS[vector.kind](planned)
    plan.keeps = keeps
    form = plan.forms[vector.number % len(plan.forms)]
    meters = _as_written(plan.meters)
    _check_meters(meters, folder / "meters" / vector.slug)
    return _Ready(vector, planned.query, planned.expected, plan, list(pack(plan.events, form)), meters)


def _check_meters(meters: str, folder: Path) -> None:
    """Read a case's meters by themselves, as a project does: one that is refused must not stop all cases.

    Raises:
        Unknown: No meter can be like this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all.yaml").write_text(_meters_file([meters]), encoding="utf-8")
    try:
        load_meters(folder)
    except ConfigError as error:
        problems = [line.rpartition("all.yaml:")[2] for line in str(error).splitlines()]
        raise Unknown(f"no meter is like this: {'; '.join(problems)}") from error


def _meters_file(meters: Sequence[str]) -> str:
    return "meters:\n" + ("".join(meters) or "  []\n")


def _judge(case: _Ready, books: Books) -> Verdict:
    vector, remarks = case.vector, case.plan.remarks
    try:
        told = case.plan.check(books)
    except Exception as error:  # noqa: BLE001 - as above
        return _verdict_on(vector, error, remarks)
    if unread := case.query.unread:
        remarks = [*remarks, f"the query also says {', '.join(unread)}, which nothing here reads"]
    if isinstance(case.expected, Query) and (unread := [n for n in case.expected.unread if n not in _ASIDES]):
        remarks = [*remarks, f"the answer also says {', '.join(unread)}, which nothing here compares"]
    return Verdict(vector, "diverges" if vector.stance == "diverge" else "passed", told, remarks)


def _verdict_on(vector: Vector, error: Exception, remarks: Sequence[str] = ()) -> Verdict:
    """Say what an error means for the case in which it came up."""
    if isinstance(error, Incomparable) and vector.stance == "diverge":
        return Verdict(vector, "diverges", f"not compared, the file tells it in words: {vector.expected}", remarks)
    if isinstance(error, NotOffered):
        return Verdict(vector, "not offered" if vector.stance == "adopt-optional" else "failed", str(error), remarks)
    if isinstance(error, Mismatch | TallymanError):
        return Verdict(vector, "failed", str(error), remarks)
    return Verdict(vector, "failed", f"cannot be judged: {type(error).__name__}: {error}", remarks)


def _as_written(meters: Sequence[Meter]) -> str:
    """Return what a meters file says of some meters; what it leaves out has the default."""
    if not meters:
        return ""
    given = [{field.name: getattr(meter, field.name) for field in fields(Meter)} for meter in meters]
    told = [
        {name: value for name, value in each.items() if value != _DEFAULTS[name] and value != {}} for each in given
    ]
    text: str = yaml.dump(told, Dumper=_Plain, allow_unicode=True)
    text.encode()  # half a character could not be written, and would stop all cases
    return text


class _Plain(yaml.SafeDumper):
    """Writes a mapping that two meters share twice, a tuple as a list, and every text in quotes."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Plain.add_representer(tuple, yaml.SafeDumper.represent_list)
_Plain.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _accepted(ready: Sequence[_Ready], keeps: Set[Limit]) -> dict[str, str]:
    """Return how old and how far ahead events may be, so that those of all cases are accepted.

    Args:
        keeps: What is left as it is, because the cases are about it.
    """
    wires = [event.wire for case in ready for event in case.plan.events if event.wire]
    now = datetime.now(UTC)
    moments = [*moments_of(wires), now]
    day = timedelta(days=1)
    limits = {
        "oldest_accepted": f"{(now - min(moments)) // day + 2}d",
        "furthest_ahead": f"{(max(moments) - now) // day + 2}d",
    }
    return {name: text for name, text in limits.items() if name not in keeps}
