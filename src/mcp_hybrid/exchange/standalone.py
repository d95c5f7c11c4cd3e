"""Streams that are read from their log: the standalone GET stream, and the rest of any stream that was cut.

Whoever has something to say outside of any request appends it to the log of the session's standalone stream; the GET
follows that log. A client that lost a stream comes back with the last event id it saw and follows from there.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, Final

import anyio
import structlog
from mcp.shared.dispatcher import CallOptions
from mcp_types import RequestId
from pydantic_core import to_json
from starlette.types import Receive, Send

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError, StreamKey, UnknownEventError
from mcp_hybrid.exchange import progress, sse
from mcp_hybrid.exchange.context import ExchangeContext, ask, check_thread, current, notification
from mcp_hybrid.exchange.reply import Headers, Spawn
from mcp_hybrid.exchange.wire import ClientGoneError
from mcp_hybrid.sessions.questions import CannotAskError
from mcp_hybrid.sessions.registry import Found, Registry, SessionOverError, TooManySessionsError
from mcp_hybrid.sessions.state import SessionState

log = structlog.get_logger("mcp_hybrid")

STANDALONE: Final = "s"
"""The name of a session's standalone stream. Calls' streams have longer ones."""

_EVENT_ID: Final = re.compile(r"(?P<stream>[A-Za-z0-9]+)\.(?P<entry>[0-9a-f]+-[0-9]+)")

_LAST_WRITE: Final = 5.0
"""Seconds for the end of a stream to be taken by a client whose stream was closed under it."""

_LATE: Final = 1000
"""Messages of one stream that wait for the backplane; the oldest go first, as in its log."""
_RETRY: Final = 0.5
"""Seconds between two attempts to keep them."""
_WORTH_KEEPING: Final = 600.0
"""Seconds after which they are not worth it: the log they belong to has run out."""

_NO_STREAM: Final = "no request is running and no GET stream is open that could carry the question."
_NO_ROOM: Final = "every session that this process may hold is in use, and it has no room to wait for the answer."


def event_id(stream: StreamKey, entry: str) -> str:
    """Return the SSE event id of a log entry: it names its stream (requirement R3)."""
    return f"{stream.name}.{entry}"


class StreamJournal:
    """The log of one call's answer (`exchange.reply.Journal`).

    What cannot be kept while the backplane is away is kept once it is back: a client that lost the stream would wait
    for the result for ever.
    """

    def __init__(self, backplane: Backplane, stream: StreamKey, calls: Sequence[RequestId], spawn: Spawn) -> None:
        """Make the log of the answer to the requests with these ids."""
        self._backplane = backplane
        self._stream = stream
        self._calls = to_json(calls)
        self._spawn = spawn
        self._late: deque[tuple[int, bytes | None]] = deque(maxlen=_LATE)
        self._number = 0

    async def record(self, message: bytes | None) -> str | None:
        """Keep a message and return its event id; None where it is kept later, so that nobody can come back to it."""
        self._number += 1
        if not self._late:
            try:
                return await self._keep(self._number, message)
            except BackplaneUnavailableError:
                self._spawn(self._catch_up)
        self._late.append((self._number, message))
        return None

    async def _keep(self, number: int, message: bytes | None) -> str | None:
        entry = await self._backplane.append(self._stream, message, self._calls, number)
        return event_id(self._stream, entry) if entry is not None else None

    async def _catch_up(self) -> None:
        """Keep what is late, in order. Given up when a client's last event id is no longer good for anything either."""
        with anyio.move_on_after(_WORTH_KEEPING):
            while self._late:
                await anyio.sleep(_RETRY)
                try:
                    while self._late:
                        await self._keep(*self._late[0])
                        self._late.popleft()
                except BackplaneUnavailableError:
                    continue
        self._late.clear()


class StandaloneChannel:
    """What a session's connection sends by outside of any request (`mcp.shared.dispatcher.Outbound`).

    It knows its session by name, not by object: an application may hold on to it while the session hibernates, and
    what it then sends reaches the GET stream of the session brought back.
    """

    __slots__ = ("_backplane", "_loop_thread", "_patience", "_registry", "_session_id", "_stream")

    def __init__(self, session_id: str, digest: str, registry: Registry, backplane: Backplane, patience: float) -> None:
        """Make the channel; `patience` (seconds) bounds a question that no request's own limit bounds (O1)."""
        self._session_id = session_id
        self._stream = StreamKey(digest, STANDALONE)
        self._registry = registry
        self._backplane = backplane
        self._patience = patience
        self._loop_thread = get_ident()

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Ask the client something: with the request that is running, else on the GET stream.

        Raises:
            CannotAskError: At once, where no answer could come.
            MCPError: The client answered with an error, or not in time.
        """
        check_thread(self._loop_thread, method)
        context = self._running()
        if context is not None:
            return await context.send_raw_request(method, params, opts)
        bounded: CallOptions = {**(opts or {})}
        if bounded.get("timeout") is None:
            bounded["timeout"] = self._patience
        session = self._registry.live(self._stream.session)
        if session is not None and session.close_stream is not None:
            return await ask(session, self._append, method, params, bounded)
        found = await self._found_elsewhere()
        if found is None:
            raise CannotAskError(method, _NO_STREAM)
        try:
            with self._registry.use(found) as session:  # held from before the next checkpoint
                return await ask(session, self._append, method, params, bounded)
        except TooManySessionsError:
            raise CannotAskError(method, _NO_ROOM) from None
        except SessionOverError:
            raise CannotAskError(method, _NO_STREAM) from None

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - the protocol's; none of its hints is for a server
    ) -> None:
        """Send a notification on the GET stream if the client has or had one, else with the request that is running."""
        check_thread(self._loop_thread, method)
        context = self._running()
        if method == progress.METHOD:
            # Progress belongs to its request's own stream and passes its gate (requirements G-P1, G-P7).
            if context is not None:
                await context.notify(method, params)
            return
        try:
            if await self._backplane.is_open(self._stream):
                await self._backplane.append(self._stream, notification(method, params))
                return
        except BackplaneUnavailableError:
            log.info("notification not put on the GET stream: the backplane is away", method=method)
        if context is not None and context.carries:
            await context.notify(method, params)
        else:
            log.debug("notification dropped: the client has no GET stream", method=method)

    @property
    def state(self) -> SessionState:
        """The session's state."""
        return SessionState(self._backplane, self._stream.session, partial(self._registry.good_until, self._session_id))

    def pin(self) -> Callable[[], None]:
        """Keep the session live until what is returned is called; calling that again does nothing."""
        session = self._registry.live(self._stream.session)
        pinned = session is not None
        if session is not None:
            session.pin()

        def release() -> None:
            nonlocal pinned
            if session is not None and pinned:
                session.unpin()
                pinned = False

        return release

    async def _found_elsewhere(self) -> Found | None:
        """Return what the session's id is worth if its GET stream is open on another worker."""
        try:
            held = await self._backplane.is_held(self._stream)
            return await self._registry.recall(self._session_id) if held else None
        except BackplaneUnavailableError:
            return None

    async def _append(self, message: bytes) -> None:
        try:
            await self._backplane.append(self._stream, message)
        except BackplaneUnavailableError:
            raise CannotAskError("", "the backplane is away, and with it the GET stream.") from None

    def _running(self) -> ExchangeContext | None:
        context = current.get()
        if context is None or context.session is None or context.session.id != self._session_id:
            return None
        return context


async def find_resume_point(backplane: Backplane, session: str, last_event_id: str) -> tuple[StreamKey, str] | None:
    """Return the stream and entry that `Last-Event-ID` names, or None where they cannot be gone on from (R6).

    A standalone stream whose log is gone (an earlier process had it) goes on from now: what was said meanwhile is lost
    either way, and a client that is refused here does not open another one but stays deaf for good.
    """
    match = _EVENT_ID.fullmatch(last_event_id)
    if match is None:
        return None
    stream, entry = StreamKey(session, match["stream"]), match["entry"]
    if await backplane.holds(stream, entry):
        return stream, entry
    return (stream, await backplane.tail(stream)) if stream.name == STANDALONE else None


async def is_over(backplane: Backplane, stream: StreamKey, after: str) -> bool:
    """Whether a call's stream has ended, with nothing left of it after `after`."""
    try:
        entries = await backplane.peek(stream, after)
    except UnknownEventError:
        return False
    return bool(entries) and entries[0].data is None


async def serve_stream(
    send: Send,
    receive: Receive,
    headers: Headers,
    backplane: Backplane,
    stream: StreamKey,
    after: str,
    scope: anyio.CancelScope,
    *,
    resumable: bool,
) -> None:
    """Follow a stream's log from `after` until it ends, the client goes, or `scope` is cancelled.

    `resumable` (2025-11-25 and later): a standalone stream begins with an event to come back by, and any that is
    cancelled says when to.
    """
    primed = resumable and stream.name == STANDALONE
    try:
        await send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *headers]})
    except ClientGoneError:
        return
    with scope:
        await _follow_while_read(send, receive, backplane, stream, after, primed=primed)
    # Said again: some clients keep one delay for all their streams, the last they heard.
    last = sse.come_back(sse.STANDALONE_RETRY) if scope.cancelled_caught and resumable else b""
    # Hypercorn leaves a connection open whose last write was cancelled.
    with anyio.move_on_after(_LAST_WRITE, shield=True), suppress(ClientGoneError):
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def _follow_while_read(
    send: Send, receive: Receive, backplane: Backplane, stream: StreamKey, after: str, *, primed: bool
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
        first = sse.priming_event(event_id(stream, after), sse.STANDALONE_RETRY) if primed else sse.KEEP_ALIVE
        with suppress(ClientGoneError):
            await send({"type": "http.response.body", "body": first, "more_body": True})
            await _follow(send, backplane, stream, after)
        tasks.cancel_scope.cancel()


async def _follow(send: Send, backplane: Backplane, stream: StreamKey, after: str) -> None:
    while True:
        entries = None
        with anyio.move_on_after(sse.KEEP_ALIVE_INTERVAL):
            try:
                entries = await backplane.read(stream, after)
            except UnknownEventError:
                return  # trimmed while a slow client was reading; it sees the end, and by its last id what it missed
        if entries is None:
            await send({"type": "http.response.body", "body": sse.KEEP_ALIVE, "more_body": True})
            continue
        frames: list[bytes] = []
        for entry, data in entries:
            if data is not None:
                after, id_ = entry, event_id(stream, entry)
                frames.append(sse.event(data, id_) if data else sse.priming_event(id_))
        if frames:
            await send({"type": "http.response.body", "body": b"".join(frames), "more_body": True})
        if any(data is None for _, data in entries):
            return


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    await wait_for_disconnect(receive)
    scope.cancel()


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
