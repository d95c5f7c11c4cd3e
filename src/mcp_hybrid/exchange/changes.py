"""Server events (2026-07-28, `subscriptions/listen`) for listeners on every worker.

An MCP server publishes its changes on a bus in its own process. With a shared backplane, what is published on one
worker's bus is published on all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import structlog
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from pydantic_core import from_json, to_json

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError, Signal, SignalKind
from mcp_hybrid.exchange.modern import LISTEN
from mcp_hybrid.runtime.program import Program

log = structlog.get_logger("mcp_hybrid")

Publish = Callable[[ServerEvent], Awaitable[None]]

_EVENTS: Final[dict[str, type[Any]]] = {
    event.__name__: event for event in (ToolsListChanged, PromptsListChanged, ResourcesListChanged, ResourceUpdated)
}


@contextmanager
def shared_changes(server: Server[Any], backplane: Backplane, program: Program) -> Iterator[Publish | None]:
    """Publish on all workers what the server publishes on this one, for the duration of the block.

    The bus is the program's, and is used where that runs.

    Yields what publishes on this worker only, for events that come from others; None where the server has no bus of
    the usual kind: then whoever gave it another one has made it reach everybody, or nobody listens.
    """
    bus = _bus(server)
    if bus is None or not backplane.shared:
        yield None
        return
    here, loop = bus.publish, program.loop

    async def everywhere(event: ServerEvent) -> None:
        await here(event)
        body = to_json([type(event).__name__, asdict(event)])
        try:
            signal = Signal(SignalKind.CHANGE, "", body)
            if loop is None:
                await backplane.broadcast(signal)
            else:
                await loop.on_host(partial(backplane.broadcast, signal))
        except BackplaneUnavailableError:
            log.warning(
                "a change was published on this worker only: the backplane is away", event_type=type(event).__name__
            )

    bus.publish = everywhere  # type: ignore[method-assign]  # the bus is the application's; it is given back below
    try:
        yield here if loop is None else partial(_publish, here, program)
    finally:
        del bus.publish


async def _publish(publish: Publish, program: Program, event: ServerEvent) -> None:
    await program.run(partial(publish, event), "publish")


def decode_event(body: bytes) -> ServerEvent:
    """Return the event in a signal's body."""
    name, fields = from_json(body)
    event: ServerEvent = _EVENTS[name](**fields)
    return event


def end_listening(server: Server[Any]) -> None:
    """Have every `subscriptions/listen` that is open here end with its result (requirement U7)."""
    handler = _listen_handler(server)
    if handler is not None:
        handler.close()


def _bus(server: Server[Any]) -> InMemorySubscriptionBus | None:
    handler = _listen_handler(server)
    bus = handler._bus if handler is not None else None  # noqa: SLF001 - pinned by a contract test
    return bus if isinstance(bus, InMemorySubscriptionBus) else None


def _listen_handler(server: Server[Any]) -> ListenHandler | None:
    entry = server.get_request_handler(LISTEN)
    handler = entry.handler if entry is not None else None
    return handler if isinstance(handler, ListenHandler) else None
