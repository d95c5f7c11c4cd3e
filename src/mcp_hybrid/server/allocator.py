"""Gives memory that the process has freed back to the system, where the C library keeps it.

glibc hands a large block back when it is freed, but raises the size from which on it does so to that of the largest
block that was ever freed, up to 32 MiB. From then on results and bodies of some megabytes come from heaps, which shrink
only from their ends: after some hundred results of 5 MB a process held 110 MiB that nothing used. To pin that size
(`M_MMAP_THRESHOLD`) would cost such a call three times its CPU time, as the system clears each page anew. So the heaps
are trimmed now and then, if the process has grown.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from mcp_hybrid.containment import contained

GROWN: Final = 32 * 1024 * 1024
"""Bytes by which the process must have grown over its smallest size before its heaps are trimmed."""
WORTHWHILE: Final = 16 * 1024 * 1024
"""Bytes that a trim must give back. After one that gave back less, the memory is taken to be in use for a while."""
SHORTEST: Final = 15.0
"""Seconds between two looks."""
LONGEST: Final = 120.0
"""The same after trims that were not worth it: one takes some 40 ms, in which who allocates has to wait."""

_SIZE: Final = Path("/proc/self/statm")

log = structlog.get_logger("mcp_hybrid")

Trim = Callable[[], None]


def find_trim() -> Trim | None:
    """Return what trims the heaps of this process; None where nothing can, or its size cannot be read."""
    if not _SIZE.exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl keeps less, and has none
    return None if trim is None else lambda: trim(0)


def resident() -> int:
    """Return the resident memory of this process, in bytes. Linux only."""
    return int(_SIZE.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def give_back_until(over: trio.Event) -> None:
    """Give freed memory back now and then, until that event. A look costs some microseconds; a trim is for a thread."""
    trim = find_trim()
    if trim is None:
        return
    async with trio.open_nursery() as nursery:
        in_a_thread = partial(trio.to_thread.run_sync, trim, abandon_on_cancel=True)
        trimming = partial(keep_trimming, in_a_thread, resident)
        nursery.start_soon(contained, trimming, "giving memory back failed; it is not tried again")
        await over.wait()
        nursery.cancel_scope.cancel()


async def keep_trimming(trim: Callable[[], Awaitable[None]], size: Callable[[], int]) -> None:
    """Trim whenever the process has grown, and less often while that gives nothing back; runs until cancelled."""
    smallest, wait = size(), SHORTEST
    while True:
        await trio.sleep(wait)
        before = size()
        smallest = min(smallest, before)
        if before < smallest + GROWN:
            wait = SHORTEST
            continue
        await trim()
        given = before - size()
        log.debug("heaps trimmed", bytes=given)
        smallest = min(smallest, before - given)
        wait = SHORTEST if given >= WORTHWHILE else min(2 * wait, LONGEST)
