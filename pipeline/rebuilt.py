"""Corrections of rebuilt usage: what is taken back must be what counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from clickhouse_driver import Client

from pipeline.catalog import Catalog
from pipeline.close import open_books
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from tallyman import books
from tallyman.errors import RebuildError
from tallyman.event import SINGLE, decode_event
from tallyman.meter import Definitions
from tallyman.project import Project
from tallyman.rebuilds import Switch, Switches, read_switches

Measured = tuple[object, ...]


def refuse_rebuilt(project: Project, client: Client, was: bytes, booking: int) -> None:
    """Refuse to take an event back by the definitions in force while a rebuild counts it that measures it otherwise.

    A worker cannot judge this: which rebuilds are in force is not in the log.

    Args:
        was: The event's bytes as they count; empty if it is void.
        booking: Where it was booked as that; 0 if that is not known.

    Raises:
        RebuildError: Says which rebuild, and what to do first.
    """
    switches = read_switches(client) if was else ()
    if not switches:
        return
    event = decode_event(was)
    second = event.time_us // 1_000_000
    engine = open_books(project)
    try:
        now = books.closed_definitions(engine, project.config.kafka.topic)
        if now is None:
            return
        for meter in sorted({name for each in switches for name in each.meters}):
            mine = tuple(each for each in switches if each.about(meter, (second, second + 1)))
            for switch in _counting(mine, booking):
                then = books.load_definitions(engine, switch.definitions)
                if measure(was, then, meter) != measure(was, now, meter):
                    raise RebuildError(_sentence(meter, switch, now))
    finally:
        engine.dispose()


def measure(text: bytes, definitions: Definitions, meter: str) -> Measured:
    """Return what an event counts for in one meter; nothing where that does not want it."""
    mine = tuple(each for each in definitions.meters if each.meter == meter)
    catalog = Catalog(replace(definitions, meters=mine, ignore=(decode_event(text).type,)))
    events, dead, _ = JsonDecoder(catalog, 1).decode(Lines([text], [0], [0], [0], [0], [True]), SINGLE, 0)
    if dead:
        return "dead", dead[0].reason
    readings = events.readings(np.ones(len(events), bool))
    found: list[object] = []
    for key, value in zip(readings.keys.tolist(), readings.values.tolist(), strict=True):
        series = catalog.series[key >> 32]
        found.append((series.subject, series.dimensions, series.item, key & 0xFFFFFFFF, value))
    return (mine[0].aggregation, mine[0].scale, *found) if found else ()


def _counting(switches: Switches, booking: int) -> Iterator[Switch]:
    """Yield the rebuilds of which one counts at a booking; where that is not known, all that may."""
    covered = 0
    for switch in reversed(switches):
        if booking and booking <= switch.last:
            yield switch
            return
        if not booking and switch.last > covered:
            covered = switch.last
            yield switch


def _sentence(meter: str, switch: Switch, now: Definitions) -> str:
    return (
        f"{meter}: the event counts by generation {switch.generation}, whose definitions {switch.definitions} measure "
        f"it otherwise than definitions {now.number}, which are in force and by which it would be taken back: another "
        f"amount than counts. Nothing was sent. First rebuild its range (tallyman rebuild --meter {meter} --from WHEN "
        f"--to WHEN --yes), or tallyman rebuild undo {switch.generation}"
    )
