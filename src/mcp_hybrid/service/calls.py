"""Requests that are answered: the handshake, calls on the three routes, batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from mcp.shared.inbound import InboundModernRoute
from mcp_types.version import LATEST_HANDSHAKE_VERSION
from starlette.requests import Request as HttpRequest

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.exchange import modern
from mcp_hybrid.exchange.context import MODERN, ExchangeContext
from mcp_hybrid.exchange.progress import ProgressGate
from mcp_hybrid.exchange.reply import Headers, Reply
from mcp_hybrid.exchange.standalone import (
    wait_for_disconnect,
)
from mcp_hybrid.exchange.wire import write_empty
from mcp_hybrid.routing.message import Batch, Message, Notification, Request, Response
from mcp_hybrid.routing.progress import Progress, decide_progress
from mcp_hybrid.routing.table import Action, RouteName
from mcp_hybrid.service.incoming import SESSION_HEADER, Exchange
from mcp_hybrid.service.kernel import Kernel
from mcp_hybrid.service.words import CONFIRMATION, Words
from mcp_hybrid.sessions.connection import LeanConnection, alone, enveloped
from mcp_hybrid.sessions.live import Interruption, LiveSession
from mcp_hybrid.sessions.seal import TooLargeToSealError


class Calls:
    """The handshake, calls on the three routes, and batches of them."""

    def __init__(self, kernel: Kernel, words: Words) -> None:
        self._kernel = kernel
        self._words = words

    async def initialize(self, exchange: Exchange) -> Fault | None:
        """Answer the handshake, and offer a session where there are any."""
        request = exchange.message
        assert isinstance(request, Request)
        connection = alone(LATEST_HANDSHAKE_VERSION)
        metadata = self._kernel.metadata(exchange)
        context = ExchangeContext(None, request.id, ProgressGate(None), metadata, owner=exchange.owner)
        handler = partial(self._kernel.serve_once, context, connection, request.method, request.params)
        outcome = await self._kernel.run(handler, context, request)
        extra: Headers = ()
        if outcome.error_code is None and exchange.route.action is Action.OFFER_SESSION:
            assert connection.client_params is not None
            try:
                sealed = self._kernel.registry.offer(
                    connection.client_params, connection.protocol_version, exchange.owner
                )
            except TooLargeToSealError:
                return Fault(
                    Cause.CLIENT_TOO_LARGE,
                    "The client's name and capabilities are too large for a session id (about 3 KB in all).",
                    request.id,
                )
            extra = ((SESSION_HEADER, sealed.encode()),)
        await self._kernel.finish(exchange, self._kernel.reply(exchange, extra), outcome)
        return None

    async def call(self, exchange: Exchange) -> Fault | None:
        """Answer one request on its route."""
        request = exchange.message
        assert isinstance(request, Request)
        exchange.progress = decide_progress(
            self._kernel.policy, exchange.route.name, request.progress_token, exchange.form
        )
        if exchange.route.name is RouteName.MODERN:
            return await self._call_modern(exchange, request)
        if exchange.route.name is RouteName.STATELESS:
            reply = self._kernel.reply(exchange)
            outcome = await self._kernel.run_stateless(exchange, request, reply)
            await self._kernel.finish(exchange, reply, outcome)
            return None
        return await self._call_in_session(exchange, request)

    async def _call_in_session(self, exchange: Exchange, request: Request) -> Fault | None:
        reply = self._kernel.session_reply(exchange, [request.id])
        with self._kernel.registry.use(exchange.found, [request.id]) as session:
            outcome = await self._kernel.run_in_session(exchange, session, request, reply)
        await self._kernel.finish(exchange, reply, outcome)
        return None

    async def _call_modern(self, exchange: Exchange, request: Request) -> Fault | None:
        listening = request.method == modern.LISTEN
        if listening and not exchange.form.streams:
            return Fault(Cause.NOT_ACCEPTABLE, f"{modern.LISTEN} needs text/event-stream in Accept.", request.id)
        headers = HttpRequest(exchange.scope).headers
        verdict = modern.classify(request, headers)
        if isinstance(verdict, Fault):
            return verdict
        listing = partial(self._list_tools, exchange, request, verdict)
        fault = await modern.check_params(self._kernel.server, request, verdict, headers, listing, self._kernel.program)
        if fault is not None:
            return fault
        reply = self._kernel.reply(exchange)
        connection = enveloped(verdict.protocol_version, verdict.client_info, verdict.client_capabilities)
        context = ExchangeContext(
            reply,
            request.id,
            self._kernel.gate(exchange, request),
            self._kernel.metadata(exchange),
            owner=exchange.owner,
            carries=True,
            refusal=MODERN,
        )
        handler = self._modern_handler(context, connection, request)
        gone = _Companion(partial(wait_for_disconnect, exchange.receive), context, Interruption.CLIENT_GONE)
        # It is not watched from the beginning: most calls are done before anybody could go.
        watch = self._kernel.timers.watch.add(partial(self._kernel.spawn, gone.run))
        lapsing = None
        if listening and exchange.lapsed is not None:
            lapsing = _Companion(exchange.lapsed, context, Interruption.CREDENTIAL_LAPSED)
            self._kernel.spawn(lapsing.run)
        # A call that says nothing for long becomes a stream, or a proxy would cut it, which would cancel it.
        alive = self._kernel.timers.keep_alive.add(reply.commit)
        try:
            outcome = await self._kernel.run(handler, context, request, modern=True, limited=not listening)
        finally:
            watch.cancel()
            alive.cancel()
            gone.end()
            if lapsing is not None:
                lapsing.end()
        await self._kernel.finish(exchange, reply, outcome)
        return None

    def _modern_handler(self, context: ExchangeContext, connection: LeanConnection, request: Request) -> modern.Handler:
        """Return what handles a modern request, with what is left to an entry around it."""
        state, params = self._kernel.request_state, request.params
        if state is not None:
            params = state.opened(request.method, params)
        handler: modern.Handler = partial(self._kernel.serve_once, context, connection, request.method, params)
        if state is not None:
            handler = partial(state.sealed, handler)
        if request.method == modern.DISCOVER:
            return partial(modern.discover, handler)
        return partial(modern.ask_what_was_declared, handler, connection.client_capabilities)

    async def _list_tools(
        self, exchange: Exchange, request: Request, verdict: InboundModernRoute, params: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        connection = enveloped(verdict.protocol_version, verdict.client_info, verdict.client_capabilities)
        metadata = self._kernel.metadata(exchange)
        context = ExchangeContext(None, request.id, ProgressGate(None), metadata, owner=exchange.owner, refusal=MODERN)
        return await self._kernel.list_tools(context, connection, params)

    async def batch(self, exchange: Exchange) -> Fault | None:
        """Answer a batch (2025-03-26): its requests run at the same time."""
        batch = exchange.message
        assert isinstance(batch, Batch)
        requests = [message for message in batch.messages if isinstance(message, Request)]
        exchange.progress = max(
            (
                decide_progress(self._kernel.policy, exchange.route.name, r.progress_token, exchange.form)
                for r in requests
            ),
            key=lambda progress: progress.value,
            default=Progress.NOT_WANTED,
        )
        if exchange.route.name is RouteName.SESSION:
            ids = [request.id for request in requests]
            reply = self._kernel.session_reply(exchange, ids)
            first = any(isinstance(part, Notification) and part.method == CONFIRMATION for part in batch.messages)
            with self._kernel.registry.use(exchange.found, ids, first=first) as session:
                await self._act_on(session, batch.messages)
                bodies = await self._run_parts(exchange, session, batch.messages, reply)
        else:
            reply = self._kernel.reply(exchange)
            bodies = await self._run_parts(exchange, None, batch.messages, reply)
        if not requests:
            await write_empty(exchange.send, 202, exchange.answer_headers())
            return None
        await reply.finish(bodies, array=True)
        return None

    async def _act_on(self, session: LiveSession, messages: Sequence[Message]) -> None:
        """Do what a batch's notifications and responses mean to the session itself.

        That can fail, with the backplane away, and is done before any request of the batch has begun: a client that is
        refused may send all of it again. What cancels a request of the same batch finds its reservation.
        """
        for message in messages:
            if isinstance(message, Notification):
                await self._words.act(session, message)
            elif isinstance(message, Response):
                await self._words.deliver(session.hash, message)

    async def _run_parts(
        self, exchange: Exchange, session: LiveSession | None, messages: Sequence[Message], reply: Reply
    ) -> list[bytes]:
        """Run a batch's messages at the same time. The responses come in the order of the requests."""
        bodies: dict[int, bytes | None] = {}

        async def run_one(index: int, request: Request) -> None:
            running = (
                self._kernel.run_in_session(exchange, session, request, reply)
                if session is not None
                else self._kernel.run_stateless(exchange, request, reply)
            )
            bodies[index] = (await running).body

        async with anyio.create_task_group() as tasks:
            for index, message in enumerate(messages):
                if isinstance(message, Request):
                    tasks.start_soon(run_one, index, message)
                elif session is not None and isinstance(message, Notification):
                    tasks.start_soon(self._kernel.notify_in_session, exchange, session, message)
                elif isinstance(message, Notification):
                    tasks.start_soon(self._kernel.notify_stateless, exchange, message)
        return [body for _, body in sorted(bodies.items()) if body is not None]


class _Companion:
    """A task beside a call, which interrupts it when something happens, and ends with it."""

    __slots__ = ("_context", "_ended", "_happens", "_scope", "_why")

    def __init__(self, happens: Callable[[], Awaitable[None]], context: ExchangeContext, why: Interruption) -> None:
        """Interrupt the call because of `why` when `happens` returns."""
        self._happens = happens
        self._context = context
        self._why = why
        self._ended = False
        self._scope: anyio.CancelScope | None = None  # seldom needed: most calls end before the task is started

    async def run(self) -> None:
        """Wait for it, unless the call is over already."""
        if self._ended:
            return
        with anyio.CancelScope() as self._scope:
            await self._happens()
            self._context.interrupt(self._why)

    def end(self) -> None:
        """Wait no more."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()
