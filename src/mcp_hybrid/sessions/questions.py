"""What the server has asked the client and not yet been told: elicitation, sampling, roots, pings.

Ids name the worker that asks, so that whichever worker gets the answer knows where it belongs, and are random beyond
that: a counter would start again when a session is brought back, and an answer to a question of its former life would
be taken for one to the new.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypedDict

import anyio
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp_types import ClientCapabilities

from mcp_hybrid.routing.message import Response

_QUESTION_ID: Final = re.compile(r"(?P<worker>[0-9a-f]{8,16})\.[A-Za-z0-9_-]{12}")
"""The name that a backplane gives its worker, and what `question_id` makes of it."""


class CannotAskError(NoBackChannelError):
    """The client cannot be asked, and the tool is told so at once instead of waiting for an answer."""

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(method)
        self.error.message = f"Cannot ask the client ({method}): {reason}"


Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
"""Starts a task that no request waits for."""

REPORTS: Final = 100
"""Progress notifications on one question that may wait for the asker to take them."""


@dataclass(slots=True)
class QuestionBounds:
    """How many questions may wait for their answers, and how many do."""

    per_session: int
    in_all: int
    waiting: int = 0

    def why_not(self, of_session: int) -> str | None:
        """Return why a session that has so many waiting may not ask one more; None where it may."""
        if of_session >= self.per_session:
            return f"it has {of_session} questions to answer already, which is as many as one session may have."
        if self.waiting >= self.in_all:
            return "the server waits for as many answers as it may at a time."
        return None


@dataclass(slots=True)
class Question:
    """One request from the server to the client."""

    id: str
    on_progress: ProgressFnT | None = None
    _answered: anyio.Event = field(default_factory=anyio.Event)
    _response: Response | None = None
    _reports: deque[Reported] | None = None
    """Progress that the asker has not yet taken; the oldest goes first where it is too slow. None: nobody reports."""

    @property
    def answered(self) -> bool:
        """Whether the client has answered."""
        return self._response is not None

    def answer(self, response: Response) -> None:
        """Take the client's answer. The first one counts."""
        if self._response is None:
            self._response = response
            self._answered.set()

    async def wait(self) -> dict[str, Any]:
        """Wait for the answer. Cancellation leaves the question unanswered; a later answer is dropped.

        Raises:
            MCPError: The client answered with an error.
        """
        await self._answered.wait()
        assert self._response is not None
        if self._response.error is not None:
            error = self._response.error
            raise MCPError(error["code"], error["message"], error.get("data"))
        return self._response.result or {}

    def report(self, params: Mapping[str, Any], spawn: Spawn) -> None:
        """Hand a progress notification of the client to the asker, in a task of its own: it runs what the asker gave.

        One task reports for each question, in the order in which the client did, however slowly it goes.
        """
        said = reported(params)
        if self.on_progress is None or said is None:
            return
        if self._reports is not None:
            self._reports.append(said)
            return
        self._reports = deque([said], REPORTS)
        spawn(partial(self._hand_on, self.on_progress, self._reports))

    async def _hand_on(self, on_progress: ProgressFnT, reports: deque[Reported]) -> None:
        try:
            while reports:
                said = reports.popleft()
                await on_progress(said["progress"], said["total"], said["message"])
        finally:
            self._reports = None


class Reported(TypedDict):
    """What a progress notification says: nothing else of it is passed on."""

    progress: float
    total: float | None
    message: str | None


def reported(params: Mapping[str, Any]) -> Reported | None:
    """Return what a progress notification of the client says; None where it says nothing."""
    progress, message = _number(params.get("progress")), params.get("message")
    if progress is None:
        return None
    total = _number(params.get("total"))
    return {"progress": progress, "total": total, "message": message if isinstance(message, str) else None}


def question_id(worker: str) -> str:
    """Return the id of a new question that `worker` asks."""
    return f"{worker}.{secrets.token_urlsafe(9)}"


def asking_worker(id_: object) -> str | None:
    """Return the worker that a question's id, or the progress token it went out with, names.

    Clients send what they like: what no `question_id` looks like names nobody.
    """
    match = _QUESTION_ID.fullmatch(id_) if isinstance(id_, str) else None
    return match["worker"] if match is not None else None


def check_capability(method: str, params: Mapping[str, Any] | None, declared: ClientCapabilities | None) -> None:
    """Refuse a question that the client never said it could answer (requirement B1).

    Raises:
        CannotAskError: The client did not declare the capability; the message names it.
    """
    missing = missing_capability(method, params, declared)
    if missing is not None:
        raise CannotAskError(method, f"it did not declare the capability {missing!r} when it initialized.")


def missing_capability(
    method: str, params: Mapping[str, Any] | None, declared: ClientCapabilities | None
) -> str | None:
    """Return the capability, as a dotted path, that `method` needs and the client lacks."""
    params, declared = params or {}, declared or ClientCapabilities()
    if method == "elicitation/create":
        return _missing_elicitation(params, declared)
    if method == "sampling/createMessage":
        if declared.sampling is None:
            return "sampling"
        wants_tools = params.get("tools") is not None or params.get("toolChoice") is not None
        return "sampling.tools" if wants_tools and declared.sampling.tools is None else None
    if method == "roots/list" and declared.roots is None:
        return "roots"
    return None


def _missing_elicitation(params: Mapping[str, Any], declared: ClientCapabilities) -> str | None:
    """Forms are what a bare `elicitation: {}` means; a URL has to be declared (2025-11-25, client/elicitation)."""
    elicitation = declared.elicitation
    if elicitation is None:
        return "elicitation"
    if params.get("mode", "form") == "url":
        return "elicitation.url" if elicitation.url is None else None
    only_url = elicitation.form is None and elicitation.url is not None
    return "elicitation.form" if only_url else None


def _number(value: object) -> float | None:
    """Return a number as a float. JSON has whole numbers that no float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
