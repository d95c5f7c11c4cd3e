"""The SDK's `Connection`, made to cost little while nothing happens on it.

A server holds one for each live session, most of them idle, and makes one for each request without a session. What a
connection may need but most never use (the exit stack, the scratch state) is made when it is asked for.
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import anyio
from mcp.server.connection import Connection
from mcp.server.runner import aclose_shielded
from mcp.shared.dispatcher import Outbound
from mcp_types import InitializeRequestParams

from mcp_hybrid.containment import contained
from mcp_hybrid.sessions.record import SessionRecord

FASTMCP_NAME: Final = "_fastmcp_state_prefix"
"""Where FastMCP keeps a session's name in the state of its connection (pinned by a contract test)."""


class LeanConnection(Connection):
    """A connection that no handshake is going to be made on: it was made before, or the protocol has none."""

    _cleaning_up = False

    def __init__(
        self,
        outbound: Outbound,
        *,
        protocol_version: str,
        session_id: str | None = None,
        client_params: InitializeRequestParams | None = None,
    ) -> None:
        """Set what the base class sets, without what most connections never use (`tests/test_seams.py` compares)."""
        self.outbound = outbound
        self.session_id = session_id
        self.protocol_version = protocol_version
        self.client_capabilities = None
        self.client_params = client_params
        self._exit_stack: AsyncExitStack | None = None
        self._state: dict[str, Any] | None = None

    @property
    def initialized(self) -> anyio.Event:  # type: ignore[override]  # the base class has an attribute here
        """Set, for as long as anybody looks."""
        event = anyio.Event()
        event.set()
        return event

    @property
    def initialize_accepted(self) -> bool:
        """True: see the class."""
        return True

    @property
    def exit_stack(self) -> AsyncExitStack:  # type: ignore[override]  # the base class has an attribute here
        """What an application wants done when the session hibernates or ends."""
        if self._exit_stack is None:
            self._exit_stack = AsyncExitStack()
        return self._exit_stack

    @property
    def state(self) -> dict[str, Any]:  # type: ignore[override]  # the base class has an attribute here
        """Scratch state of this process; it is gone when the session hibernates."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def has_clean_up(self) -> bool:
        """Whether anything was ever left on the exit stack."""
        return self._exit_stack is not None

    async def clean_up(self) -> None:
        """Run what was left on the exit stack: bounded, shielded from cancellation, and it cannot fail.

        May be called again for what was pushed since. One that runs already takes that along, last in, first out: two
        that ran beside each other would each pull a callback's ground from under the other's.
        """
        if self._exit_stack is None or self._cleaning_up:
            return
        self._cleaning_up = True
        try:
            # The SDK's contains what is an `Exception`.
            await contained(partial(aclose_shielded, self), "clean-up of a session raised")
        finally:
            self._cleaning_up = False


class SessionConnection(LeanConnection):
    """The connection of a session. Only a client that has the InitializeResult can echo its session id."""

    def __init__(self, outbound: Outbound, session_id: str, record: SessionRecord) -> None:
        super().__init__(
            outbound, protocol_version=record.version, session_id=session_id, client_params=record.client_params
        )

    @property
    def state(self) -> dict[str, Any]:  # type: ignore[override]  # as above
        """Scratch state of this process, which says to FastMCP how it is to call the session.

        FastMCP would take the id itself, which is a credential, and write it into every span (`mcp.session.id`). It
        remembers here what it took: the hash that the session has in our own log and spans.
        """
        if self._state is None:
            self._state = {}
            if "fastmcp" in sys.modules and self.session_id is not None:
                from mcp_hybrid.sessions.registry import hash_of  # noqa: PLC0415 - which imports this

                self._state[FASTMCP_NAME] = hash_of(self.session_id)
        return self._state


_NO_CHANNEL: Final = Connection.from_envelope("", None, None).outbound


def alone(version: str) -> LeanConnection:
    """Return the connection of one request: nothing is known of its client, and nothing can be sent outside of it."""
    return LeanConnection(_NO_CHANNEL, protocol_version=version)


def enveloped(version: str, client_info: object, client_capabilities: object) -> LeanConnection:
    """Return the connection of one request that says of its client what an envelope has (2026-07-28)."""
    connection = LeanConnection.from_envelope(version, client_info, client_capabilities)
    assert isinstance(connection, LeanConnection)
    return connection
