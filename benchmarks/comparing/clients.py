"""A client that prepares what is measured: it opens sessions and makes single calls, one after another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from itertools import count

from comparing.plans import INITIALIZED, SUM, Plan, call
from harness import mcp

PATH = "/mcp"
PATIENCE = 60.0
"""Seconds for one answer: a server may be in the middle of a thousand others."""
IDLE = 1.0
"""Seconds after which a connection is not used again: servers close idle ones, the first of them after 5 s."""


class WrongAnswerError(Exception):
    """A server did not answer what was asked."""


class Client:
    """One connection, which is opened anew when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._numbers = count(1)
        self._used = 0.0

    @classmethod
    @contextmanager
    def on(cls, port: int) -> Iterator[Client]:
        """Connect, for the duration of a block."""
        client = cls(port)
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def post(self, message: mcp.Json, session: str | None = None) -> tuple[HTTPResponse, str]:
        """Send a message; return the answer and its whole body."""
        answer, body = self._ask(json.dumps(message), dict(mcp.headers(session, mcp.LEGACY)))
        if answer.status not in (200, 202):
            raise WrongAnswerError(f"{message['method']}: status {answer.status}: {body[:300]}")
        return answer, body

    def follow(self, plan: Plan, number: int) -> None:
        """Send one request of a plan, and check the answer as it wants it checked."""
        answer, body = self._ask(plan.body(number), plan.headers[number % len(plan.headers)])
        if (complaint := plan.complaint(answer.status, body)) is not None:
            raise WrongAnswerError(complaint)

    def call(self, name: str, arguments: Mapping[str, object], session: str | None, expected: str = SUM) -> None:
        """Call a tool, and see that the answer holds what is expected."""
        message = {**call(name, dict(arguments)), "id": next(self._numbers)}
        _, body = self.post(message, session)
        if expected not in body:
            raise WrongAnswerError(f"{name}: {expected} is not in {body[:300]}")

    def open_session(self, *, confirm: bool = True) -> str:
        """Open a session; the client's `notifications/initialized` is left out where it need not be measured."""
        answer, body = self.post(mcp.initialize())
        session = answer.getheader("mcp-session-id")
        if session is None:
            raise WrongAnswerError(f"initialize: no session id came: {body[:300]}")
        if confirm:
            self.post(INITIALIZED, session)
        return session

    def _ask(self, body: str, headers: Mapping[str, str]) -> tuple[HTTPResponse, str]:
        if time.monotonic() - self._used > IDLE:
            self._http.close()
        self._http.request("POST", PATH, body.encode(), headers)
        answer = self._http.getresponse()
        came = answer.read().decode()
        self._used = time.monotonic()
        if "close" in ",".join(answer.headers.get_all("connection", [])):
            self._http.close()  # which http.client does not see behind the `keep-alive` of an event stream
        return answer, came


def open_sessions(port: int, number: int) -> list[str]:
    with Client.on(port) as client:
        return [client.open_session() for _ in range(number)]
