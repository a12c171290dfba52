"""The executable specification of what becomes of a record: a function of the log alone.

`chunk_model.py` books what is accepted here.
"""

from __future__ import annotations

from typing import NamedTuple

OLDEST, AHEAD = 25, 5  # an event may be so much older or newer than the log clock
REMEMBER = OLDEST + AHEAD  # an accepted id is remembered at least so long; after that its copies are too old anyway


class Event(NamedTuple):
    """One usage event; `identity` is (tenant, source, id), or (collector, epoch, sequence) for a numbered batch.

    A correction has an identity of its own. It names the version before it and what that counted (0: nothing, it was
    void), which it takes back; `value` is what counts instead, from now on.
    """

    identity: str
    subject: str
    minute: int
    value: int
    corrects: str = ""
    was: int = 0

    @property
    def first(self) -> str:
        """The identity of the event itself: version 0."""
        return self.identity.partition("~")[0]

    def corrected(self, value: int) -> Event:
        """Return what makes the next version of this one."""
        number = int(self.identity.partition("~")[2] or 0) + 1
        return self._replace(identity=f"{self.first}~{number}", value=value, corrects=self.identity, was=self.value)


class Known(NamedTuple):
    """What is remembered of an accepted event or correction.

    Attributes:
        use: How often the event's id was used again, when it had expired, until this was accepted.
    """

    remembered_from: int
    minute: int
    value: int
    meters: int
    use: int


class Record(NamedTuple):
    """One offset of the log. Without event: a tick, which moves the clock of an idle partition, or a close."""

    offset: int
    appended_at: int
    event: Event | None
    admitted: bool  # judged before, as a dead letter or on a foreign partition: only its identity is checked
    opens: int  # a close record: the booking that begins here (0: none)
    meters: int  # a close record: the meter definitions in force from here (0: as before)


def judge(record: Record, clock: int, meters: int, at_home: bool, seen: dict[str, Known]) -> str:
    """Decide from the log alone: record, log clock, meters in force, what was accepted at smaller offsets."""
    event = record.event
    if event is None:
        return "tick"
    if event.corrects:
        if not at_home:
            return "stray"
        if version_of(event, event.identity, seen):
            return "duplicate"
        return judge_correction(event, meters, version_of(event, event.corrects, seen))
    if not record.admitted and not clock - OLDEST <= event.minute <= clock + AHEAD:
        return "dead"
    if not at_home:
        return "stray"
    known = seen.get(event.identity)
    if known and (record.admitted or clock - known.remembered_from <= REMEMBER):
        return "duplicate"
    return "accepted"


def version_of(event: Event, identity: str, seen: dict[str, Known]) -> Known | None:
    """Return what is known of a version, unless it was one of an earlier event under the same id."""
    known, first = seen.get(identity), seen.get(event.first)
    return known if known and first and known.use == first.use else None


def judge_correction(event: Event, meters: int, before: Known | None) -> str:
    """Accept it if exactly what it names was accepted; what is taken back must be taken back as it was counted.

    What is void does not say which of the events it was that had this id.
    """
    if before is None or before.value != event.was:
        return "dead"
    if event.was:
        right = (before.minute, before.meters) == (event.minute, meters)
    else:
        right = before.use == 0
    return "accepted" if right else "dead"


def accept(event: Event, remembered_from: int, meters: int, seen: dict[str, Known]) -> Known:
    """Remember an accepted event or correction."""
    first = seen.get(event.first)
    use = 0 if first is None else first.use + (not event.corrects)
    seen[event.identity] = Known(remembered_from, event.minute, event.value, meters, use)
    return seen[event.identity]
