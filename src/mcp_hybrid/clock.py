"""The event loop's clock, by which everything goes that happens within one process."""

from __future__ import annotations

import anyio
import trio


def now() -> float:
    """Return the event loop's time in seconds; it never goes back.

    Asked several times for each request. AnyIO finds out each time which loop runs, which takes five times as long.
    """
    try:
        return trio.current_time()
    except RuntimeError:
        return anyio.current_time()
