"""When the credential behind a standing stream stops being good.

A request is authenticated when it comes, and most are over in a moment. A stream that stays open must not outlive the
credential that opened it: it ends when the token expires, or within a minute of a key being revoked, and the client
comes back with a fresh one.

The review fails closed. A verifier that raises or hangs is asked again; if it never gives an answer, the stream ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import structlog
from starlette.types import Scope

from mcp_hybrid.errors import Fault
from mcp_hybrid.security.owner import Authenticator, Caller

log = structlog.get_logger("mcp_hybrid")

REVIEW: Final = 60.0
"""Seconds between two looks at the credential of an open stream."""

PATIENCE: Final = 30.0
"""Seconds that one look may take. A verifier that takes longer has failed."""

FAILURES: Final = 3
"""Looks in a row that may fail before the stream ends: a verifier that raises is a bug, and is not waited out."""

OUTAGE: Final = 3600.0
"""Seconds without any answer after which the stream ends, if the verifier says that it cannot tell right now."""

_UNSETTLED: Final = frozenset({429, 503})
"""Statuses of refusals that say nothing about the credential. Every other refusal ends the stream."""


async def lapsed(authenticator: Authenticator, scope: Scope, caller: Caller, clock: Callable[[], float]) -> None:
    """Return when the credential that `scope` carries is no longer good. `clock` is the wall clock, in seconds.

    Raises nothing but the cancellation of its own scope: a supervision that ends otherwise would leave the stream open.
    """
    owner, failures, answered = caller.owner, 0, anyio.current_time()
    while True:
        left = caller.expires_at - clock() if caller.expires_at is not None else REVIEW
        if left <= 0:
            return
        await anyio.sleep(min(left, REVIEW))
        found = await _look(authenticator, scope)
        if isinstance(found, Caller):
            if found.owner != owner:
                return  # the same header means somebody else now
            caller, failures, answered = found, 0, anyio.current_time()
            continue
        if found is not None and found.cause.status not in _UNSETTLED:
            return
        failures += found is None
        if failures >= FAILURES or anyio.current_time() - answered >= OUTAGE:
            log.warning("stream ended: its credential could not be verified", failures=failures)
            return


async def _look(authenticator: Authenticator, scope: Scope) -> Caller | Fault | None:
    """Return what the authenticator says, or None if it failed to say anything."""
    try:
        with anyio.fail_after(PATIENCE):
            return await authenticator.authenticate(scope)
    except Exception:
        log.exception("verifying the credential of an open stream failed; trying again", after=REVIEW)
        return None
