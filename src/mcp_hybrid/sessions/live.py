"""A session in memory: what it holds while it is in use, and nothing while it is not.

No task and no stream belong to it. Calls run in the tasks of their requests; the standalone stream in that of its GET.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from mcp_types import RequestId

from mcp_hybrid.errors import SERVER_BUSY
from mcp_hybrid.routing.message import Response
from mcp_hybrid.security.owner import ANONYMOUS, Owner
from mcp_hybrid.sessions.connection import SessionConnection
from mcp_hybrid.sessions.questions import Question
from mcp_hybrid.sessions.record import SessionRecord


class Interruption(Enum):
    """Why a call was cancelled before it finished."""

    CLIENT_CANCELLED = auto()
    """`notifications/cancelled`."""
    CLIENT_GONE = auto()
    """The connection was closed, which means cancellation at 2026-07-28 only."""
    SESSION_ENDED = auto()
    SERVER_STOPPING = auto()
    """It was still running when the time for draining was over."""
    TIMED_OUT = auto()
    CREDENTIAL_LAPSED = auto()
    """What it was let in by is no longer good; asked only of calls that would go on for ever."""


class Interruptible(Protocol):
    """A call in flight, as its session sees it."""

    def interrupt(self, why: Interruption) -> None:
        """Cancel the call."""
        ...


class LiveSession:
    """One claimed session: the SDK's connection, and what is going on right now."""

    __slots__ = (
        "calls",
        "close_stream",
        "connection",
        "hash",
        "id",
        "last_used",
        "log_level",
        "owner",
        "pins",
        "questions",
        "record",
        "stream",
        "watch",
        "worker",
    )

    def __init__(
        self,
        session_id: str,
        hash_: str,
        record: SessionRecord,
        connection: SessionConnection,
        worker: str,
        owner: Owner = ANONYMOUS,
    ) -> None:
        self.id = session_id
        self.hash = hash_
        self.record = record
        self.connection = connection
        self.worker = worker
        """This process, as the backplane knows it."""
        self.owner = owner
        """Whose the request was that brought the session to life: the record has a fingerprint only."""
        self.calls: dict[RequestId, Interruptible] = {}
        self.questions: dict[str, Question] = {}
        self.close_stream: Callable[[], None] | None = None
        """Ends the standalone GET stream, where one is open."""
        self.stream = ""
        """The name of the request that it is open by."""
        self.log_level = ""
        """The least grave log messages that the client takes, as it last asked for in this process; empty: all."""
        self.watch = 0
        """When this session was last looked up (`Backplane.watch`)."""
        self.pins = 0
        """How many reasons an application has to keep the session in this process."""
        self.last_used = 0.0
        """When the last request came (`clock.now`)."""

    @property
    def busy(self) -> bool:
        """Whether the session holds something that cannot be put away."""
        return bool(self.calls or self.questions or self.close_stream or self.pins)

    def cancel(self, request_id: object) -> bool:
        """Cancel a call, by its id as the client wrote it: `7` and `"7"` are two calls (requirement J9).

        Returns whether it runs here. Unknown and finished ones are ignored (C2).
        """
        if isinstance(request_id, bool):  # which is no id, but would find the call 1
            return False
        call = self.calls.get(request_id) if isinstance(request_id, str | int) else None
        if call is not None:
            call.interrupt(Interruption.CLIENT_CANCELLED)
        return call is not None

    def answer(self, response: Response) -> bool:
        """Hand a response to the question it answers. Returns whether it was asked here."""
        question = self.questions.get(response.id) if isinstance(response.id, str) else None
        if question is not None:
            question.answer(response)
        return question is not None

    def open_stream(self, name: str, close: Callable[[], None]) -> None:
        """Take over as the standalone stream; the one before it ends (a client has one: SDK rule, G5)."""
        if self.close_stream is not None:
            self.close_stream()
        self.stream, self.close_stream = name, close

    def release_stream(self, name: str) -> None:
        """Stop being the standalone stream, unless another has taken over."""
        if self.stream == name:
            self.stream, self.close_stream = "", None

    def close_stream_of(self, name: str) -> None:
        """End the standalone stream if it is still the one of that name."""
        if self.stream == name and self.close_stream is not None:
            self.close_stream()

    def end(self) -> None:
        """Stop everything: the session is over."""
        for call in list(self.calls.values()):
            call.interrupt(Interruption.SESSION_ENDED)
        for question in list(self.questions.values()):
            # Whoever asked outside of any call is not interrupted with one, and nobody else is going to answer.
            question.answer(Response(question.id, None, {"code": SERVER_BUSY, "message": "The session was ended."}))
        if self.close_stream is not None:
            self.close_stream()
            self.close_stream = None
