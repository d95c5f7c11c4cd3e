"""A plugin for pytest: a test that waits for what never comes fails, instead of holding up the run.

A jumping clock does not tell by itself: heartbeats and sweeps go on for ever, so there is always something to jump to.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
import trio

JUMPED: Final = 3 * 86_400.0
"""Seconds that a test may take by the jumping clock: days, as sessions live for days."""
REAL: Final = 900.0
"""Seconds that any other test may take."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound every test that is a coroutine function."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _bounded(item.obj, JUMPED if "autojump_clock" in item.fixturenames else REAL)


def _bounded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(seconds):
            await test(*args, **kwargs)

    return run
