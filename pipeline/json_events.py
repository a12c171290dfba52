"""JSON events to columns: shape by shape, else one typed pass over all lines, and the contract's decoder for the rest.

The ways must agree on every event, because which one runs depends on its neighbours and the
result may not: a property test holds them equal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import ModuleType
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.book import DeadLetter
from pipeline.catalog import Catalog
from pipeline.columns import Events
from pipeline.compiled import load_kernel
from pipeline.compiled_lookalikes import CompiledLookalikes
from pipeline.event_rows import EventRows
from pipeline.homes import Homes
from pipeline.lines import Cuts, Lines, Stretch
from pipeline.lookalikes import Lookalikes
from pipeline.meanings import FoundEvents, Meanings
from pipeline.together import MOST_TOGETHER, join_objects
from pipeline.values import Failures, narrow, parse_times, scale_values
from tallyman.errors import EventError
from tallyman.event import MAX_NAME_BYTES, decode_event, identity
from tallyman.meter import Meter, is_path, value_in
from tallyman.nesting import is_too_deep

_SHORT = MAX_NAME_BYTES // 4  # so many characters are never too many bytes
_LEFT_OUT_KEPT = 100_000  # keys that a meter's filter leaves out


@dataclass(frozen=True, slots=True)
class _MeterPlan:
    number: int
    scale: int
    counts: bool
    key: Callable[[Any], Any]
    value: Callable[[Any], Any]
    cache: dict[Any, int]


class JsonDecoder:
    """Turn JSON events into columns under one catalog.

    Args:
        few: Fewer lines of one shape are not worth reading together; None: what is best for the way that reads them.
        kernel: The compiled loops, where there are any.
    """

    def __init__(
        self,
        catalog: Catalog,
        partitions: int,
        few: int | None = None,
        kernel: ModuleType | Literal["load"] | None = "load",
    ) -> None:
        self.catalog = catalog
        self._homes = Homes(partitions)
        names = _fields(catalog)
        data = msgspec.defstruct(
            "Data", [(slot, kind, None) for slot, kind in names.values()], rename={s: n for n, (s, _) in names.items()}
        )
        wire = msgspec.defstruct(
            "Wire",
            [
                ("id", str),
                ("source", str),
                ("type", str),
                ("subject", str),
                ("time", str),
                ("specversion", Literal["1.0"], "1.0"),
                ("data", data, msgspec.field(default_factory=data)),
                ("data_base64", None, None),  # decoded one by one
            ],
        )
        decoder = msgspec.json.Decoder(wire, float_hook=Decimal)
        self._decode, self._decode_lines = decoder.decode, decoder.decode_lines
        self._plans = {name: tuple(self._plan(number, names) for number in numbers if _is_flat(catalog, number))
                       for name, numbers in catalog.by_type.items()}  # fmt: skip
        self._slow_types = {
            name for name, numbers in catalog.by_type.items() if not all(_is_flat(catalog, n) for n in numbers)
        }
        # Their meters read what cannot be a field of `Data`.
        self._line_by_line = {meter.event_type for meter in catalog.meters if not _has_names(meter)}
        meanings = Meanings(catalog, self._homes, self._slow_types)
        self._kernel = load_kernel() if kernel == "load" else kernel
        least = () if few is None else (few,)
        self._lookalikes = Lookalikes(meanings, *least)
        self._compiled = CompiledLookalikes(self._kernel, meanings, *least) if self._kernel else None

    def _plan(self, number: int, names: dict[str, tuple[str, Any]]) -> _MeterPlan:
        meter = self.catalog.meters[number]
        paths = (*meter.dimensions.values(), *meter.where)
        key = operator.attrgetter("subject", *(f"data.{names[path][0]}" for path in paths))
        counts = meter.aggregation == "count"
        value = operator.attrgetter(f"data.{names[meter.value][0]}") if not counts else operator.attrgetter("id")
        return _MeterPlan(number, meter.scale, counts, key, value, {})

    def decode(
        self, lines: Lines | Stretch, content_type: str, booking: int
    ) -> tuple[Events, list[DeadLetter], int]:
        """Return the events that some meter wants, the dead letters, and how many events were ignored."""
        stretch = lines if isinstance(lines, Stretch) else lines.together()
        work = EventRows.of(len(stretch))
        found, rest = self.read_alike(stretch)
        for each in found:
            work.take(each)
        dead: list[DeadLetter] = []
        if len(rest):
            named = self._one_by_one(stretch.bodies, rest.tolist(), work)
            dead = [self._dead(stretch, row, error, content_type, booking, named.get(row))
                    for row, error in sorted(work.errors.items())]  # fmt: skip
        return self._events(stretch, work, content_type), dead, int((work.kind == 2).sum())

    def read_alike(self, stretch: Stretch) -> tuple[list[FoundEvents], npt.NDArray[np.int64]]:
        """Read the lines that share a shape; return the rows, too, that are left to be read one by one."""
        if self._compiled:
            return self._compiled.read(stretch)
        return self._lookalikes.read(stretch.bodies, stretch.ends - stretch.starts)

    def _one_by_one(self, bodies: Sequence[bytes], rows: list[int], work: EventRows) -> dict[int, Any]:
        """Decode lines of any shape, and return what names they have."""
        wires, slow = self._parse([bodies[row] for row in rows])
        if self._line_by_line:
            slow = [i for i, wire in enumerate(wires) if wire is None or wire.type in self._line_by_line]
            for i in slow:
                wires[i] = None
        quick = [i for i, wire in enumerate(wires) if wire is not None] if slow else list(range(len(rows)))
        if quick:
            chosen = [wires[i] for i in quick] if slow else wires
            self._understand(chosen, np.array([rows[i] for i in quick], np.int64), work)
        named: dict[int, Any] = {rows[i]: wires[i] for i in quick} if work.errors else {}
        for i in slow:
            self._slow(rows[i], bodies[rows[i]], work, named)
        return named

    def _parse(self, bodies: list[bytes]) -> tuple[list[Any], list[int]]:
        """Decode many lines at once; where that fails, each alone, and name those that are left to the slow path."""
        wires: list[Any] = []
        slow: list[int] = []
        for first in range(0, len(bodies), MOST_TOGETHER):
            part = bodies[first : first + MOST_TOGETHER]
            together = self._parse_together(part)
            found = together or [self._parse_alone(body) for body in part]
            if not together:
                slow += [first + i for i, wire in enumerate(found) if wire is None]
            wires += found
        return wires, slow

    def _parse_together(self, bodies: list[bytes]) -> list[Any]:
        joined = join_objects(bodies)
        if not joined or not _is_utf8(joined):
            return []
        try:
            together = self._decode_lines(joined)
        except (msgspec.DecodeError, UnicodeDecodeError, ArithmeticError):
            return []  # find out which
        return together if len(together) == len(bodies) else []

    def _parse_alone(self, body: bytes) -> Any:
        if is_too_deep(body) or not _is_utf8(body):
            return None
        try:
            return self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, ArithmeticError):
            return None

    def _understand(self, wires: list[Any], rows: npt.NDArray[np.int64], work: EventRows) -> None:
        find, dead_name = self._homes.get, self._bad_name
        identities: list[bytes] = [bytes(16)] * len(wires)
        homes = [0] * len(wires)
        where = rows.tolist()
        by_type: dict[str, list[int]] = {}
        for i, wire in enumerate(wires):
            row, name = where[i], wire.type
            known = find((wire.subject, wire.source))
            if known is None or not 0 < len(wire.id) <= _SHORT or not 0 < len(name) <= _SHORT:
                error_or_none = dead_name(wire)
                if error_or_none is not None:
                    work.fail(row, error_or_none)
                    continue
                known = self._homes.find(wire.subject, wire.source)
            hasher = known.begin()
            hasher.update(wire.id.encode())
            identities[i], homes[i] = hasher.digest(), known.partition
            if name in by_type:
                by_type[name].append(i)
            else:
                by_type[name] = [i]
        work.identify(rows, b"".join(identities))
        work.homes[rows] = homes
        work.times[rows], failures = parse_times([wire.time for wire in wires])
        for i, error in failures:
            work.fail(int(rows[i]), error)
        for name, members in by_type.items():
            if name in self._slow_types:
                for i in members:
                    self._measure_slowly(where[i], name, wires[i].subject, _plain(wires[i].data), work)
                continue
            plans = self._plans.get(name)
            if plans is None:
                self._unwanted(name, [where[i] for i in members], work)
                continue
            chosen = wires if len(members) == len(wires) else [wires[i] for i in members]
            self._measure(plans, chosen, rows if chosen is wires else rows[members], work)

    def _measure(
        self,
        plans: tuple[_MeterPlan, ...],
        wires: list[Any],
        rows: npt.NDArray[np.int64],
        work: EventRows,
    ) -> None:
        wanted = np.zeros(len(wires), bool)
        for plan in plans:
            keys = list(map(plan.key, wires))
            series = list(map(plan.cache.get, keys))
            if None in series:
                self._fill(plan, wires, keys, series, rows, work)
            numbers = np.array(series, np.int32)
            mine = numbers >= 0
            wanted |= mine
            everything = bool(mine.all())
            chosen = wires if everything else [wire for wire, yes in zip(wires, mine.tolist(), strict=True) if yes]
            if not chosen:
                continue
            if plan.counts:
                values: npt.NDArray[Any] = np.ones(len(chosen), np.int64)
                failures: Failures = []
            else:
                values, failures = scale_values(list(map(plan.value, chosen)), plan.scale)
                failures += self._negative(plan, values)
            mine_rows = rows if everything else rows[mine]
            for i, error in failures:
                work.fail(int(mine_rows[i]), error)
            work.read(mine_rows, numbers if everything else numbers[mine], values)
        unwanted = ~wanted & (work.kind[rows] == 0)
        work.kind[rows[unwanted]] = 2  # a meter's filter says so, on purpose

    def _negative(self, plan: _MeterPlan, values: npt.NDArray[Any]) -> Failures:
        meter = self.catalog.meters[plan.number]
        if meter.allow_negative:
            return []
        error = EventError("negative", f"value: {meter.meter} takes no negative values")
        return [(int(i), error) for i in np.flatnonzero(values < 0)]

    def _fill(
        self,
        plan: _MeterPlan,
        wires: list[Any],
        keys: list[Any],
        series: list[Any],
        rows: npt.NDArray[np.int64],
        work: EventRows,
    ) -> None:
        """Give numbers to series that are met for the first time."""
        if len(plan.cache) > 2 * self.catalog.series.lasting + _LEFT_OUT_KEPT:
            plan.cache.clear()
        for i, number in enumerate(series):
            if number is None:
                try:
                    series[i] = self.catalog.series_of(
                        plan.number, wires[i].subject, _plain(wires[i].data)
                    )
                    plan.cache[keys[i]] = series[i]
                except EventError as error:
                    work.fail(int(rows[i]), error)
                    series[i] = -1

    def _slow(self, row: int, body: bytes, work: EventRows, named: dict[int, Any]) -> None:
        try:
            event = decode_event(body)
        except EventError as error:
            work.fail(row, error)
            return
        named[row] = event
        work.times[row] = event.time_us
        work.homes[row] = self._homes.find(event.subject, event.source).partition
        work.identify(row, identity(event.subject, event.source, event.id))
        self._measure_slowly(row, event.type, event.subject, event.data, work)

    def _measure_slowly(self, row: int, name: str, subject: str, data: Mapping[str, Any], work: EventRows) -> None:
        meters = self.catalog.by_type.get(name)
        if meters is None:
            self._unwanted(name, [row], work)
            return
        found: list[tuple[int, int]] = []
        time_us, by = int(work.times[row]), work.identities[row].tobytes()
        try:
            for number in meters:
                series = self.catalog.series_of(number, subject, data)
                if series >= 0:
                    value = value_in(self.catalog.meters[number], data)
                    found.append((self.catalog.with_item(series, data, time_us, value, by), value))
        except EventError as error:
            work.fail(row, error)
            return
        if not found and work.kind[row] == 0:
            work.kind[row] = 2
        for series, value in found:
            work.read(np.array([row], np.int64), np.array([series], np.int32), narrow([value]))

    def _unwanted(self, name: str, rows: list[int], work: EventRows) -> None:
        ignored = name in self.catalog.ignored
        for row in rows:
            if ignored and work.kind[row] == 0:
                work.kind[row] = 2
            elif not ignored:
                work.fail(row, EventError("unknown_meter", f'type: no meter wants "{name}"'))

    def _bad_name(self, wire: Any) -> EventError | None:
        for name in ("id", "source", "type", "subject"):
            value: str = getattr(wire, name)
            if not value:
                return EventError("missing_field", f"{name}: expected text, got an empty string")
            if len(value) > _SHORT and len(value.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
                return EventError(
                    "out_of_range", f"{name}: expected at most {MAX_NAME_BYTES} bytes, got {len(value)} characters"
                )
        return None

    def _dead(
        self, lines: Stretch, row: int, error: EventError, content_type: str, booking: int, named: Any
    ) -> DeadLetter:
        offset, index, appended_ms, _ = lines.places[:, row].tolist()
        return DeadLetter(
            offset,
            index,
            appended_ms,
            booking,
            error.reason,
            error.detail,
            lines.bodies[row],
            content_type,
            named.type if named else "",
            named.source if named else "",
            named.subject if named else "",
        )

    def _events(self, lines: Stretch, work: EventRows, content_type: str) -> Events:
        kept = work.kind == 0
        rows, series, values = work.readings()
        bodies, words, times, homes = lines.bodies, work.identities, work.times, work.homes
        places, admitted, starts, ends = lines.places, lines.admitted, lines.starts, lines.ends
        if not kept.all():
            chosen = kept[rows]
            rows, series, values = (np.cumsum(kept) - 1)[rows[chosen]], series[chosen], values[chosen]
            words, times, homes = words[kept], times[kept], homes[kept]
            admitted, starts, ends = admitted[kept], starts[kept], ends[kept]
            places = places[:, kept]
            bodies = (bodies.where(kept) if isinstance(bodies, Cuts)
                      else [body for body, yes in zip(bodies, kept.tolist(), strict=True) if yes])  # fmt: skip
        digests = self._crcs(lines.text, starts, ends, bodies) | (ends - starts).astype(np.uint64) << np.uint64(32)
        offsets, indexes, appended, clocks = places
        return Events(offsets, indexes, appended, clocks, times, words[:, 0], words[:, 1], digests, homes, admitted,
                      bodies, rows, series, values, content_type=content_type)  # fmt: skip

    def _crcs(
        self, text: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], bodies: Sequence[bytes]
    ) -> npt.NDArray[np.uint64]:
        if self._kernel is None or not self._kernel.HAS_CRC:
            return np.fromiter(map(crc32c, bodies), np.uint64, len(bodies))
        digests = np.empty(len(starts), np.uint64)
        self._kernel.digest_lines(np.frombuffer(text, np.uint8), starts, ends, digests)
        return digests


def _is_utf8(body: bytes) -> bool:
    """Tell whether all of it is UTF-8; msgspec does not look into what it skips."""
    if body.isascii():
        return True
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_flat(catalog: Catalog, number: int) -> bool:
    """Tell whether a meter counts by series alone and reads only the first level of `data`, by names that no dimension
    shares with a value.

    Nor with the first part of a path that goes deeper: such a field may hold anything, also what is no dictionary key.
    """
    meter = catalog.meters[number]
    paths = (*meter.text_paths, *meter.value_paths)
    texts = {path for each in catalog.meters for path in each.text_paths}
    values = {path for each in catalog.meters for path in each.value_paths}
    deeper = {path.split(".", 1)[0] for path in texts | values if "." in path}
    return (
        number not in catalog.by_item
        and _has_names(meter)
        and not any("." in path for path in paths)
        and not set(meter.text_paths) & (values | deeper)
        and not set(meter.value_paths) & texts
    )


def _has_names(meter: Meter) -> bool:
    """Tell whether the paths that a meter reads can be fields of a struct: msgspec refuses some names."""
    return all(map(is_path, (*meter.text_paths, *meter.value_paths)))


def _plain(data: Any) -> Any:
    """Return decoded data as a dictionary, numbers with a point as what they are: their texts would have exponents."""
    return msgspec.to_builtins(data, builtin_types=(Decimal,))


def _fields(catalog: Catalog) -> dict[str, tuple[str, Any]]:
    """Return the fields of `data` that some meter reads: name -> (slot, type).

    Dimensions are text, integers or null; anything else (1.0, true) takes the slow path, because Python takes 1, 1.0
    and True for the same dictionary key and their texts differ.
    """
    values = {path for meter in catalog.meters for path in meter.value_paths}
    fields: dict[str, tuple[str, Any]] = {}
    for meter in catalog.meters:
        for path in filter(is_path, (*meter.text_paths, *meter.value_paths)):
            for name in dict.fromkeys((path, path.split(".", 1)[0])):
                kind: Any = Any if name in values or "." in path else str | int | None
                known = fields.get(name)
                fields[name] = (
                    f"f{len(fields)}" if known is None else known[0],
                    Any if known and known[1] is Any else kind,
                )
    return fields
