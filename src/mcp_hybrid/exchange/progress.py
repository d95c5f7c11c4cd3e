"""The gate that a request's progress passes (requirements G-P1 to G-P3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, SupportsFloat

from mcp_types import ProgressToken
from pydantic_core import to_json

METHOD: Final = "notifications/progress"

_WHOLE_BITS: Final = 64


class ProgressGate:
    """Lets through what may be sent: strictly increasing values for the request's own token, until it is closed."""

    __slots__ = ("_last", "_open", "_token")

    def __init__(self, token: ProgressToken | None) -> None:
        """Open a gate for `token`; None is a gate that lets nothing through."""
        self._token = token
        self._open = token is not None
        self._last = -math.inf

    def admit(self, progress: object, total: object = None, message: object = None) -> bytes | None:
        """Return the notification to send, or None where this value must not be sent.

        A progress that is no finite number is not sent; such a total, and a message that is no text, are left out.
        """
        if not self._open:
            return None
        value = _number(progress)
        if value is None or value <= self._last:
            return None
        self._last = value
        params: dict[str, Any] = {"progressToken": self._token, "progress": value}
        if (whole := _number(total)) is not None:
            params["total"] = whole
        if isinstance(message, str):
            params["message"] = message
        return to_json({"jsonrpc": "2.0", "method": METHOD, "params": params})

    def admit_raw(self, params: Mapping[str, Any] | None) -> bytes | None:
        """Return the notification to send for one that an application wrote itself."""
        params = params or {}
        token = params.get("progressToken")
        if token != self._token or type(token) is not type(self._token):
            return None
        return self.admit(params.get("progress"), params.get("total"), params.get("message"))

    def close(self) -> None:
        """Let nothing more through: the request has its result."""
        self._open = False


def _number(value: object) -> float | None:
    """Return what can be sent as a number; None for what is none, or not finite.

    An int stays one. One of more than 64 bits counts as not finite: no client can read it as what it is.
    """
    if type(value) is int:
        return value if value.bit_length() <= _WHOLE_BITS else None
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)  # also of bool, Decimal, NumPy's numbers
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
