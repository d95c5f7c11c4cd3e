"""The master, with stand-ins for its worker processes: they come up, fail, die and hang at every point of its work."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.server import generation, master
from mcp_hybrid.server.worker_process import START_TIMEOUT, WorkerEndedError, WorkerFailedError, WorkerRefusedError
from mcp_hybrid.settings import load

WANTED = 3
PIDS = count(1_000_000_000)
"""No system gives such numbers, so that nothing is done to a process that exists."""
HEALED = 1200.0
"""Seconds, of a clock that jumps, in which everything has come to rest: time to start, to drain and all delays."""


class StandIn:
    """A worker process, and what its master sees of it."""

    def __init__(self, world: World) -> None:
        self.process = self
        self.control = self
        self.pid = next(PIDS)
        self.ready = False
        self.since = 0.0
        self.runtime = ["trio", "nothing in its code needs asyncio"]
        self.code: int | None = None
        self.told: list[str] = []
        self.deaf = False
        """Whether it does not end when it is told to."""
        self._world = world
        self._dead = trio.Event()
        self._outcome = trio.Event()
        self._refusal: str | None = None

    # What happens to it

    def come_up(self) -> None:
        self._outcome.set()

    def refuse(self, why: str) -> None:
        self._refusal = why
        self._outcome.set()

    def die(self, code: int) -> None:
        if self.code is None:
            self.code = code
            self._world.note_death(self)
            self._dead.set()

    @property
    def alive(self) -> bool:
        return self.code is None

    # What the master sees

    @property
    def returncode(self) -> int | None:
        return self.code

    async def wait(self) -> int:
        await self._dead.wait()
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        self.die(-9)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def until_ready(self) -> None:
        with trio.move_on_after(START_TIMEOUT) as scope:
            if self._world.ends_are_seen:
                await generation._first(self._outcome.wait, self._dead.wait)
            else:  # something that it started holds the socket open
                await self._outcome.wait()
        if scope.cancelled_caught:
            raise WorkerFailedError("not ready")
        if self._refusal is not None:
            raise WorkerRefusedError(self._refusal)
        if not self._outcome.is_set():
            raise WorkerEndedError("it ended")
        self.ready, self.since = True, trio.current_time()
        self._world.note_ready()

    async def retire(self) -> None:
        await self._hear("retire")

    async def stop(self) -> None:
        await self._hear("stop")

    async def _hear(self, what: str) -> None:
        self.told.append(what)
        await trio.lowlevel.checkpoint()
        if not self.deaf:
            self.die(0)


class World:
    """A master with stand-ins for its workers."""

    def __init__(self, patch: pytest.MonkeyPatch, *, workers: int = WANTED) -> None:
        self.workers: list[StandIn] = []
        self.failed_in_a_row = 0
        """Starts that failed since a worker came up, or one that had come up died."""
        self.announced: list[int] = []
        """How many served when it was said that all do."""
        self.healthy = False
        """Whether new workers come up by themselves."""
        self.ends_are_seen = True
        self.no_room = False
        """Whether no process can be started."""
        loaded = load({"server.workers": workers, "backplane": "redis://x"}, environ={})
        self.master = master.Master(loaded, [])
        patch.setattr(master, "Worker", self)
        patch.setattr(master, "load", lambda *_args, **_more: loaded)
        patch.setattr(master, "url", lambda *_: "")
        patch.setattr(master, "announce", lambda *_: self.announced.append(self.alive_in_crew))
        patch.setattr(master, "configure_logging", lambda *_: None)
        patch.setattr(master, "terminal_is_gone", lambda: False)
        patch.setattr(master, "end_by_force_after", lambda _: lambda: None)
        patch.setattr(generation, "forget_worker", lambda _: None)
        patch.setattr(generation, "LOOK", 50.0)  # a clock that jumps stops at each

    async def start(self, _listeners: Sequence[object], _start: dict[str, Any]) -> StandIn:
        await trio.lowlevel.checkpoint()
        if self.no_room:
            self.failed_in_a_row += 1
            raise WorkerFailedError("no process could be started: no room")
        worker = StandIn(self)
        self.workers.append(worker)
        if self.healthy:
            worker.come_up()
        return worker

    def note_ready(self) -> None:
        self.failed_in_a_row = 0

    def note_death(self, worker: StandIn) -> None:
        self.failed_in_a_row = 0 if worker.ready else self.failed_in_a_row + 1

    @property
    def living(self) -> list[StandIn]:
        return [each for each in self.workers if each.alive]

    @property
    def serving(self) -> list[StandIn]:
        return [each for each in self.living if each.ready and not each.told]

    @property
    def alive_in_crew(self) -> int:
        return sum(each in self.living for each in self.master._crew)  # type: ignore[comparison-overlap]

    @property
    def starting(self) -> list[StandIn]:
        return [each for each in self.living if not each.ready and not each.told]

    def order(self, number: signal.Signals) -> None:
        self.master._obey(number)

    async def come_up(self) -> None:
        """Have all that start come up, until nothing more is started."""
        await wait_all_tasks_blocked()
        while self.starting:
            for worker in self.starting:
                worker.come_up()
            await wait_all_tasks_blocked()

    async def heal(self) -> None:
        """Have every worker come up from now on, and wait until all has come to rest."""
        self.healthy, self.no_room = True, False
        await self.come_up()
        await trio.sleep(HEALED)
        await wait_all_tasks_blocked()

    def check(self) -> None:
        """Check what is always true while nothing moves."""
        crew = {each.pid for each in self.master._crew}  # type: ignore[attr-defined]
        assert crew <= {each.pid for each in self.living if each.ready}, "something dead is counted"
        assert len(crew) <= WANTED
        assert {each.process.pid for each in self.master._all} == {each.pid for each in self.living}, "an orphan"


def play(script: Callable[[World], Awaitable[None]], **options: Any) -> tuple[World, int]:
    """Run a master while something happens to its workers, then stop it. Returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, **options)

        async def main() -> int:
            code = -1

            async def run() -> None:
                nonlocal code
                code = await world.master.run()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await wait_all_tasks_blocked()
                await script(world)
                if code == -1 and not world.master._stopping:
                    world.order(signal.SIGTERM)
            return code

        code = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert world.living == [], "a process outlived the master"
    return world, code


async def restored(world: World) -> None:
    await world.heal()
    world.check()
    assert len(world.serving) == len(world.master._crew) == world.master._settings.server.workers
    assert world.living == world.serving, "more live than serve"


# One thing at a time


def test_serving_is_announced_when_all_serve_and_once() -> None:
    async def script(world: World) -> None:
        for number in range(WANTED):
            assert world.announced == []
            world.workers[number].come_up()
            await wait_all_tasks_blocked()
        assert world.announced == [WANTED]
        world.serving[0].die(-9)
        await restored(world)

    world, code = play(script)
    assert (world.announced, code) == ([WANTED], 0)


@pytest.mark.parametrize("ready", [False, True], ids=["before it is ready", "after it is ready"])
@pytest.mark.parametrize("place", range(WANTED))
def test_a_worker_that_dies_while_others_start_is_replaced(place: int, ready: bool) -> None:
    async def script(world: World) -> None:
        if ready:
            world.workers[place].come_up()
            await wait_all_tasks_blocked()
        world.workers[place].die(-9)
        await world.come_up()
        world.check()
        await restored(world)
        assert len(world.workers) == WANTED + 1

    assert play(script)[0].announced == [WANTED]


@pytest.mark.parametrize("which", ["an old one", "a new one that is ready"])
def test_a_worker_that_dies_during_a_reload_is_replaced(which: str) -> None:
    async def script(world: World) -> None:
        await world.come_up()
        old = list(world.serving)
        world.order(signal.SIGHUP)
        await wait_all_tasks_blocked()
        if which == "an old one":
            old[0].die(-9)
        else:
            world.starting[0].come_up()
            await wait_all_tasks_blocked()
            world.serving[-1].die(-9)
        await world.come_up()
        await restored(world)
        assert not set(old) & set(world.serving), "the reload was not carried out"

    play(script)


def test_a_worker_that_fails_during_a_reload_leaves_the_old_ones() -> None:
    async def script(world: World) -> None:
        await world.come_up()
        old = list(world.serving)
        world.order(signal.SIGHUP)
        await wait_all_tasks_blocked()
        ready, failing, _ = world.starting
        ready.come_up()
        await wait_all_tasks_blocked()
        failing.die(3)
        await restored(world)
        assert world.serving == old

    play(script)


def test_a_reload_whose_workers_die_as_soon_as_they_serve_is_given_up() -> None:
    async def script(world: World) -> None:
        await world.come_up()
        old = list(world.serving)
        world.order(signal.SIGHUP)
        for _ in range(master.TRIES):
            await wait_all_tasks_blocked()
            await trio.sleep(generation.LONGEST_DELAY)
            world.starting[0].come_up()
            await wait_all_tasks_blocked()
            next(each for each in world.serving if each not in old).die(-9)
        await restored(world)
        assert world.serving == old

    play(script)


def test_workers_that_had_served_never_make_the_master_give_up() -> None:
    async def script(world: World) -> None:
        world.healthy = True
        await world.come_up()
        for _ in range(4 * master.TRIES):
            for worker in world.serving:
                worker.die(-9)
            await trio.sleep(60)
            assert len(world.serving) == WANTED
        await restored(world)

    assert play(script)[1] == 0


def test_a_place_that_fails_all_the_time_does_not_end_the_others() -> None:
    async def script(world: World) -> None:
        await world.come_up()
        world.no_room = True
        world.serving[0].die(-9)
        await trio.sleep(600)
        assert len(world.serving) == WANTED - 1
        for worker in world.serving:
            worker.die(-9)
        await wait_all_tasks_blocked()
        world.no_room = False
        await restored(world)

    assert play(script)[1] == 0


def test_the_master_gives_up_when_no_worker_ever_comes_up() -> None:
    async def script(world: World) -> None:
        world.no_room = True
        for worker in world.starting:
            worker.die(3)
        await trio.sleep(HEALED)

    assert play(script)[1] == 1


def test_a_refusal_at_the_start_ends_it_with_the_reason() -> None:
    async def script(world: World) -> None:
        world.workers[0].come_up()
        await wait_all_tasks_blocked()
        world.workers[1].refuse("the target is nowhere")
        await wait_all_tasks_blocked()

    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match="the target is nowhere")):
        play(script)


@pytest.mark.parametrize("how", ["start", "reload", "stop"])
def test_a_worker_that_answers_nothing_is_killed_when_its_time_is_over(how: str) -> None:
    async def script(world: World) -> None:
        if how == "start":
            stuck = list(world.living)
            await trio.sleep(START_TIMEOUT + 1)
            assert not any(worker.alive for worker in stuck)
        await world.come_up()
        for worker in world.living:
            worker.deaf = True
        if how == "reload":
            world.order(signal.SIGHUP)
            await world.come_up()
            await restored(world)

    code = play(script)[1]
    assert code == (0 if how == "reload" else 1)


def test_a_suspended_worker_is_replaced_and_one_that_goes_on_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    suspended: set[int] = set()
    monkeypatch.setattr(generation, "_is_suspended", suspended.__contains__)

    async def script(world: World) -> None:
        await world.come_up()
        goes_on, stays, other = world.serving
        suspended.update((goes_on.pid, stays.pid))
        await trio.sleep(generation.SUSPENDED_LOOKS * generation.LOOK / 2)
        suspended.discard(goes_on.pid)
        await trio.sleep(generation.SUSPENDED_LOOKS * generation.LOOK)
        await restored(world)
        assert (goes_on.alive, stays.alive, other.alive) == (True, False, True)

    play(script)


# Everything at once


async def come_up(world: World, number: int) -> None:
    if world.starting:
        world.starting[number % len(world.starting)].come_up()


async def die(world: World, number: int) -> None:
    if world.living:
        world.living[number % len(world.living)].die(-9)


async def hear_nothing(world: World, number: int) -> None:
    if world.living:
        world.living[number % len(world.living)].deaf = True


async def reload(world: World, _number: int) -> None:
    world.order(signal.SIGHUP)


async def wait(_world: World, number: int) -> None:
    await trio.sleep(number * number)


async def have_room(world: World, number: int) -> None:
    world.no_room = number > 4


async def hide_ends(world: World, _number: int) -> None:
    world.ends_are_seen = False


ACTIONS = (come_up, come_up, die, die, hear_nothing, reload, wait, have_room, hide_ends)


Script = list[tuple[Callable[[World, int], Awaitable[None]], int]]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=40), st.booleans())
def test_whatever_dies_when_the_wanted_number_serves_again(script: Script, up: bool) -> None:
    async def play_it(world: World) -> None:
        if up:
            await world.come_up()
        for action, number in script:
            await action(world, number)
            await wait_all_tasks_blocked()
            world.check()
            if world.master._stopping:
                break
        if world.master._stopping:
            assert world.failed_in_a_row >= master.TRIES, "it gave up too soon"
        else:
            await restored(world)

    world, _ = play(play_it)
    assert set(world.announced) <= {WANTED}


@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("ready", range(WANTED + 1))
def test_a_stop_at_any_moment_of_a_start_leaves_no_process(ready: int, moment: int) -> None:
    async def script(world: World) -> None:
        for worker in world.workers[:ready]:
            worker.come_up()
        for _ in range(moment):
            await trio.lowlevel.checkpoint()

    assert play(script)[1] == 0
