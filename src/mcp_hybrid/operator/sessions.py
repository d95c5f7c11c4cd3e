"""`/admin/sessions`: the sessions that are live, and their end, for whoever has the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from mcp_hybrid.backplane import BackplaneUnavailableError
from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.operator.page import Asked, write_json
from mcp_hybrid.service import Service

_HASH: Final = re.compile(r"[0-9a-f]{8,32}")
_WHOLE: Final = 32
"""Characters of a whole hash. A shorter one names a session that is live, as logs do (12)."""

Running = Callable[[], Service | None]


class Sessions:
    """Lists and ends sessions, wherever they are live."""

    def __init__(self, service: Running, alone: bool) -> None:
        """Serve what `service` knows. `alone`: there is no other worker, so that what it knows is everything."""
        self._service = service
        self._alone = alone

    async def serve(self, asked: Asked) -> Fault | None:
        """Answer `GET /admin/sessions` and `DELETE /admin/sessions/HASH`."""
        service = self._service()
        if service is None:
            return Fault(Cause.NOT_RUNNING, "The server is not running.")
        try:
            if asked.head.method == "DELETE":
                return await self._end(service, asked)
            return await self._list(service, asked)
        except BackplaneUnavailableError:
            retry = ((b"retry-after", b"1"),)
            return Fault(Cause.BACKPLANE_UNAVAILABLE, "The other workers cannot be reached.", headers=retry)

    async def _list(self, service: Service, asked: Asked) -> Fault | None:
        roll = await service.roll.call(asked.rest)
        complete = roll.complete and (service.shared or self._alone)
        body = {"complete": complete, "workers": roll.workers, "more": roll.more, "sessions": roll.sessions}
        await write_json(asked, 200, body)
        return None

    async def _end(self, service: Service, asked: Asked) -> Fault | None:
        found = await self._find(service, asked.rest)
        if isinstance(found, Fault):
            return found
        await service.registry.end_by_hash(found)
        await write_json(asked, 200, {"ended": found, "everywhere": service.shared or self._alone})
        return None

    async def _find(self, service: Service, name: str) -> str | Fault:
        """Return the whole hash of the session that `name` is the start of."""
        if _HASH.fullmatch(name) is None:
            return Fault(
                Cause.NOT_FOUND, "A session is named by its hash, of which 8 to 32 hexadecimal digits are given."
            )
        if len(name) == _WHOLE:
            return name  # it may hibernate, and nobody knows of it then
        found = [entry.session for entry in (await service.roll.call(name)).sessions]
        if not found:
            return Fault(
                Cause.NOT_FOUND, "No live session's hash starts like that. One that hibernates needs its whole hash."
            )
        if len(found) > 1:
            return Fault(Cause.SESSION_AMBIGUOUS, f"{len(found)} sessions' hashes start like that. Give more of it.")
        return found[0]
