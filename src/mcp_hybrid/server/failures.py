"""What becomes of an exception that ends a connection: whose fault it is, what it leaves behind, and whether to go on.

What a client sends may be wrong, and it may go at any moment: that is one line in the log, now and then. All else is an
error of ours, whoever caused it, and is logged with its traceback.

A process that has no memory left is worth nothing: whatever it tries next fails in the same way, half done. It ends,
and whoever watches it (the master, a service manager) starts another.
"""

from __future__ import annotations

import os
from typing import Final, NoReturn

import h2.exceptions
import h11
import structlog
import trio

from mcp_hybrid.telemetry.logs import flush_logs

OUT_OF_MEMORY: Final = 3
"""The exit code of a process that could not allocate memory."""

_TOLD_EVERY: Final = 60.0
"""Seconds between two log lines about connections that were dropped for what their client did."""
_EXPLAINED_EVERY: Final = 1.0
"""Seconds between two tracebacks: who has found an error of ours may cause it as often as it likes."""
_CLIENTS: Final = (OSError, h11.ProtocolError, h2.exceptions.ProtocolError, trio.BrokenResourceError)
"""What a client can cause without any fault of ours; and its going, in whatever form that is noticed."""

log = structlog.get_logger("mcp_hybrid")

_reserve: list[bytearray] = [bytearray(2**20)]
"""Given back when there is no more memory, for the last line of the log."""


class Failures:
    """The connections of one process that ended by an exception."""

    def __init__(self) -> None:
        self._told = self._explained = float("-inf")
        self._untold = 0
        self._unexplained = 0

    def note(self, error: BaseException) -> None:
        """Log why a connection was dropped, and let go of what the exception holds. Ends the process without memory."""
        if is_without_memory(error):
            end_without_memory()
        each = leaves(error)
        names = ", ".join(sorted({type(one).__name__ for one in each}))  # texts may quote what the client sent
        if all(isinstance(one, _CLIENTS) for one in each):
            self._tell(names)
        else:
            self._explain(error, names)
        release(error)

    def _tell(self, names: str) -> None:
        self._untold += 1
        if trio.current_time() - self._told >= _TOLD_EVERY:
            self._told = trio.current_time()
            log.warning(
                "a connection was dropped: what came on it could not be handled", why=names, connections=self._untold
            )
            self._untold = 0

    def _explain(self, error: BaseException, names: str) -> None:
        self._unexplained += 1
        if trio.current_time() - self._explained >= _EXPLAINED_EVERY:
            self._explained = trio.current_time()
            log.error(
                "a connection was dropped by an internal error", why=names, errors=self._unexplained, exc_info=error
            )
            self._unexplained = 0


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group, however deep; one that is none is its own."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


def release(error: BaseException) -> None:
    """Let go of the frames that an exception has passed, with all that is in them: bodies, above all.

    Frames hold the exceptions that were caught in them, and these their frames: a circle, which would wait for the
    garbage collector.
    """
    found: list[BaseException | None] = [error]
    seen: set[int] = set()
    while found:
        each = found.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        found += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            found += each.exceptions


def is_without_memory(error: BaseException) -> bool:
    """Whether an exception, or one in its group, says that there is no more memory."""
    return any(isinstance(one, MemoryError) for one in leaves(error))


def end_without_memory() -> NoReturn:
    """End this process at once. Nothing is cleaned up, as that would need memory."""
    _reserve.clear()
    try:
        log.critical("out of memory: this process ends, and has to be replaced")
        flush_logs()
    finally:
        os._exit(OUT_OF_MEMORY)
