"""The registry as a state machine: whatever is done to sessions, interleaved at every await of it.

The backplane and the clean-ups wait at gates that only the machine opens, one at a time, in any order. So a look-up, an
end, a sweep and a clean-up stand still in the middle while others run from their beginnings to their ends.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import pytest
import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mcp.server.connection import Connection
from mcp_types import ClientCapabilities, Implementation, InitializeRequestParams
from trio.testing import MockClock, wait_all_tasks_blocked

from mcp_hybrid.backplane import MemoryBackplane
from mcp_hybrid.counts import Count
from mcp_hybrid.routing.message import Response
from mcp_hybrid.routing.table import Standing
from mcp_hybrid.security.owner import Owner
from mcp_hybrid.sessions import registry as registry_module
from mcp_hybrid.sessions.live import DuplicateRequestError, Interruption, LiveSession
from mcp_hybrid.sessions.questions import Question
from mcp_hybrid.sessions.registry import Registry, SessionLimits, SessionOverError, TooManySessionsError, hash_of
from mcp_hybrid.sessions.seal import KEY_BYTES, KeyRing

CLIENT = InitializeRequestParams(
    protocol_version="2025-11-25",
    capabilities=ClientCapabilities(),
    client_info=Implementation(name="client", version="1"),
)
OWNERS = [Owner("test", "alice", "c"), Owner("test", "bob", "c")]
SESSIONS = 3
NEVER = 1e12
"""A wall clock beyond all that a test reaches."""
LIMITS = SessionLimits(
    max_age=1000, idle_timeout=10, max_live=2, max_live_per_owner=2, max_questions=3, max_questions_per_session=2
)


class Gates:
    """Where tasks wait until the machine lets one of them go on."""

    def __init__(self) -> None:
        self.waiting: list[anyio.Event] = []
        self.open = True
        """Whether who comes passes without waiting. Those who wait already go on waiting."""

    async def __call__(self) -> None:
        if not self.open:
            event = anyio.Event()
            self.waiting.append(event)
            try:
                await event.wait()
            finally:
                if event in self.waiting:
                    self.waiting.remove(event)

    def let_one_go(self, number: int) -> None:
        if self.waiting:
            self.waiting.pop(number % len(self.waiting)).set()

    def open_all(self) -> None:
        self.open = True
        while self.waiting:
            self.let_one_go(0)


class SuspendedBackplane(MemoryBackplane):
    """Waits in everything, and always has to be asked whether a session has ended: by then its answer may be old."""

    def __init__(self, gates: Gates) -> None:
        super().__init__()
        self.gate = gates

    def has_heard(self, session: str, watch: int, until: float = math.inf) -> bool:
        heard: Any = super().has_heard(session, watch, until) or None
        return heard  # type: ignore[no-any-return]  # None: has to be asked

    async def is_revoked(self, session: str, until: float = math.inf) -> bool:
        revoked = await super().is_revoked(session, until)
        await self.gate()
        return revoked

    async def revoke(self, session: str, until: float) -> None:
        await self.gate()
        await super().revoke(session, until)
        await self.gate()

    async def forget(self, session: str) -> None:
        await self.gate()
        await super().forget(session)


@dataclass(eq=False)
class Call:
    """A call that ends when it is told to, and when it is interrupted unless it is stubborn."""

    stubborn: bool
    over: anyio.Event = field(default_factory=anyio.Event)
    interrupted: Interruption | None = None

    def interrupt(self, why: Interruption) -> None:
        self.interrupted = why
        if not self.stubborn:
            self.over.set()


class RegistryMachine(RuleBasedStateMachine):
    """Requests, ends, sweeps and clean-ups of a few sessions of two owners, of which fewer may be live."""

    def __init__(self) -> None:
        super().__init__()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(registry_module, "_SWEPT_AT_ONCE", 1)
        self.clock = MockClock()
        self.starting = start_blocking_portal("trio", {"clock": self.clock})
        self.portal: BlockingPortal = self.starting.__enter__()
        self.wall = 0.0
        self.uses: list[LiveSession] = []
        """Sessions that a request, a question or a pin holds, once for each."""
        self.calls: list[tuple[LiveSession, int, Call]] = []
        self.questions: list[Question] = []
        self.numbers = itertools.count()
        self.put_away_by_close: list[LiveSession] = []
        self.clean_ups: Counter[int] = Counter()
        self.pushed: dict[int, LiveSession] = {}
        self.tasks: list[trio.CancelScope] = []
        self.failures: list[Exception] = []
        self.gone: set[str] = set()
        """Sessions that were seen to be over."""

    @initialize()
    def start(self) -> None:
        self.portal.call(self._start)

    async def _start(self) -> None:
        self.gates = Gates()
        self.patched.setattr(registry_module, "checkpoint", self.gates)  # between any two sessions of a sweep
        self.backplane = SuspendedBackplane(self.gates)
        self.registry = Registry(KeyRing([b"k" * KEY_BYTES]), self.backplane, LIMITS, lambda: self.wall)
        self.registry.make_outbound = lambda *_: Connection.from_envelope("", None, None).outbound
        self.ids = [self.registry.offer(CLIENT, "2025-11-25", self.owner(number)) for number in range(SESSIONS)]
        self.hashes = [hash_of(id_) for id_ in self.ids]
        self.nursery = await self._open_nursery()
        self.nursery.start_soon(self.registry.clean_ups.run)

    async def _open_nursery(self) -> trio.Nursery:
        opened: list[trio.Nursery] = []

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                opened.append(nursery)
                await trio.sleep_forever()

        trio.lowlevel.spawn_system_task(run)
        await wait_all_tasks_blocked()
        return opened[0]

    def owner(self, number: int) -> Owner:
        return OWNERS[number % 2]

    # What the rules are made of

    def step(self, act: Callable[[], object]) -> None:
        """Do something on the loop, and let everything run until it waits at a gate, or for the machine."""

        async def on_loop() -> None:
            act()
            await wait_all_tasks_blocked()

        self.portal.call(on_loop)

    def begin(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Start a task that a host may cancel, as frameworks with timeouts do."""
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope, suppress(SessionOverError, TooManySessionsError, DuplicateRequestError):
                    await work()
            except Exception as exc:  # noqa: BLE001 - an invariant has it fail the run
                self.failures.append(exc)
            self.tasks.remove(scope)

        self.tasks.append(scope)
        self.step(partial(self.nursery.start_soon, run))

    @contextmanager
    def using(self, session: LiveSession) -> Iterator[None]:
        self.uses.append(session)
        try:
            yield
        finally:
            self.uses.remove(session)

    # Rules

    @rule(
        number=st.integers(0, SESSIONS - 1), ids=st.sets(st.integers(1, 3)), act=st.booleans(), stubborn=st.booleans()
    )
    def request(self, number: int, ids: set[int], *, act: bool, stubborn: bool) -> None:
        """A request, a batch, or a notification (no ids), which goes on. `act`: it awaits before its calls begin."""
        self.begin(partial(self._request, number, sorted(ids), act=act, stubborn=stubborn))

    @rule(number=st.integers(0, SESSIONS - 1))
    def brief_request(self, number: int) -> None:
        """A request that is over at once, and leaves its session idle."""
        self.begin(partial(self._request, number, [], act=False, stubborn=False))

    async def _request(self, number: int, ids: list[int], *, act: bool, stubborn: bool) -> None:
        found = await self.registry.find(self.ids[number], self.owner(number))
        if found.standing is not Standing.VALID:
            return
        with self.registry.use(found, ids) as session, self.using(session):
            if act:
                await self.gates()
            async with trio.open_nursery() as nursery:
                for request_id in ids:
                    nursery.start_soon(self._call, session, request_id, Call(stubborn))

    async def _call(self, session: LiveSession, request_id: int, call: Call) -> None:
        assert not any(one is session and id_ == request_id for one, id_, _ in self.calls), "one id, two calls"
        running = (session, request_id, call)
        self.calls.append(running)
        session.start_call(request_id, call)
        try:
            await call.over.wait()
        finally:
            session.finish_call(request_id, call)
            self.calls.remove(running)

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 9), cancelled=st.booleans())
    def finish(self, which: int, *, cancelled: bool) -> None:
        session, request_id, call = self.calls[which % len(self.calls)]
        self.step(partial(session.cancel, request_id) if cancelled else call.over.set)

    @precondition(lambda self: len(self.registry) > 0)
    @rule(which=st.integers(0, 9))
    def ask(self, which: int) -> None:
        live = self.registry.sessions()
        self.begin(partial(self._ask, live[which % len(live)]))

    async def _ask(self, session: LiveSession) -> None:
        question = Question(f"q{next(self.numbers)}")
        if session.add_question(question) is not None:
            return
        self.questions.append(question)
        try:
            with self.using(session), suppress(Exception):
                await question.wait()
        finally:
            self.questions.remove(question)
            session.remove_question(question)

    @precondition(lambda self: self.questions)
    @rule(which=st.integers(0, 9))
    def answer(self, which: int) -> None:
        question = self.questions[which % len(self.questions)]
        self.step(partial(question.answer, Response(question.id, {}, None)))

    @precondition(lambda self: self.uses)
    @rule(which=st.integers(0, 9))
    def leave_a_clean_up(self, which: int) -> None:
        """Somebody who uses a session pushes something on its exit stack, perhaps after its end."""
        session, number = self.uses[which % len(self.uses)], len(self.pushed)
        self.pushed[number] = session
        self.step(partial(session.connection.exit_stack.push_async_callback, self._clean_up, number))

    async def _clean_up(self, number: int) -> None:
        self.clean_ups[number] += 1
        await self.gates()

    @rule(number=st.integers(0, SESSIONS - 1), by_operator=st.booleans())
    def end(self, number: int, *, by_operator: bool) -> None:
        ending = partial(self.registry.end_by_hash, self.hashes[number]) if by_operator else partial(self._end, number)
        self.begin(ending)

    async def _end(self, number: int) -> None:
        found = await self.registry.find(self.ids[number], self.owner(number))
        if found.standing is Standing.VALID:
            await self.registry.end(found)
            self.gone.add(found.hash)

    @rule(number=st.integers(0, SESSIONS - 1))
    def end_elsewhere(self, number: int) -> None:
        digest = self.hashes[number]
        self.backplane._ended.add(digest, NEVER)
        self.step(partial(self.registry.end_here, digest))
        self.gone.add(digest)

    @rule(seconds=st.sampled_from([4.0, 11.0]))
    def sweep(self, seconds: float) -> None:
        """A sweep some time later: sessions hibernate after 10 s, and clean-ups are given up after 5."""
        self.step(partial(self.clock.jump, seconds))
        self.begin(self.registry.sweep)

    @rule(seconds=st.sampled_from([400.0, 700.0]))
    def grow_old(self, seconds: float) -> None:
        self.wall += seconds

    @rule(is_open=st.booleans())
    def suspend(self, is_open: bool) -> None:
        self.gates.open = is_open

    @precondition(lambda self: self.gates.waiting)
    @rule(which=st.integers(0, 9))
    def let_one_go(self, which: int) -> None:
        self.step(partial(self.gates.let_one_go, which))

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 9))
    def host_cancels(self, which: int) -> None:
        self.step(self.tasks[which % len(self.tasks)].cancel)

    @precondition(lambda self: len(self.registry) > 0)
    @rule()
    def close(self) -> None:
        """The lifespan ends: what is in use is put away with the rest."""
        self.put_away_by_close.extend(self.uses)
        self.begin(self.registry.close)

    # Invariants

    @invariant()
    def nothing_fails(self) -> None:
        assert not self.failures

    @invariant()
    def what_is_in_use_is_held(self) -> None:
        for session in self.uses:
            held = self.registry.live(session.hash) is session
            assert held or session.ended or session in self.put_away_by_close
            assert session.busy

    @invariant()
    def the_indexes_agree(self) -> None:
        held = self.registry._held
        live = held.all()
        assert self.registry.counts[Count.SESSIONS_NOW] == len(live) <= LIMITS.max_live
        assert [*held._idle] == [s.hash for s in held._idle.values()]
        assert set(held._idle.values()) == {session for session in live if not session.busy}
        by_owner = Counter(session.record.owner for session in live)
        assert {owner: owned.held for owner, owned in held._owners.items()} == by_owner
        assert max(by_owner.values(), default=0) <= LIMITS.max_live_per_owner
        for owner, owned in held._owners.items():
            assert [*owned.idle] == [h for h, s in held._idle.items() if s.record.owner == owner]

    @invariant()
    def questions_are_counted(self) -> None:
        assert self.registry._held.questions.waiting == len(self.questions) <= LIMITS.max_questions

    @invariant()
    def what_has_ended_does_not_come_back(self) -> None:
        for digest in self.gone:
            assert self.registry.live(digest) is None
        for session, _, call in self.calls:
            assert not session.ended or call.interrupted is not None

    @invariant()
    def nothing_is_cleaned_up_twice(self) -> None:
        assert max(self.clean_ups.values(), default=0) <= 1

    def teardown(self) -> None:
        try:
            self.step(self.gates.open_all)
            self.portal.call(self._stop)
            assert all(self.clean_ups[number] == 1 for number in self.pushed)
            assert self.registry.counts[Count.SESSIONS_NOW] == 0
            assert not self.uses
        finally:
            self.patched.undo()
            self.starting.__exit__(None, None, None)

    async def _stop(self) -> None:
        for _, _, call in list(self.calls):
            call.over.set()
        for question in list(self.questions):
            question.answer(Response(question.id, {}, None))
        await wait_all_tasks_blocked()
        await self.registry.close()
        self.nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()


RegistryMachine.TestCase.settings = settings(
    deadline=None, stateful_step_count=40
)  # how many examples, the profile says
TestRegistry = pytest.mark.long(RegistryMachine.TestCase)
