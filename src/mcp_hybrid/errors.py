"""Every fault in one place: what it is called, its HTTP status, its JSON-RPC code.

Two kinds, told apart by whose fault it is:

* a `Fault` is a *value*: one request that is refused. `Cause` is the table of all of them; the rooms that find a fault
  only add the words for the person who caused it.
* a `ConfigurationError` is an *exception* for the operator who starts the server.

Errors of the MCP layer (a tool that raises, an unknown method) are not here: the SDK's kernel has its own tree
(`mcp.shared.exceptions.MCPError`), and `exchange.outcome` maps it to the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    UNSUPPORTED_PROTOCOL_VERSION,
    RequestId,
)
from pydantic_core import to_json

SESSION_NOT_FOUND = -32001
"""What the TypeScript SDK's server answers, and what clients that recover from a lost session look for."""

REQUEST_CANCELLED = -32800
"""Borrowed from the Language Server Protocol, as in SDK 2.3: ends a cancelled request's HTTP exchange."""

SERVER_BUSY = -32000
"""Implementation-defined server error (JSON-RPC 2.0, section 5.1)."""

_BUSY = SERVER_BUSY  # inside `Cause`, SERVER_BUSY is the member of that name


class ConfigurationError(Exception):
    """A setting or target that cannot be used. Its text is one line for the operator: what is wrong, what to do."""


class UnusableValueError(ValueError):
    """A value of a setting that could never work. Its text is for the operator: what is wrong, and what to write."""


class Cause(Enum):
    """Why a request was refused: `(label, HTTP status, JSON-RPC code)`. Metrics and logs use the label."""

    def __init__(self, label: str, status: int, code: int) -> None:
        self.label = label
        self.status = status
        self.code = code

    # the gates, in the order in which they are passed
    HEAD_TOO_LARGE = ("head_too_large", 431, INVALID_REQUEST)
    HOST_NOT_ALLOWED = ("host_not_allowed", 421, INVALID_REQUEST)
    ORIGIN_NOT_ALLOWED = ("origin_not_allowed", 403, INVALID_REQUEST)
    UNAUTHORIZED = ("unauthorized", 401, INVALID_REQUEST)
    INSUFFICIENT_SCOPE = ("insufficient_scope", 403, INVALID_REQUEST)
    VERIFIER_UNAVAILABLE = ("verifier_unavailable", 503, _BUSY)
    NOT_FOUND = ("not_found", 404, INVALID_REQUEST)
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, INVALID_REQUEST)
    DUPLICATE_HEADER = ("duplicate_header", 400, HEADER_MISMATCH)
    MALFORMED_SESSION_ID = ("malformed_session_id", 400, INVALID_REQUEST)
    RATE_EXCEEDED = ("rate_exceeded", 429, _BUSY)
    BODY_TOO_LARGE = ("body_too_large", 413, INVALID_REQUEST)
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", 415, INVALID_REQUEST)
    NOT_ACCEPTABLE = ("not_acceptable", 406, INVALID_REQUEST)
    BODY_TOO_SLOW = ("body_too_slow", 408, INVALID_REQUEST)
    TOO_DEEP = ("too_deep", 400, INVALID_REQUEST)
    NOT_JSON = ("not_json", 400, PARSE_ERROR)
    NOT_A_MESSAGE = ("not_a_message", 400, INVALID_REQUEST)
    NAME_TOO_LONG = ("name_too_long", 400, INVALID_PARAMS)
    # legacy or modern
    VERSION_UNSUPPORTED = ("version_unsupported", 400, UNSUPPORTED_PROTOCOL_VERSION)
    VERSION_MISMATCH = ("version_mismatch", 400, HEADER_MISMATCH)
    ENVELOPE_INVALID = ("envelope_invalid", 400, INVALID_PARAMS)
    HEADER_MISMATCHED = ("header_mismatched", 400, HEADER_MISMATCH)
    # the table
    SESSION_REQUIRED = ("session_required", 400, INVALID_REQUEST)
    SESSION_UNKNOWN = ("session_unknown", 404, SESSION_NOT_FOUND)
    UNEXPECTED_RESPONSE = ("unexpected_response", 400, INVALID_REQUEST)
    BATCH_NOT_ALLOWED = ("batch_not_allowed", 400, INVALID_REQUEST)
    EVENT_UNKNOWN = ("event_unknown", 400, INVALID_REQUEST)
    # the operator's pages
    SESSION_AMBIGUOUS = ("session_ambiguous", 409, INVALID_REQUEST)
    # resources
    DUPLICATE_REQUEST_ID = ("duplicate_request_id", 400, INVALID_REQUEST)
    OWNER_BUSY = ("owner_busy", 429, _BUSY)
    TOO_MANY_STREAMS = ("too_many_streams", 429, _BUSY)
    REQUESTS_BUSY = ("requests_busy", 503, _BUSY)
    CLIENT_TOO_LARGE = ("client_too_large", 400, INVALID_PARAMS)
    SERVER_BUSY = ("server_busy", 503, _BUSY)
    BACKPLANE_UNAVAILABLE = ("backplane_unavailable", 503, _BUSY)
    NOT_RUNNING = ("not_running", 503, _BUSY)
    INTERNAL = ("internal", 500, INTERNAL_ERROR)


@dataclass(frozen=True, slots=True)
class Fault:
    """One refused request, ready to be written. Nothing is kept for it."""

    cause: Cause
    message: str
    """For the person who caused it: what was wrong and what to do. Never internals, never a secret they sent."""
    request_id: RequestId | None = None
    """Echoed where it could be read (JSON-RPC 2.0, section 5)."""
    data: Any = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Answer headers that belong to the refusal: `Allow`, `Retry-After`, `WWW-Authenticate`."""

    def body(self) -> bytes:
        """Return the refusal as a JSON-RPC error response."""
        return error_body(self.request_id, self.cause.code, self.message, self.data)


def error_body(request_id: RequestId | None, code: int, message: str, data: Any = None) -> bytes:
    """Return a JSON-RPC error response as JSON bytes; `id` is null where it could not be read."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return to_json({"jsonrpc": "2.0", "id": request_id, "error": error})


def only_exception(exc: Exception) -> Exception:
    """Return the exception that a group, however nested, is about: the first, if all in it are of one type.

    What is no group is returned as it is; so is a group of several kinds, which only a log can show in full.
    """
    if not isinstance(exc, ExceptionGroup):
        return exc
    found = [only_exception(inner) for inner in exc.exceptions]
    return found[0] if len({type(one) for one in found}) == 1 else exc


__all__ = [
    "REQUEST_CANCELLED",
    "SERVER_BUSY",
    "SESSION_NOT_FOUND",
    "Cause",
    "ConfigurationError",
    "Fault",
    "UnusableValueError",
    "error_body",
    "only_exception",
]
