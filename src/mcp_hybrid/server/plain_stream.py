"""One plain request of HTTP/1.1 and its answer, between the application and the connection.

Hypercorn's stream says everything in events, each an object of its own that is taken apart again by whoever gets it.
What nearly all applications say, and all of them in the same order, is taken here in one step each: the head, and the
parts of the body, of which the last one ends the answer. What else there is in ASGI is left to Hypercorn's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

from hypercorn.config import Config
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.http_stream import ASGIHTTPState
from hypercorn.typing import ASGISendEvent, ConnectionState
from hypercorn.utils import build_and_validate_headers

from mcp_hybrid.server.plain_answer import NO_BODY, PlainAnswer
from mcp_hybrid.server.plain_head import PlainHead
from mcp_hybrid.server.protocols import HardenedHTTPStream


class Say(Protocol):
    """Writes to the connection; what is to `hold` is written together with what comes next."""

    def __call__(self, data: bytes, *, hold: bool = False) -> Awaitable[None]:
        """Write `data`."""
        ...


class PlainStream(HardenedHTTPStream):
    """One request and its answer."""

    _answer: PlainAnswer
    _say: Say

    async def begin(self, head: PlainHead, state: ConnectionState, answer: PlainAnswer, say: Say) -> None:
        """Start the application for a request; what it answers becomes bytes by `answer` and is written by `say`."""
        self._answer, self._say = answer, say
        method = head.method.decode("ascii")
        if self.config.server_names:  # which are looked for in an event
            await self.handle(Request(self.stream_id, head.headers, "1.1", method, head.target, state))
            return
        self.start_time = time.time()
        path, _, query = head.target.partition(b"?")
        text = path.decode("ascii")
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method,
            "scheme": self.scheme,
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": self.config.root_path,
            "headers": head.headers,
            "client": self.client,
            "server": self.server,
            "state": ConnectionState(state.copy()),
            "extensions": {},
        }
        self.app_put = await self.task_group.spawn_app(self.app, self.config, self.scope, self.app_send)

    async def take_body(self, data: bytes, *, more: bool) -> None:
        """Hand a part of the body to the application, and in the same step whether it was the last."""
        if not self.closed:
            await self.app_put({"type": "http.request", "body": data, "more_body": more})

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take what the application says."""
        if message is not None and message["type"] == "http.response.body" and self.state is ASGIHTTPState.RESPONSE:
            if not self.response.get("trailers", False):
                await self._say_body(message.get("body", b""), last=not message.get("more_body", False))
                return
        elif message is not None and message["type"] == "http.response.start" and self.state is ASGIHTTPState.REQUEST:
            self.response = message
            headers = [*build_and_validate_headers(message.get("headers", [])), *server_headers(self.config)]
            await self._say(self._answer.head(int(message["status"]), headers), hold=True)
            self.state = ASGIHTTPState.RESPONSE
            return
        await super().app_send(message)

    async def _say_body(self, data: bytes, *, last: bool) -> None:
        data = self._answer.body(bytes(data)) if int(self.response["status"]) not in NO_BODY else b""
        if not last:
            await self._say(data)
            return
        await self._say(data + self._answer.end())
        self.state = ASGIHTTPState.CLOSED
        await self.config.log.access(self.scope, self.response, time.time() - self.start_time)
        await self.send(StreamClosed(self.stream_id))


def server_headers(config: Config) -> Iterable[tuple[bytes, bytes]]:
    """Return the headers that Hypercorn adds to each answer."""
    return _server_headers(config, int(time.time()))


@lru_cache(maxsize=8)
def _server_headers(config: Config, _second: int) -> list[tuple[bytes, bytes]]:
    """Return those of this second: one of them says what time it is."""
    return config.response_headers("h11")
