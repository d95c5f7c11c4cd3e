"""What is sent on one connection: items, which are requests, frames or pieces of garbage."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Known:
    """What fuzzed requests can refer to: what only a server can make."""

    sessions: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """One thing to send."""

    data: bytes
    kind: str
    """What it is, for the statistics."""
    method: str = ""
    """The request's method, where that is known: the answer to HEAD has no body."""
    whole: bool = False
    """Whether exactly one answer is due, after which the connection can go on."""


@dataclass(frozen=True)
class Script:
    """One connection."""

    items: tuple[Item, ...]
    http2: bool = False
    """Whether HTTP/2 is spoken from the first byte."""
