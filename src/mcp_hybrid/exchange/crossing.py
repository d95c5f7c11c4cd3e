"""What the SDK's kernel is given in place of an `ExchangeContext` where the program has an event loop of its own.

All that may be decided in the program's thread is decided there (what progress may be sent, how a message is written),
and everything else is said to the host by a lane: in order, and without waiting for what needs no answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
from mcp.shared.dispatcher import CallOptions
from mcp.shared.message import MessageMetadata, ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import RequestId

from mcp_hybrid.exchange import progress as progress_gate
from mcp_hybrid.exchange.context import ExchangeContext, check_thread
from mcp_hybrid.exchange.standalone import StandaloneChannel
from mcp_hybrid.runtime.lane import Lane
from mcp_hybrid.runtime.loop import ProgramLoop
from mcp_hybrid.sessions.state import SessionState


class CrossingContext:
    """One inbound message as the kernel sees it from the program's loop: `mcp.shared.dispatcher.DispatchContext`."""

    __slots__ = ("_cancel_requested", "_context", "_lane", "_loop", "message_metadata", "request_id")

    def __init__(self, context: ExchangeContext, loop: ProgramLoop) -> None:
        """Make what stands for `context` on `loop`."""
        self.request_id: RequestId | None = context.request_id
        self._context = context
        self._loop = loop
        self._lane = Lane(loop, context.settle)
        self._cancel_requested: anyio.Event | None = None
        self.message_metadata: MessageMetadata = self._crossing(context.message_metadata)

    @property
    def transport(self) -> TransportContext:
        """What the SDK's layers may know of the transport."""
        return self._context.transport

    @property
    def can_send_request(self) -> bool:
        """Whether the client can be asked something right now."""
        return self._context.can_send_request

    @property
    def cancel_requested(self) -> anyio.Event:
        """Set when the client cancels this request."""
        if self._cancel_requested is None:
            self._cancel_requested = anyio.Event()
            self._loop.post(self._context.notice_cancellation, _Remote(self._cancel_requested, self._loop))
        return self._cancel_requested

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Ask the client something and wait for its answer, as `ExchangeContext` does."""
        self._check_thread(method)
        return await _ask(self._lane, self._loop, self._context.send_raw_request, method, params, opts)

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - the protocol's; none of its hints is for a server
    ) -> None:
        """Send a notification ahead of the result. Dropped where the route carries none, and after the result."""
        self._check_thread(method)
        if method == progress_gate.METHOD:
            await self._send_progress(self._context.admit_raw_progress(params))
        elif (message := self._context.admit(method, params)) is not None:
            await self._lane.send(self._context.put, message)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress on this request, if the client asked for it and the policy serves it.

        Raises:
            RuntimeError: It was called in another event loop than the program's.
        """
        self._check_thread(progress_gate.METHOD)
        await self._send_progress(self._context.admit_progress(progress, total, message))

    async def undisturbed(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a clean-up of the handler's, which an interruption does not cancel: AnyIO's shields know only AnyIO's."""
        piece = self._context.piece
        if piece is not None:
            piece.hold()
        try:
            await work()
        finally:
            if piece is not None:
                piece.release()

    async def _send_progress(self, message: bytes | None) -> None:
        if message is not None:
            await self._lane.send(self._context.put_progress, message)

    def _check_thread(self, what: str) -> None:
        check_thread(self._loop.thread, what)

    def _crossing(self, metadata: MessageMetadata) -> MessageMetadata:
        """Return metadata whose functions may be called on the loop."""
        if not isinstance(metadata, ServerMessageMetadata) or metadata.close_sse_stream is None:
            return metadata
        crossing = ServerMessageMetadata(request_context=metadata.request_context)
        crossing.close_sse_stream = partial(self._lane.ask, metadata.close_sse_stream)
        if metadata.close_standalone_sse_stream is not None:
            crossing.close_standalone_sse_stream = partial(self._lane.ask, metadata.close_standalone_sse_stream)
        return crossing


class CrossingChannel:
    """What a session's connection sends by outside of any request, from the program's loop (`Outbound`)."""

    __slots__ = ("_channel", "_lane", "_loop")

    def __init__(self, channel: StandaloneChannel, loop: ProgramLoop) -> None:
        """Make what stands for `channel` on `loop`."""
        self._channel = channel
        self._loop = loop
        self._lane = Lane(loop)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Ask the client something, as `StandaloneChannel` does."""
        check_thread(self._loop.thread, method)
        return await _ask(self._lane, self._loop, self._channel.send_raw_request, method, params, opts)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Send a notification, as `StandaloneChannel` does. Returns when it has been handed over."""
        check_thread(self._loop.thread, method)
        await self._lane.ask(partial(self._channel.notify, method, params, opts))

    @property
    def state(self) -> SessionState:
        """The session's state."""
        return CrossingState(self._channel.state, self._loop)

    def pin(self) -> Callable[[], None]:
        """Keep the session live until what is returned is called; calling that again does nothing."""
        release: list[Callable[[], None]] = []
        self._loop.post(lambda: release.append(self._channel.pin()))
        return lambda: self._loop.post(lambda: release.pop()() if release else None)


class CrossingState(SessionState):
    """A session's state, for a program on a loop of its own. Values are written and read there."""

    def __init__(self, state: SessionState, loop: ProgramLoop) -> None:
        self._state = state
        self._loop = loop

    async def _load(self) -> Mapping[str, bytes]:
        return await self._loop.on_host(self._state._load)  # noqa: SLF001 - of the same class

    async def _save(self, changes: Mapping[str, bytes | None]) -> None:
        await self._loop.on_host(partial(self._state._save, changes))  # noqa: SLF001 - as above


class _Remote:
    """An event of the loop, as it is set on the host."""

    __slots__ = ("_event", "_loop")

    def __init__(self, event: anyio.Event, loop: ProgramLoop) -> None:
        self._event = event
        self._loop = loop

    def set(self) -> None:
        self._loop.call(self._event.set)


async def _ask(
    lane: Lane,
    loop: ProgramLoop,
    send: Callable[..., Awaitable[dict[str, Any]]],
    method: str,
    params: Mapping[str, Any] | None,
    opts: CallOptions | None,
) -> dict[str, Any]:
    """Have the host ask the client. What the asker is to be called with is called on the loop."""
    on_progress = (opts or {}).get("on_progress")
    if opts is not None and on_progress is not None:
        context = copy_context()

        async def report(progress: float, total: float | None, message: str | None) -> None:
            await loop.run(partial(on_progress, progress, total, message), method, context.copy())

        opts = {**opts, "on_progress": report}
    return await lane.ask_ahead(partial(_send, send, method, params, opts))


async def _send(
    send: Callable[..., Awaitable[dict[str, Any]]],
    method: str,
    params: Mapping[str, Any] | None,
    opts: CallOptions | None,
    sent: Callable[[], None],
) -> dict[str, Any]:
    return await send(method, params, opts, sent=sent)


def on_loop(channel: StandaloneChannel, loop: ProgramLoop | None) -> StandaloneChannel | CrossingChannel:
    """Return the channel as the program may use it, which has a `loop` of its own or none."""
    return channel if loop is None else CrossingChannel(channel, loop)
