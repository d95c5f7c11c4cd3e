"""When the credential behind a standing stream stops being good.

A request is authenticated when it comes, and most are over in a moment. A stream that stays open must not outlive the
credential that opened it: it ends when the token expires, or within a minute of a key being revoked, and the client
comes back with a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from starlette.types import Scope

from mcp_hybrid.errors import Cause
from mcp_hybrid.security.owner import Authenticator, Caller

REVIEW: Final = 60.0
"""Seconds between two looks at the credential of an open stream."""

_OVER: Final = frozenset({Cause.UNAUTHORIZED, Cause.INSUFFICIENT_SCOPE})
"""Refusals that end a stream. That a credential cannot be verified right now does not."""


async def lapsed(authenticator: Authenticator, scope: Scope, caller: Caller, clock: Callable[[], float]) -> None:
    """Return when the credential that `scope` carries is no longer good. `clock` is the wall clock, in seconds."""
    while True:
        left = caller.expires_at - clock() if caller.expires_at is not None else REVIEW
        if left <= 0:
            return
        await anyio.sleep(min(left, REVIEW))
        found = await authenticator.authenticate(scope)
        if isinstance(found, Caller):
            caller = found
        elif found.cause in _OVER:
            return
