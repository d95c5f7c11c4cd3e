"""The roll: which sessions are live, on this worker and on all others that share the backplane.

Whoever is asked calls all workers and waits for each that shows signs of life. A session may be live on several of
them, and is one entry then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import anyio
import structlog
from pydantic_core import from_json, to_json

from mcp_hybrid.backplane import Backplane, BackplaneUnavailableError, Signal, SignalKind
from mcp_hybrid.clock import now
from mcp_hybrid.service.background import BackgroundTasks
from mcp_hybrid.sessions.live import LiveSession
from mcp_hybrid.sessions.registry import Registry
from mcp_hybrid.text import short

log = structlog.get_logger("mcp_hybrid")

PATIENCE: Final = 2.0
"""Seconds that the other workers have to answer. One that has just died counts as alive for longer than that."""

MOST: Final = 1000
"""Sessions that one worker names, those used last. Who has more is told how many."""


@dataclass(slots=True)
class Entry:
    """One live session, as an operator sees it. Nothing of it is a credential."""

    session: str
    """The hash that stands for the id in logs, where it is cut to 12 characters."""
    owner: str
    client: str
    client_version: str
    protocol: str
    issued: int
    """Seconds since the epoch."""
    idle: float
    """Seconds since the last request, on the worker where that was."""
    calls: int
    questions: int
    stream: bool
    """Whether the GET stream is open."""
    pinned: bool
    workers: list[str]

    def merge(self, other: Entry) -> None:
        """Add what another worker knows of the same session."""
        self.idle = min(self.idle, other.idle)
        self.calls += other.calls
        self.questions += other.questions
        self.stream |= other.stream
        self.pinned |= other.pinned
        self.workers = sorted({*self.workers, *other.workers})


@dataclass(slots=True)
class Roll:
    """What was found out."""

    sessions: list[Entry]
    """The one used last first."""
    workers: int
    """How many of them answered."""
    complete: bool
    """Whether all that should have did."""
    more: int
    """Sessions that are live and not listed."""


@dataclass(slots=True)
class _Asked:
    """A roll call that is under way."""

    entries: dict[str, Entry] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    more: int = 0
    changed: anyio.Event = field(default_factory=anyio.Event)

    def note(self, worker: str, more: int, entries: Iterable[Entry]) -> None:
        if worker in self.answered:
            return
        for entry in entries:
            known = self.entries.setdefault(entry.session, entry)
            if known is not entry:
                known.merge(entry)
        self.answered.add(worker)
        self.more += more
        self.changed.set()
        self.changed = anyio.Event()


class RollCall:
    """Asks who is there, and answers others who ask."""

    def __init__(self, registry: Registry, backplane: Backplane, background: BackgroundTasks) -> None:
        self._registry = registry
        self._backplane = backplane
        self._background = background
        self._asked: dict[int, _Asked] = {}
        self._number = 0

    async def call(self, prefix: str = "") -> Roll:
        """Return the live sessions whose hashes start with `prefix`, of all workers that share the backplane.

        Raises:
            BackplaneUnavailableError: The other workers cannot be asked.
        """
        self._number += 1
        number, asked = self._number, _Asked()
        asked.note(self._backplane.worker, *self._present(prefix))
        expected = {self._backplane.worker}
        self._asked[number] = asked
        try:
            if self._backplane.shared:
                expected |= set(await self._backplane.workers())
                body = to_json([self._backplane.worker, number, prefix])
                await self._backplane.broadcast(Signal(SignalKind.ROLL_CALL, "", body))
                with anyio.move_on_after(PATIENCE):
                    while not expected <= asked.answered:
                        await asked.changed.wait()
        finally:
            del self._asked[number]
        entries = sorted(asked.entries.values(), key=lambda entry: entry.idle)
        return Roll(entries, len(asked.answered), expected <= asked.answered, asked.more)

    def on_call(self, signal: Signal) -> None:
        """Tell a worker that asks which sessions are live here. Where too much is to be told already, it is not told.

        The asker then says of its list that it is not complete.
        """
        asker, number, prefix = from_json(signal.body)
        self._background.start(partial(self._answer, asker, number, prefix), "a list of sessions for another worker")

    async def _answer(self, asker: str, number: int, prefix: str) -> None:
        more, entries = self._present(prefix)
        body = to_json([number, self._backplane.worker, more, entries])
        try:
            await self._backplane.send(asker, Signal(SignalKind.PRESENT, "", body))
        except BackplaneUnavailableError:
            log.info("another worker was not told which sessions are live here: the backplane is away")

    def on_present(self, signal: Signal) -> None:
        """Note what another worker says. One that is late is not waited for any more."""
        number, worker, more, entries = from_json(signal.body)
        asked = self._asked.get(number)
        if asked is not None:
            asked.note(worker, more, (Entry(**entry) for entry in entries))

    def _present(self, prefix: str) -> tuple[int, list[Entry]]:
        """Return how many sessions are too many to be named, and the others."""
        found = [session for session in self._registry.sessions() if session.hash.startswith(prefix)]
        return max(0, len(found) - MOST), [self._entry(session) for session in found[-MOST:]]

    def _entry(self, session: LiveSession) -> Entry:
        params: Any = session.record.client_params
        return Entry(
            session=session.hash,
            owner=short(str(session.owner)),
            client=short(params.client_info.name),
            client_version=short(params.client_info.version),
            protocol=session.record.version,
            issued=session.record.issued,
            idle=round(now() - session.last_used, 3),
            calls=len(session.calls),
            questions=len(session.questions),
            stream=session.close_stream is not None,
            pinned=session.pins > 0,
            workers=[self._backplane.worker],
        )
