"""What running a request comes to, as a JSON-RPC response: the one place where exceptions become wire errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

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

from mcp_hybrid.containment import must_pass, on_trio
from mcp_hybrid.errors import REQUEST_CANCELLED, SERVER_BUSY, error_body
from mcp_hybrid.exchange.context import ExchangeContext, current
from mcp_hybrid.exchange.handler_task import Handler, HandlerTask
from mcp_hybrid.exchange.threads import ToolThreads
from mcp_hybrid.exchange.timers import Delay
from mcp_hybrid.sessions.live import Interruption

log = structlog.get_logger("mcp_hybrid")

_RETIRED: Final = {-32002: INVALID_PARAMS}
"""A code of earlier revisions that 2026-07-28 forbids (requirement J8), and what says the same there."""

_INTERNAL: Final = ErrorData(code=INTERNAL_ERROR, message="Internal server error")

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
    threads: ToolThreads,
    key: str,
) -> Outcome:
    """Run a handler to its outcome, for at most as long as `limit`. It is among `running` meanwhile.

    `key` names the handler, for what is remembered of it: a method, or a method and what it calls.

    Never raises but for cancellation from outside (the server stops) and a signal's KeyboardInterrupt. Whatever else
    goes wrong inside a handler is its request's error; what is not meant for the client is logged here and nowhere else
    told.
    """
    try:
        result = await execute(handler, context, running=running, limit=limit, threads=threads, key=key)
        if result is not None:
            return Outcome(_result(request_id, result))
    except BaseException as exc:
        passing = must_pass(exc)
        if passing is not None:
            if passing is not exc:
                log.exception("handler raised while it was cancelled")
            raise passing from None
        if context.interrupted is None:
            return _failure(request_id, exc, modern=modern)
    return _interruption(request_id, context, limit.seconds if limit is not None else math.inf)


async def execute(
    handler: Handler,
    context: ExchangeContext,
    *,
    running: set[ExchangeContext],
    limit: Delay | None,
    threads: ToolThreads,
    key: str,
) -> Mapping[str, Any] | None:
    """Run a handler and return its result; None if it was interrupted.

    A handler that is known to use no threads runs in the caller's task, which takes no time for it; any other has a
    task of its own, so that it can be left behind. On asyncio all have, as a program can cancel the task it runs in; on
    a loop of the program's own that is a task there.

    Raises:
        BaseException: What the handler raises.
    """
    token = current.set(context)
    context.pool = threads
    running.add(context)
    alarm = limit.add(partial(context.interrupt, Interruption.TIMED_OUT)) if limit is not None else None
    try:
        if threads.loop is not None:
            result = await HandlerTask(handler, context, threads).run()
        elif threads.uses_none(key) and on_trio():
            result = None
            with trio.CancelScope() as scope:  # AnyIO's around it takes three times as long, for every call
                context.enter(scope)
                result = await handler()
            if context.used_threads:
                threads.learn(key, used=True, answered=True)
        else:
            result = await HandlerTask(handler, context, threads).run()
            threads.learn(key, used=context.used_threads, answered=result is not None and not result.get("isError"))
        return result if context.interrupted is None else None
    finally:
        if alarm is not None:
            alarm.cancel()
        context.close()
        running.discard(context)
        current.reset(token)


def _result(request_id: RequestId, result: Mapping[str, Any]) -> bytes:
    # Infinity and NaN are no JSON; null is what every JavaScript server would write for them.
    return to_json({"jsonrpc": "2.0", "id": request_id, "result": result}, inf_nan_mode="null")


def _failure(request_id: RequestId, exc: BaseException, *, modern: bool) -> Outcome:
    error = _meant_for_client(exc)
    if error is None:
        what = "result is not JSON" if isinstance(exc, PydanticSerializationError) else "handler raised"
        log.error(what, exc_info=exc)
        error = _INTERNAL
    code = _modern_code(error.code) if modern else error.code
    status = ERROR_CODE_HTTP_STATUS.get(code, 200) if modern else 200
    for message, data in ((error.message, error.data), (error.message, None), (_INTERNAL.message, None)):
        try:
            return Outcome(error_body(request_id, code, message, data), status, code, message)
        except PydanticSerializationError:
            log.exception("error is not JSON")
    raise AssertionError("unreachable: the last of these can be written")


def _meant_for_client(exc: BaseException) -> ErrorData | None:
    """Return the error that an exception stands for; None where it stands for none, as nearly all of Python's."""
    try:
        return handler_exception_to_error_data(_innermost(exc))
    except Exception:
        log.exception("exception of the protocol's that says nothing of its error")
        return None


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


_STARVED: Final = (
    "No thread for tools has become free for you within {:g} s. Try again later, or make fewer such calls at a time."
)


def _interruption(request_id: RequestId, context: ExchangeContext, limit: float) -> Outcome:
    """Return the outcome of a request that was stopped.

    A cancelled one should not be answered (C1), but at these revisions an HTTP exchange ends with a response, and a
    client that resumes its stream would wait for it for ever; SDK 2.3 answers -32800 for the same reason.
    """
    why = context.interrupted or Interruption.TIMED_OUT
    if why is Interruption.CLIENT_GONE:
        return Outcome(None)
    code, message = _WHY.get(why, (INTERNAL_ERROR, f"The request was stopped after {limit:g} s, the server's limit."))
    if why is Interruption.TIMED_OUT and context.starved:
        code, message = SERVER_BUSY, _STARVED.format(limit)
    return Outcome(error_body(request_id, code, message), 200, code, message)


def _innermost(exc: BaseException) -> BaseException:
    """Return the one exception in a group of one: a nursery in a handler must not hide what the handler raised."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc
