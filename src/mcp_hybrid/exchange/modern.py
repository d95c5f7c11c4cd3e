"""What 2026-07-28 asks of an entry before a request reaches the kernel: the envelope, and `Mcp-Param-*` headers.

The SDK's classifier does the first and its validator the second; only finding the tool's schema is done here. And what
only an entry knows: which versions it serves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    MCP_PARAM_HEADER_PREFIX,
    X_MCP_HEADER_KEY,
    InboundLadderRejection,
    InboundModernRoute,
    classify_inbound_request,
    validate_mcp_param_headers,
)
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    HEADER_MISMATCH,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    PROTOCOL_VERSION_META_KEY,
    ClientCapabilities,
)

from mcp_hybrid.containment import keep_or_raise
from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.era import SERVED_VERSIONS
from mcp_hybrid.routing.message import Request
from mcp_hybrid.runtime.program import IN_PLACE, Program
from mcp_hybrid.sessions.questions import missing_capability

log = structlog.get_logger("mcp_hybrid")

LISTEN: Final = "subscriptions/listen"
"""The one method whose answer is a stream by nature: it needs SSE, and no time limit."""

DISCOVER: Final = "server/discover"

Handler = Callable[[], Awaitable[Mapping[str, Any]]]

ListTools = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Runs `tools/list` with the given parameters as this caller would see it."""

_ONLY_LOOK_UP: Final = ("mcp.", "fastmcp.")
"""Modules whose functions find a tool's schema in a dictionary, and so may be called in any thread."""

_PARAM_PREFIX: Final = MCP_PARAM_HEADER_PREFIX.lower()
_PAGES: Final = 100
"""Pages of a tool listing that are looked through: a paginator that never ends must not hang a call."""

_CAUSES: Final = {HEADER_MISMATCH: Cause.HEADER_MISMATCHED}


def classify(request: Request, headers: Mapping[str, str]) -> InboundModernRoute | Fault:
    """Check the request's envelope and the headers that repeat it (requirements V4, D4, D10, D11)."""
    verdict = classify_inbound_request(request.raw, headers=headers)
    return _fault(verdict, request) if isinstance(verdict, InboundLadderRejection) else verdict


async def discover(handler: Handler) -> Mapping[str, Any]:
    """Run `server/discover` and name every version this endpoint serves, as the refusal of any other does (V5).

    The kernel knows of the modern ones only: it cannot tell what else its entry takes.
    """
    return {**await handler(), "supportedVersions": list(SERVED_VERSIONS)}


async def ask_what_was_declared(handler: Handler, declared: ClientCapabilities | None) -> Mapping[str, Any]:
    """Run a handler, and refuse questions among its results that this client never said it could answer (D5, D17).

    The SDK checks the questions of resolvers, not those that a tool returns by itself; clients wait for ever on them.

    Raises:
        MCPError: The client lacks a capability; the error names it.
    """
    result = await handler()
    if result.get("resultType") != "input_required":
        return result
    for question in (result.get("inputRequests") or {}).values():
        missing = missing_capability(question["method"], question.get("params"), declared)
        if missing is not None:
            required: dict[str, Any] = {}
            for name in reversed(missing.split(".")):
                required = {name: required}
            raise MCPError(
                MISSING_REQUIRED_CLIENT_CAPABILITY,
                f"Cannot ask the client ({question['method']}): it did not declare the capability {missing!r}.",
                {"requiredCapabilities": required},
            )
    return result


async def check_params(
    server: Server[Any],
    request: Request,
    verdict: InboundModernRoute,
    headers: Mapping[str, str],
    list_tools: ListTools,
    program: Program = IN_PLACE,
) -> Fault | None:
    """Check the `Mcp-Param-*` headers of a tool call against its arguments (D12). Fails open where no schema is found.

    The schema is the server's `get_tool_input_schema` where it has one, else what it lists to this caller.
    """
    if request.method != "tools/call" or request.name is None:
        return None
    arguments = (request.params or {}).get("arguments") or {}
    if not isinstance(arguments, dict):
        return None
    if not arguments and not any(name.startswith(_PARAM_PREFIX) for name in headers):
        return None
    try:
        schema = await _input_schema(server, request.name, verdict, list_tools, program)
        # Most schemas have no such headers, which is known sooner from their text than by the validator's two walks.
        if schema is None or X_MCP_HEADER_KEY not in repr(schema):
            return None
    except BaseException as error:  # noqa: BLE001 - the boundary between a program and the server
        # A listing that fails must not break calls that work.
        keep_or_raise(error, "Mcp-Param headers not checked: the tool's schema could not be had")
        return None
    rejection = validate_mcp_param_headers(schema, arguments, headers)
    return _fault(rejection, request) if rejection is not None else None


async def _input_schema(
    server: Server[Any], tool: str, verdict: InboundModernRoute, list_tools: ListTools, program: Program
) -> Any:
    lookup = server.get_tool_input_schema
    if lookup is not None:
        if program.loop is None or str(lookup.__module__).startswith(_ONLY_LOOK_UP):
            return lookup(tool)

        async def look_up() -> Any:
            return lookup(tool)

        return await program.run(look_up, "get_tool_input_schema")
    if server.get_request_handler("tools/list") is None:
        return None
    meta = {
        PROTOCOL_VERSION_META_KEY: verdict.protocol_version,
        CLIENT_CAPABILITIES_META_KEY: verdict.client_capabilities,
    }
    if verdict.client_info is not None:
        meta[CLIENT_INFO_META_KEY] = verdict.client_info
    params: dict[str, Any] = {"_meta": meta}
    for _ in range(_PAGES):
        page = await list_tools(params)
        for listed in page.get("tools", []):
            if listed.get("name") == tool:
                return listed.get("inputSchema")
        cursor = page.get("nextCursor")
        if not isinstance(cursor, str) or cursor == params.get("cursor"):
            return None
        params = {"_meta": meta, "cursor": cursor}
    return None


def _fault(rejection: InboundLadderRejection, request: Request) -> Fault:
    cause = _CAUSES.get(rejection.code, Cause.ENVELOPE_INVALID)
    return Fault(cause, rejection.message, request.id, rejection.data)
