"""The gate that a request's progress passes (requirements G-P1 to G-P3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mcp_types import ProgressToken
from pydantic_core import to_json

METHOD: Final = "notifications/progress"


class ProgressGate:
    """Lets through what may be sent: strictly increasing values for the request's own token, until it is closed."""

    __slots__ = ("_last", "_open", "_token")

    def __init__(self, token: ProgressToken | None) -> None:
        """Open a gate for `token`; None is a gate that lets nothing through."""
        self._token = token
        self._open = token is not None
        self._last = -math.inf

    def admit(self, progress: float, total: float | None = None, message: str | None = None) -> bytes | None:
        """Return the notification to send, or None where this value must not be sent."""
        if not self._open or not math.isfinite(progress) or progress <= self._last:
            return None
        self._last = progress
        params: dict[str, Any] = {"progressToken": self._token, "progress": progress}
        if total is not None and math.isfinite(total):
            params["total"] = total
        if message is not None:
            params["message"] = message
        return to_json({"jsonrpc": "2.0", "method": METHOD, "params": params})

    def admit_raw(self, params: Mapping[str, Any] | None) -> bytes | None:
        """Return the notification to send for one that an application wrote itself."""
        params = params or {}
        progress, token = params.get("progress"), params.get("progressToken")
        if token != self._token or type(token) is not type(self._token) or not isinstance(progress, int | float):
            return None
        return self.admit(progress, params.get("total"), params.get("message"))

    def close(self) -> None:
        """Let nothing more through: the request has its result."""
        self._open = False
