"""What the SDK's kernel is given for one request: `mcp.shared.dispatcher.DispatchContext`, over a `Reply`.

One class serves all routes. What a route lacks it is simply not given: no session, nobody to ask; no open gate, no
progress; `carries=False`, no other messages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import structlog
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.message import MessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import REQUEST_TIMEOUT, RequestId
from pydantic_core import to_json

from mcp_hybrid.exchange import progress as progress_gate
from mcp_hybrid.exchange.progress import ProgressGate
from mcp_hybrid.exchange.reply import Reply
from mcp_hybrid.runtime.piece import Piece
from mcp_hybrid.security.limits import Caller, caller_of
from mcp_hybrid.security.owner import ANONYMOUS, Owner
from mcp_hybrid.sessions.live import Interruption, LiveSession
from mcp_hybrid.sessions.questions import CannotAskError, Question, check_capability, question_id

if TYPE_CHECKING:  # which imports this
    from mcp_hybrid.exchange.threads import ToolThreads

log = structlog.get_logger("mcp_hybrid")

NO_SESSION: Final = (
    "this request was served without a session, so no answer could find its way back. "
    "Clients that echo the mcp-session-id of initialize can be asked."
)
MODERN: Final = "at 2026-07-28 a server does not ask; return an input_required result instead."
_JSON_ONLY: Final = "it accepts application/json only, and a question needs text/event-stream in Accept."
_WITHDRAW: Final = 1.0
"""Seconds for the notice that a question is withdrawn to be handed over."""
_FINISHED: Final = "the request that would carry the question has finished."


class Cancellable(Protocol):
    """What an interruption cancels: a scope, or a piece of the program in another thread."""

    def cancel(self) -> object:
        """Cancel it."""
        ...


class Settable(Protocol):
    """An event."""

    def set(self) -> object:
        """Set it."""
        ...


class ExchangeContext:
    """One inbound message as the kernel sees it, and the way back to the client."""

    # Of the program's threads (`exchange.threads`). On the class, as most requests use none.
    pool: ToolThreads | None = None
    """Where the handler's threads come from."""
    piece: Piece | None = None
    """Its handler, where that runs on a loop of the program's own."""
    name = ""
    """What is called, for the log: a tool's name, or the method."""
    threads = 0
    """Threads that the handler holds."""
    used_threads = False
    waiting_for_thread = 0
    starved = False
    """Whether it was interrupted while it waited for a thread."""
    abandoned = False
    """Whether it was answered while its handler runs on."""
    on_interrupt: Callable[[], object] | None = None
    """Called when it is interrupted."""

    def __init__(
        self,
        reply: Reply | None,
        request_id: RequestId | None,
        gate: ProgressGate,
        metadata: MessageMetadata,
        *,
        owner: Owner = ANONYMOUS,
        session: LiveSession | None = None,
        carries: bool = False,
        refusal: str = NO_SESSION,
    ) -> None:
        """Make the context of a request, or of a notification (no id, no reply).

        `session` is whom to ask; without one `refusal` says why nobody is asked. `carries` lets messages other than
        progress precede the result.
        """
        self.request_id = request_id
        self.message_metadata = metadata
        self._owner = owner
        self.session = session
        self.interrupted: Interruption | None = None
        self._loop_thread = get_ident()
        self._reply = reply
        self._gate = gate
        self._carries = carries
        self._refusal = refusal
        self._closed = False
        self._scope: Cancellable | None = None
        self._cancel_requested: Settable | None = None

    @property
    def transport(self) -> TransportContext:
        """What the SDK's layers may know of the transport."""
        request = getattr(self.message_metadata, "request_context", None)
        headers = getattr(request, "headers", None)
        return TransportContext(kind="streamable-http", can_send_request=self.can_send_request, headers=headers)

    @property
    def caller(self) -> Caller:
        """Whose share of what is shared the request takes: its owner's, or without authentication its address's."""
        request = getattr(self.message_metadata, "request_context", None)
        return caller_of(self._owner, request.scope.get("client") if request is not None else None)

    @property
    def can_send_request(self) -> bool:
        """Whether the client can be asked something right now."""
        return self._why_not() is None

    @property
    def cancel_requested(self) -> anyio.Event:
        """Set when the client cancels this request."""
        event = self._cancel_requested
        if not isinstance(event, anyio.Event):
            event = anyio.Event()
            self.notice_cancellation(event)
        return event

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        *,
        sent: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Ask the client something and wait for its answer, on this request's own stream (SEP-2260).

        `sent` is called when the question has been handed over.

        Raises:
            CannotAskError: At once, where no answer could come.
            MCPError: The client answered with an error, or not within `opts["timeout"]`.
        """
        self._check_thread(method)
        reason = self._why_not()
        if reason is not None or self.session is None or self._reply is None:
            raise CannotAskError(method, reason or self._refusal)
        return await ask(self.session, self._reply.push, method, params, opts or {}, sent)

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - the protocol's; none of its hints is for a server
    ) -> None:
        """Send a notification ahead of the result. Dropped where the route carries none, and after the result."""
        self._check_thread(method)
        if self._closed or self._reply is None:
            return
        if method == progress_gate.METHOD:
            await self._push_progress(self._gate.admit_raw(params))
        elif self._carries:
            await self._reply.push(notification(method, params))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress on this request, if the client asked for it and the policy serves it.

        Raises:
            RuntimeError: It was called in another event loop than the server's.
        """
        self._check_thread(progress_gate.METHOD)
        await self._push_progress(self._gate.admit(progress, total, message))

    def admit_progress(self, progress: object, total: object, message: object) -> bytes | None:
        """Return the notification of a value that may be sent, for `put_progress`; None for one that may not."""
        return self._gate.admit(progress, total, message) if self._reply is not None else None

    def admit_raw_progress(self, params: Mapping[str, Any] | None) -> bytes | None:
        """Return the same for a notification that the application wrote itself."""
        return self._gate.admit_raw(params) if self._reply is not None else None

    def put_progress(self, message: bytes) -> None:
        """Send what was admitted, without waiting."""
        if self._reply is not None:
            self._reply.put_progress(message)

    def admit(self, method: str, params: Mapping[str, Any] | None) -> bytes | None:
        """Return the notification to send ahead of the result, for `put`; None where none is to be sent."""
        if self._closed or self._reply is None or not self._carries:
            return None
        return notification(method, params)

    def put(self, message: bytes) -> None:
        """Send what was admitted, without waiting."""
        if self._reply is not None:
            self._reply.put(message)

    async def settle(self) -> None:
        """Wait for as long as somebody has to who put many messages."""
        if self._reply is not None:
            await self._reply.settle()

    async def undisturbed(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a clean-up of the handler's, which shields itself from cancellation."""
        await work()

    def notice_cancellation(self, event: Settable) -> None:
        """Have `event` set when the request is interrupted."""
        self._cancel_requested = event
        if self.interrupted is not None:
            event.set()

    @property
    def carries(self) -> bool:
        """Whether a message that belongs to no request may go along with this one's answer."""
        return self._carries and not self._closed and self._reply is not None and self._reply.streams

    def enter(self, scope: Cancellable) -> None:
        """Make `scope` what an interruption cancels."""
        self._scope = scope
        if self.interrupted is not None:
            scope.cancel()

    def interrupt(self, why: Interruption) -> None:
        """Cancel the request. The first reason counts; a request that has finished is left alone."""
        if self._closed or self.interrupted is not None:
            return
        self.interrupted = why
        self.starved = self.waiting_for_thread > 0 and not self.threads
        if self._cancel_requested is not None:
            self._cancel_requested.set()
        if self._scope is not None:
            self._scope.cancel()
        if self.on_interrupt is not None:
            self.on_interrupt()

    def close(self) -> None:
        """Send nothing more: the request has its result (G-P3)."""
        self._closed = True
        self._gate.close()

    async def _push_progress(self, message: bytes | None) -> None:
        if message is not None and self._reply is not None:
            await self._reply.push_progress(message)

    def _check_thread(self, what: str) -> None:
        check_thread(self._loop_thread, what)

    def _why_not(self) -> str | None:
        """Return why the client cannot be asked, or None where it can."""
        if self.session is None:
            return self._refusal
        if self._closed or self._reply is None:
            return _FINISHED
        return None if self._reply.streams else _JSON_ONLY


current: ContextVar[ExchangeContext | None] = ContextVar("mcp_hybrid_exchange", default=None)
"""The request whose handler is running. What a handler sends "outside of any request" still has this one to go with."""


def check_thread(loop_thread: int, what: str) -> None:
    """Refuse a caller in another thread than the event loop's: nothing of the loop may be touched from there.

    A blocking tool that runs a loop of its own (`asyncio.run(ctx.report_progress(...))`) would come this far.

    Raises:
        RuntimeError: It is in another thread.
    """
    if get_ident() != loop_thread:
        raise RuntimeError(
            f"{what} was sent from another thread or event loop than the server's; "
            "in a blocking tool use anyio.from_thread.run(ctx.report_progress, ...)"
        )


def notification(method: str, params: Mapping[str, Any] | None) -> bytes:
    """Return a JSON-RPC notification; absent params stay absent (JSON-RPC 2.0, section 4.2)."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return to_json(message, inf_nan_mode="null")


async def ask(
    session: LiveSession,
    put: Callable[[bytes], Awaitable[None]],
    method: str,
    params: Mapping[str, Any] | None,
    opts: CallOptions,
    sent: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Put a question to the client of `session` by `put` and wait for the answer. `sent` is called in between.

    Giving up (the timeout, or cancellation of the asker) tells the client that the answer is no longer wanted.

    Raises:
        CannotAskError: The client did not declare that it can answer this, the session has ended, or as many questions
            wait for their answers as may.
        MCPError: The client answered with an error, or not within `opts["timeout"]` seconds.
    """
    check_capability(method, params, session.connection.client_capabilities)
    question = Question(question_id(session.worker), opts.get("on_progress"))
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": question.id, "method": method}
    if params is not None or question.on_progress is not None:
        message["params"] = _with_token(params, question)
    if (why_not := session.add_question(question)) is not None:
        raise CannotAskError(method, why_not)
    try:
        with anyio.move_on_after(opts.get("timeout")):
            await put(to_json(message, inf_nan_mode="null"))
            if sent is not None:
                sent()
            return await question.wait()
        raise MCPError(REQUEST_TIMEOUT, f"The client did not answer {method} in time.")
    finally:
        session.remove_question(question)
        if not question.answered and opts.get("cancel_on_abandon", True):
            await _withdraw(question, put)


async def _withdraw(question: Question, put: Callable[[bytes], Awaitable[None]]) -> None:
    """Tell the client that an answer is no longer wanted: soon or not at all.

    The caller is about to raise a timeout, or a cancellation: a notice that cannot be sent must not replace that.
    """
    params = {"requestId": question.id, "reason": "no longer wanted"}
    with anyio.move_on_after(_WITHDRAW, shield=True):
        try:
            await put(notification("notifications/cancelled", params))
        except Exception as error:  # noqa: BLE001 - see above
            log.debug("question not withdrawn", error=str(error))


def _with_token(params: Mapping[str, Any] | None, question: Question) -> dict[str, Any]:
    """Return the parameters with the question's id as its progress token, if somebody wants its progress."""
    out = dict(params or {})
    if question.on_progress is not None:
        out["_meta"] = {**(out.get("_meta") or {}), "progressToken": question.id}
    return out
