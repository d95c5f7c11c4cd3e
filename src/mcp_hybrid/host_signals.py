"""Notes the signals that stop an asyncio host, which tells an embedded application too late.

uvicorn, Granian and Hypercorn's asyncio worker end an application's lifespan when their connections have ended. A GET
stream has no end, so they would wait for it until their grace is over, and cut every call then. So SIGTERM and SIGINT
are noted here as well, before the handler of the host that they are for. Nothing is changed before the lifespan starts,
and all is as it was after it has ended.

Where no signal can be noted, the application drains as its lifespan ends: outside the main thread, and on Trio, where
`server` handles the signals itself.
"""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Final

from anyio.abc import TaskStatus

from mcp_hybrid.containment import on_trio

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_PART: Final = 0.75
"""Part of the host's grace in which requests may finish. The rest is for their last events to be written."""


async def drain_on_signals(
    drain: Callable[[float], Awaitable[object]],
    timeout: float,  # noqa: ASYNC109 - it bounds what is let finish, not this
    *,
    task_status: TaskStatus[None],
) -> None:
    """Await `drain` when a signal stops the process. Runs as a task of the lifespan; returns where none can be noted.

    `drain` is given the seconds in which requests may finish: `timeout`, or less if the host is known to cut them
    earlier.
    """
    if on_trio() or threading.current_thread() is not threading.main_thread():
        task_status.started()
        return
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    grace = math.inf

    def note(handler: object) -> None:
        nonlocal grace
        grace = _grace_of(handler)
        loop.call_soon_threadsafe(told.set)

    with ExitStack() as stack:
        for number in _SIGNALS:
            stack.enter_context(_noted(number, note))
        task_status.started()
        await told.wait()
        await drain(min(timeout, grace * _PART))


@contextmanager
def _noted(number: signal.Signals, note: Callable[[Any], object]) -> Iterator[None]:
    """Have `note` called with the handler of a signal that is there, before that handler is."""
    before = signal.getsignal(number)
    if not callable(before):  # the host does not handle this signal
        yield
        return
    active = True

    def handle(signum: int, frame: FrameType | None) -> object:
        if active:
            note(before)
        return before(signum, frame)

    signal.signal(number, handle)
    try:
        yield
    finally:
        active = False  # another application of the process may have put its handler over this one
        if signal.getsignal(number) is handle:
            signal.signal(number, before)


def _grace_of(handler: object) -> float:
    """Return for how many seconds the host lets requests finish, as far as it is known: uvicorn's handler tells."""
    config = getattr(getattr(handler, "__self__", None), "config", None)
    grace = getattr(config, "timeout_graceful_shutdown", None)
    return float(grace) if isinstance(grace, int | float) else math.inf
