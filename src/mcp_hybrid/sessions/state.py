"""State that follows a session: through hibernation; with a shared backplane also through restarts and workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST
from pydantic_core import PydanticSerializationError, from_json, to_json

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError, StateTooLargeError
from mcp_hybrid.errors import SERVER_BUSY


class SessionStateError(MCPError):
    """A session's state cannot be had or changed. The text says why, and what to do instead.

    A tool that lets it through has its client told: other exceptions' texts are kept from clients.
    """

    def __init__(self, message: str, code: int = INVALID_REQUEST) -> None:
        super().__init__(code, message)


class SessionState:
    """A small mapping from names to JSON values. What was set is there for the session's next call, wherever it runs.

    Each method is one step for all workers; two that run at the same time change different names without harm.

    Raises:
        SessionStateError: From every method where the backplane is away, or the session is over.
    """

    def __init__(self, backplane: Backplane, session: str, good_until: Callable[[], Awaitable[float | None]]) -> None:
        """Reach the state of a session; `good_until` says when it ends (wall clock, seconds), None if it is over.

        It is asked each time: an application may hold on to the state while the session hibernates, or ends.
        """
        self._backplane = backplane
        self._session = session
        self._good_until = good_until

    async def all(self) -> dict[str, Any]:
        """Return the whole state."""
        return {name: from_json(value) for name, value in (await self._load()).items()}

    async def get(self, name: str, default: Any = None) -> Any:
        """Return the value of `name`, or `default` where it was never set."""
        value = (await self._load()).get(name)
        return default if value is None else from_json(value)

    async def set(self, name: str, value: Any) -> None:
        """Set `name` to a JSON value.

        Raises:
            SessionStateError: It is no JSON, or the state would be larger than 64 KiB.
        """
        try:
            encoded = to_json(value, inf_nan_mode="null")
        except PydanticSerializationError:
            raise SessionStateError(f"the value of {name!r} is no JSON") from None
        await self._save({name: encoded})

    async def delete(self, name: str) -> None:
        """Remove `name`, where it was set."""
        await self._save({name: None})

    async def _load(self) -> Mapping[str, bytes]:
        await self._end()
        try:
            return await self._backplane.load_state(self._session)
        except BackplaneUnavailableError:
            raise SessionStateError(_AWAY, SERVER_BUSY) from None

    async def _save(self, changes: Mapping[str, bytes | None]) -> None:
        until = await self._end()
        try:
            await self._backplane.save_state(self._session, changes, until)
        except StateTooLargeError:
            raise SessionStateError(
                "a session's state holds at most 64 KiB of JSON: keep the data elsewhere and its name here"
            ) from None
        except BackplaneUnavailableError:
            raise SessionStateError(_AWAY, SERVER_BUSY) from None

    async def _end(self) -> float:
        """Return when the session ends by itself (wall clock, seconds)."""
        until = await self._good_until()
        if until is None:
            raise SessionStateError(_OVER)
        return until


_AWAY = "the session's state cannot be reached right now: try again in a moment"
_OVER = "the session is over, and its state is gone with it"
