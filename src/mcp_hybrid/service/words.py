"""What needs no answer: notifications and responses, from the client or by way of another worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import structlog
from pydantic_core import from_json, to_json

from mcp_hybrid.backplane import Signal, SignalKind
from mcp_hybrid.errors import Fault
from mcp_hybrid.exchange.changes import Publish, decode_event
from mcp_hybrid.exchange.wire import write_empty
from mcp_hybrid.routing.message import LONGEST_ID, Notification, Response
from mcp_hybrid.routing.table import RouteName
from mcp_hybrid.service.incoming import Exchange
from mcp_hybrid.service.kernel import Kernel
from mcp_hybrid.service.roll import RollCall
from mcp_hybrid.sessions.live import LiveSession
from mcp_hybrid.sessions.questions import asking_worker, reported

log = structlog.get_logger("mcp_hybrid")


class Words:
    """Notifications and responses, from the client and from other workers on its behalf."""

    def __init__(self, kernel: Kernel, roll: RollCall) -> None:
        self._kernel = kernel
        self.publish_here: Publish | None = None
        """Publishes a server event to this worker's listeners, where the server has a bus that is shared."""
        self._signals: Mapping[SignalKind, Callable[[Signal], Awaitable[None]]] = {
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
        first = exchange.message.method == "notifications/initialized"
        session = self._kernel.registry.attach(exchange.found, first=first)
        await self.act(session, exchange.message)
        await write_empty(exchange.send, 202, exchange.answer_headers())
        await self._kernel.handle_notification(exchange, session.connection, exchange.message)
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
            if not session.cancel(call) and self._kernel.backplane.shared and _may_name_a_call(call):
                await self._kernel.backplane.broadcast(Signal(SignalKind.CANCEL, session.hash, to_json(call)))
        elif message.method == "notifications/progress":
            token = params.get("progressToken")
            question = session.questions.get(token) if isinstance(token, str) else None
            if question is not None:
                await question.report(params)
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
        """Do what another worker says."""
        try:
            await self._signals[signal.kind](signal)
        except Exception:
            log.exception("a signal was not understood", kind=signal.kind)

    async def _on_answer(self, signal: Signal) -> None:
        session = self._kernel.registry.live(signal.session)
        if session is not None:
            session.answer(Response(*from_json(signal.body)))

    async def _on_progress(self, signal: Signal) -> None:
        session, params = self._kernel.registry.live(signal.session), from_json(signal.body)
        question = session.questions.get(params["progressToken"]) if session is not None else None
        if question is not None:
            self._kernel.spawn(
                partial(question.report, params)
            )  # it runs what the application gave; signals do not wait

    async def _on_cancel(self, signal: Signal) -> None:
        session = self._kernel.registry.live(signal.session)
        if session is not None:
            session.cancel(from_json(signal.body))

    async def _on_end(self, signal: Signal) -> None:
        # It runs what the application has left to be cleaned up; signals do not wait.
        self._kernel.spawn(partial(self._kernel.registry.end_here, signal.session))

    async def _on_close_stream(self, signal: Signal) -> None:
        session = self._kernel.registry.live(signal.session)
        if session is not None:
            session.close_stream_of(signal.body.decode())

    async def _on_change(self, signal: Signal) -> None:
        if self.publish_here is not None:
            await self.publish_here(decode_event(signal.body))


def _may_name_a_call(id_: object) -> bool:
    """Whether a call that runs elsewhere may have that id. What else clients send is spread over no inboxes."""
    if isinstance(id_, str):
        return len(id_) <= LONGEST_ID
    return isinstance(id_, int) and not isinstance(id_, bool) and id_.bit_length() <= 64
