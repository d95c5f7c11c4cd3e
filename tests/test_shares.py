"""Places that callers share: who comes next, who is kept out, and that none is ever lost."""

from __future__ import annotations

from random import Random

import anyio
import pytest
import trio
import trio.testing

from mcp_hybrid.exchange.shares import Shares


class Holders:
    """Callers that take places and note in which order they got them."""

    def __init__(self, shares: Shares, nursery: trio.Nursery) -> None:
        self.shares = shares
        self.nursery = nursery
        self.got: list[str] = []
        self.scopes: list[trio.CancelScope] = []

    async def want(self, *callers: str) -> None:
        """Have each ask for a place, one after the other."""
        for caller in callers:
            scope = trio.CancelScope()
            self.scopes.append(scope)
            self.nursery.start_soon(self._acquire, caller, scope)
            await trio.testing.wait_all_tasks_blocked()

    async def give_back(self, *callers: str) -> None:
        for caller in callers:
            self.shares.release(caller)
            await trio.testing.wait_all_tasks_blocked()

    async def _acquire(self, caller: str, scope: trio.CancelScope) -> None:
        with scope:
            await self.shares.acquire(caller)
            self.got.append(caller)


@pytest.mark.parametrize(("total", "most"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 6), (40, 30)])
async def test_one_caller_holds_three_quarters_at_most(total: int, most: int, nursery: trio.Nursery) -> None:
    holders = Holders(Shares(total), nursery)
    await holders.want(*["a"] * (total + 2))
    assert holders.got == ["a"] * most
    assert holders.shares.free == total - most
    await holders.want(*["b"] * (total + 2))
    assert holders.got.count("b") == min(total - most, most)
    await holders.give_back("a")
    assert holders.got[-1] == ("b" if most > holders.got.count("b") else "a") or total == most
    nursery.cancel_scope.cancel()


async def test_the_caller_that_holds_fewest_comes_next(nursery: trio.Nursery) -> None:
    holders = Holders(Shares(4), nursery)
    await holders.want("a", "a", "a", "b")
    await holders.want("a", "a", "b", "c", "c")
    await holders.give_back("a", "a", "a")
    assert holders.got[4:] == ["c", "a", "b"]
    nursery.cancel_scope.cancel()


async def test_equals_take_turns(nursery: trio.Nursery) -> None:
    holders = Holders(Shares(1), nursery)
    await holders.want("a", "a", "a", "b", "b", "c")
    for caller in "aabca":
        await holders.give_back(caller)
    assert "".join(holders.got) == "aabcab"


async def test_a_place_granted_to_a_cancelled_caller_is_passed_on(nursery: trio.Nursery) -> None:
    holders = Holders(Shares(1), nursery)
    await holders.want("a", "b", "c")
    holders.shares.release("a")
    holders.scopes[1].cancel()  # it has been granted the place, and has not run yet
    await trio.testing.wait_all_tasks_blocked()
    assert holders.got in (["a", "c"], ["a", "b"])
    await holders.give_back(holders.got[-1])
    assert holders.shares.free == (1 if holders.got == ["a", "c"] else 0)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_whoever_is_cancelled(seed: int, autojump_clock: object) -> None:
    chance, shares = Random(seed), Shares(5)

    async def use(caller: int) -> None:
        with anyio.move_on_after(chance.random() * 3):
            await shares.acquire(caller)
            try:
                await trio.sleep(chance.random())
            finally:
                shares.release(caller)

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(use, chance.randrange(4))
            await trio.sleep(chance.random() / 20)
    assert shares.free == shares.total
