"""What becomes of standalone streams when the process is told to stop: their clients must find the way back."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import anyio
import httpx2
import pytest
from anyio import to_thread

from harness.clients import PATIENCE
from harness.hybrid import running
from harness.mcp import LEGACY, Conversation, body, headers, initialize
from harness.process import serve

RETRY = 5000
"""Milliseconds. The SDKs' clients try again once or twice, this far apart: a server has started by then."""


async def test_a_stream_that_is_ended_by_the_server_says_when_to_come_back(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client)
        async with talk.get() as stream:
            assert (await stream.event()).retry == RETRY
            setup.app.close_streams()
            assert (await stream.event()).retry == RETRY
            await stream.finished()
        assert not setup.registry.sessions()[0].busy


async def test_a_stream_before_2025_11_25_just_ends(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client, "2025-06-18")
        async with talk.get() as stream:
            await stream.event()  # a comment
            setup.app.close_streams()
            await stream.finished()


@pytest.mark.parametrize(("called_off", "code"), [(True, 0), (False, 1)])
@pytest.mark.process
def test_the_end_by_force_can_be_called_off(called_off: bool, code: int) -> None:
    script = (
        "import time; from mcp_hybrid.server.stopping import end_by_force_after; call_off = end_by_force_after(0.1)"
    )
    script += f"; {called_off} and call_off(); time.sleep(0.5 if {called_off} else 60)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == code


@pytest.mark.process
async def test_a_process_that_stops_ends_its_streams_instead_of_cutting_them() -> None:
    with serve() as server, anyio.fail_after(PATIENCE):
        async with httpx2.AsyncClient(timeout=PATIENCE) as http:
            opened = await http.post(server.url, headers=headers(), content=body(initialize()))
            get = headers(opened.headers["mcp-session-id"], LEGACY, accept="text/event-stream", content_type=None)
            async with http.stream("GET", server.url, headers=get) as stream, anyio.create_task_group() as tasks:
                lines = stream.aiter_lines()
                await anext(lines)
                tasks.start_soon(partial(to_thread.run_sync, server.stop))
                # A stream that is cut in the middle of its chunks raises here.
                assert [line async for line in lines if line][-1] == f"retry: {RETRY}"
