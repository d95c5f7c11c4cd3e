"""What to do about an exception that says that a program runs on the wrong event loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcp_hybrid.containment import on_trio

HINT: Final = 'this program needs asyncio: set runtime = "asyncio" (--runtime asyncio)'

AT_IMPORT: Final = "no event loop runs while a program is imported: do this in the server's lifespan"

_NO_LOOP: Final = "no running event loop"
_SIGNS: Final = (_NO_LOOP, "trio.run received unrecognized yield message", "trio got unexpected")
"""How the texts begin of what asyncio and Trio raise then (pinned by tests/test_runtime_served.py)."""

_LINKS: Final = 20
"""Exceptions of a chain that are looked at."""


def hint_for(error: BaseException) -> str | None:
    """Return what to do about an exception that is logged on Trio; None where the event loop is not the reason."""
    return HINT if on_trio() and _has_sign(error, _SIGNS) else None


def hint_at_import(error: BaseException) -> str | None:
    """Return what to do about an exception that was raised when a program was imported."""
    return AT_IMPORT if _has_sign(error, (_NO_LOOP,)) else None


def _has_sign(error: BaseException, signs: tuple[str, ...]) -> bool:
    return any(isinstance(each, RuntimeError | TypeError) and str(each).startswith(signs) for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting: list[BaseException] = [error]
    for _ in range(_LINKS):
        if not waiting:
            return
        each = waiting.pop(0)
        yield each
        waiting += [link for link in (each.__cause__, each.__context__) if link is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
