"""What a load generator sends, over and over, and what every answer to it must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import mcp

NUMBER = "@"
"""Stands in a message for the request's own number, which is its id and its progress token."""

INITIALIZED = mcp.notification("notifications/initialized")
ADD = {"a": 1, "b": 2}
SUM = '"text":"3"'
"""What a right answer to `add` holds, whoever wrote it: nobody puts spaces into what goes over the wire."""


@dataclass(frozen=True)
class Plan:
    """One kind of request."""

    pieces: tuple[str, ...]
    """The body, cut where the request's number goes: answers in one session are told apart by the ids."""
    headers: tuple[Mapping[str, str], ...]
    """Taken by turns, one for each session."""
    expected: tuple[tuple[str, int], ...]
    """Texts, and how often each must be in the answer, whose status must be 200."""

    def body(self, number: int) -> str:
        """Give the body of the request with this number."""
        return str(number).join(self.pieces)

    def complaint(self, status: int, body: str) -> str | None:
        """Say what is wrong with an answer, if anything is."""
        if status != 200:
            return f"status {status}: {body[:300]}"
        for text, count in self.expected:
            if (found := body.count(text)) != count:
                return f"{text} {found} times instead of {count}: {body[:300]}"
        return None


def plan(
    message: mcp.Json, expected: Mapping[str, int], *, sessions: Sequence[str] | None = None, modern: bool = False
) -> Plan:
    """Plan to send `message`, in `sessions` by turns where there are some."""
    if modern:
        message = mcp.modern(message)
        heads = [mcp.modern_headers(message)]
    else:
        heads = [mcp.headers(session, mcp.LEGACY) for session in sessions or (None,)]
    pieces = json.dumps(message, separators=(",", ":")).split(f'"{NUMBER}"')
    return Plan(tuple(pieces), tuple(map(dict, heads)), tuple(expected.items()))


def call(name: str, arguments: dict[str, Any], *, progress: bool = False) -> mcp.Json:
    """Build a call of a tool, which asks for its progress or does not."""
    return mcp.tool(name, arguments, id=NUMBER, token=NUMBER if progress else None)


def progress_of(count: int) -> dict[str, int]:
    """Give what an answer holds that `count` values of progress precede: all of them, up to the last."""
    return {'"notifications/progress"': count, f'"progress":{count}': 1, '"text":"done"': 1}
