"""The HTTP edges of an exchange: reading a body within bounds, writing a refusal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
from starlette.types import Receive, Scope, Send

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.exchange.reply import Headers, Spawn
from mcp_hybrid.exchange.timers import Delay
from mcp_hybrid.routing.gates import body_too_large
from mcp_hybrid.security.limits import LIGHT

DRAIN_BYTES: Final = 16 * 1024 * 1024
DRAIN_SECONDS: Final = 5.0
"""How much of a refused request's body is read and thrown away, and for how long.

A client that is still sending does not see an answer that comes early, and Hypercorn leaks the connection (HTTP/1.1)
or dies of it (HTTP/2); beyond these bounds the connection is closed instead.
"""


class ClientGoneError(OSError):
    """The client went away before it was answered. Nobody is left to be.

    An OSError, as that is how ASGI servers say it to whoever sends.
    """


class BodyTooSlowError(Exception):
    """The body did not arrive in time. The client has been told, and its connection is closed."""


Weigh = Callable[[int], Fault | None]
"""Asks whether a request may hold so many bytes of its body, and returns the refusal if not."""


async def read_body(receive: Receive, limit: int, weigh: Weigh | None = None) -> bytes | Fault:
    """Read a request's whole body, of at most `limit` bytes; beyond `LIGHT` each piece is weighed as it comes.

    Raises:
        ClientGoneError: The client went away before it had sent it all.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = event.get("body", b"")
        size += len(chunk)
        if size > limit:
            return body_too_large(limit)
        if size > LIGHT and weigh is not None and (fault := weigh(size)) is not None:
            return fault
        chunks.append(chunk)
        if not event.get("more_body", False):
            return b"".join(chunks)


class Patience:
    """Reads bodies that arrive in time, and gives up on those that do not.

    A body is nearly always there before it is read, so none is given a timeout scope of its own. One that is late is
    answered by somebody else, and the reader learns of it as of any answered request: there is nothing more to receive.
    """

    def __init__(self, seconds: float, spawn: Spawn) -> None:
        """Wait at most so long for a body; `spawn` starts the task that answers when it is late."""
        self._late = Delay(seconds)
        self._spawn = spawn
        self.run = self._late.run
        """Watches the time until it is cancelled."""
        self._refusal = Fault(Cause.BODY_TOO_SLOW, f"The body did not arrive within {seconds:g} seconds.")

    async def read_body(
        self, scope: Scope, receive: Receive, send: Send, limit: int, headers: Headers, weigh: Weigh | None = None
    ) -> bytes | Fault:
        """Read a request's whole body, as the function of that name does; `headers` are those of a refusal.

        Raises:
            ClientGoneError: The client went away before it had sent it all.
            BodyTooSlowError: It did not send it all in time, and has been answered so.
        """
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            self._spawn(partial(write_fault, send, self._refusal, (*hang_up(scope), *headers)))

        alarm = self._late.add(give_up)
        try:
            body = await read_body(receive, limit, weigh)
        except ClientGoneError:
            if late:
                raise BodyTooSlowError from None
            raise
        finally:
            alarm.cancel()
        if late:
            # The last of it came after all. Whoever answers is still at it, and must not be cut short by our return.
            while (await receive())["type"] != "http.disconnect":
                pass
            raise BodyTooSlowError
        return body


async def drain(receive: Receive) -> bool:
    """Read the rest of a body and throw it away. Returns whether that was all of it.

    Raises:
        ClientGoneError: The client went away first.
    """
    size = 0
    with anyio.move_on_after(DRAIN_SECONDS):
        while size < DRAIN_BYTES:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise ClientGoneError
            size += len(event.get("body", b""))
            if not event.get("more_body", False):
                return True
    return False


def hang_up(scope: Scope) -> Headers:
    """Return the header that has the connection closed after the answer. HTTP/2 has no such header."""
    return ((b"connection", b"close"),) if scope.get("http_version", "1.1").startswith("1") else ()


async def write_fault(send: Send, fault: Fault, headers: Headers = ()) -> None:
    """Answer with a refusal: its status, and a JSON-RPC error as the body."""
    body = fault.body()
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *fault.headers, *headers]
    await send({"type": "http.response.start", "status": fault.cause.status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def write_empty(send: Send, status: int, headers: Headers = ()) -> None:
    """Answer with a status and no body."""
    length = () if status == 204 else ((b"content-length", b"0"),)
    await send({"type": "http.response.start", "status": status, "headers": [*length, *headers]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
