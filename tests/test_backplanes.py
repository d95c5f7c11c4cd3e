"""What any backplane does: one suite for both of them, and what only a shared one can."""

from __future__ import annotations

import math
import secrets
import select
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import structlog.testing
from anyio.abc import SocketAttribute
from coredis.exceptions import ResponseError
from hypothesis import given
from hypothesis import strategies as st

from harness.properties import examples
from harness.redis import RedisServer, redis_server
from mcp_hybrid.backplane import (
    Backplane,
    BackplaneUnavailableError,
    Entry,
    Holder,
    LogLimits,
    MemoryBackplane,
    Signal,
    SignalKind,
    StateTooLargeError,
    StreamKey,
    UnknownEventError,
    number_of,
)
from mcp_hybrid.backplane.protocol import PAGE_BYTES, STATE_LIMIT
from mcp_hybrid.backplane.redis import RedisBackplane, inbox, logs
from mcp_hybrid.backplane.redis.connection import FAILURES, RedisConnection

CALL = StreamKey("session", "c1")
SOON = 60.0
"""Seconds for what happens at once, on a machine that does much else."""

Make = Callable[..., Any]


@asynccontextmanager
async def running(*backplanes: Backplane) -> AsyncIterator[list[list[Signal]]]:
    """Run backplanes, and collect what each of their workers hears."""
    heard: list[list[Signal]] = [[] for _ in backplanes]

    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for backplane, signals in zip(backplanes, heard, strict=True):

            async def hear(signal: Signal, signals: list[Signal] = signals) -> None:
                signals.append(signal)

            await tasks.start(backplane.run, hear)
        yield heard
        tasks.cancel_scope.cancel()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def make(request: pytest.FixtureRequest) -> Make:
    """Make backplanes of one kind; those of one test share what that kind can share."""
    prefix = f"test-{secrets.token_hex(4)}:"

    def make_one(limits: LogLimits | None = None) -> Backplane:
        if request.param == "memory":
            return MemoryBackplane(limits)
        server: RedisServer = request.getfixturevalue("shared_redis")
        return RedisBackplane(server.url, prefix=prefix, limits=limits)

    return make_one


async def added(backplane: Backplane, data: bytes | None, calls: bytes | None = None) -> str:
    """Add an entry to a log that has not ended."""
    entry = await backplane.append(CALL, data, calls)
    assert entry is not None
    return entry


async def test_an_ended_session_stays_ended(make: Make) -> None:
    backplane = make()
    async with running(backplane):
        assert not await backplane.is_revoked("a")
        await backplane.revoke("a", time.time() + 60)
        assert await backplane.is_revoked("a")
        assert not await backplane.is_revoked("b")


async def test_a_log_is_read_from_where_one_was(make: Make) -> None:
    backplane = make()
    async with running(backplane):
        assert not await backplane.is_open(CALL)
        first = await added(backplane, b"")
        second = await added(backplane, b"two")
        end = await added(backplane, None)
        assert await backplane.is_open(CALL)
        assert [tuple(entry) for entry in await backplane.read(CALL, first)] == [(second, b"two"), (end, None)]
        assert await backplane.holds(CALL, second)


async def test_a_reader_waits_for_what_comes(make: Make) -> None:
    backplane = make()
    async with running(backplane):
        after = await backplane.tail(CALL)
        read: list[Any] = []

        async def follow() -> None:
            read.extend(await backplane.read(CALL, after))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.sleep(0.05)
            assert read == []
            await backplane.append(CALL, b"x")
        assert [entry.data for entry in read] == [b"x"]


async def test_who_only_looks_does_not_wait(make: Make) -> None:
    backplane = make()
    async with running(backplane):
        first = await added(backplane, b"one")
        assert await backplane.peek(CALL, first) == []
        second = await added(backplane, None)
        assert await backplane.peek(CALL, first) == [(second, None)]
        with pytest.raises(UnknownEventError):
            await backplane.peek(CALL, "99-99")
        with pytest.raises(UnknownEventError):
            await backplane.peek(StreamKey("session", "c2"), first)


async def test_an_id_that_is_not_in_the_log_is_told_so(make: Make) -> None:
    backplane = make()
    async with running(backplane):
        other = StreamKey("other", "c1")
        own = await added(backplane, b"own")
        await backplane.append(other, b"other")
        for stream, after in [(StreamKey("session", "c2"), own), (CALL, "99-99")]:
            assert not await backplane.holds(stream, after)
            with pytest.raises(UnknownEventError):
                await backplane.read(stream, after)


async def test_a_log_keeps_so_many_entries_and_bytes(make: Make) -> None:
    backplane = make(LogLimits(events=3, bytes=100))
    async with running(backplane):
        ids = [await added(backplane, b"x") for _ in range(5)]
        assert [entry.id for entry in await backplane.read(CALL, ids[0])] == ids[2:]
        large = await added(backplane, b"y" * 98)
        assert [entry.id for entry in await backplane.read(CALL, ids[0])] == [ids[3], ids[4], large]
        larger = await added(backplane, b"y" * 101)
        assert [entry.id for entry in await backplane.read(CALL, ids[0])] == [larger]


async def test_what_was_dropped_from_a_log_shows_in_the_numbers(make: Make) -> None:
    backplane = make(LogLimits(events=3))
    async with running(backplane):
        start = await backplane.tail(CALL)
        for _ in range(5):
            await added(backplane, b"x")
        assert await backplane.holds(CALL, start)
        assert [number_of(entry.id) for entry in await backplane.read(CALL, start)] == [3, 4, 5]
        assert number_of(start) == 0


async def test_results_are_kept_whatever_else_is_dropped(make: Make) -> None:
    backplane = make(LogLimits(events=3, bytes=100))
    async with running(backplane):
        start = await backplane.tail(CALL)
        for _ in range(5):
            await added(backplane, b"x")
        for size in (1_200_000, 500):
            await backplane.append(CALL, b"r" * size, result=True)
        await backplane.append(CALL, None)
        read = await all_of(backplane, start)
        assert [len(entry.data or b"") for entry in read] == [1, 1, 1, 1_200_000, 500, 0]


async def all_of(backplane: Backplane, after: str) -> list[Entry]:
    """Read a log that has ended, page by page."""
    read: list[Entry] = []
    while not read or read[-1].data is not None:
        read += await backplane.read(CALL, read[-1].id if read else after)
    return read


async def test_a_log_is_read_in_bounded_pages(make: Make) -> None:
    backplane = make()
    async with running(backplane):
        start = await backplane.tail(CALL)
        for _ in range(9):
            await added(backplane, b"x" * (PAGE_BYTES // 3))
        await added(backplane, None)
        page = await backplane.read(CALL, start)
        assert len(page) == 3
        assert len(await all_of(backplane, start)) == 10


FOREIGN = [
    "", "-", "1", "s.1-1", "99-99", "deadbeef-3", f"1-{'1' * 5000}", f"{2**64}-1", f"{2**63}-{2**64}", "1--1", "1-1 ",
    "1-\u0661", "(1-1", "+", "-1-1",
]  # fmt: skip


@pytest.mark.parametrize("after", FOREIGN)
async def test_an_id_of_any_other_form_is_none_of_the_log(make: Make, after: str) -> None:
    """Those of another backplane, too: none of them is a fault of the server's, or says anything about Redis."""
    backplane = make()
    async with running(backplane):
        own = await added(backplane, b"x")
        foreign = [after, f"{own}{'1' * 5000}", f"{own.partition('-')[0]}-{'9' * 18}", own.upper() + "0" * 20]
        for each in foreign:
            assert not await backplane.holds(CALL, each)
            for look in (backplane.read, backplane.peek):
                with pytest.raises(UnknownEventError):
                    await look(CALL, each)
        assert backplane.available


async def test_a_log_that_was_opened_anew_does_not_know_the_ids_of_the_one_before(make: Make) -> None:
    backplane = make(LogLimits(age=0.0, delivered_age=0.05))
    async with running(backplane):
        before = await added(backplane, b"x")
        await gone(backplane)
        after = await added(backplane, b"y")
        assert number_of(before) == number_of(after) == 1
        assert not await backplane.holds(CALL, before)


async def gone(backplane: Backplane) -> None:
    """Wait until the log of the call has run out."""
    with anyio.fail_after(SOON):
        while await backplane.is_open(CALL):
            await backplane.prune()
            await anyio.sleep(0.02)


@pytest.mark.parametrize("delivered", ["at the end", "by another connection"])
async def test_a_log_that_was_delivered_whole_is_let_go_soon(make: Make, delivered: str) -> None:
    backplane = make(LogLimits(age=3600, delivered_age=0.05))
    async with running(backplane):
        start = await backplane.tail(CALL)
        await backplane.append(CALL, b"r", result=True)
        await backplane.settle(CALL)  # which has not ended: nothing happens
        await backplane.append(CALL, None, delivered=delivered == "at the end")
        if delivered != "at the end":
            assert len(await all_of(backplane, start)) == 2
            await backplane.settle(CALL)
        await gone(backplane)


async def test_a_log_that_was_not_delivered_is_kept_for_its_age(make: Make) -> None:
    backplane = make(LogLimits(age=3600, delivered_age=0.0))
    async with running(backplane):
        start = await backplane.tail(CALL)
        await backplane.settle(CALL)
        await backplane.append(CALL, None)
        await backplane.prune()
        assert len(await all_of(backplane, start)) == 1


# ---- a writer that is faster than its reader


STREAM = StreamKey("5e55", "s")


async def test_who_writes_waits_for_a_client_that_reads(make: Make) -> None:
    backplane = make(LogLimits(events=10))
    async with running(backplane):
        after = await backplane.tail(STREAM)
        await backplane.take_over(STREAM, "get")
        read: list[Entry] = []

        async def write() -> None:
            for number in range(100):
                await backplane.append(STREAM, str(number).encode(), patience=SOON)

        async with anyio.create_task_group() as tasks:
            read_up_to = after
            with anyio.move_on_after(0.05):
                await backplane.read(STREAM, after)
            tasks.start_soon(write)
            while len(read) < 100:
                page = await backplane.read(STREAM, read_up_to)
                read += page
                read_up_to = page[-1].id
        assert [entry.data for entry in read] == [str(number).encode() for number in range(100)]


async def test_the_oldest_go_where_the_client_does_not_read_in_time(make: Make) -> None:
    backplane = make(LogLimits(events=10, bytes=1000))
    async with running(backplane):
        after = await backplane.tail(STREAM)
        await backplane.take_over(STREAM, "get")
        with anyio.move_on_after(0.05):
            await backplane.read(STREAM, after)
        waited: list[float] = []
        for number in range(30):
            started = time.monotonic()
            await backplane.append(STREAM, str(number).encode(), patience=0.2)
            waited.append(time.monotonic() - started)
        # It is waited for once, and not again until it has read something.
        assert [number for number, seconds in enumerate(waited) if seconds >= 0.2][:1] == [10]
        assert sum(waited[11:]) < 19 * 0.2
        entries = await backplane.read(STREAM, after)
        assert [entry.data for entry in entries] == [str(number).encode() for number in range(20, 30)]
        assert number_of(entries[0].id) - number_of(after) - 1 == 20


@pytest.mark.parametrize("reader", ["never was", "has left"])
async def test_nobody_waits_for_a_client_that_is_not_there(make: Make, reader: str) -> None:
    backplane = make(LogLimits(events=10))
    async with running(backplane):
        after = await backplane.tail(STREAM)
        if reader == "has left":
            await backplane.take_over(STREAM, "get")
            with anyio.move_on_after(0.05):
                await backplane.read(STREAM, after)
            await backplane.release(STREAM, "get")
        with anyio.fail_after(SOON):
            for _ in range(30):
                await backplane.append(STREAM, b"x", patience=10 * SOON)


# ---- all logs together


def limits_of(total: int) -> LogLimits:
    return LogLimits(total_bytes=total, age=3600, delivered_age=1800)


async def fill(backplane: Backplane, name: str, size: int, *, end: bool, delivered: bool = False) -> StreamKey:
    stream = StreamKey("session", name)
    await backplane.append(stream, b"x" * size, result=end)
    if end:
        await backplane.append(stream, None, delivered=delivered)
    return stream


async def test_all_logs_together_are_bounded_and_what_was_delivered_goes_first(make: Make) -> None:
    backplane = make(limits_of(100_000))
    async with running(backplane):
        lost = await fill(backplane, "lost", 20_000, end=True)
        runs = await fill(backplane, "runs", 20_000, end=False)
        delivered = await fill(backplane, "delivered", 20_000, end=True, delivered=True)
        later = await fill(backplane, "later", 30_000, end=True)
        assert [await backplane.is_open(stream) for stream in (lost, runs, delivered, later)] == [True] * 4
        latest = await fill(backplane, "latest", 20_000, end=True)
        kept = [await backplane.is_open(stream) for stream in (lost, runs, delivered, later, latest)]
        assert kept == [True, True, False, True, True]
        await fill(backplane, "more", 20_000, end=True)
        assert not await backplane.is_open(lost)
        assert await backplane.is_open(runs)


async def test_the_logs_of_running_streams_are_cut_down_to_what_is_newest(make: Make) -> None:
    backplane = make(limits_of(50_000))
    async with running(backplane):
        start = await backplane.tail(CALL)
        for _ in range(20):
            await backplane.append(CALL, b"x" * 1000)
        for number in range(3):
            await fill(backplane, f"other{number}", 12_000, end=False)
        await backplane.append(CALL, b"r", result=True)
        await backplane.append(CALL, None)
        assert [entry.data for entry in await all_of(backplane, start)] == [b"x" * 1000, b"r", None]


async def test_many_small_logs_are_bounded_as_well(make: Make) -> None:
    backplane = make(limits_of(100_000))
    async with running(backplane):
        streams = [await fill(backplane, f"c{number}", 10, end=number % 2 == 0) for number in range(200)]
        kept = [await backplane.is_open(stream) for stream in streams]
        assert 20 < sum(kept) < 100
        assert kept[-1]


async def test_ended_sessions_are_bounded_and_none_comes_back(make_ending: Make) -> None:
    backplane, now = make_ending(10), int(time.time())
    async with running(backplane):
        ended = [secrets.token_hex(16) for _ in range(40)]
        for number, session in enumerate(ended):
            await backplane.revoke(session, now + 1000 + 20 * number)
        for number, session in enumerate(ended):
            assert await backplane.is_revoked(session, now + 1000 + 20 * number)
            assert backplane.has_heard(session, 0, now + 1000 + 20 * number)
        # One that was issued before those that are remembered no more is over as well, but not one issued later.
        other = secrets.token_hex(16)
        assert await backplane.is_revoked(other, now + 1000)
        assert not await backplane.is_revoked(other, now + 1000 + 20 * 39)
        assert not await backplane.is_revoked(other)


async def test_an_end_is_remembered_by_a_worker_that_starts_later(shared_redis: RedisServer) -> None:
    prefix, now = f"test-{secrets.token_hex(4)}:", int(time.time())
    one, later = (RedisBackplane(shared_redis.url, prefix=prefix, most_ended=10) for _ in range(2))
    ended = [secrets.token_hex(16) for _ in range(40)]
    async with running(one):
        for number, session in enumerate(ended):
            await one.revoke(session, now + 1000 + 20 * number)
    async with running(later):
        for number, session in enumerate(ended):
            assert await later.is_revoked(session, now + 1000 + 20 * number)
        assert await later._do(b"ZCARD", later._each("ended")[0]) <= 12
        assert not await later.is_revoked(secrets.token_hex(16), now + 1000 + 20 * 39)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def make_ending(request: pytest.FixtureRequest) -> Make:
    """Make backplanes that remember so many ended sessions."""

    def make_one(most: int) -> Backplane:
        if request.param == "memory":
            return MemoryBackplane(most_ended=most)
        server: RedisServer = request.getfixturevalue("shared_redis")
        return RedisBackplane(server.url, prefix=f"test-{secrets.token_hex(4)}:", most_ended=most)

    return make_one


async def test_state_is_changed_name_by_name_and_bounded(make: Make) -> None:
    backplane, until = make(), time.time() + 60
    async with running(backplane):
        await backplane.save_state("a", {"x": b"1", "y": b'"z"'}, until)
        await backplane.save_state("a", {"x": None, "w": b"[]"}, until)
        assert await backplane.load_state("a") == {"y": b'"z"', "w": b"[]"}
        with pytest.raises(StateTooLargeError):
            await backplane.save_state("a", {"big": b"x" * STATE_LIMIT}, until)
        assert await backplane.load_state("a") == {"y": b'"z"', "w": b"[]"}
        assert await backplane.load_state("b") == {}
        await backplane.forget("a")
        assert await backplane.load_state("a") == {}


async def test_no_state_is_kept_for_a_session_that_was_ended(make: Make) -> None:
    backplane, until = make(), time.time() + 60
    async with running(backplane):
        await backplane.revoke("a", until)
        await backplane.save_state("a", {"x": b"1"}, until)
        assert await backplane.load_state("a") == {}


steps = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]), st.sampled_from(["s", "c1", "c2"]), st.sampled_from(["append", "read", "end"])
    ),
    max_size=25,
)


@examples(40)
@given(steps=steps)
async def test_an_event_never_reaches_another_session_or_stream(make: Make, steps: list[tuple[str, str, str]]) -> None:
    backplane = make()
    run = secrets.token_hex(3)  # the examples of one test share a Redis
    async with running(backplane):
        written: dict[StreamKey, list[bytes | None]] = {}
        starts: dict[StreamKey, str] = {}
        for number, (session, name, step) in enumerate(steps):
            stream = StreamKey(run + session, name)
            if stream not in starts:
                starts[stream], written[stream] = await backplane.tail(stream), []
            if step == "read":
                await check(backplane, stream, starts[stream], written[stream])
            else:
                data = f"{run} {session} {name} {number}".encode() if step == "append" else None
                over = None in written[stream]
                assert (await backplane.append(stream, data) is None) is over
                written[stream] += [] if over else [data]
        for stream, start in starts.items():
            await check(backplane, stream, start, written[stream])


async def check(backplane: Backplane, stream: StreamKey, start: str, written: list[bytes | None]) -> None:
    """Every delivery is what was written to this stream, in order, and nothing else."""
    if written:
        assert [entry.data for entry in await backplane.read(stream, start)] == written


# ---- two workers, and all of it at once


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def make_two(request: pytest.FixtureRequest) -> Callable[[], list[Backplane]]:
    """Make what two workers of a deployment have: in memory they can only be one."""

    def make() -> list[Backplane]:
        if request.param == "memory":
            return [MemoryBackplane()] * 2
        server: RedisServer = request.getfixturevalue("shared_redis")
        prefix = f"test-{secrets.token_hex(4)}:"
        return [RedisBackplane(server.url, prefix=prefix) for _ in range(2)]

    return make


class World:
    """What two workers have done, and what each follower, session and worker is therefore to be told."""

    def __init__(self, workers: list[Backplane], tasks: anyio.abc.TaskGroup) -> None:
        self.workers = workers
        self.tasks = tasks
        self.starts: dict[StreamKey, str] = {}
        self.written: defaultdict[StreamKey, dict[str, bytes | None]] = defaultdict(dict)
        self.followers: list[tuple[StreamKey, str, list[Entry]]] = []
        self.states: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        self.told: list[list[Signal]] = [[], []]
        self._number = 0

    async def take(self, step: str, worker: int, stream: StreamKey, other: StreamKey) -> None:
        """Take one step; `other` is a stream, of the same session or of another one, that it must have no part in."""
        self._number += 1
        for each in (stream, other):
            if each not in self.starts:
                self.starts[each] = await self.workers[worker].tail(each)
        await getattr(self, step)(worker, stream, other)

    async def append(self, worker: int, stream: StreamKey, _other: StreamKey) -> None:
        await self._add(worker, stream, f"{stream} {self._number}".encode())

    async def append_at_once(self, worker: int, stream: StreamKey, other: StreamKey) -> None:
        async with anyio.create_task_group() as tasks:
            for who, where in ((worker, stream), (1 - worker, stream), (worker, other), (1 - worker, other)):
                tasks.start_soon(self._add, who, where, f"{where} {self._number} {who} {where == other}".encode())

    async def end(self, worker: int, stream: StreamKey, _other: StreamKey) -> None:
        await self._add(worker, stream, None)

    async def follow(self, worker: int, stream: StreamKey, _other: StreamKey) -> None:
        """Follow a stream from one of its messages, or from before the first."""
        begun = [self.starts[stream], *(id_ for id_, data in self.written[stream].items() if data is not None)]
        after = begun[self._number % len(begun)]
        seen: list[Entry] = []
        self.followers.append((stream, after, seen))
        self.tasks.start_soon(self._follow, self.workers[worker], stream, after, seen)

    async def read_by_a_foreign_cursor(self, worker: int, stream: StreamKey, other: StreamKey) -> None:
        own = {(id_, data) for id_, data in self.written[stream].items()}
        for cursor in (self.starts[other], *self.written[other]):
            with suppress(UnknownEventError):  # or by chance it is one of this stream's, too
                assert {*map(tuple, await self.workers[worker].peek(stream, cursor))} <= own

    async def keep(self, worker: int, stream: StreamKey, other: StreamKey) -> None:
        value = str(self._number).encode() if self._number % 4 else None
        await self.workers[worker].save_state(stream.session, {other.name: value}, time.time() + 60)
        self.states[stream.session].pop(other.name, None)
        if value is not None:
            self.states[stream.session][other.name] = value
        for session in (stream.session, other.session):
            assert await self.workers[1 - worker].load_state(session) == self.states[session]

    async def tell(self, worker: int, stream: StreamKey, _other: StreamKey) -> None:
        signal = Signal(SignalKind.CANCEL, stream.session, str(self._number).encode())
        if self._number % 2:
            await self.workers[worker].broadcast(signal)
        else:
            await self.workers[worker].send(self.workers[1 - worker].worker, signal)
        if self.workers[worker].shared:
            self.told[1 - worker].append(signal)

    async def end_all(self) -> None:
        for stream in self.starts:
            await self._add(0, stream, None)

    def check(self) -> None:
        """Check that every follower was told all that came after its cursor, in order, and nothing else."""
        for stream, after, seen in self.followers:
            due = [(id_, data) for id_, data in self.written[stream].items() if place(id_) > place(after)]
            assert [*map(tuple, seen)] == sorted(due, key=lambda entry: place(entry[0]))

    async def _add(self, worker: int, stream: StreamKey, data: bytes | None) -> None:
        over = None in self.written[stream].values()
        added_as = await self.workers[worker].append(stream, data)
        assert (added_as is None) is over
        if added_as is not None:
            self.written[stream][added_as] = data

    async def _follow(self, backplane: Backplane, stream: StreamKey, after: str, seen: list[Entry]) -> None:
        while not seen or seen[-1].data is not None:
            seen += await backplane.read(stream, seen[-1].id if seen else after)


def place(entry: str) -> tuple[int, ...]:
    """Give what puts the ids of a log in order; those in memory begin with a name."""
    return tuple(int(part, 16) for part in entry.split("-"))


ANY_STREAM = st.builds(StreamKey, st.sampled_from(["a", "b"]), st.sampled_from(["s", "c1", "c2"]))
STEPS = ["append", "append_at_once", "end", "follow", "read_by_a_foreign_cursor", "keep", "tell"]


@examples(40)
@given(plan=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1), ANY_STREAM, ANY_STREAM), max_size=40))
async def test_whatever_two_workers_do_everybody_is_told_what_is_theirs_and_nothing_else(
    make_two: Callable[[], list[Backplane]], plan: list[tuple[str, int, StreamKey, StreamKey]]
) -> None:
    workers = make_two()
    async with running(*dict.fromkeys(workers)) as heard:
        if len(heard) == 2:
            await until(lambda: all(getattr(each, "_heard_at") > -math.inf for each in workers))  # noqa: B009
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as tasks:
                world = World(workers, tasks)
                for step in plan:
                    await world.take(*step)
                await world.end_all()
        world.check()
        if len(heard) == 2:
            await until(lambda: [*map(len, heard)] == [*map(len, world.told)])
            assert heard == world.told


# ---- what only a shared one can


@pytest.fixture
def pair(shared_redis: RedisServer) -> tuple[RedisBackplane, RedisBackplane]:
    prefix = f"test-{secrets.token_hex(4)}:"
    return RedisBackplane(shared_redis.url, prefix=prefix), RedisBackplane(shared_redis.url, prefix=prefix)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(SOON):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process's time
            await anyio.sleep(0.01)


async def test_workers_hear_what_is_meant_for_them(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    one, other = pair
    async with running(one, other) as (ones, others):
        await beaten(one, other)
        to_one, to_all = Signal(SignalKind.ANSWER, "s", b"\x00\xff"), Signal(SignalKind.CANCEL, "s", b"7")
        await other.send(one.worker, to_one)
        await one.broadcast(to_all)
        await until(lambda: len(ones) == 1 and len(others) == 1)
        assert (ones, others) == ([to_one], [to_all])


ENTRIES: dict[str, list[bytes]] = {
    "nothing of ours": [b"hello", b"world"],
    "of a kind that a later release may have": [b"kind", b"greet", b"session", b"s", b"body", b"x"],
    "without a session": [b"kind", b"cancel"],
    "an end that is cut short": [b"kind", b"end", b"session", b"s", b"body", b"1.0"],
    "an end without a time": [b"kind", b"end", b"session", b"s", b"body", b"soon worker token"],
    "not UTF-8": [b"\xff", b"x"],
    "a session that is not UTF-8": [b"kind", b"cancel", b"session", b"\xff", b"body", b"7"],
    "heard, without by whom": [b"heard", b"token"],
}


async def test_what_is_not_understood_in_an_inbox_is_passed_over_and_told_once(
    pair: tuple[RedisBackplane, RedisBackplane],
) -> None:
    one, other = pair
    with structlog.testing.capture_logs() as lines:
        async with running(*pair) as (ones, _):
            await beaten(*pair)
            for entry in ENTRIES.values():
                await other._do(b"XADD", other._key("inbox", one.worker), b"*", *entry)
            word = Signal(SignalKind.CANCEL, "s", b"7")
            await other.send(one.worker, word)
            await until(lambda: ones == [word])
            assert one.available
    assert [line["log_level"] for line in lines if "not understood" in line["event"]] == ["error"]


async def test_what_was_heard_is_not_kept(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    one, other = pair
    async with running(*pair) as (ones, _):
        await beaten(*pair)
        for _ in range(20):
            await other.send(one.worker, Signal(SignalKind.CANCEL, "s", b"7"))
        await until(lambda: len(ones) == 20)
        with anyio.fail_after(SOON):
            while await other._do(b"XLEN", other._key("inbox", one.worker)) > 1:  # noqa: ASYNC110 - see `until`
                await anyio.sleep(0.01)


async def test_nothing_is_kept_for_a_worker_that_never_was(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    one, _ = pair
    async with running(one):
        await beaten(one)
        await one.send("0" * 12, Signal(SignalKind.ANSWER, "s", b"x" * 100_000))
        assert not await one._do(b"EXISTS", one._key("inbox", "0" * 12))


async def test_a_worker_that_takes_nothing_is_kept_so_many_bytes_and_not_more(
    pair: tuple[RedisBackplane, RedisBackplane], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    monkeypatch.setattr(inbox, "INBOX_BYTES", 1_000_000)
    async with running(one):
        await beaten(one)
        await one._do(b"ZADD", one._each("workers")[0], int(time.time()), b"stuck")
        large = Signal(SignalKind.ANSWER, "s", b"x" * 300_000)
        taken = 0
        with suppress(BackplaneUnavailableError):
            for _ in range(100):
                await one.send("stuck", large)
                taken += 1
        assert 3 <= taken <= 4
        await one.send("stuck", Signal(SignalKind.CANCEL, "s", b"7"))
        assert await one._do(b"XLEN", one._key("inbox", "stuck")) == taken + 1
        assert one.available


async def test_a_worker_that_may_not_have_found_redis_back_yet_is_not_taken_for_gone(
    pair: tuple[RedisBackplane, RedisBackplane],
) -> None:
    one, _ = pair
    async with running(one):
        await beaten(one)
        await one.send("0" * 12, Signal(SignalKind.ANSWER, "s"))
        one._judging_from = time.monotonic() + 60  # as after an outage
        with pytest.raises(BackplaneUnavailableError):
            await one.send("0" * 12, Signal(SignalKind.ANSWER, "s"))


async def test_one_operation_that_takes_too_long_fails_alone(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    backplane, _ = pair
    async with running(backplane):
        await beaten(backplane)
        with pytest.raises(BackplaneUnavailableError):
            await backplane._do(b"BLPOP", backplane._key("nothing"), 3)
        assert backplane.available
        assert not await backplane.is_open(CALL)


async def test_a_log_is_followed_from_another_worker_without_delay(
    pair: tuple[RedisBackplane, RedisBackplane], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    monkeypatch.setattr(logs, "BEAT", math.inf)  # it does not look by itself
    async with running(*pair):
        after = await other.tail(CALL)
        seen: list[bytes | None] = []

        async def follow() -> None:
            position = after
            while None not in seen:
                entries = await other.read(CALL, position)
                seen.extend(entry.data for entry in entries)
                position = entries[-1].id

        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                for number in range(50):
                    await one.append(CALL, str(number).encode())
                await one.append(CALL, None)
        assert seen == [*(str(number).encode() for number in range(50)), None]


async def test_a_worker_that_takes_a_stream_over_learns_who_had_it(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    one, other = pair
    async with running(*pair):
        assert await one.take_over(CALL, "first") is None
        assert await one.take_over(CALL, "second") is None
        assert await other.take_over(CALL, "third") == Holder(one.worker, "second")


async def test_a_stream_is_held_until_the_last_that_took_it_over_lets_go_or_stops(
    pair: tuple[RedisBackplane, RedisBackplane],
) -> None:
    one, other = pair
    async with running(other):
        async with running(one):
            await beaten(one)
            assert not await other.is_held(CALL)
            await one.take_over(CALL, "first")
            await one.take_over(CALL, "second")
            await one.release(CALL, "first")
            assert await other.is_held(CALL)
            assert not await one.is_held(CALL)  # it knows itself whether it does
            await one.release(CALL, "second")
            assert not await other.is_held(CALL)
            await one.take_over(CALL, "third")
        assert not await other.is_held(CALL)


async def beaten(*backplanes: RedisBackplane) -> None:
    """Wait until workers are known to the others, and know all that was meant for them."""
    for backplane in backplanes:
        await until(partial(watches, backplane))


def watches(backplane: RedisBackplane) -> bool:
    return backplane.watch > 0


async def test_nothing_is_added_twice_or_after_the_end(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    """A writer that was not told in time whether an entry was added adds it again, under the same number."""
    backplane, _ = pair
    async with running(backplane):
        start = await backplane.append(CALL, b"", b"[1]", 1)
        assert start is not None
        first = await backplane.append(CALL, b"x", b"[1]", 2)
        assert await backplane.append(CALL, b"x", b"[1]", 2) == first
        await backplane.append(CALL, None, b"[1]", 3)
        assert await backplane.append(CALL, None, b"[1]", 3) is None
        assert await backplane.append(CALL, b"late", b"[1]", 4) is None
        assert [entry.data for entry in await backplane.read(CALL, start)] == [b"x", None]


@pytest.mark.redis
async def test_what_a_silent_redis_carries_out_late_is_not_there_twice() -> None:
    with redis_server() as server:
        backplane = RedisBackplane(server.url)
        async with running(backplane):
            start = await added(backplane, b"")
            server.stall()
            with pytest.raises(BackplaneUnavailableError):
                await backplane.append(CALL, b"x", b"[1]", 2)
            server.resume()
            await until_back(backplane)
            await backplane.append(CALL, b"x", b"[1]", 2)
            assert [entry.data for entry in await backplane.read(CALL, start)] == [b"x"]


async def test_a_session_is_over_everywhere_when_its_end_has_been_told(
    trusting: None, pair: tuple[RedisBackplane, RedisBackplane]
) -> None:
    one, other = pair
    async with running(*pair):
        await beaten(*pair)
        watch = other.watch
        assert other.has_heard("5e", watch) is False
        with anyio.fail_after(SOON):
            await one.revoke("5e", time.time() + 60)
        assert other.has_heard("5e", watch) is True


async def test_redis_has_to_be_asked_for_what_was_not_found_during_this_watch(
    trusting: None, pair: tuple[RedisBackplane, RedisBackplane]
) -> None:
    one, _ = pair
    async with running(*pair):
        assert one.has_heard("7e", one.watch) is None  # nothing was heard yet
        await beaten(*pair)
        await one.revoke("5e", time.time() + 60)
        assert [one.has_heard(session, one.watch) for session in ("5e", "7e")] == [True, False]
        assert [one.has_heard(session, one.watch - 1) for session in ("5e", "7e")] == [True, None]


async def test_who_does_not_hear_of_an_end_is_waited_for_until_it_asks(
    pair: tuple[RedisBackplane, RedisBackplane], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, deaf = pair
    async with running(*pair):
        await beaten(*pair)
        watch = deaf.watch
        monkeypatch.setattr(deaf, "_hear", hear_nothing)
        monkeypatch.setattr(deaf, "_have_heard", hear_nothing)
        await one.revoke("5e", time.time() + 60)
        assert deaf.has_heard("5e", watch) is None
        assert await deaf.is_revoked("5e")


async def hear_nothing(*entry: object, **more: object) -> None:
    """Take nothing in."""


async def test_a_worker_that_stopped_is_not_waited_for(
    trusting: None, pair: tuple[RedisBackplane, RedisBackplane]
) -> None:
    one, other = pair
    async with running(one):
        async with running(other):
            await beaten(*pair)
        with anyio.fail_after(SOON):
            await one.revoke("5e", time.time() + 60)


@pytest.mark.parametrize("lost", ["lease", "too much to hear"])
async def test_whoever_may_have_missed_an_end_looks_up_every_session_again(
    pair: tuple[RedisBackplane, RedisBackplane], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    backplane, other = pair
    async with running(*pair):
        await beaten(*pair)
        watch = backplane.watch
        if lost == "lease":
            await other._do(b"DEL", other._key("worker", backplane.worker))
        else:
            monkeypatch.setattr(inbox, "AT_ONCE", 1)
            await other.send(backplane.worker, Signal(SignalKind.CANCEL, "s", b"1"))
        await until(lambda: backplane.watch not in (0, watch))


async def test_what_a_dead_worker_owes_is_paid_in_one_step(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    """Whoever pays may be cut off at any moment; then the next one finds the debt there still, or paid."""
    one, other = pair
    async with running(*pair):
        await beaten(*pair)
        start = await added(one, b"", b"[7]")
        await take_for_dead(one, other)
        told: list[bytes | None] = []
        for allowed in range(1, 10):
            with pytest.MonkeyPatch.context() as cut, suppress(BackplaneUnavailableError):
                cut_off_after(other, allowed, cut)
                await other._is_owed(CALL)
            told = await logged(other, start)
            if told:
                break
            assert await other._do(b"EXISTS", f"{other._log(CALL)}:calls"), f"lost after {allowed} steps"
        assert [b"died" in (data or b"") for data in told] == [True, False]
        assert told[-1] is None


async def take_for_dead(one: RedisBackplane, other: RedisBackplane) -> None:
    """Have a worker that lives lose its lease for good, as one that stands still does."""
    skipped = anyio.Event()

    async def skip() -> None:
        skipped.set()

    one._beat = skip  # type: ignore[method-assign]  # it is to send no sign of life
    with anyio.fail_after(SOON):
        await skipped.wait()  # so that no sign of life is on its way
    await other._do(b"DEL", other._key("worker", one.worker))


def cut_off_after(backplane: RedisBackplane, commands: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a worker lose its connection after so many commands."""
    do, left = backplane._do, commands

    async def do_while_connected(command: bytes, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise BackplaneUnavailableError
        return await do(command, *arguments)

    monkeypatch.setattr(backplane, "_do", do_while_connected)


async def logged(backplane: RedisBackplane, after: str) -> list[bytes | None]:
    return [entry.data for entry in await backplane.peek(CALL, after)]


async def test_a_worker_that_was_taken_for_dead_adds_nothing_to_what_was_ended_for_it(
    pair: tuple[RedisBackplane, RedisBackplane],
) -> None:
    one, other = pair
    async with running(*pair):
        await beaten(*pair)
        start = await added(one, b"", b"[7]")
        await take_for_dead(one, other)
        await other._is_owed(CALL)
        assert await one.append(CALL, b"result", b"[7]", 2) is None
        assert [data is None for data in await logged(other, start)] == [False, True]


async def test_a_connection_is_made_anew_however_often_it_breaks(shared_redis: RedisServer) -> None:
    """A pool that `coredis` has for this gives up after 64 times."""
    waiting = (b"XREAD", b"BLOCK", 5000, b"STREAMS", f"test-{secrets.token_hex(4)}", b"0-0")
    async with RedisConnection(shared_redis.url) as breaks, RedisConnection(shared_redis.url) as other:
        for _ in range(70):
            client = await breaks.run(b"CLIENT", b"ID")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(broken, breaks, waiting)
                while not await other.run(b"CLIENT", b"KILL", b"ID", client):
                    pass
        assert await breaks.run(b"PING") == b"PONG"


async def test_a_process_that_was_slow_itself_does_not_take_redis_for_gone(shared_redis: RedisServer) -> None:
    async with RedisConnection(shared_redis.url) as connection:
        assert await connection.run(b"PING") == b"PONG"
        assert connection._connection is not None
        assert connection._connection.stream is not None
        raw = connection._connection.stream.extra(SocketAttribute.raw_socket)
        answers: list[None] = []

        async def ask() -> None:
            waiting = (b"BLOCK", 300, b"STREAMS", f"test-{secrets.token_hex(4)}", b"0-0")
            answers.append(await connection.run(b"XREAD", *waiting, within=1))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            # The answer is there, and nothing runs that could read it before its time is up.
            assert select.select([raw], [], [], SOON)[0]
            time.sleep(1)  # noqa: ASYNC251 - see above
        assert answers == [None]


async def broken(connection: RedisConnection, command: tuple[Any, ...]) -> None:
    with pytest.raises(FAILURES):
        await connection.run(*command, within=SOON)


async def test_the_stream_of_a_worker_that_died_ends_with_an_error_for_each_call(
    pair: tuple[RedisBackplane, RedisBackplane],
) -> None:
    one, other = pair
    async with running(one):
        await beaten(one)
        start = await added(one, b"", b'[7,"seven"]')
    # its lease runs out
    async with running(other):
        with anyio.fail_after(SOON):
            entries = await other.read(CALL, start)
            while entries[-1].data is not None:
                entries += await other.read(CALL, entries[-1].id)
        assert [b"died" in (entry.data or b"") for entry in entries] == [True, True, False]
        assert b'"id":7,' in (entries[0].data or b"")
        assert b'"id":"seven"' in (entries[1].data or b"")


async def test_a_session_ended_elsewhere_is_known_here_even_when_redis_goes(
    pair: tuple[RedisBackplane, RedisBackplane],
) -> None:
    one, other = pair
    async with running(*pair) as (_, others):
        await beaten(*pair)
        await one.revoke("5e", time.time() + 60)
        await until(lambda: len(others) == 1)
        other._known_away = True  # as if Redis had just gone
        assert await other.is_revoked("5e")
        assert not await other.is_revoked("7e")


@pytest.mark.redis
async def test_redis_that_goes_and_comes_back_heals_without_a_restart() -> None:
    with redis_server() as server:
        backplane = RedisBackplane(server.url)
        async with running(backplane):
            await backplane.revoke("a", time.time() + 600)
            position = await added(backplane, b"kept")
            server.kill()
            for _ in range(3):
                with pytest.raises(BackplaneUnavailableError):
                    await backplane.append(CALL, b"lost")
            await until(lambda: not backplane.available)
            assert await backplane.is_revoked("a")
            assert not await backplane.is_revoked("b")
            server.start()
            await until_back(backplane)
            await backplane.append(CALL, b"after")
            assert [entry.data for entry in await backplane.read(CALL, position)] == [b"after"]
            assert backplane.available


@pytest.mark.redis
async def test_redis_that_comes_back_empty_has_lost_its_logs_and_says_so() -> None:
    with redis_server() as server:
        backplane = RedisBackplane(server.url)
        async with running(backplane):
            position = await added(backplane, b"lost")
            server.kill()
            server.forget()
            server.start()
            await until_back(backplane)
            with pytest.raises(UnknownEventError):
                await backplane.read(CALL, position)


@pytest.mark.redis
async def test_a_redis_that_stalls_costs_each_operation_a_bounded_time() -> None:
    with redis_server() as server:
        backplane = RedisBackplane(server.url)
        async with running(backplane):
            await backplane.append(CALL, b"before")
            server.stall()
            with anyio.fail_after(SOON), pytest.raises(BackplaneUnavailableError):
                await backplane.append(CALL, b"during")
            server.resume()
            await until_back(backplane)


@pytest.mark.redis
async def test_a_server_starts_while_redis_is_away() -> None:
    with redis_server() as server:
        server.kill()
        backplane = RedisBackplane(server.url)
        async with running(backplane):
            with pytest.raises(BackplaneUnavailableError):
                await backplane.tail(CALL)
            server.start()
            await until_back(backplane)


async def until_back(backplane: Backplane) -> None:
    with anyio.fail_after(SOON):
        while True:
            try:
                await backplane.is_open(CALL)
            except BackplaneUnavailableError:
                await anyio.sleep(0.1)
            else:
                return


# ---- Redis refuses, or does not understand


@pytest.mark.redis
async def test_an_end_that_a_full_redis_cannot_record_is_not_claimed() -> None:
    with redis_server() as server:
        one, later = RedisBackplane(server.url), RedisBackplane(server.url)
        until_, ended = time.time() + 600, secrets.token_hex(16)
        async with running(one):
            await beaten(one)
            await one.revoke(ended, until_)
            async with RedisConnection(server.url) as admin:
                await admin.run(b"CONFIG", b"SET", b"maxmemory", b"1")
                with pytest.raises(BackplaneUnavailableError):
                    await one.revoke(secrets.token_hex(16), until_)
                assert one.available
                async with running(later):  # which asks, as what is there can still be read
                    await until(lambda: later._known_refusing)
                    assert await later.is_revoked(ended)
                    assert later.has_heard(ended, 0) is None
                    assert not await later.is_revoked(secrets.token_hex(16))
                    assert later.watch == 0  # it cannot be told of ends, so it trusts nothing
                    await admin.run(b"CONFIG", b"SET", b"maxmemory", b"0")
                    await until(lambda: later.watch > 0)
                    await one.revoke(secrets.token_hex(16), until_)


async def test_what_redis_does_not_understand_is_no_outage(pair: tuple[RedisBackplane, RedisBackplane]) -> None:
    backplane, _ = pair
    async with running(backplane):
        await beaten(backplane)
        backplane._heard_at = -math.inf  # so that a failure would count as an outage
        with pytest.raises(ResponseError):
            await backplane._do(b"NONSENSE")
        assert backplane.available


# ---- deployments that share a Redis


def deployments(server: RedisServer, *keys: list[bytes]) -> list[RedisBackplane]:
    prefix = f"test-{secrets.token_hex(4)}:"
    return [RedisBackplane(server.url, prefix=prefix, keys=each) for each in keys]


async def test_workers_without_a_common_key_do_not_disturb_each_other(shared_redis: RedisServer) -> None:
    one, other = deployments(shared_redis, [b"k1"], [b"k2"])
    async with running(one, other) as (_, others):
        await beaten(one, other)
        assert await one.workers() == [one.worker]
        await one.broadcast(Signal(SignalKind.CANCEL, "5e", b"7"))
        await one.send(other.worker, Signal(SignalKind.ANSWER, "5e", b"7"))
        await one.revoke("5e", time.time() + 60)
        assert not await other.is_revoked("5e")
        await other.send(other.worker, Signal(SignalKind.CANCEL, "a", b"1"))
        await until(lambda: len(others) == 1)
        assert others[0].session == "a"


async def test_workers_on_both_sides_of_a_rotation_are_one_deployment(shared_redis: RedisServer) -> None:
    before, between, after = deployments(shared_redis, [b"k1"], [b"k2", b"k1"], [b"k2"])
    async with running(before, between, after) as heard:
        await beaten(before, between, after)
        assert set(await between.workers()) == {before.worker, between.worker, after.worker}
        await between.revoke("5e", time.time() + 60)
        for each in (before, between, after):
            assert await each.is_revoked("5e")
        await until(lambda: [len(signals) for signals in heard] == [1, 0, 1])
    (later,) = [RedisBackplane(shared_redis.url, prefix=after._prefix, keys=[b"k2"])]
    async with running(later):
        assert await later.is_revoked("5e")  # the key that sealed it may be gone, the other was there


# ---- one id, one answer


async def test_a_worker_that_died_after_its_result_owes_the_end_only(
    pair: tuple[RedisBackplane, RedisBackplane],
) -> None:
    one, other = pair
    async with running(*pair):
        await beaten(*pair)
        start = await one.append(CALL, b"", b"[7,8]", 1)
        assert start is not None
        await one.append(CALL, b"seven", b"[8]", 2, result=True)
        await take_for_dead(one, other)
        await other._is_owed(CALL)
        seven, eight, end = await logged(other, start)
        assert (seven, end) == (b"seven", None)
        assert b'"id":8,' in (eight or b"")


@pytest.mark.redis
async def test_what_is_owed_is_said_again_to_a_redis_that_lost_it() -> None:
    with redis_server() as server:
        backplane = RedisBackplane(server.url)
        async with running(backplane):
            await backplane.append(CALL, b"", b"[7]", 1)
            server.kill()
            server.forget()
            server.start()
            await until_back(backplane)
            await backplane.append(CALL, b"x", b"[7]", 2)
            assert b"[7]" in await backplane._do(b"GET", f"{backplane._log(CALL)}:calls")
