"""One page: who asks for it, and how it is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from pydantic_core import to_json
from starlette.types import Scope, Send

from mcp_hybrid.errors import Fault
from mcp_hybrid.routing.head import Head


class Access(Enum):
    """Who may read a page."""

    ANYBODY = auto()
    """It says nothing that is worth hiding, and probes come with any Host header and no credential."""
    AS_ENDPOINT = auto()
    """Who passes the gates of the MCP endpoint: Host, Origin, authentication. On a port of its own: Host and Origin."""
    WITH_KEY = auto()
    """Who has the admin key, behind the Host and Origin gates."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a page."""

    scope: Scope
    head: Head
    send: Send
    rest: str = ""
    """What follows the page's path."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the operator's."""

    name: str
    methods: Sequence[str]
    access: Access
    serve: Callable[[Asked], Awaitable[Fault | None]]


async def write_page(asked: Asked, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
    """Answer with a page as it is now. An answer to HEAD has the headers of one to GET, and no body."""
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await asked.send({"type": "http.response.start", "status": status, "headers": headers})
    shown = b"" if asked.head.method == "HEAD" else body
    await asked.send({"type": "http.response.body", "body": shown, "more_body": False})


async def write_json(asked: Asked, status: int, value: Any) -> None:
    """Answer with a JSON page."""
    await write_page(asked, status, to_json(value))
