"""One process that serves: the application on Hypercorn and Trio, from its start until it is told to stop.

Told to stop, it takes no new connections, the application drains (`HybridApp.drain`), what is left on connections is
cut, and the application's lifespan ends. `stopping` holds the times, and ends the process if any of it does not.
"""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_on_trio
from hypercorn.typing import ASGIFramework
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError
from starlette.types import Receive, Scope, Send

from mcp_hybrid.app import HybridApp
from mcp_hybrid.authentication import require
from mcp_hybrid.counts import Count
from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.server.accepting import BACKLOG
from mcp_hybrid.server.allocator import give_back_until
from mcp_hybrid.server.failures import end_without_memory, is_without_memory
from mcp_hybrid.server.leaving import leave_at_once
from mcp_hybrid.server.stopping import FORCED, LAST_WORDS, Stopping
from mcp_hybrid.server.worker import harden, set_limits
from mcp_hybrid.settings import Settings
from mcp_hybrid.targets import load_target
from mcp_hybrid.telemetry.logs import on_dropped_line, take_over_consoles

KEEP_ALIVE_TIMEOUT: Final = 75.0
"""Seconds an idle connection is kept: longer than the usual 60 s of a load balancer, which must close first."""
SETTLING: Final = 0.05
"""Seconds before we say that we serve: a lifespan that fails lets Hypercorn report itself started first."""
YOUNG: Final = 10_000
"""New objects after which the collector looks at the young ones; Python's own number is 700."""

log = structlog.get_logger()


def application(settings: Settings) -> HybridApp:
    """Return the ASGI app that serves the target in `settings`; raises ConfigurationError if it cannot be served."""
    app = HybridApp(load_target(settings.target), settings)
    take_over_consoles()
    set_limits(settings.limits, app.counts)
    on_dropped_line(lambda: app.counts.add(Count.LOG_LINES_DROPPED))
    return app


def guarded_application(settings: Settings) -> HybridApp:
    """Return the same, for the address in `settings`: others may reach it only if authentication is configured.

    Raises:
        ConfigurationError: It cannot be served, or would be served to everybody.
    """
    app = application(settings)
    require(settings, app.authenticated)
    return app


async def run(
    app: HybridApp,
    listeners: Sequence[socket.socket],
    stopping: Stopping,
    *,
    linger: bool = False,
    started: Callable[[], Awaitable[None]],
) -> int:
    """Serve on `listeners`, which are taken over, until `stopping`; the exit code to leave with is returned.

    The first is the endpoint's. What comes in by the others is served until the very end, so that probes are told why
    nothing should be sent here any more. Awaits `started` once requests are served. With `linger`, idle connections
    stay for as long as `stopping` lets them.

    Does not return where functions of abandoned calls, or other threads of the program, still run: the process ends
    here then, with that exit code.

    Raises:
        ConfigurationError: The application's lifespan failed at its start.
    """
    settings = app.settings
    harden(lambda _: app.drain(settings.server.drain_timeout), stopping.linger if linger else None)
    endpoint, *others = listeners
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_endpoint, app, _config([endpoint], settings), stopping)
            if others:
                nursery.start_soon(_serve_others, app, _config(others, settings), stopping)
            nursery.start_soon(give_back_until, stopping.over)
            await trio.sleep(SETTLING)
            take_over_consoles()  # of loggers that the program has set up in its lifespan
            settle_memory()
            await started()
    except MemoryError:
        end_without_memory()
    except BaseExceptionGroup as group:
        if is_without_memory(group):
            end_without_memory()
        failed = _first(group, (LifespanFailureError, LifespanTimeoutError))
        if failed is None:
            raise
        raise ConfigurationError(f"the server could not start: {' '.join(str(failed).split())}") from None
    code = 0
    if app.failed:  # Hypercorn 0.18 loses what the end of a lifespan raises
        log.error("the server did not end in order")
        code = FORCED
    else:
        log.info("stopped", **({"abandoned_calls": app.abandoned_calls} if app.abandoned_calls else {}))
    if app.left_behind:
        leave_at_once(code)
    return code


def runtime_of(app: HybridApp) -> tuple[str, str]:
    """Return what runs the program, and why, in words."""
    return app.runtime.name.value, app.runtime.reason


def settle_memory() -> None:
    """Have the garbage collector pass over what is there now: modules, models and schemas, which stay for good.

    A full collection walks everything that it knows of, 50 ms and more for the SDK's models alone, in which nobody is
    served. What requests make is nearly all let go of by counting references; the young are looked at less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


async def _serve_endpoint(
    app: HybridApp, config: Config, stopping: Stopping, *, task_status: trio.TaskStatus[list[str]]
) -> None:
    config.certfile, config.keyfile = app.settings.server.certfile, app.settings.server.keyfile
    config.graceful_timeout = app.settings.server.drain_timeout + LAST_WORDS
    # Hypercorn types each scope and event as a TypedDict, the app as mappings.
    served = cast("ASGIFramework", app)
    await serve_on_trio(served, config, shutdown_trigger=stopping.told.wait, mode="asgi", task_status=task_status)
    stopping.over.set()


async def _serve_others(app: HybridApp, config: Config, stopping: Stopping) -> None:
    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for stage in ("startup", "shutdown"):  # it has one already
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})

    config.graceful_timeout = LAST_WORDS
    await serve_on_trio(cast("ASGIFramework", served), config, shutdown_trigger=stopping.over.wait, mode="asgi")


def _config(listeners: Sequence[socket.socket], settings: Settings) -> Config:
    config = Config()
    # What HTTP/1.1 reads of a head before it gives up, with 431 and no body; and what HTTP/2 clients are told.
    config.h11_max_incomplete_size = config.h2_max_header_list_size = settings.limits.headers
    # Handed over, not shared: a second descriptor would go on taking connections while Hypercorn drains.
    config.bind = [f"fd://{listener.detach()}" for listener in listeners]
    config.backlog = BACKLOG
    config.keep_alive_timeout = KEEP_ALIVE_TIMEOUT
    config.read_timeout = None  # it would cut streams that are alive
    config.accesslog = None  # ours has the route and the method; theirs copies the environment per request
    config.errorlog = logging.getLogger("hypercorn.error")  # a logger, not "-": it then keeps the handlers it has
    return config


def _first(error: BaseException, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _first(each, kinds))), None)
    return error if isinstance(error, kinds) else None
