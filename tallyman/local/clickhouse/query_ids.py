"""Query ids as clients gave them: chDB names its queries itself, so ids in statements are translated."""

from __future__ import annotations

from collections.abc import Mapping

from tallyman.local.clickhouse.session import literal
from tallyman.local.clickhouse.statement import Token, tokens

_OWN = frozenset({"QUERYID", "QUERY_ID", "INITIALQUERYID", "INITIAL_QUERY_ID"})
_MENTIONS = ("QUERYID", "QUERY_ID", "PROCESSES")


def with_client_ids(sql: str, own_id: str, running: Mapping[str, str]) -> str:
    """Put clients' ids in place of the engine's in KILL QUERY, `system.processes` and `queryID()`.

    Args:
        running: Id of each running query, and the tag of the session that runs it.
    """
    capitals = sql.upper()
    if not any(word in capitals for word in _MENTIONS):
        return sql
    found = list(tokens(sql))
    kills = bool(found) and found[0].word == "KILL"
    pieces: list[str] = []
    at = 0
    for place, token in enumerate(found):
        new, end = "", token.end
        if token.word in _OWN and _is_call(found, place):
            new, end = literal(own_id), found[place + 2].end
        elif kills and token.word == "QUERY_ID":
            new = _translated(running)
        elif token.word == "PROCESSES" and place >= 2 and found[place - 2].word == "SYSTEM" and not kills:
            ids = _translated(running)
            pieces += [
                sql[at : found[place - 2].start],
                f"(SELECT * REPLACE ({ids} AS query_id, {ids} AS initial_query_id) FROM system.processes)",  # noqa: S608
            ]
            at = end
        if new:
            pieces += [sql[at : token.start], new]
            at = end
    return "".join(pieces) + sql[at:]


def _is_call(found: list[Token], place: int) -> bool:
    return [t.text for t in found[place + 1 : place + 3]] == ["(", ")"]


def _translated(running: Mapping[str, str]) -> str:
    tags = ", ".join(map(literal, running.values()))
    ids = ", ".join(map(literal, running))
    return f"transform(Settings['log_comment'], [{tags}], [{ids}], query_id)"
