"""The errors that Tallyman raises on purpose. Each message names the place, what was expected, what came, and
the next step.

    TallymanError
    ├── ConfigError        a file of the project is wrong; the message names the file and the line
    ├── EventError         an event cannot be accepted; carries the reason code of its dead letter
    │   └── QuantityError  a value is no exact number that the meter can hold
    ├── EventFileError     a file of events cannot be read to its end
    ├── UsageQueryError    a question about usage that has no answer
    ├── PriceError         a plan cannot price this
    ├── InvoiceError       an invoice cannot be built, numbered or changed
    ├── StackError         the embedded stack did not start, or is held by another process
    ├── LogError           the Kafka log is not what was booked; nothing is guessed, an operator decides
    │   └── DamageError    one partition of it is not; the others are booked on
    ├── RebuildError       past usage cannot be rebuilt like this, or a rebuild not be put in force
    ├── StoreRefusedError  ClickHouse will say no until somebody mends its schema, rights or settings; or the control
    │                      store, since a newer version has migrated it
    ├── SpoolFullError     the spool has no room; nothing that was accepted is lost
    ├── StoreError         ClickHouse or the control store said no                       (retriable)
    │   ├── FencedError    a repair has fenced a partition: read again where it stands, or wait until it is decided
    │   └── SealedError    another line of topics seals what would be booked in
    ├── BrokerError        Kafka did not acknowledge                                     (retriable)
    └── DeliveryError      the other side did not take it; sending the same bytes again is safe  (retriable)
"""

from __future__ import annotations

import re

_DAMAGE = re.compile(
    r"(?P<message>.*) \(partition (?P<partition>\d+): (?P<reason>[a-z]+)(?:, passes in (?P<passes_in_s>\d+) s)?\)",
    re.DOTALL,
)
_FENCED = re.compile(r"(?P<message>.*) \(partition (?P<partition>\d+): repair (?P<number>\d+)\)", re.DOTALL)


class TallymanError(Exception):
    """Anything this project raises on purpose."""

    retriable = False


class ConfigError(TallymanError):
    """A file of the project is wrong. Exit code 2 on the command line."""


class EventError(TallymanError):
    """An event cannot be accepted.

    Attributes:
        reason: One of `tallyman.event.REASONS`, the code under which it becomes a dead letter.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class QuantityError(EventError):
    """A value is no exact number that the meter can hold."""


class EventFileError(TallymanError):
    """A file of events cannot be read to its end; what was read of it may be sent again."""


class UsageQueryError(TallymanError):
    """A question about usage that has no answer: unknown meter, zone or window, an empty or inverted range."""


class PriceError(TallymanError):
    """A plan cannot price this."""


class InvoiceError(TallymanError):
    """An invoice cannot be built, numbered or changed."""


class StackError(TallymanError):
    """The embedded stack did not start, or another process holds its folder."""


class LogError(TallymanError):
    """The Kafka log is not what was booked: start over the frontier, another topic id, another digest."""


class DamageError(LogError):
    """One partition of the log is not what was booked.

    Its text ends with the partition and the reason, since a cluster hands on nothing of an error but its text.

    Attributes:
        partition: Which one.
        reason: What happened to it, as `quarantines` has it: retention, cut, digest, bytes, clock or sealed.
        passes_in_s: After how many seconds it may have passed by itself; None where it never does.

    >>> told = str(DamageError(3, "cut", "the log ends at 7"))
    >>> told
    'the log ends at 7 (partition 3: cut)'
    >>> DamageError.from_text(told)
    DamageError(3, 'cut', 'the log ends at 7')
    >>> DamageError.from_text(str(DamageError(3, "clock", "it is too early", 1500)))
    DamageError(3, 'clock', 'it is too early', 1500)
    """

    def __init__(self, partition: int, reason: str, message: str, passes_in_s: int | None = None) -> None:
        passes = "" if passes_in_s is None else f", passes in {passes_in_s} s"
        super().__init__(f"{message} (partition {partition}: {reason}{passes})")
        self.partition, self.reason, self.message, self.passes_in_s = partition, reason, message, passes_in_s

    @classmethod
    def from_text(cls, text: str) -> DamageError | None:
        """Return the error of which this is the text; None if it is none."""
        found = _DAMAGE.fullmatch(text)
        if found is None:
            return None
        passes_in_s = found["passes_in_s"]
        passes = None if passes_in_s is None else int(passes_in_s)
        return cls(int(found["partition"]), found["reason"], found["message"], passes)

    def __repr__(self) -> str:
        passes = "" if self.passes_in_s is None else f", {self.passes_in_s}"
        return f"DamageError({self.partition}, {self.reason!r}, {self.message!r}{passes})"

    def __reduce__(self) -> tuple[type, tuple[int, str, str, int | None]]:
        return type(self), (self.partition, self.reason, self.message, self.passes_in_s)


class RebuildError(TallymanError):
    """Past usage cannot be rebuilt like this, or a rebuild not be put in force; what is in force stays as it was."""


class SpoolFullError(TallymanError):
    """The spool has no room; the caller keeps what it has and asks again later."""


class StoreError(TallymanError):
    """ClickHouse or the control store said no; the same write may be tried again."""

    retriable = True


class FencedError(StoreError):
    """A repair has fenced a partition, and this process books it as it was before.

    If the repair is decided, the partition must be read anew; else nobody can book it until it is. Its text ends with
    the partition and the repair, as that of a `DamageError` does.

    Attributes:
        partition: Which one.
        number: Of how many repairs a writer must know.

    >>> told = str(FencedError(3, 1, "INSERT INTO progress: a repair has fenced the partition"))
    >>> FencedError.from_text(told)
    FencedError(3, 1, 'INSERT INTO progress: a repair has fenced the partition')
    """

    def __init__(self, partition: int, number: int, message: str) -> None:
        super().__init__(f"{message} (partition {partition}: repair {number})")
        self.partition, self.number, self.message = partition, number, message

    @classmethod
    def from_text(cls, text: str) -> FencedError | None:
        """Return the error of which this is the text; None if it is none."""
        found = _FENCED.fullmatch(text)
        return cls(int(found["partition"]), int(found["number"]), found["message"]) if found else None

    def __repr__(self) -> str:
        return f"FencedError({self.partition}, {self.number}, {self.message!r})"

    def __reduce__(self) -> tuple[type, tuple[int, int, str]]:
        return type(self), (self.partition, self.number, self.message)


class SealedError(StoreError):
    """Bookings up to this one are sealed, or just being, by who books another line of topics."""

    def __init__(self, booking: int, message: str) -> None:
        super().__init__(message)
        self.booking = booking

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.booking, str(self))


class StoreRefusedError(TallymanError):
    """ClickHouse said no, and will until somebody mends what the message names: its schema, rights or settings. The
    control store says it when a newer version than this one has migrated it.
    """


class BrokerError(TallymanError):
    """Kafka did not acknowledge; the same bytes may be sent again."""

    retriable = True


class DeliveryError(TallymanError):
    """The other side did not take it; sending the same bytes again is safe."""

    retriable = True
