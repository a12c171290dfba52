"""The tables of the rules engine in the control store. Instants are microseconds since 1970 UTC.

Texts have no length here: SQLite would not look at it, so that a name could be too long for PostgreSQL only.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from tallyman.control import migrate

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
metadata = sa.MetaData()

# One row for each rule; its version guards all states of the rule, so that of two engines one commits.
alarm_rules = sa.Table(
    "alarm_rules",
    metadata,
    sa.Column("rule", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("decided_to_us", sa.BigInteger),  # end of the newest complete window that was evaluated
)
alarm_states = sa.Table(
    "alarm_states",
    metadata,
    sa.Column("rule", sa.String, sa.ForeignKey("alarm_rules.rule"), primary_key=True),
    sa.Column("identity", sa.String, primary_key=True),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("series", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("active_at_us", sa.BigInteger, nullable=False),
    sa.Column("fired_at_us", sa.BigInteger),
    sa.Column("quiet_since_us", sa.BigInteger),
    sa.Column("window_start_us", sa.BigInteger, nullable=False),
    sa.Column("window_end_us", sa.BigInteger, nullable=False),
    sa.Column("episode", sa.String, nullable=False),
    sa.Column("value", sa.String),
)
alarm_history = sa.Table(
    "alarm_history",
    metadata,
    # SQLite numbers rows by itself only in a column that is called INTEGER.
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("rule", sa.String, nullable=False),
    sa.Column("alert", sa.String, nullable=False),
    sa.Column("identity", sa.String, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("annotations", sa.Text, nullable=False),
    sa.Column("previous", sa.String, nullable=False),
    sa.Column("to", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("value", sa.String),
    sa.Column("window_start_us", sa.BigInteger, nullable=False),
    sa.Column("window_end_us", sa.BigInteger, nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.Column("message_id", sa.String),
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("message_id", sa.String, primary_key=True),
    sa.Column("identity", sa.String, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("made_at_us", sa.BigInteger, nullable=False),
)
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("endpoint", sa.String, nullable=False),
    sa.Column("message_id", sa.String, sa.ForeignKey("outbox.message_id"), nullable=False),
    sa.Column("identity", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),  # waiting, delivered, dead
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_us", sa.BigInteger, nullable=False),
    sa.Column("answer", sa.String),  # of the last attempt, for people
    sa.Column("ended_at_us", sa.BigInteger),
    sa.UniqueConstraint("endpoint", "message_id"),
    sa.Index("deliveries_waiting", "endpoint", "status", "number"),
)
endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("endpoint", sa.String, primary_key=True),
    sa.Column("url_hash", sa.String, nullable=False),  # another URL is another receiver: it starts enabled
    sa.Column("disabled_at_us", sa.BigInteger),
    sa.Column("reason", sa.String),
)


def prepare(engine: sa.Engine) -> None:
    """Make the tables, once."""
    migrate(engine, "rules", [metadata.create_all])


def to_us(instant: datetime) -> int:
    """Return an instant as the store keeps it."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def from_us(stored: int) -> datetime:
    """Return a stored instant."""
    return _EPOCH + timedelta(microseconds=stored)


def to_us_or_none(instant: datetime | None) -> int | None:
    """Return an instant as the store keeps it, or None."""
    return None if instant is None else to_us(instant)


def from_us_or_none(stored: int | None) -> datetime | None:
    """Return a stored instant, or None."""
    return None if stored is None else from_us(stored)
