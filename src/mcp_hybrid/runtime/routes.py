"""Pages of the program's own: an ASGI application of the program, served where the program runs."""

from __future__ import annotations

from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from mcp_hybrid.runtime.loop import ProgramLoop
from mcp_hybrid.runtime.program import Program


async def serve_on(program: Program, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request by `app`. Each event crosses by itself: for pages, not for streams that must be fast."""
    loop = program.loop
    if loop is None:
        await app(scope, receive, send)
    else:
        await loop.run(partial(_serve, loop, app, scope, receive, send), str(scope["path"]))


async def _serve(loop: ProgramLoop, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    async def receive_there() -> Event:
        return await loop.on_host(receive)

    async def send_there(event: Event) -> None:
        await loop.on_host(partial(send, event))

    await app(scope, receive_there, send_there)
