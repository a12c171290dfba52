"""The definitions in force, for whoever wants to know beforehand what becomes of an event."""

from __future__ import annotations

from tallyman import books
from tallyman.control import open_control
from tallyman.meter import Definitions
from tallyman.project import Project


def definitions_of(project: Project) -> Definitions:
    """Return what the files of a project define, not numbered yet."""
    usage = project.config.usage
    return Definitions(
        number=0,
        meters=project.meters,
        oldest_accepted=usage.oldest_accepted,
        furthest_ahead=usage.furthest_ahead,
        ignore=tuple(usage.ignore),
    )


def definitions_in_force(project: Project) -> Definitions:
    """Return the definitions in force; where nothing was booked yet, what the project's files say.

    Raises:
        StoreError: The control store does not open.
    """
    engine = open_control(project.control_url)
    try:
        books.prepare(engine)
        found = books.closed_definitions(engine, project.config.kafka.topic)
    finally:
        engine.dispose()
    return found or definitions_of(project)


def definitions_numbered(project: Project, number: int) -> Definitions:
    """Return definitions that were in force.

    Raises:
        StoreError: The control store does not open, or does not know them.
    """
    engine = open_control(project.control_url)
    try:
        return books.load_definitions(engine, number)
    finally:
        engine.dispose()
