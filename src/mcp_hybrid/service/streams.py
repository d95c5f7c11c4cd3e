"""GET and DELETE: a session's standing stream, resumption, and its end."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio
import structlog
from mcp_types.version import is_version_at_least

from mcp_hybrid.backplane import BackplaneUnavailableError, Signal, SignalKind, StreamKey
from mcp_hybrid.counts import Count
from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.exchange.context import notification
from mcp_hybrid.exchange.standalone import (
    STANDALONE,
    Following,
    find_resume_point,
    is_over,
    serve_stream,
)
from mcp_hybrid.exchange.wire import write_empty
from mcp_hybrid.service.incoming import Exchange
from mcp_hybrid.service.kernel import RESUMABLE_SINCE, Kernel
from mcp_hybrid.sessions.registry import SessionOverError

log = structlog.get_logger("mcp_hybrid")


_GRAVER: Final = frozenset({"error", "critical", "alert", "emergency"})
"""The log levels above `warning` (RFC 5424)."""


class Streams:
    """The standalone GET stream, the rest of a stream that was cut, and the end of a session."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def open(self, exchange: Exchange) -> Fault | None:
        """Open the standalone GET stream; one that is open already ends."""
        return await self._follow(exchange, StreamKey(exchange.found.hash, STANDALONE), None)

    async def resume(self, exchange: Exchange) -> Fault | None:
        """Go on with a stream from where its client lost it."""
        assert exchange.head.last_event_id is not None
        point = await find_resume_point(self._kernel.backplane, exchange.found.hash, exchange.head.last_event_id)
        if point is None:
            return Fault(
                Cause.EVENT_UNKNOWN, "Last-Event-ID is none of this session's events, or no longer kept. Send it again "
                "without, or repeat the call.",
            )  # fmt: skip
        stream, after = point
        if stream.name != STANDALONE and await is_over(self._kernel.backplane, stream, after):
            # SDK clients take an end without a result, and so an error's, for a cut: they would come back for ever.
            # 405 is the refusal that they take for an answer.
            return Fault(
                Cause.METHOD_NOT_ALLOWED,
                "This stream is over, and nothing of it is left.",
                headers=((b"allow", b"POST"),),
            )
        return await self._follow(exchange, stream, after)

    async def _follow(self, exchange: Exchange, stream: StreamKey, after: str | None) -> Fault | None:
        if not exchange.form.streams:
            return Fault(Cause.NOT_ACCEPTABLE, "A GET needs text/event-stream in Accept.")
        scope = anyio.CancelScope()
        self._kernel.registry.counts.add(Count.GET_STREAMS_NOW)
        self._kernel.following.add(scope)
        try:
            if stream.name == STANDALONE:
                await self._follow_standalone(exchange, stream, after, scope)
            else:
                assert after is not None
                await self._serve(exchange, stream, after, scope)
        finally:
            self._kernel.registry.counts.add(Count.GET_STREAMS_NOW, -1)
            self._kernel.following.discard(scope)
        return None

    def _tell_missed(self, stream: StreamKey, missed: int) -> bytes | None:
        """Return the log message that so many messages of a GET stream were dropped, if its client takes such.

        It does where the server has declared that it logs, and the client has not asked for what is graver only.
        """
        self._kernel.registry.counts.add(Count.MESSAGES_DROPPED, missed)
        log.warning("a client read its GET stream too slowly", dropped=missed, session=stream.session[:12])
        session = self._kernel.registry.live(stream.session)
        if session is None or not self._kernel.logs or session.log_level in _GRAVER:
            return None
        what = "1 message was" if missed == 1 else f"{missed} messages were"
        text = f"{what} dropped here: they came faster than this stream was read."
        return notification("notifications/message", {"level": "warning", "logger": "mcp-hybrid", "data": text})

    async def _follow_standalone(
        self, exchange: Exchange, stream: StreamKey, after: str | None, scope: anyio.CancelScope
    ) -> None:
        """Serve a session's standalone stream, and hold the session meanwhile.

        Until all that can fail is done the stream that is open already goes on: a client that is refused has that one
        still.
        """
        name = secrets.token_hex(6)
        with self._kernel.registry.use(exchange.found) as session:
            try:
                if after is None:
                    after = await self._kernel.backplane.tail(stream)
                await self._take_over(stream, name)
                if session.ended:  # while that was awaited; its log may have been opened again after its end
                    raise SessionOverError
                session.open_stream(name, scope.cancel)
                await self._serve(exchange, stream, after, scope)
            finally:
                session.release_stream(name)
                self._kernel.spawn(partial(self._release, stream, name))

    async def _serve(self, exchange: Exchange, stream: StreamKey, after: str, scope: anyio.CancelScope) -> None:
        """Serve a stream until it ends, its client goes, its credential is no longer good, or `scope` is cancelled."""
        resumable = is_version_at_least(exchange.route.version, RESUMABLE_SINCE)
        tell_missed = partial(self._tell_missed, stream) if stream.name == STANDALONE else None
        following = Following(self._kernel.backplane, stream, after, resumable, tell_missed)
        serving = partial(serve_stream, exchange.send, exchange.receive, exchange.answer_headers(), following, scope)
        if exchange.lapsed is None:
            await serving()
        else:
            await _while_good(exchange.lapsed, serving, scope)

    async def _take_over(self, stream: StreamKey, name: str) -> None:
        """Have the stream that another worker serves for this session end."""
        holder = await self._kernel.backplane.take_over(stream, name)
        if holder is not None:
            signal = Signal(SignalKind.CLOSE_STREAM, stream.session, holder.name.encode())
            await self._kernel.backplane.send(holder.worker, signal)

    async def _release(self, stream: StreamKey, name: str) -> None:
        try:
            await self._kernel.backplane.release(stream, name)
        except BackplaneUnavailableError:
            log.debug("who held a GET stream is left to run out: the backplane is away")

    async def end_session(self, exchange: Exchange) -> Fault | None:
        """End the session, for all workers and for good."""
        await self._kernel.registry.end(exchange.found)
        await write_empty(exchange.send, 204, exchange.answer_headers())
        return None


async def _while_good(
    lapsed: Callable[[], Awaitable[None]], serving: Callable[[], Awaitable[None]], scope: anyio.CancelScope
) -> None:
    """Serve a stream, and end it in order when its credential is no longer good: its client comes back with another."""

    async def end_when_lapsed() -> None:
        await lapsed()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_when_lapsed)
        await serving()
        tasks.cancel_scope.cancel()
