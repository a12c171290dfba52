"""Structured log lines on stderr: an event name and its fields, as text for people or as JSON for machines.

Rooms use plain `logging.getLogger(__name__)` and `log.info("batch_sent", extra={"events": n})`, never an
f-string: the first word names the event, the rest are fields.
"""

from __future__ import annotations

import json as jsonlib
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import IO, Any

from tallyman.terminal import printable, printable_json

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
QUIET_S = 60.0  # a library that repeats itself (a broker that is away) is heard once in this time
_OWN = ("tallyman", "collectors", "pipeline", "rules", "invoices")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_NAME = re.compile(r"secret|password|passwd|token|authorization|cookie|api_?key", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(\w+://[^\s/:@]*):[^\s/@]+@")
_PLAIN = re.compile(r"[^\s\"=]+")


def setup(level: str = "info", *, json: bool = False, stream: IO[str] | None = None) -> None:
    """Send all log lines of this process to stderr; called once by whoever starts a service.

    Args:
        level: One of `LEVELS`; it holds for this project's own loggers. Libraries are heard from WARNING up,
            each of their messages at most once in `QUIET_S`.
        json: One JSON object per line instead of text.

    Raises:
        ValueError: For a level that does not exist.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f'log level: expected one of {", ".join(LEVELS)}, got "{level}"')
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if json else _TextFormatter())
    handler.addFilter(QuietLibraries(time.monotonic))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for room in _OWN:
        logging.getLogger(room).setLevel(LEVELS[level.lower()])
    logging.captureWarnings(True)


def hush_libraries() -> None:
    """Keep libraries off the terminal of a person who typed a command: what goes wrong is one sentence of ours."""
    if logging.lastResort is None:  # what prints warnings where `setup` was not called
        return
    logging.lastResort.addFilter(_is_ours)
    root = logging.getLogger()
    if not root.handlers:  # else the first library that calls logging.warning() puts one there that prints everything
        root.addHandler(logging.lastResort)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".", 1)[0] in _OWN


class QuietLibraries(logging.Filter):
    """Let a library's message pass once in `QUIET_S`, and say how often it was held back since."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._heard: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_ours(record):
            return True
        # Addresses, ids and numbers differ from one repetition to the next; the message does not.
        key = (record.name, record.levelno, re.sub(r"0x[0-9a-f]+|\d+", "#", str(record.msg))[:200])
        now = self._clock()
        since, held = self._heard.get(key, (-QUIET_S, 0))
        if now - since < QUIET_S:
            self._heard[key] = (since, held + 1)
            return False
        if len(self._heard) >= 1000:
            self._heard.clear()
        self._heard[key] = (now, 0)
        if held:
            record.held_back = held
        return True


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what `extra` carried, with secrets masked by their name and passwords cut out of addresses."""
    return {
        name: "***" if _SECRET_NAME.search(name) else _without_password(value)
        for name, value in vars(record).items()
        if name not in _STANDARD
    }


def _without_password(value: Any) -> Any:
    return _URL_PASSWORD.sub(r"\1:***@", value) if isinstance(value, str) else value


def _time_of(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _TextFormatter(logging.Formatter):
    """`2026-11-23T10:07:15.123Z INFO collectors.send batch_sent topic=usage.events.v1 events=500`"""

    def format(self, record: logging.LogRecord) -> str:
        words = [_time_of(record), record.levelname, record.name, str(_without_password(record.getMessage()))]
        words += [f"{name}={_as_word(value)}" for name, value in fields_of(record).items()]
        line = " ".join(words)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return printable(line)


def _as_word(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else jsonlib.dumps(text, ensure_ascii=False)


class _JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, event, then the fields (never overwriting these four)."""

    def format(self, record: logging.LogRecord) -> str:
        line = fields_of(record) | {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _without_password(record.getMessage()),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return printable_json(jsonlib.dumps(line, ensure_ascii=False, default=str))
