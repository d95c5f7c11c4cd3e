"""A session in memory: what it holds while it is in use, and nothing while it is not.

No task and no stream belong to it. Calls run in the tasks of their requests; the standalone stream in that of its GET.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from typing import Protocol

from mcp_types import RequestId

from mcp_hybrid.clock import now
from mcp_hybrid.errors import SERVER_BUSY
from mcp_hybrid.routing.message import Response
from mcp_hybrid.security.owner import Owner
from mcp_hybrid.sessions.connection import SessionConnection
from mcp_hybrid.sessions.questions import Question, QuestionBounds
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


class DuplicateRequestError(Exception):
    """A request id is taken: a request with that id is running in the session, or is about to."""


class Reservation:
    """A request id that is taken before its call runs. A call that is cancelled meanwhile ends as it begins."""

    __slots__ = ("interrupted",)

    def __init__(self) -> None:
        self.interrupted: Interruption | None = None

    def interrupt(self, why: Interruption) -> None:
        """Note why the call is not wanted. The first reason counts."""
        self.interrupted = self.interrupted or why


class Home(Protocol):
    """What holds a session, as the session sees it."""

    questions: QuestionBounds

    def became_busy(self, session: LiveSession) -> None:
        """Take note that somebody holds on to a session that nobody did."""
        ...

    def became_idle(self, session: LiveSession) -> None:
        """Take note that the last one who held on to a session has let go of it."""
        ...


class LiveSession:
    """One claimed session: the SDK's connection, and what is going on right now.

    Whatever goes on in it holds it (`hold`, `release`): a request from before its first checkpoint to its end, a
    question, the standalone stream, an application's pin. A session that is held is neither evicted nor hibernates.
    """

    __slots__ = (
        "_handling",
        "_holds",
        "_home",
        "calls",
        "close_stream",
        "connection",
        "ended",
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
        owner: Owner,
        home: Home,
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
        """The calls that run, and `Reservation`s for those that are about to. Written by `reserve` to `finish_call`."""
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
        """When somebody last took hold or let go of the session (`clock.now`)."""
        self.ended = False
        """Whether the session is over. Those who were using it find out here after a checkpoint."""
        self._holds = 0
        self._home = home
        self._handling: set[Callable[[], None]] | None = None  # seldom needed, and a set is not small

    @property
    def busy(self) -> bool:
        """Whether somebody holds on to the session, so that it cannot be put away."""
        return self._holds > 0

    def hold(self) -> None:
        """Keep the session in memory until `release` is called as often as this."""
        self._holds += 1
        if self._holds == 1:
            self._home.became_busy(self)

    def release(self) -> None:
        """Let go of the session. It was in use until now."""
        self._holds -= 1
        self.last_used = now()
        if self._holds == 0:
            self._home.became_idle(self)

    def pin(self) -> None:
        """Hold the session for the application, until `unpin`."""
        self.pins += 1
        self.hold()

    def unpin(self) -> None:
        """Let go of it for the application."""
        self.pins -= 1
        self.release()

    def reserve(self, ids: Sequence[RequestId]) -> Mapping[RequestId, Reservation]:
        """Take these request ids, all or none.

        Raises:
            DuplicateRequestError: One of them is taken. None has been.
        """
        if not self.calls.keys().isdisjoint(ids):
            raise DuplicateRequestError
        reserved = {id_: Reservation() for id_ in ids}
        self.calls.update(reserved)
        return reserved

    def start_call(self, request_id: RequestId, call: Interruptible) -> None:
        """Put a call in the place of its reservation. What the reservation was told, the call is told."""
        reservation = self.calls.get(request_id)
        self.calls[request_id] = call
        if isinstance(reservation, Reservation) and reservation.interrupted is not None:
            call.interrupt(reservation.interrupted)

    def finish_call(self, request_id: RequestId, call: Interruptible) -> None:
        """Give a request id back, if it is still this call's, or this reservation's."""
        if self.calls.get(request_id) is call:
            del self.calls[request_id]

    def handle(self, stop: Callable[[], None]) -> Callable[[], None]:
        """Have `stop` called when the session ends, until what is returned is called."""
        if self._handling is None:
            self._handling = set()
        self._handling.add(stop)
        return partial(self._handling.discard, stop)

    def add_question(self, question: Question) -> str | None:
        """Let a question wait for its answer, or return why it may not (for the application)."""
        why_not = "the session has ended." if self.ended else self._home.questions.why_not(len(self.questions))
        if why_not is None:
            self._home.questions.waiting += 1
            self.questions[question.id] = question
            self.hold()
        return why_not

    def remove_question(self, question: Question) -> None:
        """Wait for the answer no more. Only for a question that was added."""
        del self.questions[question.id]
        self._home.questions.waiting -= 1
        self.release()

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
        """Stop everything: the session is over. Those who hold it let go of it as they end."""
        self.ended = True
        for call in list(self.calls.values()):
            call.interrupt(Interruption.SESSION_ENDED)
        for stop in list(self._handling or ()):
            stop()
        for question in list(self.questions.values()):
            # Whoever asked outside of any call is not interrupted with one, and nobody else is going to answer.
            question.answer(Response(question.id, None, {"code": SERVER_BUSY, "message": "The session was ended."}))
        if self.close_stream is not None:
            self.close_stream()
            self.close_stream = None
