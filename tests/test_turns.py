"""Who became ready first comes first, in a process that serves."""

from __future__ import annotations

import pytest
import trio
import trio._core._run as scheduler
import trio.testing

from mcp_hybrid.server.turns import first_come_first_served

ROUNDS = 50


@pytest.fixture(autouse=True)
def as_where_nobody_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Trio's order back afterwards, and Hypothesis's off meanwhile."""
    monkeypatch.setattr(scheduler, "_r", scheduler._r)
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", False)


async def orders() -> set[tuple[int, ...]]:
    """Have five tasks become ready one after another, time and again; give the orders in which they ran."""
    found = set()
    for _ in range(ROUNDS):
        ran: list[int] = []
        turns = [trio.Event() for _ in range(5)]

        async def run(number: int, turns: list[trio.Event] = turns, ran: list[int] = ran) -> None:
            await turns[number].wait()
            ran.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(run, number)
            await trio.testing.wait_all_tasks_blocked()
            for turn in turns:
                turn.set()
        found.add(tuple(ran))
    return found


async def test_trio_tosses_a_coin() -> None:
    assert await orders() == {(0, 1, 2, 3, 4), (4, 3, 2, 1, 0)}


async def test_who_became_ready_first_comes_first() -> None:
    first_come_first_served()
    assert await orders() == {(0, 1, 2, 3, 4)}


async def test_the_order_of_a_test_that_can_be_repeated_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    before = scheduler._r
    first_come_first_served()
    assert scheduler._r is before
