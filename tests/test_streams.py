"""The standalone GET stream, event ids, and coming back for the rest of a stream."""

from __future__ import annotations

import anyio
import pytest

from harness import mcp
from harness.hybrid import Setup, running
from mcp_hybrid.backplane import LogLimits, MemoryBackplane, StreamKey, UnknownEventError

CLOSING = mcp.tool("close_stream", {"delay": 5}, id=9, token=1)


async def open_talk(setup: Setup, version: str = mcp.LEGACY) -> mcp.Conversation:
    return await mcp.Conversation.open(setup.client, version=version)


async def test_a_change_reaches_the_get_stream_and_only_it(autojump_clock: object) -> None:
    async with running() as setup:
        talk, stranger = await open_talk(setup), await open_talk(setup)
        async with talk.get() as stream, stranger.get() as other:
            await stream.started()
            await other.started()
            answer = await talk.post(mcp.tool("notify_changed"))
            assert answer.header("content-type") == "application/json"
            assert (await stream.message())["method"] == "notifications/tools/list_changed"
            await stranger.delete()
            assert await other.messages() == []


async def test_a_second_get_stream_takes_over_from_the_first(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await open_talk(setup)
        async with talk.get() as first:
            await first.started()
            async with talk.get() as second:
                await second.started()
                assert await first.messages() == []
                await talk.post(mcp.tool("notify_changed"))
                assert (await second.message())["method"] == "notifications/tools/list_changed"


async def test_a_session_holds_nothing_once_its_get_stream_was_left(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await open_talk(setup)
        async with talk.get() as stream:
            await stream.started()
        await stream.finished()
        assert not setup.registry.sessions()[0].busy


@pytest.mark.parametrize(("version", "primed"), [("2025-06-18", False), ("2025-11-25", True)])
async def test_a_priming_event_comes_first_from_2025_11_25_on(
    version: str, primed: bool, autojump_clock: object
) -> None:
    async with running() as setup:
        talk = await open_talk(setup, version)
        answer = await talk.post(mcp.tool("count", {"delay": 0}, token=1))
        first, *rest = answer.events()
        assert (first.data == "" and first.retry == 1000) is primed
        ids = [event.id for event in (first, *rest)]
        assert all(ids)
        assert len(set(ids)) == len(ids)
        async with talk.get() as stream:
            assert ((await stream.event()).id is not None) is primed


async def test_a_tool_that_closes_its_stream_finishes_on_the_resumed_one(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await open_talk(setup)
        async with talk.stream(CLOSING) as call:
            events = [await call.event() for _ in range(2)]
            assert events[0].data == ""
            assert await call.messages() == []  # closed by the tool, before its result
        async with talk.get(last_event_id=events[-1].id) as resumed:
            messages = await resumed.messages()
        assert messages[0]["params"]["progress"] == 2
        assert messages[-1]["id"] == 9


async def test_a_tool_cannot_close_its_stream_where_the_client_could_not_come_back(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await open_talk(setup, "2025-06-18")
        answer = await talk.post(CLOSING)
        assert answer.events()[-1].json()["id"] == 9


async def test_a_client_cut_off_gets_what_it_missed_and_then_goes_on_live(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await open_talk(setup)
        async with talk.stream(mcp.tool("count", {"steps": 6, "delay": 1}, token=1)) as call:
            events = [await call.event() for _ in range(3)]
        await anyio.sleep(1.5)
        async with talk.get(last_event_id=events[-1].id) as resumed:
            messages = await resumed.messages()
        assert [m["params"]["progress"] for m in messages[:-1]] == [3, 4, 5, 6]
        assert "result" in messages[-1]


async def test_the_standalone_stream_is_resumed_without_a_gap(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await open_talk(setup)
        async with talk.get() as stream:
            last = (await stream.event()).id
        await stream.finished()
        for _ in range(3):
            await talk.post(mcp.tool("notify_changed"))
        async with talk.get(last_event_id=last) as resumed:
            for _ in range(3):
                assert (await resumed.message())["method"] == "notifications/tools/list_changed"


async def test_a_standalone_stream_of_an_earlier_process_goes_on_live(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await open_talk(setup)
        async with talk.get(last_event_id="s.00000000-5") as stream:
            await stream.started()
            assert stream.status == 200
            await talk.post(mcp.tool("notify_changed"))
            assert (await stream.message())["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize("unknown", ["x", "c1.2", "s.x", "c000000000000.00000000-1", "s.1-1-1"])
async def test_an_event_id_that_is_none_of_the_sessions_is_400(unknown: str) -> None:
    async with running() as setup:
        talk = await open_talk(setup)
        async with talk.get(last_event_id=unknown) as stream:
            assert (await stream.started())[0] == 400


async def test_no_stream_is_resumed_from_another_session(autojump_clock: object) -> None:
    async with running() as setup:
        talk, stranger = await open_talk(setup), await open_talk(setup)
        answer = await talk.post(mcp.tool("count", {"delay": 0}, token=1))
        event_id = answer.events()[0].id
        assert event_id is not None
        async with stranger.get(last_event_id=event_id) as stolen:
            assert (await stolen.started())[0] == 400
        async with talk.get(last_event_id=event_id) as own:
            assert len(await own.messages()) == 4


async def test_logs_go_by_the_clock_that_nobody_sets(autojump_clock: object) -> None:
    """A wall clock that steps ahead (a laptop that slept) takes no stream from a client that comes back."""
    wall = 0.0
    backplane = MemoryBackplane(LogLimits(age=10), clock=lambda: wall)
    stream = StreamKey("session", "c1")
    await backplane.append(stream, None)
    wall = 1e9
    await backplane.prune()
    assert await backplane.is_open(stream)
    await anyio.sleep(10)
    await backplane.prune()
    assert not await backplane.is_open(stream)


async def test_a_log_that_somebody_reads_is_kept_and_one_of_an_ended_session_is_not(autojump_clock: object) -> None:
    backplane = MemoryBackplane(LogLimits(age=10))
    stream = StreamKey("session", "s")
    tail = await backplane.tail(stream)
    told: list[str] = []

    async def read() -> None:
        try:
            await backplane.read(stream, tail)
        except UnknownEventError:
            told.append("gone")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.sleep(100)
        await backplane.prune()
        assert await backplane.is_open(stream)
        await backplane.forget("session")
    assert told == ["gone"]
