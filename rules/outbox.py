"""What is to be delivered, to whom and when: written with the alarm's state, worked off by the senders.

A delivery is claimed before it is sent, by moving its due time behind the longest attempt. Whoever crashes between
sending and noting it leaves a delivery that becomes due again: the same message with the same id.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal

import sqlalchemy as sa

from rules.tables import deliveries, endpoints, from_us, outbox, to_us
from tallyman.control import compare_and_set, read, write

# When attempts are made, counted from the one before (Standard Webhooks' example, 75 hours in all).
RETRY_AFTER = (
    timedelta(0), timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2),
    timedelta(hours=5), timedelta(hours=10), timedelta(hours=14), timedelta(hours=20), timedelta(hours=24),
)  # fmt: skip
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class Message:
    """A webhook, and the names of the endpoints that get it."""

    message_id: str
    identity: str
    body: bytes
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to one endpoint. `attempts` were made before this one."""

    number: int
    endpoint: str
    message_id: str
    identity: str
    attempts: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an attempt.

    Attributes:
        text: For people: "200", "503 Service Unavailable", "connect: refused".
        gone: The receiver wants nothing any more (410).
        retry_after: How long it asked to be left alone.
    """

    delivered: bool
    text: str
    gone: bool = False
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an endpoint did not take in the end: a message with all its attempts, or, without a message, anything."""

    endpoint: str
    message_id: str | None
    answer: str
    at: datetime


def put(connection: sa.Connection, messages: Sequence[Message], now: datetime) -> None:
    """Add messages inside the transaction that changes the alarms; one that is there already stays as it is."""
    for message in messages:
        known = sa.select(outbox.c.message_id).where(outbox.c.message_id == message.message_id)
        if connection.execute(known).first():
            continue
        connection.execute(sa.insert(outbox).values(
            message_id=message.message_id, identity=message.identity, body=message.body, made_at_us=to_us(now),
        ))  # fmt: skip
        for endpoint in message.endpoints:
            connection.execute(sa.insert(deliveries).values(
                endpoint=endpoint, message_id=message.message_id, identity=message.identity,
                status="waiting", attempts=0, due_us=to_us(now),
            ))  # fmt: skip


def claim(engine: sa.Engine, endpoint: str, now: datetime, most: int, lease: timedelta) -> list[Delivery]:
    """Take deliveries that are due, at most one of each alarm: its next one waits until this one has ended.

    Args:
        lease: For how long nobody else takes them.
    """
    with read(engine) as connection:
        if not _heads(connection, endpoint, now, 1):  # most often nothing is due: do not take the writers' lock
            return []
    with write(engine) as connection:
        taken = []
        for row in _heads(connection, endpoint, now, most):
            lease_to = {"due_us": to_us(now + lease)}
            if compare_and_set(connection, deliveries, {"number": row.number, "due_us": row.due_us}, lease_to):
                taken.append(Delivery(row.number, endpoint, row.message_id, row.identity, row.attempts, row.body))
        return taken


def note(
    engine: sa.Engine, answers: Sequence[tuple[Delivery, Answer | None]], now: datetime, chance: random.Random
) -> None:
    """Write down what became of claimed deliveries; None gives one back that was not tried."""
    with write(engine) as connection:
        for delivery, answer in answers:
            row = sa.update(deliveries).where(deliveries.c.number == delivery.number, deliveries.c.status == "waiting")
            connection.execute(row.values(**_outcome(delivery, answer, now, chance)))
        for delivery, answer in answers:
            if answer and answer.gone:
                stop = sa.update(endpoints).where(endpoints.c.endpoint == delivery.endpoint)
                connection.execute(stop.values(disabled_at_us=to_us(now), reason=answer.text[:500]))


def next_due(engine: sa.Engine, endpoint: str) -> datetime | None:
    """Return when the next delivery to an endpoint is due; None when nothing waits or the endpoint is disabled."""
    with read(engine) as connection:
        if _is_disabled(connection, endpoint):
            return None
        due = connection.execute(sa.select(sa.func.min(deliveries.c.due_us)).where(_is_head(endpoint))).scalar()
        return None if due is None else from_us(due)


def register(engine: sa.Engine, urls: Mapping[str, str]) -> None:
    """Remember endpoints by name; one that was disabled (410) is enabled again when its URL has changed."""
    with write(engine) as connection:
        for name, url in urls.items():
            url_hash = sha256(url.encode()).hexdigest()  # a URL may hold a token, so it is not kept
            known = connection.execute(sa.select(endpoints).where(endpoints.c.endpoint == name)).one_or_none()
            if known is None:
                connection.execute(sa.insert(endpoints).values(endpoint=name, url_hash=url_hash))
            elif known.url_hash != url_hash:
                fresh = sa.update(endpoints).where(endpoints.c.endpoint == name)
                connection.execute(fresh.values(url_hash=url_hash, disabled_at_us=None, reason=None))


def enable(engine: sa.Engine, endpoint: str) -> bool:
    """Let an endpoint that answered 410 have its deliveries again; False when it was not disabled."""
    with write(engine) as connection:
        disabled = sa.update(endpoints).where(endpoints.c.endpoint == endpoint, endpoints.c.disabled_at_us.is_not(None))
        return connection.execute(disabled.values(disabled_at_us=None, reason=None)).rowcount == 1


def deliver_again(
    engine: sa.Engine, message_id: str, now: datetime, which: Literal["ended", "given up"] = "ended"
) -> int:
    """Put a message back into its queues; return how many deliveries that are.

    Args:
        which: Deliveries that have ended in any way, or only those that were given up.
    """
    with write(engine) as connection:
        mine = deliveries.c.status != "waiting" if which == "ended" else deliveries.c.status == "dead"
        ended = sa.update(deliveries).where(deliveries.c.message_id == message_id, mine)
        fresh = ended.values(status="waiting", attempts=0, due_us=to_us(now), ended_at_us=None)
        return connection.execute(fresh).rowcount


def read_deliveries(engine: sa.Engine, message_id: str) -> dict[str, str]:
    """Return the endpoints of a message, each with the status of its delivery; nothing if it is not known."""
    columns = sa.select(deliveries.c.endpoint, deliveries.c.status).where(deliveries.c.message_id == message_id)
    with read(engine) as connection:
        return {row.endpoint: row.status for row in connection.execute(columns.order_by(deliveries.c.endpoint))}


def read_refusals(engine: sa.Engine, most: int) -> list[Refusal]:
    """Return which endpoints are disabled, then which messages were given up, the newest `most` of each endpoint."""
    with read(engine) as connection:
        stopped = sa.select(endpoints).where(endpoints.c.disabled_at_us.is_not(None)).order_by(endpoints.c.endpoint)
        found = [
            Refusal(row.endpoint, None, row.reason or "", from_us(row.disabled_at_us))
            for row in connection.execute(stopped)
        ]
        for endpoint in _each_endpoint(connection):
            dead = sa.select(deliveries).where(deliveries.c.endpoint == endpoint, deliveries.c.status == "dead")
            found += [
                Refusal(endpoint, row.message_id, row.answer or "", from_us(row.ended_at_us))
                for row in connection.execute(dead.order_by(deliveries.c.number.desc()).limit(most))
            ]
    return found


def count_waiting(engine: sa.Engine) -> dict[str, int]:
    """Return how many deliveries wait, by endpoint; those to which none waits are left out.

    The index begins with the endpoint: one question for each goes past the deliveries of years, one for all would not.
    """
    found: dict[str, int] = {}
    with read(engine) as connection:
        for endpoint in _each_endpoint(connection):
            mine = (deliveries.c.endpoint == endpoint, deliveries.c.status == "waiting")
            if number := connection.execute(sa.select(sa.func.count()).where(*mine)).scalar_one():
                found[endpoint] = number
    return found


def _each_endpoint(connection: sa.Connection) -> Iterator[str]:
    """Yield the endpoints that have or had deliveries."""
    endpoint: str | None = ""
    while endpoint is not None:
        following = sa.select(sa.func.min(deliveries.c.endpoint)).where(deliveries.c.endpoint > endpoint)
        endpoint = connection.execute(following).scalar()
        if endpoint is not None:
            yield endpoint


def _heads(connection: sa.Connection, endpoint: str, now: datetime, most: int) -> list[sa.Row[tuple[object, ...]]]:
    if _is_disabled(connection, endpoint):
        return []
    with_body = sa.select(deliveries, outbox.c.body).join(outbox, outbox.c.message_id == deliveries.c.message_id)
    due = with_body.where(_is_head(endpoint), deliveries.c.due_us <= to_us(now))
    return list(connection.execute(due.order_by(deliveries.c.number).limit(most)))


def _is_head(endpoint: str) -> sa.ColumnElement[bool]:
    """The oldest waiting delivery of each alarm; only it may be sent."""
    waiting = (deliveries.c.endpoint == endpoint, deliveries.c.status == "waiting")
    return deliveries.c.number.in_(
        sa.select(sa.func.min(deliveries.c.number)).where(*waiting).group_by(deliveries.c.identity)
    )


def _is_disabled(connection: sa.Connection, endpoint: str) -> bool:
    found = connection.execute(sa.select(endpoints.c.disabled_at_us).where(endpoints.c.endpoint == endpoint)).scalar()
    return found is not None


def _outcome(delivery: Delivery, answer: Answer | None, now: datetime, chance: random.Random) -> dict[str, object]:
    if answer is None:
        return {"due_us": to_us(now)}
    attempts = delivery.attempts + 1
    said: dict[str, object] = {"attempts": attempts, "answer": answer.text[:500]}
    if answer.delivered:
        return said | {"status": "delivered", "ended_at_us": to_us(now)}
    if answer.gone:  # waits for an operator, with all its attempts
        return said | {"attempts": delivery.attempts, "due_us": to_us(now)}
    if attempts >= len(RETRY_AFTER):
        return said | {"status": "dead", "ended_at_us": to_us(now)}
    wait = RETRY_AFTER[attempts] * chance.uniform(1 - JITTER, 1 + JITTER)
    return said | {"due_us": to_us(now + max(wait, answer.retry_after or timedelta(0)))}
