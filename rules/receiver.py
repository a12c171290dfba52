"""A small receiver that verifies webhooks and keeps them: for tests, demos, and as an example of how to receive.

    python -m rules.receiver --secret whsec_... --port 8099 --out received.ndjson
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from rules.webhook import SignatureError, verify
from tallyman.terminal import one_line

_LARGEST_BODY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """A webhook whose signature was right, or, when no secret is set, any webhook."""

    message_id: str
    at: float
    body: Mapping[str, Any]
    headers: Mapping[str, str]


class Receiver:
    """Listens on loopback from its making until `close`.

    Attributes:
        messages: What came and was verified, in order; a repeated delivery is in it again.
        refused: Why others were answered 401.
        answer: Status and headers of the next answers to what was verified; a test changes it.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        port: int = 0,
        host: str = "127.0.0.1",
        on_message: Callable[[Received], None] = lambda message: None,
    ) -> None:
        self.messages: list[Received] = []
        self.refused: list[str] = []
        self.answer: Callable[[Received], tuple[int, Mapping[str, str]]] = lambda message: (204, {})
        self._arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 30

            def do_POST(self) -> None:
                size = self.headers.get("content-length", "")
                if not size.isdigit() or int(size) > _LARGEST_BODY:
                    self.close_connection = True
                    self._say(413 if size.isdigit() else 411, {})
                    return
                status, headers = receiver._take(self._lower(), self.rfile.read(int(size)), secrets, on_message)
                self._say(status, headers)

            def _lower(self) -> dict[str, str]:
                return {name.lower(): value for name, value in self.headers.items()}

            def _say(self, status: int, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: whoever runs it prints what it received."""

        class Http(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: a sender that hangs up sends again."""

        self._http = Http((host, port), Handler)
        self.port = int(self._http.server_address[1])
        self.url = f"http://{host}:{self.port}/alarms"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True, name="receiver")
        self._thread.start()

    def wait_for(self, fits: Callable[[list[Received]], bool], timeout_s: float = 10.0) -> bool:
        """Wait until what was received fits; False when it does not in time."""
        with self._arrived:
            return self._arrived.wait_for(lambda: fits(self.messages), timeout_s)

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _take(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[str],
        on_message: Callable[[Received], None],
    ) -> tuple[int, Mapping[str, str]]:
        try:
            message_id = verify(secrets, headers, body, int(time.time())) if secrets else headers.get("webhook-id", "")
            decoded = msgspec.json.decode(body, type=dict[str, Any])
        except SignatureError as error:
            self.refused.append(str(error))
            return 401, {}
        except msgspec.MsgspecError as error:
            self.refused.append(str(error))
            return 400, {}
        message = Received(message_id, time.time(), decoded, headers)
        with self._arrived:
            self.messages.append(message)
            self._arrived.notify_all()
        on_message(message)
        return self.answer(message)


def describe(message: Received) -> str:
    """Return a message as one line for people."""
    data = message.body.get("data")
    if not isinstance(data, dict):
        return f"{message.message_id}: {message.body.get('status', 'received')}"
    labels = ", ".join(f"{name}={value}" for name, value in data["labels"].items() if name != "alertname")
    return f"{message.body['timestamp']}  {data['state']:<8}  {data['alert']}  {labels}  value {data['value']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Receive until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m rules.receiver", description="Receive and verify alarm webhooks.")
    parser.add_argument("--secret", action="append", default=[], help='"whsec_..."; may be given twice')
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--out", type=Path, help="append each message to this file, one JSON text a line")
    options = parser.parse_args(arguments)

    def show(message: Received) -> None:
        print(one_line(describe(message)), flush=True)
        if options.out:
            line = msgspec.json.encode({"id": message.message_id, "at": message.at, "body": message.body})
            with options.out.open("ab") as out:
                out.write(line + b"\n")

    receiver = Receiver(options.secret, options.port, on_message=show)
    print(f"listening on {receiver.url}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    finally:
        receiver.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
