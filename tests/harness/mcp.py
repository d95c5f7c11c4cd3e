"""MCP messages and headers, and a conversation in a session: what a client puts on the wire, written out."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

from harness.asgi import Answer, AsgiClient, Exchange

Json = dict[str, Any]
Id = str | int

LEGACY = "2025-11-25"
MODERN = "2026-07-28"
BOTH = "application/json, text/event-stream"
META = "io.modelcontextprotocol/"
CLIENT = {"name": "harness", "version": "1"}


# Handshake-era messages


def request(method: str, params: Json | None = None, id: Id | None = 1, token: Id | None = None) -> Json:  # noqa: A002  # JSON-RPC's word
    """Build a request; `token` asks for progress."""
    message: Json = {"jsonrpc": "2.0", "id": id, "method": method}
    if token is not None:
        params = {**(params or {}), "_meta": {**(params or {}).get("_meta", {}), "progressToken": token}}
    return message if params is None else {**message, "params": params}


def notification(method: str, params: Json | None = None) -> Json:
    """Build a notification."""
    message: Json = {"jsonrpc": "2.0", "method": method}
    return message if params is None else {**message, "params": params}


def tool(name: str, arguments: Json | None = None, id: Id = 1, token: Id | None = None) -> Json:  # noqa: A002  # as above
    """Build a `tools/call`."""
    return request("tools/call", {"name": name, "arguments": arguments or {}}, id, token)


def initialize(version: str = LEGACY, capabilities: Json | None = None, id: Id = 0) -> Json:  # noqa: A002  # as above
    """Build an `initialize` request."""
    params = {"protocolVersion": version, "capabilities": capabilities or {}, "clientInfo": CLIENT}
    return request("initialize", params, id)


def cancelled(id: Id, reason: str = "no longer wanted") -> Json:  # noqa: A002  # as above
    """Build the notification that cancels the request `id`."""
    return notification("notifications/cancelled", {"requestId": id, "reason": reason})


def result(id: Id, value: Json) -> Json:  # noqa: A002  # as above
    """Build the client's answer to a server's request."""
    return {"jsonrpc": "2.0", "id": id, "result": value}


def batch(*messages: Json) -> list[Json]:
    """Build a batch (2025-03-26 only)."""
    return list(messages)


def body(message: Any) -> bytes:
    """Encode a message; bytes are sent as they are, so that a test can send what is no message."""
    return message if isinstance(message, bytes) else json.dumps(message, ensure_ascii=False).encode()


def headers(
    session: str | None = None,
    version: str | None = None,
    *extra: tuple[str, str],
    accept: str | None = BOTH,
    content_type: str | None = "application/json",
) -> list[tuple[str, str]]:
    """Build a POST's headers; `None` leaves one out."""
    named = {
        "accept": accept,
        "content-type": content_type,
        "mcp-session-id": session,
        "mcp-protocol-version": version,
    }
    return [*((name, value) for name, value in named.items() if value is not None), *extra]


# 2026-07-28 messages


def modern(
    message: Json, capabilities: Json | None = None, log_level: str | None = None, version: str = MODERN
) -> Json:
    """Put a request or notification into the envelope of 2026-07-28: its `_meta` says who asks and what it can do."""
    params = message.get("params", {})
    meta = {
        **params.get("_meta", {}),
        f"{META}protocolVersion": version,
        f"{META}clientInfo": CLIENT,
        f"{META}clientCapabilities": capabilities or {},
    }
    if log_level is not None:
        meta[f"{META}logLevel"] = log_level
    return {**message, "params": {**params, "_meta": meta}}


def modern_headers(
    message: Json, *extra: tuple[str, str], version: str = MODERN, accept: str | None = BOTH
) -> list[tuple[str, str]]:
    """Build the headers that repeat what the message says, as 2026-07-28 wants; names must be plain ASCII."""
    method, params = message["method"], message.get("params", {})
    key = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}.get(method)
    name = [("mcp-name", params[key])] if key in params else []
    return headers(None, version, ("mcp-method", method), *name, *extra, accept=accept)


# Conversations


class Conversation:
    """A client in a session: opened with the handshake, it echoes the id on everything."""

    def __init__(self, client: AsgiClient, session: str, version: str, path: str) -> None:
        self.client = client
        self.session = session
        self.version = version
        self.path = path
        self.initialized: Json = {}
        """The `InitializeResult`."""

    @classmethod
    async def open(
        cls, client: AsgiClient, version: str = LEGACY, capabilities: Json | None = None, path: str = "/mcp"
    ) -> Self:
        """Initialise, take the id, and confirm."""
        opening = initialize(version, capabilities)
        answer = await client.request("POST", path, headers(), body(opening))
        assert answer.status == 200, f"initialize: {answer.status} {answer.body!r}"
        session = answer.header("mcp-session-id")
        assert session is not None, "initialize: no session id came"
        self = cls(client, session, version, path)
        first = answer.json() if answer.header("content-type") == "application/json" else answer.events()[-1].json()
        self.initialized = first["result"]
        confirmed = await self.post(notification("notifications/initialized"))
        assert confirmed.status == 202, f"initialized: {confirmed.status} {confirmed.body!r}"
        return self

    def headers(self, *extra: tuple[str, str], accept: str | None = BOTH) -> list[tuple[str, str]]:
        return headers(self.session, self.version, *extra, accept=accept)

    async def post(self, message: Any, *extra: tuple[str, str], accept: str | None = BOTH) -> Answer:
        """Send a message and wait for the whole answer."""
        return await self.client.request("POST", self.path, self.headers(*extra, accept=accept), body(message))

    def stream(self, message: Any, *extra: tuple[str, str]) -> AbstractAsyncContextManager[Exchange]:
        """Send a message and follow the answer as it comes."""
        return self.client.stream("POST", self.path, self.headers(*extra), body(message))

    def get(self, last_event_id: str | None = None) -> AbstractAsyncContextManager[Exchange]:
        """Open the standalone stream, or resume one."""
        since = [] if last_event_id is None else [("last-event-id", last_event_id)]
        wanted = headers(self.session, self.version, *since, accept="text/event-stream", content_type=None)
        return self.client.stream("GET", self.path, wanted)

    async def delete(self) -> Answer:
        """End the session."""
        wanted = headers(self.session, self.version, accept=None, content_type=None)
        return await self.client.request("DELETE", self.path, wanted)

    async def answers(self, exchange: Exchange) -> Json:
        """Wait for the final answer: the JSON body, or on a stream what comes after everything else."""
        await exchange.started()
        if exchange.header("content-type") == "application/json":
            whole: Json = (await exchange.answer()).json()
            return whole
        while "result" not in (message := await exchange.message()) and "error" not in message:
            pass
        assert isinstance(message, dict)
        return message
