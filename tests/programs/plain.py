"""An ASGI application as anybody might write it, to see what plain Hypercorn makes of its clients.

What happens in it goes to standard output, a word a line.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
from sse_starlette import EventSourceResponse
from starlette.requests import Request

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

STREAM = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        say("lifespan-ended")
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["path"] == "/only-send":
        await only_send(send)
    elif scope["path"] == "/three":
        await three(send)
    elif scope["path"] == "/wait":
        await wait(send)
    elif scope["path"] == "/events":
        await EventSourceResponse(events())(dict(scope), receive, send)  # type: ignore[arg-type]  # as above
    elif scope["path"] == "/big":
        await big(send)
    elif scope["path"] == "/leave":
        await leave(receive, send)
    elif scope["path"] == "/asked":
        await asked(scope, receive, send)
    else:
        await refuse(scope["path"], send)


def say(word: str) -> None:
    print(word, flush=True)  # noqa: T201 - what the tests read


async def refuse(path: str, send: Send) -> None:
    if path == "/refuse-later":
        await anyio.sleep(0.3)
    elif path == "/busy":
        time.sleep(0.01)  # noqa: ASYNC251 - the processor's time, as a call takes it
    await answer(send, 413)


async def answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def wait(send: Send) -> None:
    """Wait until the test lets it go."""
    say("waiting")
    while not Path(os.environ["GATE"]).exists():  # noqa: ASYNC110, ASYNC240 - it is another process that is waited for
        await anyio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 40_000})


async def only_send(send: Send) -> None:
    """Send for ever, as a stream of events does."""
    await send(STREAM)
    try:
        while True:
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            say("sent")
            await anyio.sleep(0.05)
    finally:
        say("stream-cancelled")


async def three(send: Send) -> None:
    """Send three events and end."""
    await send(STREAM)
    for number in (1, 2, 3):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        await anyio.sleep(0.4)
    await send({"type": "http.response.body", "body": b""})


async def events() -> AsyncIterator[dict[str, str]]:
    """Give events for as long as anybody listens."""
    try:
        while True:
            yield {"data": "x"}
            await anyio.sleep(0.05)
    finally:
        say("stream-cancelled")


async def big(send: Send) -> None:
    """Send more than a client that does not read can be sent."""
    await send(STREAM)
    while True:
        await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": True})


async def leave(receive: Receive, send: Send) -> None:
    """Stop when the client is gone, by cancelling oneself, as frameworks do; the answer is over by itself, too."""
    await send(STREAM)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"data: last\n\n", "more_body": False})
        tasks.cancel_scope.cancel()


async def asked(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """Ask Starlette's way whether the client is gone."""
    request = Request(dict(scope), receive)  # type: ignore[arg-type]  # any mapping does
    await request.body()
    await send(STREAM)
    await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
    for _ in range(120):
        if await request.is_disconnected():
            say("noticed")
            return
        await anyio.sleep(0.05)
    say("never-noticed")
