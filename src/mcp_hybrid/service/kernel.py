"""How any request is run: the kernel, a context for it, and a reply around it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
from mcp.server._otel import OpenTelemetryMiddleware
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.runner import ServerRunner
from mcp.shared.dispatcher import OnNotify, OnRequest
from mcp.shared.message import ServerMessageMetadata
from mcp_types import RequestId
from mcp_types.version import is_version_at_least
from starlette.requests import Request as HttpRequest

from mcp_hybrid.backplane import Backplane, StreamKey
from mcp_hybrid.containment import contained
from mcp_hybrid.counts import Count
from mcp_hybrid.errors import REQUEST_CANCELLED
from mcp_hybrid.exchange.context import ExchangeContext
from mcp_hybrid.exchange.crossing import CrossingChannel, CrossingContext, on_loop
from mcp_hybrid.exchange.handler_task import Handler
from mcp_hybrid.exchange.journal import LateBytes, StreamJournal
from mcp_hybrid.exchange.outcome import Outcome, execute, run
from mcp_hybrid.exchange.progress import ProgressGate
from mcp_hybrid.exchange.reply import Headers, Reply, Resumption, Spawn
from mcp_hybrid.exchange.request_state import SharedRequestState
from mcp_hybrid.exchange.standalone import StandaloneChannel, wait_for_disconnect
from mcp_hybrid.exchange.threads import ToolThreads
from mcp_hybrid.routing.message import Notification, Request
from mcp_hybrid.routing.modes import ProgressPolicy
from mcp_hybrid.routing.progress import Progress, decide_progress
from mcp_hybrid.runtime.program import IN_PLACE, Program
from mcp_hybrid.service.incoming import Exchange, Timers
from mcp_hybrid.service.prompts import explain_refused_prompt
from mcp_hybrid.sessions.connection import LeanConnection, alone
from mcp_hybrid.sessions.live import LiveSession
from mcp_hybrid.sessions.registry import Registry
from mcp_hybrid.text import short

RESUMABLE_SINCE: Final = "2025-11-25"
"""The revision that lets a server end a call's stream early, and that knows priming events (requirements E6, E7)."""

_NAMING: Final = frozenset({"tools/call", "prompts/get"})
"""Methods whose requests name the function that is called."""

_UNHANDLED: Final = "notification without a handler"

SET_LEVEL: Final = "logging/setLevel"
"""The method by which a client says which log messages it takes; a server that logs handles it."""


def _run_middleware(
    middleware: ServerMiddleware[Any], call_next: CallNext, ctx: ServerRequestContext[Any, Any]
) -> Awaitable[HandlerResult]:
    return middleware(ctx, call_next)


class TracedRunner(ServerRunner[Any]):
    """The SDK's kernel. One that was used keeps no hold of itself, so that it is gone with its request.

    What is left to the garbage collector instead is found some hundred requests later, in a pause of milliseconds.
    """

    @property
    def on_request(self) -> OnRequest:
        """Handles a request. The base class would keep this method, which holds the runner."""
        return self._on_request

    @property
    def on_notify(self) -> OnNotify:
        """Handles a notification, likewise."""
        return self._on_notify


class UntracedRunner(TracedRunner):
    """The same without its spans: for a process in which nobody takes them."""

    def _compose_server_middleware(self, inner: CallNext) -> CallNext:
        call = inner
        for middleware in reversed(self.server.middleware):
            if not isinstance(middleware, OpenTelemetryMiddleware):
                call = partial(_run_middleware, middleware, call)
        return call


class Kernel:
    """Runs the SDK's kernel for one request after another, with a context for it and a reply around it."""

    def __init__(  # noqa: PLR0913 - all that a running application has
        self,
        server: Server[Any],
        lifespan_state: Any,
        registry: Registry,
        backplane: Backplane,
        timers: Timers,
        spawn: Spawn,
        *,
        policy: ProgressPolicy,
        traced: bool,
        threads: ToolThreads,
        program: Program = IN_PLACE,
    ) -> None:
        """Run requests to `server`, where its `program` runs. `traced` says whether anybody takes the SDK's spans."""
        self.server = server
        self.program = program
        self.registry = registry
        self.backplane = backplane
        self.timers = timers
        self.spawn = spawn
        self.policy = policy
        self.request_timeout = timers.request.seconds
        self.threads = threads
        self.running: set[ExchangeContext] = set()
        """The requests whose handlers run now, of all routes."""
        self.logs = server.get_request_handler(SET_LEVEL) is not None
        """Whether the server declares that it sends log messages."""
        self.following: set[anyio.CancelScope] = set()
        """The streams that are read from their logs now. They end in order when they are cancelled."""
        self.request_state: SharedRequestState | None = None
        """Makes the state of calls that ask back good on every worker, where there is a key to do it with."""
        self._state = lifespan_state
        self._late_bytes = LateBytes(backplane.limits.total_bytes)
        self._runner_class = TracedRunner if traced else UntracedRunner

    async def serve_once(
        self, context: ExchangeContext, connection: LeanConnection, method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Handle one request on a connection of its own, and clean up what the application has left on it."""
        seen = self._as_seen(context)
        try:
            return await self._runner(connection).on_request(seen, method, params)
        finally:
            if connection.has_clean_up:
                await seen.undisturbed(connection.clean_up)

    async def run(
        self,
        handler: Handler,
        context: ExchangeContext,
        request: Request,
        *,
        modern: bool = False,
        limited: bool = True,
    ) -> Outcome:
        """Run a request's handler to its outcome, for at most `request_timeout` if its time is `limited`."""
        limit = self.timers.request if limited else None
        name, key = request.method, request.method
        if key in _NAMING and (called := request.name) is not None:
            name, key = called, f"{key} {called}"
        context.name = short(name)
        if not limited:
            self.threads.learn(
                key, used=False, answered=True
            )  # a stream, which would answer for the first time too late
        if request.method == "prompts/get":
            handler = partial(explain_refused_prompt, handler)
        return await run(
            handler,
            context,
            request.id,
            running=self.running,
            modern=modern,
            limit=limit,
            threads=self.threads,
            key=key,
        )

    async def list_tools(
        self, context: ExchangeContext, connection: LeanConnection, params: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Run `tools/list` for what precedes a call, within the limits of a call.

        Raises:
            BaseException: What the server raises.
            TimeoutError: It took too long, or was interrupted.
        """
        context.name = key = "tools/list"
        handler = partial(self.serve_once, context, connection, key, params)
        result = await execute(
            handler, context, running=self.running, limit=self.timers.request, threads=self.threads, key=key
        )
        if result is None:
            raise TimeoutError("listing the tools was interrupted")
        return result

    async def run_stateless(self, exchange: Exchange, request: Request, reply: Reply) -> Outcome:
        """Run a request that has no session: nothing is known of the client, and nothing is kept."""
        connection = alone(exchange.route.version)
        carries = self.policy is ProgressPolicy.ALWAYS
        context = ExchangeContext(
            reply,
            request.id,
            self.gate(exchange, request),
            self.metadata(exchange),
            owner=exchange.owner,
            carries=carries,
        )
        handler = partial(self.serve_once, context, connection, request.method, request.params)
        return await self.run(handler, context, request)

    async def run_in_session(self, exchange: Exchange, session: LiveSession, request: Request, reply: Reply) -> Outcome:
        """Run a request in its session, in which its id was reserved (`Registry.use`)."""
        metadata = self.metadata(exchange, reply, session)
        gate = self.gate(exchange, request)
        context = ExchangeContext(
            reply, request.id, gate, metadata, owner=exchange.owner, session=session, carries=True
        )
        session.start_call(request.id, context)
        alarm = self.timers.stream_after.add(reply.commit)
        try:
            seen = self._as_seen(context)
            handler = partial(self._runner(session.connection).on_request, seen, request.method, request.params)
            outcome = await self.run(handler, context, request)
            if request.method == SET_LEVEL and outcome.error_code is None:
                session.log_level = str((request.params or {}).get("level"))
            return outcome
        finally:
            alarm.cancel()
            session.finish_call(request.id, context)

    async def notify_stateless(self, exchange: Exchange, message: Notification) -> None:
        """Let the server's own handlers see a notification; there is no call and no session it could act on."""
        connection = alone(exchange.route.version)
        await self._notify(exchange, connection, message, connection.clean_up)

    async def notify_in_session(self, exchange: Exchange, session: LiveSession, message: Notification) -> None:
        """Let the server's own handlers see a notification in its session, which is held; its end stops them."""
        if session.ended:
            return
        with anyio.CancelScope() as scope:
            handled = session.handle(scope.cancel)
            try:
                await self.handle_notification(exchange, session.connection, message)
            finally:
                handled()

    async def handle_notification(self, exchange: Exchange, connection: Connection, message: Notification) -> None:
        """Let the server's own handlers see a notification."""
        await self._notify(exchange, connection, message, None)

    async def _notify(
        self,
        exchange: Exchange,
        connection: Connection,
        message: Notification,
        clean_up: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """Run what the server has for a notification, for at most `request_timeout`. What it raises is logged."""
        context = ExchangeContext(None, None, ProgressGate(None), self.metadata(exchange), owner=exchange.owner)
        context.name = key = short(message.method)
        if self.server.get_notification_handler(message.method) is None:
            key = _UNHANDLED
            self.threads.learn(key, used=False, answered=True)  # there is nothing that could block

        seen = self._as_seen(context)

        async def handler() -> Mapping[str, Any]:
            try:
                await self._runner(connection).on_notify(seen, message.method, message.params)
            finally:
                if clean_up is not None:
                    await seen.undisturbed(clean_up)
            return {}

        work = partial(
            execute, handler, context, running=self.running, limit=self.timers.request,
            threads=self.threads, key=key,
        )  # fmt: skip
        await contained(work, "notification handler raised", method=context.name)

    def make_outbound(self, session_id: str, digest: str) -> StandaloneChannel | CrossingChannel:
        """Make what a session sends by outside of any request."""
        channel = StandaloneChannel(session_id, digest, self.registry, self.backplane, self.request_timeout)
        return on_loop(channel, self.program.loop)

    def _as_seen(self, context: ExchangeContext) -> ExchangeContext | CrossingContext:
        """Return a request's context as the SDK's kernel may use it where it runs."""
        return context if self.program.loop is None else CrossingContext(context, self.program.loop)

    def _runner(self, connection: Connection) -> ServerRunner[Any]:
        """Return the SDK's kernel for a connection. It holds nothing of its own, and is made for each message."""
        return self._runner_class(self.server, connection, self._state)

    def reply(self, exchange: Exchange, extra: Headers = ()) -> Reply:
        """Return the answer to a request that nobody can come back for."""
        return Reply(
            exchange.send,
            exchange.form,
            exchange.answer_headers(*extra),
            self.spawn,
            self.timers.keep_alive,
            counts=self.registry.counts,
        )

    def session_reply(self, exchange: Exchange, calls: Sequence[RequestId]) -> Reply:
        """Return the answer to these requests of a session; its stream can be resumed."""
        return Reply(
            exchange.send,
            exchange.form,
            exchange.answer_headers(),
            self.spawn,
            self.timers.keep_alive,
            counts=self.registry.counts,
            resumption=Resumption(
                partial(self._open_journal, exchange.found.hash, calls),
                partial(self._watch_client, exchange),
                is_version_at_least(exchange.route.version, RESUMABLE_SINCE),
            ),
        )

    def _open_journal(self, session: str, calls: Sequence[RequestId]) -> StreamJournal:
        stream = StreamKey(session, f"c{secrets.token_hex(6)}")
        return StreamJournal(self.backplane, stream, calls, self.spawn, self._late_bytes)

    def _watch_client(self, exchange: Exchange, act: Callable[[], None]) -> Callable[[], None]:
        """Act when the client of a request goes; return what ends the watch. It begins late: most are done by then."""
        watch = _ClientWatch(exchange, act)
        alarm = self.timers.watch.add(partial(self.spawn, watch.run))

        def end() -> None:
            alarm.cancel()
            watch.end()

        return end

    def gate(self, exchange: Exchange, request: Request) -> ProgressGate:
        """Return the gate that a request's progress passes."""
        progress = self.decide_progress(exchange, request)
        if progress is Progress.WITHHELD:
            self.registry.counts.add(Count.PROGRESS_WITHHELD)
        return ProgressGate(request.progress_token if progress is Progress.SERVED else None)

    def decide_progress(self, exchange: Exchange, request: Request) -> Progress:
        """Return what becomes of a request's progress."""
        return decide_progress(self.policy, exchange.route.name, request.progress_token, exchange.form)

    def metadata(
        self, exchange: Exchange, reply: Reply | None = None, session: LiveSession | None = None
    ) -> ServerMessageMetadata:
        """Return what the SDK hands on to handlers: the HTTP request, and how to end streams early."""
        metadata = ServerMessageMetadata(request_context=HttpRequest(exchange.program_scope))
        if session is not None and reply is not None and is_version_at_least(exchange.route.version, RESUMABLE_SINCE):
            metadata.close_sse_stream = partial(_close_early, reply)
            metadata.close_standalone_sse_stream = partial(_close_standalone, session)
        return metadata

    async def finish(self, exchange: Exchange, reply: Reply, outcome: Outcome) -> None:
        """Send a request's outcome, and note it for the log."""
        if outcome.error_code is not None:
            exchange.facts["error"] = outcome.error_code
        if outcome.error_code == REQUEST_CANCELLED:
            # SDK 2.3's client that cancels a call and leaves ends with an exception if the answer comes as a JSON body
            # meanwhile; as an event it does not.
            reply.commit()
        if outcome.body is None:
            exchange.facts["client"] = "gone"
            await reply.abandon()
        else:
            await reply.finish([outcome.body], status=outcome.status)


class _ClientWatch:
    """Waits for a client to go."""

    __slots__ = ("_act", "_exchange", "_scope")

    def __init__(self, exchange: Exchange, act: Callable[[], None]) -> None:
        self._exchange = exchange
        self._act: Callable[[], None] | None = act
        self._scope: anyio.CancelScope | None = None

    async def run(self) -> None:
        """Act when the client goes, unless the watch has ended."""
        if self._act is None:
            return
        with anyio.CancelScope() as self._scope:
            await wait_for_disconnect(self._exchange.receive)
            if self._act is not None:
                self._act()

    def end(self) -> None:
        """Wait no more."""
        self._act = None  # it holds what holds this: a circle, which would wait for the garbage collector
        if self._scope is not None:
            self._scope.cancel()


async def _close_early(reply: Reply) -> None:
    reply.close_early()


async def _close_standalone(session: LiveSession) -> None:
    if session.close_stream is not None:
        session.close_stream()
