"""The backplane of a single process: everything in memory, gone with it. There is nobody to signal to."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import count, islice
from typing import Final

import anyio
from anyio.abc import TaskStatus

from mcp_hybrid.backplane.ended import EndedSessions
from mcp_hybrid.backplane.protocol import (
    MOST_ENDED,
    PAGE_BYTES,
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
from mcp_hybrid.clock import now

_LOG_BYTES: Final = 1024
"""What a log takes beside its entries (measured: about 900 bytes)."""
_ENTRY_BYTES: Final = 48
"""What an entry takes beside its message."""
_LOOKS: Final = 64
"""Logs that are looked at, for each entry, in search of what can be dropped: what a full log store may cost."""

_ENTRY_ID: Final = re.compile(r"([0-9a-f]{1,32})-([0-9]{1,18})", re.ASCII)


class _Log:
    """One stream's log: its last entries, numbered from 1. Results and the end are the last of them."""

    __slots__ = (
        "dropped", "entries", "grown", "last", "moved", "name", "position", "protected", "reader", "readers", "size",
        "stream", "taken", "tier", "touched", "unread",
    )  # fmt: skip

    def __init__(self, stream: StreamKey, name: str, tier: _Tier) -> None:
        self.stream = stream
        self.name = name
        """Stands in the ids of its entries, unlike that of any other log, also of the same stream."""
        self.tier = tier
        self.entries: list[bytes | None] = []
        self.protected = 0
        """How many of the last entries are results or the end."""
        self.last = 0
        self.size = 0
        """Bytes of the entries that are not protected."""
        self.taken = _LOG_BYTES
        """Bytes that the log takes in all."""
        self.touched = 0.0
        self.readers = 0
        self.grown: anyio.Event | None = None
        self.dropped = False
        self.reader = ""
        """The request by which a standalone stream is served."""
        self.position: int | None = None
        """The last entry that this request has delivered; None while nobody is waited for."""
        self.unread = 0
        """Bytes after it."""
        self.moved: anyio.Event | None = None

    @property
    def ended(self) -> bool:
        return bool(self.entries) and self.entries[-1] is None

    def add(self, data: bytes | None, limits: LogLimits, *, result: bool) -> None:
        size = len(data or b"")
        self.entries.append(data)
        self.last += 1
        self.taken += size + _ENTRY_BYTES
        if self.position is not None:
            self.unread += size
        if result or data is None:
            self.protected += 1
        else:
            self.size += size
            self._trim(limits.events, limits.bytes)
        self.wake()

    def _trim(self, events: int, most: int) -> None:
        """Drop the oldest entries beyond these bounds, but neither the newest nor what is protected."""
        left, drop = len(self.entries) - self.protected, 0
        while left > 1 and (left > events or self.size > most):
            size = len(self.entries[drop] or b"")
            self.size -= size
            self.taken -= size + _ENTRY_BYTES
            left -= 1
            drop += 1
        del self.entries[:drop]

    def cut_down(self) -> None:
        """Drop all that may be dropped."""
        self._trim(1, 0)

    def is_full(self, size: int, limits: LogLimits) -> bool:
        """Whether an entry of that size would have one dropped that the client keeps up to read."""
        if self.position is None or self.position >= self.last:
            return False
        return self.last - self.position >= limits.events or self.unread + size > limits.bytes

    def deliver(self, number: int) -> None:
        """Note that everything up to an entry was delivered."""
        self.position = number
        self.unread = sum(len(data or b"") for data in self._after(number))
        self.go_on()

    def leave(self, reader: str = "") -> None:
        """Have nobody wait for the client that has read so far; another request may read next."""
        self.reader, self.position = reader, None
        self.go_on()

    def go_on(self) -> None:
        """Wake whoever waits for the client to read."""
        if self.moved is not None:
            self.moved.set()
            self.moved = None

    def page(self, number: int) -> list[tuple[int, bytes | None]]:
        """Return the first entries after `number`, some `PAGE_BYTES` at most, but one at least if there are any."""
        if not self.covers(number):
            raise UnknownEventError
        found: list[tuple[int, bytes | None]] = []
        size = 0
        for place, data in enumerate(self._after(number), max(number, self.last - len(self.entries)) + 1):
            size += len(data or b"")
            if found and size > PAGE_BYTES:
                break
            found.append((place, data))
        return found

    def _after(self, number: int) -> list[bytes | None]:
        return self.entries[max(0, len(self.entries) - (self.last - number)) :]

    def covers(self, number: int) -> bool:
        """Whether `number` is, or was, the number of an entry, or the one before the first."""
        return not self.dropped and number <= self.last

    def wake(self) -> None:
        if self.grown is not None:
            self.grown.set()
            self.grown = None


_Tier = OrderedDict[_Log, None]
"""Logs of one kind, the one that was used least recently first."""


class MemoryBackplane:
    """Revocations, event logs and session state of one process."""

    shared = False

    def __init__(
        self,
        limits: LogLimits | None = None,
        clock: Callable[[], float] = time.time,
        *,
        most_ended: int = MOST_ENDED,
    ) -> None:
        """Make an empty backplane. `clock` is the wall clock, by which ids expire; logs go by the event loop's."""
        self.limits = limits or LogLimits()
        self._clock = clock
        self._ended = EndedSessions(most_ended)
        self._logs: dict[str, dict[str, _Log]] = {}
        self._delivered: _Tier = OrderedDict()
        self._finished: _Tier = OrderedDict()
        self._open: _Tier = OrderedDict()
        self._taken = 0
        self._states: dict[str, tuple[float, dict[str, bytes]]] = {}
        # Ids of an earlier process must not be taken for this one's: its numbers start again.
        self.worker = secrets.token_hex(4)
        self._numbers = count()

    @property
    def available(self) -> bool:
        """Always."""
        return True

    @property
    def log_bytes(self) -> int:
        """What the logs take, in bytes."""
        return self._taken

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
        self._ended.add(session, until)

    def has_heard(self, session: str, watch: int, until: float = math.inf) -> bool:  # noqa: ARG002 - the protocol's
        """Whether a session was ended: nobody else knows more."""
        return self._ended.covers(session, until)

    async def is_revoked(self, session: str, until: float = math.inf) -> bool:
        """Whether a session was ended."""
        return self._ended.covers(session, until)

    async def tail(self, stream: StreamKey) -> str:
        """Open a stream's log where it does not exist, and return the id after which the next entry will come."""
        log = self._log(stream)
        return _id(log, log.last)

    async def append(
        self,
        stream: StreamKey,
        data: bytes | None,
        calls: bytes | None = None,  # noqa: ARG002 - the protocol's; should this worker die, its logs do, too
        number: int | None = None,  # noqa: ARG002 - the protocol's; what was added is known here
        *,
        result: bool = False,
        delivered: bool = False,
        patience: float = 0.0,
    ) -> str | None:
        """Add an entry, opening the log where it does not exist, and return its id; None where the log has ended."""
        log = self._log(stream)
        if patience and log.is_full(len(data or b""), self.limits):
            await self._wait_for_room(log, len(data or b""), patience)
            log = self._log(stream)  # it may be gone by now
        if log.ended:
            return None
        before = log.taken
        log.add(data, self.limits, result=result)
        self._taken += log.taken - before
        if data is None:
            self._move(log, self._delivered if delivered else self._finished)
        if self._taken > self.limits.total_bytes:
            self._make_room(log)
        return _id(log, log.last)

    async def _wait_for_room(self, log: _Log, size: int, patience: float) -> None:
        with anyio.move_on_after(patience):
            while log.is_full(size, self.limits):
                log.moved = log.moved or anyio.Event()
                await log.moved.wait()
            return
        log.position = None  # nobody waits for this client again until it has read something

    async def is_open(self, stream: StreamKey) -> bool:
        """Whether a stream has a log."""
        return stream.name in self._logs.get(stream.session, {})

    async def holds(self, stream: StreamKey, after: str) -> bool:
        """Whether `after` is an id of this log."""
        try:
            log, number = self._point(stream, after)
        except UnknownEventError:
            return False
        return log.covers(number)

    async def settle(self, stream: StreamKey) -> None:
        """Note that a client was sent a finished log to its end."""
        log = self._logs.get(stream.session, {}).get(stream.name)
        if log is not None and log.ended:
            self._move(log, self._delivered)

    async def take_over(self, stream: StreamKey, name: str) -> Holder | None:
        """Note who reads a standalone stream; there is no other worker to take it over from."""
        self._log(stream).leave(name)
        return None

    async def release(self, stream: StreamKey, name: str) -> None:
        """Note that nobody reads a standalone stream any more, unless another request has taken over from `name`."""
        log = self._logs.get(stream.session, {}).get(stream.name)
        if log is not None and log.reader == name:
            log.leave()

    async def is_held(self, stream: StreamKey) -> bool:  # noqa: ARG002 - the protocol's
        """Say no: whoever asks knows whether this worker serves it, and there is no other."""
        return False

    async def read(self, stream: StreamKey, after: str) -> list[Entry]:
        """Wait until there are entries after `after`, and return the first of them."""
        log, number = self._point(stream, after)
        if log.reader and log.covers(number):
            log.deliver(number)
        log.readers += 1
        try:
            while not (entries := log.page(number)):
                log.grown = log.grown or anyio.Event()
                await log.grown.wait()
        finally:
            log.readers -= 1
            self._touch(log)
        return [Entry(_id(log, place), data) for place, data in entries]

    async def peek(self, stream: StreamKey, after: str) -> list[Entry]:
        """Return the first of the entries after `after` that are there already."""
        log, number = self._point(stream, after)
        return [Entry(_id(log, place), data) for place, data in log.page(number)]

    def _point(self, stream: StreamKey, after: str) -> tuple[_Log, int]:
        """Return a stream's log, and the number that stands in one of its ids."""
        log = self._logs.get(stream.session, {}).get(stream.name)
        match = _ENTRY_ID.fullmatch(after)
        if log is None or match is None or match[1] != log.name:
            raise UnknownEventError
        return log, int(match[2])

    async def forget(self, session: str) -> None:
        """Drop all logs and the state of a session that ended."""
        self._states.pop(session, None)
        for log in list(self._logs.get(session, {}).values()):
            self._drop(log)

    async def load_state(self, session: str) -> Mapping[str, bytes]:
        """Return a session's state: JSON values by name."""
        until, state = self._states.get(session, (0.0, {}))
        return dict(state) if until > self._clock() else {}

    async def save_state(self, session: str, changes: Mapping[str, bytes | None], until: float) -> None:
        """Change a session's state; None removes a name."""
        if self._ended.covers(session, until):
            return
        merged = {**await self.load_state(session), **changes}
        state = {name: value for name, value in merged.items() if value is not None}
        if size_of(state) > STATE_LIMIT:
            raise StateTooLargeError
        self._states[session] = (until, state)

    async def prune(self) -> None:
        """Drop revocations and states of ids that have expired, and logs that nobody came back for."""
        wall = self._clock()
        for session in [session for session, (until, _) in self._states.items() if until <= wall]:
            del self._states[session]
        self._ended.prune(wall)
        for tier, age in (
            (self._delivered, self.limits.delivered_age),
            (self._finished, self.limits.age),
            (self._open, self.limits.age),
        ):
            self._drop_older(tier, now() - age)

    def _drop_older(self, tier: _Tier, horizon: float) -> None:
        while tier and (log := next(iter(tier))).touched <= horizon:
            if log.readers:
                self._touch(log)
            else:
                self._drop(log)

    def _log(self, stream: StreamKey) -> _Log:
        """Return a stream's log, which is opened where there is none."""
        logs = self._logs.get(stream.session)
        if logs is None:
            logs = self._logs[stream.session] = {}
        log = logs.get(stream.name)
        if log is None:
            log = logs[stream.name] = _Log(stream, f"{self.worker}{next(self._numbers):x}", self._open)
            self._open[log] = None
            self._taken += log.taken
        self._touch(log)
        return log

    def _touch(self, log: _Log) -> None:
        """Note that a log was used just now."""
        log.touched = now()
        if not log.dropped:
            log.tier.move_to_end(log)

    def _move(self, log: _Log, tier: _Tier) -> None:
        """Put a log among those of another kind, as the one that was used last."""
        del log.tier[log]
        log.tier = tier
        tier[log] = None
        log.touched = now()
        self._drop_older(self._delivered, now() - self.limits.delivered_age)

    def _make_room(self, grown: _Log) -> None:
        """Drop what is needed least until the logs are within their bound, but nothing of the log that has grown.

        A log that somebody waits to read on was read to its end, so it may be cut down, but not dropped.
        """
        for tier in (self._delivered, self._finished):
            self._each_unused(tier, grown, self._drop_unread)
        self._each_unused(self._open, grown, self._cut_down)
        self._each_unused(self._open, grown, self._drop_unread)

    def _each_unused(self, tier: _Tier, grown: _Log, act: Callable[[_Log], None]) -> None:
        """Act on the logs of one kind, the longest unused first, as long as there are too many bytes."""
        for log in list(islice(tier, _LOOKS)) if self._taken > self.limits.total_bytes else ():
            tier.move_to_end(log)
            if log is not grown:
                act(log)
            if self._taken <= self.limits.total_bytes:
                break

    def _cut_down(self, log: _Log) -> None:
        before = log.taken
        log.cut_down()
        self._taken += log.taken - before

    def _drop_unread(self, log: _Log) -> None:
        if not log.readers:
            self._drop(log)

    def _drop(self, log: _Log) -> None:
        """Forget a log; whoever reads it receives `UnknownEventError`."""
        del log.tier[log]
        logs = self._logs[log.stream.session]
        del logs[log.stream.name]
        if not logs:
            del self._logs[log.stream.session]
        self._taken -= log.taken
        log.dropped = True
        log.wake()
        log.leave()


def _id(log: _Log, number: int) -> str:
    return f"{log.name}-{number}"
