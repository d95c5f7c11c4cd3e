"""What the server has asked the client and not yet been told: elicitation, sampling, roots, pings.

Ids name the worker that asks, so that whichever worker gets the answer knows where it belongs, and are random beyond
that: a counter would start again when a session is brought back, and an answer to a question of its former life would
be taken for one to the new.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp_types import ClientCapabilities

from mcp_hybrid.routing.message import Response


class CannotAskError(NoBackChannelError):
    """The client cannot be asked, and the tool is told so at once instead of waiting for an answer."""

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(method)
        self.error.message = f"Cannot ask the client ({method}): {reason}"


@dataclass(slots=True)
class Question:
    """One request from the server to the client."""

    id: str
    on_progress: ProgressFnT | None = None
    _answered: anyio.Event = field(default_factory=anyio.Event)
    _response: Response | None = None

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

    async def report(self, params: Mapping[str, Any]) -> None:
        """Hand a progress notification of the client to whoever asked."""
        progress, total, message = params.get("progress"), params.get("total"), params.get("message")
        if self.on_progress is None or not _is_number(progress):
            return
        assert isinstance(progress, int | float)
        await self.on_progress(
            float(progress),
            float(total) if isinstance(total, int | float) and _is_number(total) else None,
            message if isinstance(message, str) else None,
        )


def question_id(worker: str) -> str:
    """Return the id of a new question that `worker` asks."""
    return f"{worker}.{secrets.token_urlsafe(9)}"


def asking_worker(id_: object) -> str | None:
    """Return the worker that a question's id, or the progress token it went out with, names."""
    worker, dot, _ = id_.partition(".") if isinstance(id_, str) else ("", "", "")
    return worker if dot else None


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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
