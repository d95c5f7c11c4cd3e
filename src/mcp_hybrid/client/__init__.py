"""`mcp-hybrid call`: an unmodified SDK client that calls one tool and shows what came back, and by which route.

Importing this is cheap; the SDK is loaded when a call is made.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Protocol", "call"]


class Protocol(StrEnum):
    """How the client settles the protocol version."""

    LEGACY = "legacy"
    """The `initialize` handshake: 2025-11-25 or older."""
    MODERN = "modern"
    """2026-07-28, without asking first."""
    AUTO = "auto"
    """2026-07-28 if the server answers `server/discover`, else the handshake."""


def call(url: str, tool: str, arguments: list[str], session: bool, protocol: Protocol, token: str | None = None) -> int:
    """Call `tool` at `url` and print its result; the exit code to leave with is returned.

    `arguments` are `key=value`. A `token` is sent as a bearer token with each request. Without `session` the client
    never learns a session id, so it never echoes one. The result goes to standard output; progress, questions, notes
    and errors go to standard error. 0 is success, 1 a failure there (no server, an error, a tool's error), 2 a mistake
    here (URL, tool name, arguments), 130 ctrl-C.
    """
    from mcp_hybrid.client.run import run  # noqa: PLC0415  # the SDK takes a second to import, the command line does not

    return run(url, tool, arguments, session=session, mode=_MODES[protocol], token=token)


_MODES = {Protocol.LEGACY: "legacy", Protocol.MODERN: "2026-07-28", Protocol.AUTO: "auto"}
