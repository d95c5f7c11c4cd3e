"""What running a request comes to, as a JSON-RPC response: the one place where exceptions become wire errors."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
import structlog
import trio
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS
from mcp.shared.jsonrpc_dispatcher import handler_exception_to_error_data
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    UNSUPPORTED_PROTOCOL_VERSION,
    ErrorData,
    RequestId,
)
from pydantic_core import PydanticSerializationError, to_json

from mcp_hybrid.errors import REQUEST_CANCELLED, SERVER_BUSY, error_body
from mcp_hybrid.exchange.context import ExchangeContext, current
from mcp_hybrid.exchange.timers import Delay
from mcp_hybrid.sessions.live import Interruption

log = structlog.get_logger("mcp_hybrid")

Handler = Callable[[], Awaitable[Mapping[str, Any]]]
"""Makes a request's result."""

_RETIRED: Final = {-32002: INVALID_PARAMS}
"""A code of earlier revisions that 2026-07-28 forbids (requirement J8), and what says the same there."""

_RESERVED: Final = range(-32099, -32019)
_DEFINED: Final = frozenset({HEADER_MISMATCH, MISSING_REQUIRED_CLIENT_CAPABILITY, UNSUPPORTED_PROTOCOL_VERSION})
"""Of the codes that 2026-07-28 reserves for itself, those that it gives a meaning: no other may be sent (J8)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The response to one request, ready to be written."""

    body: bytes | None
    """None where the client is gone and must be sent nothing."""
    status: int = 200
    """For an answer that is one JSON body."""
    error_code: int | None = None
    error_message: str | None = None


async def run(
    handler: Handler,
    context: ExchangeContext,
    request_id: RequestId,
    *,
    running: set[ExchangeContext],
    modern: bool,
    limit: Delay | None,
) -> Outcome:
    """Run a handler to its outcome, for at most as long as `limit`. It is among `running` meanwhile.

    Never raises but for cancellation from outside (the server stops). What went wrong inside a handler that is not
    meant for the client is logged here and nowhere else told.
    """
    token = current.set(context)
    running.add(context)
    alarm = limit.add(partial(context.interrupt, Interruption.TIMED_OUT)) if limit is not None else None
    try:
        with _scope() as scope:
            context.enter(scope)
            result = await handler()
            if context.interrupted is None:
                return Outcome(_result(request_id, result))
    except Exception as exc:  # noqa: BLE001 - the boundary between applications and the wire
        if context.interrupted is None:
            return _failure(request_id, exc, modern=modern)
    finally:
        if alarm is not None:
            alarm.cancel()
        context.close()
        running.discard(context)
        current.reset(token)
    return _interruption(
        request_id, context.interrupted or Interruption.TIMED_OUT, limit.seconds if limit is not None else math.inf
    )


def _scope() -> anyio.CancelScope | trio.CancelScope:
    """Return a scope of the loop that runs. AnyIO's around Trio's takes three times as long, for every call."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return anyio.CancelScope()
    return trio.CancelScope()


def _result(request_id: RequestId, result: Mapping[str, Any]) -> bytes:
    # Infinity and NaN are no JSON; null is what every JavaScript server would write for them.
    return to_json({"jsonrpc": "2.0", "id": request_id, "result": result}, inf_nan_mode="null")


def _failure(request_id: RequestId, exc: Exception, *, modern: bool) -> Outcome:
    error = handler_exception_to_error_data(_innermost(exc))
    if error is None:
        what = "result is not JSON" if isinstance(exc, PydanticSerializationError) else "handler raised"
        log.error(what, exc_info=exc)
        error = ErrorData(code=INTERNAL_ERROR, message="Internal server error")
    code = _modern_code(error.code) if modern else error.code
    status = ERROR_CODE_HTTP_STATUS.get(code, 200) if modern else 200
    data = error.data
    try:
        body = error_body(request_id, code, error.message, data)
    except PydanticSerializationError:
        log.exception("error data is not JSON")
        body = error_body(request_id, code, error.message)
    return Outcome(body, status, code, error.message)


def _modern_code(code: int) -> int:
    """Return what may be sent at 2026-07-28 for a code that an application has chosen."""
    if code in _RESERVED and code not in _DEFINED:
        return INTERNAL_ERROR
    return _RETIRED.get(code, code)


_WHY: Final = {
    Interruption.CLIENT_CANCELLED: (REQUEST_CANCELLED, "Request cancelled"),
    Interruption.CREDENTIAL_LAPSED: (
        INVALID_REQUEST,
        "The credential is no longer good. Come back with a fresh one.",
    ),
    Interruption.SESSION_ENDED: (SERVER_BUSY, "The session was ended while the request was running."),
    Interruption.SERVER_STOPPING: (SERVER_BUSY, "The server is stopping, and the request took too long to wait for."),
}


def _interruption(request_id: RequestId, why: Interruption, limit: float) -> Outcome:
    """Return the outcome of a request that was stopped.

    A cancelled one should not be answered (C1), but at these revisions an HTTP exchange ends with a response, and a
    client that resumes its stream would wait for it for ever; SDK 2.3 answers -32800 for the same reason.
    """
    if why is Interruption.CLIENT_GONE:
        return Outcome(None)
    code, message = _WHY.get(why, (INTERNAL_ERROR, f"The request was stopped after {limit:g} s, the server's limit."))
    return Outcome(error_body(request_id, code, message), 200, code, message)


def _innermost(exc: Exception) -> Exception:
    """Return the one exception in a group of one: a nursery in a handler must not hide what the handler raised."""
    while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc
