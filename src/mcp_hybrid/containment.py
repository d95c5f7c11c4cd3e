"""What may leave the code of a served program, and what stays an error of that one piece of work.

A program may raise anything: `SystemExit` from argparse, `asyncio.CancelledError` on a loop that is not asyncio's, a
`KeyboardInterrupt` of its own. None of these is a reason to stop a server. Only three things pass: cancellation that
was asked for outside, a `KeyboardInterrupt` that a signal made, and the closing of the coroutine itself.
"""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final

import anyio
import structlog
import trio

log = structlog.get_logger("mcp_hybrid")

_SIGNAL_HANDLERS: Final = frozenset({"trio._core._ki", "asyncio.runners"})
"""Modules whose handlers of SIGINT raise KeyboardInterrupt in whatever runs at that moment."""


def must_pass(error: BaseException) -> BaseException | None:
    """Return what of an exception has to go on to the caller; None if all of it belongs to the program.

    Call it in the task that caught the exception, outside of any cancel scope of your own around the program.
    """
    if isinstance(error, Exception):  # a group that holds any of the three is no Exception
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(lambda each: not isinstance(each, BaseExceptionGroup) and _passes(each))
    return error if _passes(error) else None


async def contained(work: Callable[[], Awaitable[object]], event: str, **facts: object) -> None:
    """Run a piece of a program whose result nobody waits for. What it raises is logged as `event`, with a traceback."""
    try:
        await work()
    except BaseException as error:  # noqa: BLE001 - the boundary between a program and the server
        keep_or_raise(error, event, **facts)


def keep_or_raise(error: BaseException, event: str, **facts: object) -> None:
    """Log what belongs to the program, and raise what has to go on to the caller."""
    passing = must_pass(error)
    if passing is None:
        log.error(event, exc_info=error, **facts)
    elif passing is error:
        raise error
    else:
        log.error(event, exc_info=error, **facts)
        raise passing


def on_trio() -> bool:
    """Whether the caller is a task of Trio's."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def _passes(error: BaseException) -> bool:
    if isinstance(error, trio.Cancelled):
        return on_trio() and trio.current_effective_deadline() == -math.inf
    if isinstance(error, asyncio.CancelledError):
        return not on_trio() and _is_cancelled_on_asyncio()
    if isinstance(error, KeyboardInterrupt):
        return _is_of_a_signal(error)
    # One that closes this coroutine comes when its event loop has ended.
    return isinstance(error, GeneratorExit) and not _has_loop()


def _has_loop() -> bool:
    if on_trio():
        return True
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _is_cancelled_on_asyncio() -> bool:
    task = asyncio.current_task() if _has_loop() else None
    if task is None:
        return True
    return task.cancelling() > 0 or anyio.current_effective_deadline() == -math.inf


def _is_of_a_signal(error: BaseException) -> bool:
    """Whether a signal made a KeyboardInterrupt.

    It did if a handler of the event loop raised it. Python's own handler raises it anywhere; where that one is not in
    place (`mcp-hybrid serve`, uvicorn and Hypercorn put theirs there), nothing but a program does.
    """
    innermost = _innermost(error.__traceback__)
    if innermost is not None and innermost.tb_frame.f_globals.get("__name__") in _SIGNAL_HANDLERS:
        return True
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def _innermost(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback
