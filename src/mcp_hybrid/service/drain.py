"""The end of service: what runs is let finish, then stopped; streams that belong to other workers' calls are ended."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import anyio

from mcp_hybrid.service.kernel import Kernel
from mcp_hybrid.sessions.live import Interruption

LAST_EVENTS: Final = 1.0
"""Seconds for a resumed stream to say the end of a call that has just ended here."""

_LOOK: Final = 0.02
"""Seconds between two looks at what still runs. Looking costs nothing while nobody drains."""


async def drain(kernel: Kernel, timeout: float) -> None:  # noqa: ASYNC109 - it bounds what is let finish, not this
    """Let requests finish for `timeout` seconds, then answer them with an error. Returns when nothing runs any more."""
    with anyio.move_on_after(timeout):
        await _done(kernel.running)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_following, kernel)
        while kernel.running:  # those, too, that come in meanwhile on connections that were open
            for context in list(kernel.running):
                context.interrupt(Interruption.SERVER_STOPPING)
            await anyio.sleep(_LOOK)


async def _end_following(kernel: Kernel) -> None:
    """End the streams that are read from their logs: their clients go on elsewhere, by event id."""
    with anyio.move_on_after(LAST_EVENTS):
        await _done(kernel.following)
    for scope in list(kernel.following):
        scope.cancel()


async def _done(what: Collection[object]) -> None:
    while what:  # noqa: ASYNC110 - an event would have to be set by every request
        await anyio.sleep(_LOOK)
