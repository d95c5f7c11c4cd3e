"""What needs no answer: notifications and responses, from the client or by way of another worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import structlog
from mcp.server.subscriptions import ServerEvent
from pydantic_core import from_json, to_json

from mcp_hybrid.backplane import Signal, SignalKind
from mcp_hybrid.errors import Fault
from mcp_hybrid.exchange.changes import Publish, decode_event
from mcp_hybrid.exchange.wire import write_empty
from mcp_hybrid.routing.message import Notification, Response, is_request_id
from mcp_hybrid.routing.table import RouteName
from mcp_hybrid.service.incoming import Exchange
from mcp_hybrid.service.kernel import Kernel
from mcp_hybrid.service.roll import RollCall
from mcp_hybrid.sessions.live import LiveSession
from mcp_hybrid.sessions.questions import asking_worker, reported

log = structlog.get_logger("mcp_hybrid")

CONFIRMATION: Final = "notifications/initialized"
"""The notification by which a client confirms its handshake."""

LATE_CHANGES: Final = 1000
"""Changes published on other workers, all of them different, that may wait to be published on this one."""


class Words:
    """Notifications and responses, from the client and from other workers on its behalf."""

    def __init__(self, kernel: Kernel, roll: RollCall) -> None:
        self._kernel = kernel
        self.publish_here: Publish | None = None
        """Publishes a server event to this worker's listeners, where the server has a bus that is shared."""
        self._changes: dict[ServerEvent, None] = {}
        """Those of other workers that wait to be published, in order."""
        self._publishing = False
        self._signals: Mapping[SignalKind, Callable[[Signal], None]] = {
            SignalKind.ANSWER: self._on_answer,
            SignalKind.PROGRESS: self._on_progress,
            SignalKind.CANCEL: self._on_cancel,
            SignalKind.END: self._on_end,
            SignalKind.CLOSE_STREAM: self._on_close_stream,
            SignalKind.CHANGE: self._on_change,
            SignalKind.ROLL_CALL: roll.on_call,
            SignalKind.PRESENT: roll.on_present,
        }

    async def accept(self, exchange: Exchange) -> Fault | None:
        """Take note of a notification that belongs to no session."""
        await write_empty(exchange.send, 202, exchange.answer_headers())
        if exchange.route.name is RouteName.STATELESS and isinstance(exchange.message, Notification):
            await self._kernel.notify_stateless(exchange, exchange.message)
        return None

    async def notify(self, exchange: Exchange) -> Fault | None:
        """Act on a notification in its session, and let the server see it."""
        assert isinstance(exchange.message, Notification)
        first = exchange.message.method == CONFIRMATION
        with self._kernel.registry.use(exchange.found, first=first) as session:
            await self.act(session, exchange.message)
            await write_empty(exchange.send, 202, exchange.answer_headers())
            await self._kernel.notify_in_session(exchange, session, exchange.message)
        return None

    async def answer(self, exchange: Exchange) -> Fault | None:
        """Take an answer to a question."""
        assert isinstance(exchange.message, Response)
        await self.deliver(exchange.found.hash, exchange.message)
        await write_empty(exchange.send, 202, exchange.answer_headers())
        return None

    async def act(self, session: LiveSession, message: Notification) -> None:
        """Do what a notification means to the session itself, or have it done by the worker it means something to."""
        params = message.params or {}
        if message.method == "notifications/cancelled":
            call = params.get("requestId")
            if not session.cancel(call) and self._kernel.backplane.shared and is_request_id(call):
                await self._kernel.backplane.broadcast(Signal(SignalKind.CANCEL, session.hash, to_json(call)))
        elif message.method == "notifications/progress":
            token = params.get("progressToken")
            question = session.questions.get(token) if isinstance(token, str) else None
            if question is not None:
                question.report(params, self._kernel.spawn)
            elif (said := reported(params)) is not None:
                body = to_json({"progressToken": token, **said})
                await self._send_to_asker(token, Signal(SignalKind.PROGRESS, session.hash, body))

    async def deliver(self, digest: str, response: Response) -> None:
        """Hand a response to whoever asked, here or elsewhere; one that nobody asked for is dropped."""
        session = self._kernel.registry.live(digest)
        if session is None or not session.answer(response):
            body = to_json([response.id, response.result, response.error])
            await self._send_to_asker(response.id, Signal(SignalKind.ANSWER, digest, body))

    async def _send_to_asker(self, question: object, signal: Signal) -> None:
        """Hand something to the worker that asked a question, where that is another one."""
        worker = asking_worker(question)
        if worker is not None and worker != self._kernel.backplane.worker:
            await self._kernel.backplane.send(worker, signal)

    async def on_signal(self, signal: Signal) -> None:
        """Do what another worker says, without waiting for anything.

        The reader that calls this is also the worker's heartbeat: if it waited here for long, the others would take
        this worker for dead. What has to wait gets a task, and how many of these there are is bounded.
        """
        try:
            self._signals[signal.kind](signal)
        except Exception:
            log.exception("a signal was not understood", kind=signal.kind)

    def _on_answer(self, signal: Signal) -> None:
        session = self._kernel.registry.live(signal.session)
        if session is not None:
            session.answer(Response(*from_json(signal.body)))

    def _on_progress(self, signal: Signal) -> None:
        session, params = self._kernel.registry.live(signal.session), from_json(signal.body)
        question = session.questions.get(params["progressToken"]) if session is not None else None
        if question is not None:
            question.report(params, self._kernel.spawn)

    def _on_cancel(self, signal: Signal) -> None:
        session = self._kernel.registry.live(signal.session)
        if session is not None:
            session.cancel(from_json(signal.body))

    def _on_end(self, signal: Signal) -> None:
        self._kernel.registry.end_here(signal.session)

    def _on_close_stream(self, signal: Signal) -> None:
        session = self._kernel.registry.live(signal.session)
        if session is not None:
            session.close_stream_of(signal.body.decode())

    def _on_change(self, signal: Signal) -> None:
        event = decode_event(signal.body)
        if self.publish_here is None or event in self._changes:
            return  # one that waits says all that another of the same would
        if len(self._changes) >= LATE_CHANGES:
            log.warning("a change is not published: too many that differ wait to be", event_type=type(event).__name__)
            return
        self._changes[event] = None
        if not self._publishing:
            self._publishing = True
            self._kernel.spawn(partial(self._publish, self.publish_here))

    async def _publish(self, publish: Publish) -> None:
        """Publish the changes that wait, in their order and one at a time, as a bus that has to wait wants it."""
        try:
            while self._changes:
                event = next(iter(self._changes))
                del self._changes[event]  # before it is published: a listener may have had this one when the next comes
                try:
                    await publish(event)
                except Exception:
                    log.exception("a change could not be published", event_type=type(event).__name__)
        finally:
            self._publishing = False
