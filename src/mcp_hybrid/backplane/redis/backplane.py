"""The whole backplane: what the other modules add up to, and session state."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mcp_hybrid.backplane.protocol import STATE_LIMIT, StateTooLargeError
from mcp_hybrid.backplane.redis import scripts
from mcp_hybrid.backplane.redis.link import text
from mcp_hybrid.backplane.redis.logs import RedisLogs


class RedisBackplane(RedisLogs):
    """What the workers that share a Redis, and a prefix in it, share."""

    async def forget(self, session: str) -> None:
        """Drop the state of a session that ended, and let its logs run out: no id of the session opens them any more.

        Whoever reads one in this process is told. In others the signal that the session ended closes the streams.
        """
        await self._do(b"DEL", self._key("state", session))

    async def load_state(self, session: str) -> Mapping[str, bytes]:
        """Return a session's state: JSON values by name."""
        found = await self._do(b"HGETALL", self._key("state", session))
        return {text(name): value for name, value in found.items()}

    async def save_state(self, session: str, changes: Mapping[str, bytes | None], until: float) -> None:
        """Change a session's state; None removes a name."""
        arguments: list[bytes | str] = []
        for name, value in changes.items():
            arguments += [name, "-" if value is None else "=", value or b""]
        keys = [self._key("state", session), *self._each("ended")]
        times = (int(until * 1000), math.ceil(until))
        if not await self._run(scripts.SAVE, keys, STATE_LIMIT, session, *times, *arguments):
            raise StateTooLargeError
