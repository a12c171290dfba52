"""Which booking definitions came into force with, as the closes of `tallyman.books` say."""

from __future__ import annotations

import sqlalchemy as sa

from tallyman.control import read

_closes = sa.table("closes", sa.column("booking"), sa.column("definitions"))


def newest_close(engine: sa.Engine, definitions: int, reached: int) -> int | None:
    """Return the newest booking up to `reached` that a close of these definitions opened; None if none did."""
    mine = sa.and_(_closes.c.definitions == definitions, _closes.c.booking <= reached)
    with read(engine) as connection:
        found = connection.execute(sa.select(sa.func.max(_closes.c.booking)).where(mine)).scalar()
    return None if found is None else int(found)
