"""`limits.connections`: who gets a place, and who gives one up."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import trio
import trio.testing

from harness.connections import Stream, everything, serving
from mcp_hybrid.server.connections import Connections, allowed_by_files
from mcp_hybrid.server.worker import HardenedTCPServer

Clock = trio.testing.MockClock

ATTACKER, OTHER = "192.0.2.1", "198.51.100.7"
GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Place:
    """A connection that is idle, or not."""

    def __init__(self, *, is_idle: bool = True) -> None:
        self.is_idle = is_idle


def full(*addresses: str, is_idle: bool = True) -> tuple[Connections, list[Place]]:
    held = Connections()
    places = [Place(is_idle=is_idle) for _ in addresses]
    for place, address in zip(places, addresses, strict=True):
        assert held.admit(place, address, len(addresses)) == (True, None)
    return held, places


def test_the_oldest_idle_one_of_who_has_the_most_gives_way() -> None:
    held, places = full(OTHER, ATTACKER, ATTACKER, ATTACKER)
    places[1].is_idle = False
    assert held.admit(Place(), "203.0.113.1", 4) == (True, places[2])
    assert len(held) == 4
    held.remove(places[2])  # it ends by itself now, and has no place to give back
    assert len(held) == 4


def test_nobody_gives_way_to_an_address_with_as_many() -> None:
    held, _ = full(ATTACKER, ATTACKER, OTHER)
    assert held.admit(Place(), OTHER, 3) == (False, None)
    assert held.admit(Place(), ATTACKER, 3) == (False, None)


def test_nobody_gives_way_who_is_being_served() -> None:
    held, _ = full(*[ATTACKER] * 4, is_idle=False)
    assert held.admit(Place(), OTHER, 4) == (False, None)


def test_a_network_of_ipv6_is_one_client() -> None:
    held, places = full("2001:db8::1", "2001:db8::2", "2001:db8::3", OTHER)
    assert held.admit(Place(), "203.0.113.1", 4) == (True, places[0])


def test_a_place_that_was_left_is_free_and_no_limit_is_none() -> None:
    held, places = full(ATTACKER)
    assert held.admit(Place(), OTHER, 1) == (False, None)
    held.remove(places[0])
    assert held.admit(Place(), OTHER, 1) == (True, None)
    assert held.admit(Place(), OTHER, 0) == (True, None)


@pytest.mark.parametrize(("files", "most"), [(1024, 819), (20_000, 5000), (resource.RLIM_INFINITY, 5000)])
def test_there_are_never_more_than_open_files_allow(files: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert allowed_by_files(5000) == most
    assert allowed_by_files(0) == 0


async def answering(scope: Any, _receive: Any, send: Any) -> None:
    if scope["path"] == "/held":
        await trio.sleep_forever()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def is_served(stream: Stream) -> bool:
    try:
        await stream.send_all(GET % b"")
        return bytes(await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
    except trio.BrokenResourceError:
        return False


async def test_who_holds_all_connections_open_keeps_nobody_out(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HardenedTCPServer, "most", 10)
    async with serving(answering) as connect:
        served = await connect(ATTACKER)
        await served.send_all(GET % b"held")
        idle = [await connect(ATTACKER) for _ in range(9)]
        await idle[3].send_all((GET % b"")[:20])
        await trio.testing.wait_all_tasks_blocked()
        others = [await connect(OTHER) for _ in range(6)]
        assert [await is_served(other) for other in others] == [True] * 5 + [False], "both have as many now"
        for evicted in idle[:5]:
            assert await everything(evicted) == b""
        assert await is_served(idle[5])
        assert not await is_served(await connect(ATTACKER))
        await served.send_all(b"")  # and what is being served goes on
