"""The SDK's `Connection`, made to cost little while nothing happens on it.

A server holds one for each live session, most of them idle. What a connection may need but most never use (the exit
stack, the scratch state) is made when it is asked for.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
from mcp.server.connection import Connection
from mcp.shared.dispatcher import Outbound

from mcp_hybrid.sessions.record import SessionRecord


class SessionConnection(Connection):
    """A connection whose handshake is over: only a client that has the InitializeResult can echo its session id."""

    def __init__(self, outbound: Outbound, session_id: str, record: SessionRecord) -> None:
        """Set what the base class sets, without what most connections never use (`tests/test_seams.py` compares)."""
        self.outbound = outbound
        self.session_id = session_id
        self.protocol_version = record.version
        self.client_params = record.client_params
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
