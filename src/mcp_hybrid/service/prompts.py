"""`prompts/get` that a client got wrong: -32602 with the reason (server/prompts, "Error Handling").

SDK 2.3 raises a plain `ValueError` for an unknown prompt, a missing argument and one of the wrong type, as it does for
a prompt that fails: its transports would call all of them internal errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from pydantic import ValidationError

from mcp_hybrid.exchange.handler_task import Handler

_REFUSED: Final = ("Unknown prompt: ", "Missing required arguments: ")
"""How the SDK's texts begin for what a client got wrong (pinned by a contract test)."""
_RENDERING: Final = "Error rendering prompt "
_NOT_THE_PROGRAM: Final = frozenset({"mcp", "anyio", "trio", "outcome", "pydantic", "asyncio"})
"""Packages through which a call goes before it reaches the prompt's own function."""


async def explain_refused_prompt(handler: Handler) -> Any:
    """Run `prompts/get`.

    Raises:
        MCPError: The prompt is unknown, or its arguments are not what it takes; the text says which.
    """
    try:
        return await handler()
    except ValueError as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise MCPError(INVALID_PARAMS, reason) from None


def _reason(error: ValueError) -> str | None:
    cause = error.__cause__
    if type(error) is not ValueError or cause is None:
        return None
    text = str(error)
    if text.startswith(_REFUSED) and type(cause) is ValueError and cause.__cause__ is None:
        return text
    if text.startswith(_RENDERING) and isinstance(cause.__cause__, ValidationError):
        invalid = cause.__cause__
        if all(_package(frame) in _NOT_THE_PROGRAM for frame in _frames(invalid.__traceback__)):
            names = sorted({".".join(map(str, each["loc"])) for each in invalid.errors(include_input=False)})
            return f"Invalid arguments: {', '.join(names)}"
    return None


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _package(frame: TracebackType) -> str:
    return str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
