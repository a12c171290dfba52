"""What the server answers instead of a result: ClickHouse's own code and message."""

from __future__ import annotations

import re

from tallyman.errors import TallymanError

# ClickHouse, `Common/ErrorCodes.cpp`.
NOT_FOUND_COLUMN_IN_BLOCK = 10
NO_SUCH_COLUMN_IN_TABLE = 16
CHECKSUM_DOESNT_MATCH = 40
NOT_IMPLEMENTED = 48
UNKNOWN_STORAGE = 56
SYNTAX_ERROR = 62
UNKNOWN_COMPRESSION_METHOD = 89
UNKNOWN_PACKET = 99
CLIENT_TOO_OLD = 99
UNKNOWN_SETTING = 115
INCORRECT_DATA = 117
QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216
CANNOT_DECOMPRESS = 271
AUTHENTICATION_FAILED = 516
UNKNOWN_EXCEPTION = 1002

_ENGINE_TEXT = re.compile(r"Code: (\d+)\. (?:DB::\w*Exception: )?(.*)", re.DOTALL)


class ServerError(TallymanError):
    """A refusal that goes to the client as an exception packet.

    Attributes:
        code: ClickHouse's error code.
        message: Its text, without the code and without `DB::Exception:`.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}")
        self.code = code
        self.message = message


class BrokenStreamError(ServerError):
    """A refusal after which nothing the client sends can be understood: the connection ends with it."""


class ClientGoneError(TallymanError):
    """The client closed the connection or broke the protocol; nobody is left to answer."""


class CancelledError(TallymanError):
    """The client asked to stop the running query."""


def read_engine_error(text: str) -> ServerError:
    """Turn chDB's error text into the answer a ClickHouse server would give.

    >>> read_engine_error("Streaming query failed: Code: 60. DB::Exception: Unknown table t.").code
    60
    """
    found = _ENGINE_TEXT.search(text)
    if found is None:
        return ServerError(UNKNOWN_EXCEPTION, text)
    return ServerError(int(found.group(1)), found.group(2).strip())
