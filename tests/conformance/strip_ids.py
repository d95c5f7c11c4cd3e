"""The same app, whose answers carry no `mcp-session-id`: no client can echo one, and all walk the session-less route.

MCP_HYBRID_TARGET=tests/conformance/everything.py PYTHONPATH=tests/conformance hypercorn -k trio strip_ids:app
"""

from __future__ import annotations

from starlette.types import Message, Receive, Scope, Send

from mcp_hybrid import asgi


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the app of mcp_hybrid.asgi without its session ids."""

    async def stripped(event: Message) -> None:
        if event["type"] == "http.response.start":
            event["headers"] = [header for header in event["headers"] if header[0] != b"mcp-session-id"]
        await send(event)

    await asgi.app(scope, receive, stripped)
