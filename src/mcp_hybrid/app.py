"""`HybridApp`: an MCP server as an ASGI application. Gates, then routing, then the exchange.

    bytes ─ host, origin ─ owner ─ method, headers ─ body ─ era ─ session lookup ─ table ─ service ─ bytes

Every step either hands on or refuses; a refused request leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import anyio
import structlog
from anyio.abc import TaskGroup
from mcp.server.auth.provider import TokenVerifier
from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send

from mcp_hybrid.authentication import Authentication, CrossingAuthenticator, authentication_for
from mcp_hybrid.backplane import Backplane, MemoryBackplane
from mcp_hybrid.clock import now
from mcp_hybrid.containment import contained, keep_or_raise, must_pass
from mcp_hybrid.counts import Counts
from mcp_hybrid.errors import Cause, ConfigurationError, Fault
from mcp_hybrid.exchange import sse
from mcp_hybrid.exchange.changes import end_listening, shared_changes
from mcp_hybrid.exchange.context import current
from mcp_hybrid.exchange.request_state import shared_request_state
from mcp_hybrid.exchange.threads import ToolThreads, divided_limiter
from mcp_hybrid.exchange.timers import Delay
from mcp_hybrid.exchange.wire import (
    BodyTooSlowError,
    ClientGoneError,
    Patience,
    drain,
    hang_up,
    read_body,
    write_empty,
    write_fault,
)
from mcp_hybrid.host_signals import drain_on_signals
from mcp_hybrid.operator import Pages
from mcp_hybrid.operator.health import BACKPLANE, DRAINING, NOT_RUNNING
from mcp_hybrid.operator.page import Asked
from mcp_hybrid.operator.pages import PATHS
from mcp_hybrid.program_pages import ProgramPages, custom_routes
from mcp_hybrid.routing.gates import METHODS, check_head, check_path, check_post, check_size
from mcp_hybrid.routing.head import Head, read_head
from mcp_hybrid.routing.message import Batch, Message, Request, parse_body
from mcp_hybrid.routing.modes import Mode
from mcp_hybrid.routing.table import Lookup, Policy, Standing, decide, era_of, needs_lookup
from mcp_hybrid.runtime.choice import choose
from mcp_hybrid.runtime.program import Program
from mcp_hybrid.security.bearer import acting_for, known_already
from mcp_hybrid.security.contained import ContainedAuthenticator
from mcp_hybrid.security.cors import Cors, Headers
from mcp_hybrid.security.hosts import HostPolicy
from mcp_hybrid.security.lapse import lapsed
from mcp_hybrid.security.limits import Bounds
from mcp_hybrid.security.owner import NOBODY, Authenticator, Caller, Owner
from mcp_hybrid.service import Door, Exchange, Kernel, Place, Service, Timers
from mcp_hybrid.sessions.registry import Found, Registry, SessionLimits
from mcp_hybrid.sessions.seal import KeyRing, fresh_key
from mcp_hybrid.settings import Settings, decode_key
from mcp_hybrid.targets import as_lowlevel
from mcp_hybrid.telemetry.backplane import timed
from mcp_hybrid.telemetry.metrics import OPERATOR, make_metrics
from mcp_hybrid.telemetry.observer import Observer, method_of
from mcp_hybrid.telemetry.tracing import RequestSpan

log = structlog.get_logger("mcp_hybrid")

WATCH_AFTER: Final = 0.1
"""Seconds a modern call runs before anybody watches for its client to go. Most are done by then."""

_LONGEST_SWEEP: Final = 30.0
"""Seconds between two looks for idle sessions, at the most."""

_SHORTEST_CLEAN_UP: Final = 5.0
"""Seconds that the end of a lifespan has on a loop of its own, however short the time for draining is."""

_NOBODY: Final = Found(Standing.NONE)


@dataclass(slots=True)
class _Visit:
    """One HTTP request from its first byte to its log line."""

    scope: Scope
    receive: Receive
    send: Send
    head: Head
    cors: Headers
    started: float
    status: int | None = None
    body_read: bool = False
    owner: Owner | None = None
    caller: Caller = NOBODY
    place: Place | None = None
    """What it has taken of what is limited, where anything is."""
    message: Message | Batch | None = None
    session: str | None = None
    route: str | None = None
    page: str | None = None
    """The operator's page that was asked for, if it was one."""
    span: RequestSpan | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class HybridApp:
    """Serves one MCP server to every client, over ASGI.

    It runs inside its lifespan: a server that speaks the lifespan protocol (Hypercorn, uvicorn) enters it; a framework
    it is mounted in has to be told, `Starlette(lifespan=app.lifespan, routes=[Mount("/", app)])`.
    """

    def __init__(
        self,
        server: object,
        settings: Settings | None = None,
        *,
        token_verifier: TokenVerifier | None = None,
        authenticator: Authenticator | None = None,
        backplane: Backplane | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make an application that is not running yet.

        Args:
            server: An `MCPServer`, a low-level `Server` or a `fastmcp.FastMCP` object. It is not changed.
            settings: What an operator would set; the defaults, where not given. The environment is not read.
            token_verifier: Verifies bearer tokens, beside what the settings say and in place of the server's own.
            authenticator: Finds out whose a request is, in place of all that, by whatever credential it likes.
            backplane: What several processes share; this process's memory where not given.
            clock: The wall clock, in seconds.

        Raises:
            ConfigurationError: `server` is none of these, or the settings do not fit together.
        """
        self.settings = settings or Settings()
        self._server = as_lowlevel(server)
        self.runtime = choose(server, self.settings.runtime)
        """What runs the server's code, and why."""
        self._program = Program(self.runtime.name, is_set=self.runtime.is_set)
        self.authentication = (
            Authentication(CrossingAuthenticator(authenticator, self._program), words=type(authenticator).__name__)
            if authenticator is not None
            else authentication_for(server, self.settings, clock, token_verifier, self._program)
        )
        routes = [*self.authentication.routes, *custom_routes(server)]
        self.program_pages = ProgramPages(server, routes, self._program, own_paths(self.settings))
        """What the server has beside the endpoint."""
        inner = self.authentication.authenticator
        self._authenticator = ContainedAuthenticator(inner) if inner is not None else None
        self._keys = self.settings.sessions.decoded_keys()
        if not self._keys:
            self._keys = [decode_key(fresh_key())]
        self._backplane = backplane or make_backplane(self.settings, self._keys, clock)
        self._clock = clock
        self._policy = Policy(self.settings.mode, self.settings.unknown_session)
        self._cors = Cors(self.settings.cors.allowed_origins)
        security = self.settings.security
        self._hosts = HostPolicy(security.allowed_hosts, security.allowed_origins, self.settings.cors.allowed_origins)
        bounds = self.settings.limits.bounds()
        self._door = Door(bounds, now) if bounds != Bounds() else None
        self._patience: Patience | None = None
        self._metrics = make_metrics()
        self._observer = Observer(self._server, self._metrics, self.settings.path)
        self._pages = Pages(
            self.settings, self._metrics, self._hosts, self._admit, self._reasons, lambda: self._service
        )
        self._service: Service | None = None
        self._threads: ToolThreads | None = None
        self.draining = False
        """Whether the process is about to stop: what runs is finished, nothing new should be sent here."""
        self.failed = False
        """Whether the lifespan failed, at its start or its end. The log says why."""

    @property
    def authenticated(self) -> bool:
        """Whether requests need a credential."""
        return self._authenticator is not None

    @property
    def counts(self) -> Counts:
        """What happens in this application, for whoever serves it to add to."""
        return self._metrics

    @property
    def abandoned_calls(self) -> int:
        """How many calls have been answered while their functions run on. Only the end of the process stops those."""
        return self._threads.abandoned if self._threads is not None else 0

    @property
    def left_behind(self) -> bool:
        """Whether threads of the server's code run on. Only the end of the process stops those."""
        return self.abandoned_calls > 0 or self._program.left_behind

    @property
    def registry(self) -> Registry:
        """The sessions of this process.

        Raises:
            RuntimeError: The application is not running.
        """
        if self._service is None:
            raise RuntimeError("the application is not running: enter its lifespan first")
        return self._service.registry

    async def _admit(self, scope: Scope) -> Fault | None:
        """Let in who may use the endpoint."""
        caller = await self._authenticator.authenticate(scope) if self._authenticator is not None else NOBODY
        return caller if isinstance(caller, Fault) else None

    def _reasons(self) -> list[str]:
        """Return why no requests should be sent here now."""
        reasons = {
            NOT_RUNNING: self._service is None,
            DRAINING: self.draining,
            BACKPLANE: self._backplane.shared and not self._backplane.available,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def close_streams(self) -> None:
        """End the streams that do not end by themselves, in order, as the process is about to stop.

        Left open, they would be cut when the time for draining is over, and delay the stop until then. The clients of
        standalone GET streams come back later; those that listen (2026-07-28) are told by a result that it is over.
        """
        if self._service is not None:
            for session in self._service.registry.sessions():
                if session.close_stream is not None:
                    session.close_stream()
            self._program.call_soon(end_listening, self._server)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - it bounds what is let finish, not this
        """Finish: streams end, running requests have `timeout` seconds and are then answered with an error.

        Whoever runs the server calls this when it has stopped taking connections, and ends the lifespan afterwards.
        Requests on connections that are open already are still served. Returns when nothing runs any more, which
        a tool that ignores being cancelled can delay for as long as it likes.
        """
        self.draining = True
        self.close_streams()
        if self._service is not None:
            await self._service.drain(timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            with suppress(
                Exception
            ):  # whoever sends more before it is answered has broken the upgrade: no fault of ours
                await send({"type": "websocket.close", "code": 1000})

    # ---- the lifespan

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002 - what frameworks pass
        """Run the application: the server's own lifespan is entered once, for all requests.

        Raises:
            RuntimeError: It is running already.
        """
        if self._service is not None:
            raise RuntimeError("the application is running already: its lifespan is entered once")
        timers = Timers(
            Delay(self.settings.stream_after),
            Delay(sse.KEEP_ALIVE_INTERVAL),
            Delay(WATCH_AFTER),
            Delay(self.settings.request_timeout),
        )
        program = self._program
        async with (
            program.running(divided_limiter, _name_of),
            program.entered(partial(self._server.lifespan, self._server), self._clean_up_time) as state,
            anyio.create_task_group() as tasks,
        ):
            self._observer.start()
            backplane = timed(self._backplane, self._metrics)
            registry = self._make_registry(backplane)
            self._threads = ToolThreads(self.settings.limits.tool_threads, self._metrics, program.loop)
            kernel = Kernel(
                self._server,
                state,
                registry,
                backplane,
                timers,
                _spawner(tasks),
                policy=self.settings.progress,
                traced=self._observer.traced,
                threads=self._threads,
                program=program,
            )
            registry.program = program
            registry.make_outbound = kernel.make_outbound
            kernel.request_state = shared_request_state(self._server, self.settings.sessions.decoded_keys())
            service = Service(kernel)
            await tasks.start(backplane.run, service.words.on_signal)
            for delay in timers:
                tasks.start_soon(delay.run)
            tasks.start_soon(registry.clean_ups.run)
            tasks.start_soon(self._sweep, registry)
            self._patience = Patience(self.settings.limits.body_time, _spawner(tasks))
            tasks.start_soon(self._patience.run)
            self._service = service
            await tasks.start(drain_on_signals, self.drain, self.settings.server.drain_timeout)
            try:
                with shared_changes(self._server, backplane, program) as service.words.publish_here:
                    yield
            finally:
                self._service = self._patience = None
                await registry.close()
                self._observer.stop()
                tasks.cancel_scope.cancel()

    @property
    def _clean_up_time(self) -> float:
        """Seconds for the end of the server's lifespan."""
        return max(self.settings.server.drain_timeout, _SHORTEST_CLEAN_UP)

    def _make_registry(self, backplane: Backplane) -> Registry:
        sessions = self.settings.sessions
        if not sessions.keys and self.settings.mode is not Mode.STATELESS:
            log.warning("no sessions.keys configured: sessions end with this process")
        limits = SessionLimits(
            sessions.max_age,
            sessions.idle_timeout,
            sessions.max_live,
            sessions.max_live_per_owner,
            sessions.max_questions,
            sessions.max_questions_per_session,
        )
        return Registry(KeyRing(self._keys), backplane, limits, self._clock, self._metrics)

    async def _sweep(self, registry: Registry) -> None:
        """Let idle sessions hibernate, now and then. No session has a timer of its own."""
        period = min(self.settings.sessions.idle_timeout / 4, _LONGEST_SWEEP)
        while True:
            await anyio.sleep(period)
            for work in (registry.sweep, self._backplane.prune):  # neither keeps the other from being done
                try:
                    await work()
                except Exception:
                    log.exception("sweeping sessions failed; trying again later")

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        stage = "startup"
        await receive()
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                stage = "shutdown"
                await receive()
        except BaseException as exc:
            if must_pass(exc) is not None:
                raise
            self.failed = True
            log.exception("the server's lifespan failed", stage=stage)
            await send({"type": f"lifespan.{stage}.failed", "message": type(exc).__name__})
            if isinstance(exc, Exception):
                raise
            raise RuntimeError(f"the server's lifespan raised {type(exc).__name__}") from exc  # which ends no process
        await send({"type": "lifespan.shutdown.complete"})

    # ---- one request

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = read_head(scope["method"], scope["headers"])
        visit = _Visit(scope, receive, send, head, self._cors.headers(head.origin), time.perf_counter())
        visit.send = self._recording(visit, send)
        try:
            fault = await self._handle(visit)
            if fault is not None:
                await self._refuse(visit, fault)
        except ClientGoneError:
            visit.facts["client"] = "gone"
        except BodyTooSlowError:
            visit.facts["refused"] = Cause.BODY_TOO_SLOW.label
            self._metrics.refused(Cause.BODY_TOO_SLOW)
        except BaseException as error:  # noqa: BLE001 - the boundary between all programs and the server
            # Whatever part of a program it comes from (a verifier, a route of its own), it ends this request only.
            keep_or_raise(error, "request failed", method=method_of(visit.message))
            if visit.status is None:
                self._metrics.refused(Cause.INTERNAL)
                request_id = visit.message.id if isinstance(visit.message, Request) else None
                with suppress(ClientGoneError):
                    fault = Fault(Cause.INTERNAL, "Internal server error", request_id)
                    await write_fault(visit.send, fault, visit.cors)
        finally:
            if visit.place is not None:
                visit.place.leave()
            self._observer.finish(visit)
            visit.send = send  # who records knows the visit: a circle, which would wait for the garbage collector

    def _recording(self, visit: _Visit, send: Send) -> Send:
        async def recording_send(event: Event) -> None:
            if event["type"] == "http.response.start":
                visit.status = event["status"]
                if self.draining and visit.scope.get("http_version", "1.1").startswith("1"):
                    event["headers"] = [*event["headers"], (b"connection", b"close")]
            try:
                await send(event)
            except OSError:
                raise ClientGoneError from None

        return recording_send

    async def _handle(self, visit: _Visit) -> Fault | None:
        """Take a request through the gates and serve it. Returns its refusal, which is not yet written."""
        scope = visit.scope
        target = len(scope["path"]) + len(scope.get("query_string", b""))
        if (fault := check_size(scope["headers"], target, self.settings.limits.headers)) is not None:
            return fault
        if not self._is_endpoint(scope):
            return await self._serve_beside(visit)
        if (fault := self._hosts.check(visit.head)) is not None:
            return fault
        if visit.head.method == "OPTIONS":
            fault = await self._read_message(visit)
            if fault is None:
                await self._answer_options(visit)
            return fault
        return await self._serve_caller(visit)

    async def _serve_caller(self, visit: _Visit) -> Fault | None:
        """Find out whose the request is, and serve it as theirs."""
        scope = visit.scope
        caller = (
            await self._authenticator.authenticate(scope) if self._authenticator is not None else known_already(scope)
        )
        if isinstance(caller, Fault):
            return caller
        visit.caller, visit.owner = caller, caller.owner
        if caller.user is None:
            return await self._serve(visit, caller.owner)
        with acting_for(caller.user):
            return await self._serve(visit, caller.owner)

    async def _serve_beside(self, visit: _Visit) -> Fault | None:
        """Serve what is beside the endpoint: pages of the operator's, and what authentication has there."""
        if (fault := check_path(visit.scope["path"], visit.scope.get("raw_path") or b"")) is not None:
            return fault
        found = self._pages.find(visit.scope, _path_of(visit.scope))
        if found is not None:
            page, rest = found
            visit.route, visit.page = OPERATOR, page.name
            return await self._pages.serve(page, Asked(visit.scope, visit.head, visit.send, rest))
        serve = None
        if not self._pages.own_port(visit.scope):
            on_program = self.program_pages.has(visit.scope)
            serve = self._serve_program_page if on_program else self.authentication.beside(visit.scope)
        if serve is None:
            return Fault(Cause.NOT_FOUND, f"There is nothing here. The MCP endpoint is {self.settings.path}.")
        # It is for everybody, and for pages of every origin.
        if (fault := self._hosts.check(visit.head._replace(origin=None))) is not None:
            return fault
        return await serve(visit.scope, visit.receive, visit.send)

    async def _serve_program_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a page of the program's, which anybody may ask for; it sees who does, if the credential is good."""
        caller: Caller | Fault = NOBODY
        if self._authenticator is not None and any(name == b"authorization" for name, _ in scope["headers"]):
            caller = await self._authenticator.authenticate(scope)
        if isinstance(caller, Fault) or caller.user is None:
            await self.program_pages.serve(scope, receive, send)
        else:
            with acting_for(caller.user):
                await self.program_pages.serve(scope, receive, send)

    async def _serve(self, visit: _Visit, owner: Owner) -> Fault | None:
        fault = check_head(visit.head) or self._let_in(visit, owner) or await self._read_message(visit)
        return fault if fault is not None else await self._route(visit, owner)

    def _let_in(self, visit: _Visit, owner: Owner) -> Fault | None:
        """Have the door count the request, where anything is counted."""
        if self._door is None:
            return None
        entered = self._door.enter(visit.scope, visit.head, owner)
        if isinstance(entered, Fault):
            return entered
        visit.place = entered
        return None

    async def _read_message(self, visit: _Visit) -> Fault | None:
        if visit.head.method != "POST":  # a body means nothing, but left unread it would end the connection
            visit.body_read = await drain(visit.receive)
            return None if visit.body_read else Fault(Cause.BODY_TOO_LARGE, "Only a POST may have a body.")
        limits, patience = self.settings.limits, self._patience
        if (fault := check_post(visit.head, limits.body)) is not None:
            return fault
        if patience is None:  # not running: it will be refused, once its id is known
            body = await read_body(visit.receive, limits.body)
        else:
            weigh = visit.place.weigh if visit.place is not None else None
            body = await patience.read_body(visit.scope, visit.receive, visit.send, limits.body, visit.cors, weigh)
        if isinstance(body, Fault):
            return body
        visit.body_read = True
        if visit.place is not None and (fault := visit.place.read(body)) is not None:
            return fault
        message = parse_body(body, limits.depth)
        if isinstance(message, Fault):
            return message
        visit.message = message
        return None

    async def _route(self, visit: _Visit, owner: Owner) -> Fault | None:
        head, message, service = visit.head, visit.message, self._service
        if service is None:
            log.error("the application is not running: its lifespan was not entered (see HybridApp)")
            request_id = message.id if isinstance(message, Request) else None
            retry = ((b"retry-after", b"5"),)
            return Fault(Cause.NOT_RUNNING, "The server is not running.", request_id, headers=retry)
        era = era_of(head, message)
        if isinstance(era, Fault):
            return era
        found = _NOBODY
        if head.session_id is not None and needs_lookup(self._policy, era, head, message):
            found = await service.registry.find(head.session_id, owner)
        lookup = Lookup(found.standing, found.record.version if found.record is not None else None)
        route = decide(self._policy, era, head, message, lookup)
        if isinstance(route, Fault):
            return route
        if visit.place is not None and (fault := visit.place.start(head, route, message, found.hash)) is not None:
            return fault
        visit.route, visit.session = route.name.value, found.hash[:12] or None
        exchange = Exchange(
            visit.scope, visit.receive, visit.send, head, owner, route, message, found, visit.cors, facts=visit.facts
        )
        if self._authenticator is not None:
            exchange.lapsed = partial(lapsed, self._authenticator, visit.scope, visit.caller, self._clock)
        self._observer.begin(visit)
        try:
            return await service.serve(exchange)
        finally:
            self._observer.end(visit)

    async def _answer_options(self, visit: _Visit) -> None:
        headers = dict(visit.scope["headers"])
        allow = (b"allow", ", ".join(METHODS).encode())
        granted = self._cors.preflight(visit.head.origin, headers.get(b"access-control-request-headers"))
        await write_empty(visit.send, 204, (allow, *granted))

    async def _refuse(self, visit: _Visit, fault: Fault) -> None:
        """Write a refusal, once the client has said all it wants to say: one that is still sending does not listen."""
        visit.facts["refused"] = fault.cause.label
        self._metrics.refused(fault.cause)
        if not visit.body_read:
            complete = await drain(visit.receive)
            if not complete:
                fault = replace(fault, headers=(*fault.headers, *hang_up(visit.scope)))
        await write_fault(visit.send, fault, visit.cors)

    def _is_endpoint(self, scope: Scope) -> bool:
        """Whether a path is the endpoint's. Where the app is mounted, so is the place it is mounted at."""
        path = _path_of(scope)
        if self._pages.own_port(scope):
            return False
        if scope.get("root_path") and path in ("", "/"):
            return True
        return path in (self.settings.path, f"{self.settings.path.rstrip('/')}/")


def own_paths(settings: Settings) -> list[str]:
    """Return the paths that no page of a program may have."""
    return [settings.path, *PATHS]


def make_backplane(settings: Settings, keys: Sequence[bytes], clock: Callable[[], float]) -> Backplane:
    """Make the backplane that the settings name; `keys` are the session keys.

    Raises:
        ConfigurationError: It needs a library that is not installed.
    """
    limits, most_ended = settings.sessions.log_limits(settings.request_timeout), settings.sessions.max_ended
    if settings.backplane == "memory":
        return MemoryBackplane(limits, clock, most_ended=most_ended)
    try:
        from mcp_hybrid.backplane.redis import RedisBackplane  # noqa: PLC0415 - an extra, which most do without
    except ImportError:
        raise ConfigurationError("backplane: Redis needs the extra `redis`: pip install 'mcp-hybrid[redis]'") from None
    return RedisBackplane(settings.backplane, keys=keys, limits=limits, most_ended=most_ended, clock=clock)


def _spawner(tasks: TaskGroup) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Return what starts tasks that outlive their request. One that fails is logged, and takes nothing along."""

    async def guarded(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        current.set(None)  # of the request that started it: this is the server's work, not the program's
        await contained(work, "a background task failed")

    def spawn(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        tasks.start_soon(guarded, work)

    return spawn


def _name_of(context: Context) -> str:
    """Return what is called in a context, for the log."""
    exchange = context.get(current)
    return exchange.name if exchange is not None else ""


def _path_of(scope: Scope) -> str:
    """Return a request's path below the place where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
