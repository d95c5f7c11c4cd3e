"""Probes: whether the process answers, and whether it can serve. Both are told apart on purpose.

A process that does not answer has to be restarted. One that cannot serve must be sent nothing for a while, and a
restart would only make it worse.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from mcp_hybrid.errors import Fault
from mcp_hybrid.operator.page import Asked, write_json

NOT_RUNNING = "not_running"
DRAINING = "draining"
BACKPLANE = "backplane"

Reasons = Callable[[], list[str]]
"""Says why the server cannot serve now; nothing, where it can."""


class Health:
    """`/healthz` and `/readyz`."""

    def __init__(self, reasons: Reasons) -> None:
        self._reasons = reasons

    async def alive(self, asked: Asked) -> Fault | None:
        """Say that the process answers, whatever it can do beyond that."""
        await write_json(asked, 200, {"status": "ok"})
        return None

    async def ready(self, asked: Asked) -> Fault | None:
        """Say whether requests should be sent here, and if not, why.

        `?exclude=backplane` leaves a reason out: with the backplane away a server can still do much, and what all of
        them depend on takes all of them out of service at once.
        """
        excluded = parse_qs(asked.scope.get("query_string", b"").decode("latin-1")).get("exclude", [])
        reasons = [reason for reason in self._reasons() if reason not in excluded]
        await write_json(asked, 503 if reasons else 200, {"ready": not reasons, "reasons": reasons})
        return None
