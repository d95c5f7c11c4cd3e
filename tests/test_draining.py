"""An application that is told to drain: what runs is let finish, then answered; what streams ends in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from harness.asgi import Answer
from harness.hybrid import Setup, running
from harness.mcp import Conversation, Json, batch, body, headers, modern, modern_headers, request, tool
from mcp_hybrid.errors import SERVER_BUSY

DRAIN = 30.0


async def drain(setup: Setup) -> float:
    """Drain and give how long it took."""
    started = anyio.current_time()
    await setup.app.drain(DRAIN)
    return anyio.current_time() - started


async def test_nothing_to_drain_takes_no_time_and_shows(autojump_clock: object) -> None:
    async with running() as setup:
        assert not setup.app.draining
        assert await drain(setup) < 0.1
        assert setup.app.draining


async def test_an_application_that_does_not_run_drains_at_once(autojump_clock: object) -> None:
    async with running() as setup:
        app = setup.app
    await app.drain(DRAIN)
    assert app.draining


# Running calls, on each route


Route = Callable[[Json], tuple[list[tuple[str, str]], bytes]]


def stateless(message: Json) -> tuple[list[tuple[str, str]], bytes]:
    return headers(), body(message)


def at_2026(message: Json) -> tuple[list[tuple[str, str]], bytes]:
    return modern_headers(modern(message)), body(modern(message))


ROUTES = [pytest.param(stateless, id="stateless"), pytest.param(at_2026, id="modern")]


@pytest.mark.parametrize("route", ROUTES)
async def test_a_call_that_finishes_in_time_is_answered_as_ever(route: Route, autojump_clock: object) -> None:
    sent = route(tool("wait", {"seconds": 10}))
    async with running() as setup, setup.client.stream("POST", "/mcp", *sent) as exchange:
        await setup.example.until_started("wait")
        assert 10 <= await drain(setup) < 10.5
        assert last(await exchange.answer())["result"]["content"][0]["text"] == "let go"


@pytest.mark.parametrize("route", ROUTES)
async def test_a_call_that_does_not_is_answered_with_an_error(route: Route, autojump_clock: object) -> None:
    async with running() as setup:
        async with setup.client.stream("POST", "/mcp", *route(tool("wait"))) as exchange:
            await setup.example.until_started("wait")
            assert DRAIN <= await drain(setup) < DRAIN + 0.5
            assert_stopped(last(await exchange.answer()))
        assert setup.example.cancelled == ["wait"]


async def test_a_call_in_a_session_is_answered_with_an_error_that_is_kept_for_a_client_that_comes_back(
    autojump_clock: object,
) -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client)
        async with talk.stream(tool("count", {"steps": 100, "delay": 1}, token="t")) as exchange:
            first = await exchange.event()
            assert first.id is not None
            await exchange.message()  # the client sees this much, and then no more
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(setup.app.drain, DRAIN)
            await setup.example.until_over("count")
            async with talk.get(first.id) as resumed:
                assert_stopped((await resumed.answer()).events()[-1].json())


async def test_every_call_of_a_batch_is_answered_with_an_error(autojump_clock: object) -> None:
    async with running() as setup:
        calls = batch(tool("wait", id=1), tool("wait", id=2), tool("add", {"a": 1, "b": 2}, id=3))
        async with setup.client.stream("POST", "/mcp", headers(), body(calls)) as exchange:
            await setup.example.until_started("wait", 2)
            await drain(setup)
            one, two, three = (await exchange.answer()).json()
        assert_stopped(one)
        assert_stopped(two)
        assert "result" in three


async def test_a_call_that_comes_while_draining_shares_the_time_that_is_left(autojump_clock: object) -> None:
    async with (
        running() as setup,
        setup.client.stream("POST", "/mcp", *stateless(tool("wait"))) as first,
        setup.client.stream("POST", "/mcp", headers(), None) as late,
        anyio.create_task_group() as tasks,
    ):
        await setup.example.until_started("wait")
        tasks.start_soon(setup.app.drain, DRAIN)
        await anyio.sleep(DRAIN - 1)
        await late.feed(body(tool("wait")), more=False)
        assert_stopped(last(await first.answer()))
        assert_stopped(last(await late.answer()))


def last(answer: Answer) -> Any:
    """Give the response of an answer, JSON or a stream."""
    streamed = answer.header("content-type") == "text/event-stream"
    return answer.events()[-1].json() if streamed else answer.json()


def assert_stopped(message: Any) -> None:
    assert message["error"]["code"] == SERVER_BUSY
    assert "stopping" in message["error"]["message"]


# Streams


async def test_a_listener_is_given_its_result_at_once(autojump_clock: object) -> None:
    listen = modern(request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
    async with (
        running() as setup,
        setup.client.stream("POST", "/mcp", modern_headers(listen), body(listen)) as exchange,
    ):
        await exchange.message()
        assert await drain(setup) < 1
        assert "result" in last(await exchange.answer())


async def test_a_resumed_stream_of_a_call_that_runs_here_says_its_end(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client)
        async with talk.stream(tool("count", {"steps": 5, "delay": 1}, token="t")) as exchange:
            first = await exchange.event()
        async with talk.get(first.id) as resumed:
            await resumed.message()
            assert await drain(setup) < 6
            assert (await resumed.answer()).events()[-1].json()["result"]["content"][0]["text"] == "counted to 5"


async def test_answers_on_connections_that_are_open_say_that_they_are_the_last(autojump_clock: object) -> None:
    async with running() as setup:
        before = await setup.client.request("POST", "/mcp", *stateless(request("ping")))
        await drain(setup)
        after = await setup.client.request("POST", "/mcp", *stateless(request("ping")))
        assert (before.status, before.header("connection")) == (200, None)
        assert (after.status, after.header("connection")) == (200, "close")
