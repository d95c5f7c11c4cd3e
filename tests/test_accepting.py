"""Connections are taken several at a time by a worker that has many, and none is lost by it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from mcp_hybrid.server.accepting import EagerListener


@pytest.fixture
async def opened() -> list[int]:
    """How many connections are open, as far as the listener is told."""
    return [1000]


@pytest.fixture
async def listener(opened: list[int]) -> AsyncIterator[EagerListener]:
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with EagerListener(plain.socket, lambda: opened[0]) as eager:
        yield eager


def connect(listener: EagerListener) -> socket.socket:
    return socket.create_connection(listener.socket.getsockname(), timeout=10)


async def test_a_worker_that_has_many_takes_those_that_wait_in_one_turn(listener: EagerListener) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(listener)) for _ in range(20)]
        taken = [await listener.accept()]
        with trio.testing.assert_no_checkpoints():
            taken += [await listener.accept() for _ in range(19)]
        ours = {stream.socket.getpeername() for stream in taken}
        assert ours == {client.getsockname() for client in clients}
        for stream in taken:
            await stream.send_all(b"x")
            await stream.aclose()
        assert [client.recv(2) for client in clients] == [b"x"] * 20


async def test_where_none_waits_it_waits_for_the_next(listener: EagerListener) -> None:
    for _ in range(3):
        with connect(listener) as client:
            stream = await listener.accept()
            assert stream.socket.getpeername() == client.getsockname()
            await stream.aclose()
        with trio.move_on_after(0.05) as waiting:
            await listener.accept()
        assert waiting.cancelled_caught


@pytest.mark.parametrize(
    ("count", "waits"),
    [(0, [True] * 5), (1, [True] * 5), (2, [True, False, True, False, True]), (4, [True, False, False, True, False])],
)
async def test_one_that_has_few_leaves_the_others_to_other_workers(
    listener: EagerListener, opened: list[int], count: int, waits: list[bool]
) -> None:
    opened[0] = count
    with ExitStack() as stack:
        for _ in waits:
            stack.enter_context(connect(listener))
        for gives_up_its_turn in waits:
            look = trio.testing.assert_checkpoints if gives_up_its_turn else trio.testing.assert_no_checkpoints
            with look():
                stream = await listener.accept()
            await stream.aclose()


async def test_one_that_was_closed_takes_none(listener: EagerListener) -> None:
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_what_was_taken_is_not_lost_where_the_system_refuses_more(
    listener: EagerListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when there are no more descriptors. Who asks for the next connection is told, if it is still so."""
    accept, left = socket.socket.accept, [1, 2]

    def refuse(self: socket.socket) -> tuple[socket.socket, object]:
        if not left:
            raise OSError(24, "Too many open files")
        left.pop()
        return accept(self)

    with ExitStack() as stack:
        clients = [stack.enter_context(connect(listener)) for _ in range(4)]
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "accept", refuse)  # Trio has its own hold of it
            taken = [await listener.accept() for _ in range(3)]
        taken.append(await listener.accept())
        assert {each.socket.getpeername() for each in taken} == {each.getsockname() for each in clients}
        for stream in taken:
            await stream.aclose()
