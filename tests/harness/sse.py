"""Reads server-sent events as they come, keeping what a browser hides (comments, `retry`), to test the framing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@dataclass
class Event:
    """One block of an event stream; a field that did not come is `None`."""

    id: str | None = None
    event: str | None = None
    data: str | None = None
    retry: int | None = None
    comment: str | None = None

    def json(self) -> Any:
        assert self.data is not None, "the event carries no data"
        return from_json(self.data)


class EventReader:
    """Turns bytes, cut anywhere, into events."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Event]:
        """Give the events that are complete now."""
        *blocks, self._buffer = _BLANK_LINE.split(self._buffer + data)
        return [_parse(block.decode()) for block in blocks if block]

    @property
    def rest(self) -> bytes:
        """What was received of an event that is not complete."""
        return self._buffer


def _parse(block: str) -> Event:
    event = Event()
    for line in re.split(r"\r\n|\n|\r", block):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "":
            event.comment = _joined(event.comment, value)
        elif name == "data":
            event.data = _joined(event.data, value)
        elif name == "id":
            event.id = value
        elif name == "event":
            event.event = value
        elif name == "retry":
            event.retry = int(value)
        else:
            raise AssertionError(f"unknown field in an event stream: {line!r}")
    return event


def _joined(before: str | None, value: str) -> str:
    return value if before is None else f"{before}\n{value}"
