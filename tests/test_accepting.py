"""Connections are taken all at once, and none is lost by it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from mcp_hybrid.server import accepting
from mcp_hybrid.server.accepting import EagerListener


@pytest.fixture
async def listener() -> AsyncIterator[EagerListener]:
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with EagerListener(plain.socket) as eager:
        yield eager


def connect(listener: EagerListener) -> socket.socket:
    return socket.create_connection(listener.socket.getsockname(), timeout=10)


async def test_all_that_wait_are_taken_in_one_turn(listener: EagerListener) -> None:
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


async def test_no_more_are_taken_in_a_turn_than_a_worker_should_start(
    listener: EagerListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "AT_ONCE", 3)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect(listener))
        for checkpoints in (True, False, False, True, False):
            look = trio.testing.assert_checkpoints if checkpoints else trio.testing.assert_no_checkpoints
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
