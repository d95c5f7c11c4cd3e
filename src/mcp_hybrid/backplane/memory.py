"""The backplane of a single process: everything in memory, gone with it. There is nobody to signal to."""

from __future__ import annotations

import heapq
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskStatus

from mcp_hybrid.backplane.protocol import (
    STATE_LIMIT,
    Entry,
    Handler,
    Holder,
    LogLimits,
    Signal,
    StateTooLargeError,
    StreamKey,
    UnknownEventError,
    size_of,
)


@dataclass(slots=True)
class _Log:
    """One stream's log: the last entries, numbered from 1."""

    entries: deque[bytes | None] = field(default_factory=deque)
    last: int = 0
    size: int = 0
    touched: float = 0.0
    readers: int = 0
    grown: anyio.Event | None = None
    dropped: bool = False

    def add(self, data: bytes | None, limits: LogLimits) -> None:
        self.entries.append(data)
        self.last += 1
        self.size += len(data or b"")
        while len(self.entries) > limits.events or (self.size > limits.bytes and len(self.entries) > 1):
            self.size -= len(self.entries.popleft() or b"")
        self.wake()

    def after(self, number: int) -> list[tuple[int, bytes | None]]:
        """Return the entries after `number`, which must be in the log, or be the one before its first."""
        if not self.covers(number):
            raise UnknownEventError
        first = self.last - len(self.entries)
        return [(first + 1 + i, data) for i, data in enumerate(self.entries) if first + 1 + i > number]

    def covers(self, number: int) -> bool:
        """Whether nothing that came after `number` is missing."""
        return not self.dropped and self.last - len(self.entries) <= number <= self.last

    def wake(self) -> None:
        if self.grown is not None:
            self.grown.set()
            self.grown = None


class MemoryBackplane:
    """Revocations, event logs and session state of one process."""

    shared = False

    def __init__(self, limits: LogLimits | None = None, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits or LogLimits()
        self._clock = clock
        self._revoked: set[str] = set()
        self._expiries: list[tuple[float, str]] = []
        self._logs: dict[str, dict[str, _Log]] = {}
        self._states: dict[str, tuple[float, dict[str, bytes]]] = {}
        # Ids of an earlier process must not be taken for this one's: its numbers start again.
        self.worker = secrets.token_hex(4)

    @property
    def available(self) -> bool:
        """Always."""
        return True

    async def run(
        self,
        handler: Handler,  # noqa: ARG002 - the protocol's; nobody sends
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Wait for nothing."""
        task_status.started()
        await anyio.sleep_forever()

    async def workers(self) -> list[str]:
        """Return this one: there is no other worker."""
        return [self.worker]

    async def send(self, worker: str, signal: Signal) -> None:
        """Reach nobody: there is no other worker."""

    async def broadcast(self, signal: Signal) -> None:
        """Reach nobody: there is no other worker."""

    @property
    def watch(self) -> int:
        """No matter: nobody else has to be heard."""
        return 0

    async def revoke(self, session: str, until: float) -> None:
        """Remember that a session ended, until `until` (wall clock, seconds)."""
        if session not in self._revoked:
            self._revoked.add(session)
            heapq.heappush(self._expiries, (until, session))

    def has_heard(self, session: str, watch: int) -> bool:  # noqa: ARG002 - the protocol's
        """Whether a session was ended: nobody else knows more."""
        return session in self._revoked

    async def is_revoked(self, session: str) -> bool:
        """Whether a session was ended."""
        return session in self._revoked

    async def tail(self, stream: StreamKey) -> str:
        """Open a stream's log where it does not exist, and return the id after which the next entry will come."""
        return self._id(self._open(stream).last)

    async def append(
        self,
        stream: StreamKey,
        data: bytes | None,
        calls: bytes | None = None,  # noqa: ARG002 - the protocol's; should this worker die, its logs do, too
        number: int | None = None,  # noqa: ARG002 - the protocol's; what was added is known here
    ) -> str | None:
        """Add an entry, opening the log where it does not exist, and return its id; None where the log has ended."""
        log = self._open(stream)
        if log.entries and log.entries[-1] is None:
            return None
        log.add(data, self._limits)
        return self._id(log.last)

    async def is_open(self, stream: StreamKey) -> bool:
        """Whether a stream has a log."""
        return stream.name in self._logs.get(stream.session, {})

    async def holds(self, stream: StreamKey, after: str) -> bool:
        """Whether a log can be read on from `after` without a gap."""
        log = self._logs.get(stream.session, {}).get(stream.name)
        number = self._number(after)
        return log is not None and number is not None and log.covers(number)

    async def take_over(self, stream: StreamKey, name: str) -> Holder | None:  # noqa: ARG002 - the protocol's
        """Say that there is no other worker to take it over from."""
        return None

    async def release(self, stream: StreamKey, name: str) -> None:
        """Tell nobody."""

    async def is_held(self, stream: StreamKey) -> bool:  # noqa: ARG002 - the protocol's
        """Say no: whoever asks knows whether this worker serves it, and there is no other."""
        return False

    async def read(self, stream: StreamKey, after: str) -> list[Entry]:
        """Wait until there are entries after `after`, and return them all."""
        log, number = self._point(stream, after)
        log.readers += 1
        try:
            while not (entries := log.after(number)):
                log.grown = log.grown or anyio.Event()
                await log.grown.wait()
        finally:
            log.readers -= 1
            log.touched = self._clock()
        return [Entry(self._id(number), data) for number, data in entries]

    async def peek(self, stream: StreamKey, after: str) -> list[Entry]:
        """Return the entries after `after` that are there already."""
        log, number = self._point(stream, after)
        return [Entry(self._id(number), data) for number, data in log.after(number)]

    def _point(self, stream: StreamKey, after: str) -> tuple[_Log, int]:
        """Return a stream's log, and the number that stands in one of its ids."""
        log = self._logs.get(stream.session, {}).get(stream.name)
        number = self._number(after)
        if log is None or number is None:
            raise UnknownEventError
        return log, number

    async def forget(self, session: str) -> None:
        """Drop all logs and the state of a session that ended."""
        self._states.pop(session, None)
        for log in self._logs.pop(session, {}).values():
            _drop(log)

    async def load_state(self, session: str) -> Mapping[str, bytes]:
        """Return a session's state: JSON values by name."""
        until, state = self._states.get(session, (0.0, {}))
        return dict(state) if until > self._clock() else {}

    async def save_state(self, session: str, changes: Mapping[str, bytes | None], until: float) -> None:
        """Change a session's state; None removes a name."""
        if session in self._revoked:
            return
        merged = {**await self.load_state(session), **changes}
        state = {name: value for name, value in merged.items() if value is not None}
        if size_of(state) > STATE_LIMIT:
            raise StateTooLargeError
        self._states[session] = (until, state)

    async def prune(self) -> None:
        """Drop revocations and states of ids that have expired, and logs that nobody came back for."""
        now = self._clock()
        for session in [session for session, (until, _) in self._states.items() if until <= now]:
            del self._states[session]
        while self._expiries and self._expiries[0][0] <= now:
            self._revoked.discard(heapq.heappop(self._expiries)[1])
        for session, logs in list(self._logs.items()):
            for name, log in list(logs.items()):
                if not log.readers and log.touched + self._limits.age <= now:
                    _drop(logs.pop(name))
            if not logs:
                del self._logs[session]

    def _open(self, stream: StreamKey) -> _Log:
        log = self._logs.setdefault(stream.session, {}).setdefault(stream.name, _Log())
        log.touched = self._clock()
        return log

    def _id(self, number: int) -> str:
        return f"{self.worker}-{number}"

    def _number(self, entry_id: str) -> int | None:
        boot, _, number = entry_id.partition("-")
        return int(number) if boot == self.worker and number.isascii() and number.isdecimal() else None


def _drop(log: _Log) -> None:
    log.dropped = True
    log.wake()
