"""Every figure moves when it should, by as much as it should, and nobody outside decides how many there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.server.auth.provider import AccessToken
from prometheus_client import REGISTRY, Counter

from harness import mcp
from harness.figures import PREFIX, Figures, read_figures
from harness.hybrid import Setup, fleet, running
from harness.process import ServerProcess, hypercorn, program, serve
from harness.redis import RedisServer, redis_server
from mcp_hybrid.errors import Cause
from mcp_hybrid.telemetry import directory
from mcp_hybrid.telemetry.backplane import TIMED

DOCUMENT = Path(__file__).parent.parent / "docs" / "operating.md"
SLOW = 60.0
"""Seconds for an answer of a server that may still be starting its workers."""
LISTEN = mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))


async def figures(setup: Setup) -> Figures:
    return await read_figures(setup.client)


async def post(setup: Setup, message: Any, *extra: tuple[str, str]) -> int:
    answer = await setup.client.request("POST", "/mcp", mcp.headers(None, None, *extra), mcp.body(message))
    return answer.status


# Requests


async def test_requests_are_counted_by_route_method_and_status() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        for _ in range(3):
            await talk.post(mcp.tool("add", {"a": 1, "b": 2}))
        await post(setup, mcp.tool("add", {"a": 1, "b": 2}))
        listing = mcp.modern(mcp.request("tools/list"))
        await setup.client.request("POST", "/mcp", mcp.modern_headers(listing), mcp.body(listing))
        await talk.post(mcp.result("nobody-asked", {}))
        await setup.client.request("GET", "/mcp", [("accept", "text/event-stream")])
        await setup.client.request("GET", "/nothing")
        await setup.client.request("GET", "/healthz")
        found = await figures(setup)
    assert found.of("requests_total") == {
        ("initialize", "session", "200"): 1,
        ("notifications/initialized", "session", "202"): 1,
        ("tools/call", "session", "200"): 3,
        ("tools/call", "stateless", "200"): 1,
        ("tools/list", "modern", "200"): 1,
        ("response", "session", "202"): 1,
        ("GET", "none", "405"): 1,
        ("GET", "none", "404"): 1,
        ("healthz", "operator", "200"): 1,
    }


async def test_a_batch_is_one_request_of_its_own_kind() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client, "2025-03-26")
        await talk.post(mcp.batch(mcp.request("ping", id=1), mcp.request("ping", id=2)))
        assert (await figures(setup)).of("requests_total")["batch", "session", "200"] == 1


async def test_what_strangers_make_up_adds_no_figures() -> None:
    async with running() as setup:
        for number in range(20):
            await post(setup, mcp.request(f"made/up{number}"))
            await post(setup, mcp.notification(f"notifications/made-up{number}"))
            await post(setup, mcp.tool(f"made-up{number}"))
            await setup.client.request(f"MADE{number}", "/mcp")
            await setup.client.request("GET", f"/made-up{number}")
        found = await figures(setup)
        assert found("requests_total", route="stateless", method="other", status="200") == 20
        assert found("requests_total", route="stateless", method="other", status="202") == 20
        assert found("requests_total", route="none", method="other", status="405") == 20
        assert len(found.of("requests_total")) == 5


async def test_durations_are_those_of_answers_not_of_streams(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        before = await figures(setup)
        await talk.post(mcp.request("ping"))
        async with talk.get() as stream:
            await stream.event()
        async with setup.client.stream("POST", "/mcp", mcp.modern_headers(LISTEN), mcp.body(LISTEN)) as listening:
            await listening.event()
        await anyio.sleep(1)
        after = await figures(setup)
    count = "request_duration_seconds_count"
    assert after(count, route="session") - before(count, route="session") == 1
    assert after(count, route="modern") == 0
    assert after("request_duration_seconds_sum", route="session") > before(
        "request_duration_seconds_sum", route="session"
    )


async def test_a_client_that_left_before_its_answer_is_counted_as_gone() -> None:
    async with running() as setup:
        async with setup.client.stream("POST", "/mcp", mcp.headers(), None) as call:
            await call.feed(b'{"jsonrpc"', more=True)
            await call.disconnect()
            await call.finished()
        assert (await figures(setup))("requests_total", route="none", method="POST", status="gone") == 1


async def test_refusals_are_counted_by_their_cause() -> None:
    async with running() as setup:
        assert await post(setup, b"{") == 400
        assert await post(setup, mcp.request("ping"), ("host", "evil.example")) == 421
        assert await post(setup, mcp.request("ping"), ("mcp-session-id", "made-up")) == 404
        found = await figures(setup)
    assert found.of("refused_total") == {("not_json",): 1, ("host_not_allowed",): 1, ("session_unknown",): 1}
    assert {labels["cause"] for labels in labels_of(found, "refused")} == {cause.label for cause in Cause}


async def test_requests_without_a_good_credential_are_counted() -> None:
    class Verifier:
        async def verify_token(self, token: str) -> AccessToken | None:
            return AccessToken(token=token, client_id="c", scopes=[]) if token == "good" else None

    async with running(token_verifier=Verifier()) as setup:
        assert await post(setup, mcp.request("ping")) == 401
        assert await post(setup, mcp.request("ping"), ("authorization", "Bearer bad")) == 401
        assert await post(setup, mcp.request("ping"), ("authorization", "Bearer good")) == 200
        page = (await setup.client.request("GET", "/metrics", [("authorization", "Bearer good")])).body.decode()
    assert 'mcp_hybrid_refused_total{cause="unauthorized"} 2.0\n' in page
    assert 'mcp_hybrid_requests_total{method="POST",route="none",status="401"} 2.0\n' in page


def labels_of(found: Figures, name: str) -> list[dict[str, str]]:
    return [sample.labels for sample in found.families[PREFIX + name].samples]


# Calls and streams


async def test_calls_are_in_flight_while_somebody_waits_for_them() -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("wait")) as first, talk.stream(mcp.tool("wait", id=2)) as second:
            await setup.example.until_started("wait", 2)
            assert (await figures(setup))("calls_in_flight") == 2
            setup.example.release()
            await first.answer()
            await second.answer()
        assert (await figures(setup))("calls_in_flight") == 0


async def test_listening_is_a_stream_and_no_call() -> None:
    async with (
        running() as setup,
        setup.client.stream("POST", "/mcp", mcp.modern_headers(LISTEN), mcp.body(LISTEN)) as listening,
    ):
        await listening.event()
        found = await figures(setup)
        assert (found("calls_in_flight"), found("streams_open", http="POST")) == (0, 1)


async def test_streams_are_open_until_they_end_or_their_client_goes(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.get() as standing, talk.stream(mcp.tool("wait")) as call:
            await standing.event()
            await call.event()  # after stream_after
            found = await figures(setup)
            assert found.of("streams_open") == {("GET",): 1, ("POST",): 1}
            await standing.disconnect()
            await standing.finished()
            assert (await figures(setup)).of("streams_open") == {("POST",): 1}
            setup.example.release()
            await call.messages()
        assert (await figures(setup)).of("streams_open") == {}


# Sessions


async def test_a_session_is_counted_through_its_life(autojump_clock: object) -> None:
    async with running(sessions={"idle_timeout": 60}) as setup:
        await post(setup, mcp.initialize())
        assert counted(await figures(setup)) == {"offered": 1}
        talk = await mcp.Conversation.open(setup.client)
        assert counted(await figures(setup)) == {"offered": 2, "claimed": 1, "live": 1}
        await talk.post(mcp.notification("notifications/initialized"))
        await anyio.sleep(100)
        assert counted(await figures(setup)) == {"offered": 2, "claimed": 1, "hibernated": 1}
        await talk.post(mcp.request("ping"))
        assert counted(await figures(setup)) == {
            "offered": 2, "claimed": 1, "hibernated": 1, "brought_back": 1, "live": 1,
        }  # fmt: skip
        await talk.delete()
        found = await figures(setup)
        assert found.of("sessions_ended_total") == {("deleted",): 1}
        assert found("sessions_live") == 0


def counted(found: Figures) -> dict[str, float]:
    names = ("offered", "claimed", "brought_back", "hibernated")
    every = {name: found(f"sessions_{name}_total") for name in names} | {"live": found("sessions_live")}
    return {name: value for name, value in every.items() if value}


@pytest.mark.parametrize("noticed", ["by a request", "by the sweep"])
async def test_a_live_session_that_grows_too_old_is_counted_once(noticed: str, autojump_clock: object) -> None:
    async with running(sessions={"max_age": 100, "idle_timeout": 60}) as setup:
        talk = await mcp.Conversation.open(setup.client)
        setup.clock.now += 101
        if noticed == "by the sweep":
            await anyio.sleep(100)
        for _ in range(2):
            assert (await talk.post(mcp.request("ping"))).status == 404
        found = await figures(setup)
        assert found.of("sessions_ended_total") == {("expired",): 1}
        assert found("sessions_hibernated_total") == 0


async def test_a_session_ended_by_the_operator_is_counted_as_that() -> None:
    key = "k" * 24
    async with running(operator={"admin_key": key}) as setup:
        await mcp.Conversation.open(setup.client)
        (live,) = setup.registry.sessions()
        await setup.client.request("DELETE", f"/admin/sessions/{live.hash}", [("authorization", f"Bearer {key}")])
        assert (await figures(setup)).of("sessions_ended_total") == {("operator",): 1}


async def test_a_session_that_makes_room_has_hibernated() -> None:
    async with running(sessions={"max_live": 1}) as setup:
        for _ in range(3):
            await mcp.Conversation.open(setup.client)
        found = await figures(setup)
        assert (found("sessions_live"), found("sessions_hibernated_total")) == (1, 2)


# Progress


async def test_progress_that_is_sent_gives_way_or_is_withheld(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.stream(mcp.tool("burst", {"steps": 1000}, token=1)) as call:
            call.pause(room=1000)
            await setup.example.until_over("burst")
            call.resume()
            sent = len(await call.messages()) - 1
        await post(setup, mcp.tool("add", {"a": 1, "b": 2}, token=1))
        await talk.post(mcp.tool("add", {"a": 1, "b": 2}))
        found = await figures(setup)
        assert 0 < sent < 1000
        assert found("progress_sent_total") == sent
        assert found("progress_coalesced_total") == 1000 - sent
        assert found("progress_withheld_total") == 1


# The backplane


@pytest.mark.redis
async def test_operations_on_a_shared_backplane_are_timed_and_its_absence_is_seen() -> None:
    with redis_server() as redis:
        async with fleet(redis.url, 1) as workers:
            (setup,) = workers.workers
            await mcp.Conversation.open(setup.client)
            found = await figures(setup)
            assert found("backplane_operation_seconds_count", operation="is_revoked") == 1
            assert found("backplane_operation_seconds_sum", operation="is_revoked") > 0
            assert found("backplane_available") == 1
            redis.kill()
            await until_available(setup, 0)
            talk = await mcp.Conversation.open(setup.client)
            assert (await talk.delete()).status == 503
            assert (await figures(setup))("backplane_failures_total", operation="revoke") == 1
            redis.start()
            await until_available(setup, 1)


async def until_available(setup: Setup, value: float) -> None:
    with anyio.fail_after(60):
        while (await figures(setup))("backplane_available") != value:  # noqa: ASYNC110 - nobody announces it
            await anyio.sleep(0.05)


async def test_every_operation_is_shown_from_the_start(shared_redis: RedisServer) -> None:
    async with fleet(shared_redis.url, 1) as workers:
        found = await figures(workers.workers[0])
        shown = {labels["operation"] for labels in labels_of(found, "backplane_operation_seconds")}
        assert shown == set(TIMED)


# The page as a whole


async def test_the_versions_in_use_are_shown() -> None:
    async with running() as setup:
        found = await figures(setup)
        assert found("workers") == 1
        (labels,) = labels_of(found, "build_info")
        assert set(labels) == {"version", "mcp", "python"}
        assert all(labels.values())


async def test_what_a_tool_counts_by_itself_is_on_the_page() -> None:
    own = Counter("boiled_eggs", "Eggs that were boiled")
    try:
        async with running() as setup:
            own.inc(3)
            found = await figures(setup)
            assert found("boiled_eggs_total") == 3
            assert found("process_resident_memory_bytes") > 0
    finally:
        REGISTRY.unregister(own)


async def test_two_applications_in_one_process_count_for_themselves() -> None:
    async with running() as one, running() as other:
        await post(one, mcp.request("ping"))
        assert (await figures(other)).of("requests_total") == {}


async def test_the_document_names_every_figure_with_its_kind_and_labels(shared_redis: RedisServer) -> None:
    rows = re.findall(r"^\| `(mcp_hybrid_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    async with fleet(shared_redis.url, 1) as workers:
        await mcp.Conversation.open(workers.workers[0].client)
        found = await figures(workers.workers[0])
    exported = {}
    for name, family in found.families.items():
        if name.startswith(PREFIX):
            shown = name + "_total" if family.type == "counter" else name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            exported[shown] = (family.type, tuple(sorted(labels)))
    assert {name: (kind, tuple(sorted(labels))) for name, (kind, labels) in documented.items()} == exported


# Several workers


@pytest.mark.process
def test_what_a_dead_worker_held_is_forgotten_and_what_it_counted_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(directory.VARIABLE, str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kinds = ("gauge_livesum", "gauge_livemin", "counter")
    for pid in (dead.pid, os.getpid()):
        for kind in kinds:
            (tmp_path / f"{kind}_{pid}.db").touch()
    directory.forget_the_gone(str(tmp_path))
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {f"counter_{dead.pid}.db", *(f"{kind}_{os.getpid()}.db" for kind in kinds)}


def test_the_parent_of_workers_makes_a_directory_for_them_and_takes_it_away() -> None:
    environ: dict[str, str] = {}
    with directory.prepare_multiprocess(environ):
        folder = Path(environ[directory.VARIABLE])
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0
    assert environ == {}
    assert not folder.exists()


def test_a_directory_that_was_given_is_used_and_left_alone(tmp_path: Path) -> None:
    environ = {directory.VARIABLE: str(tmp_path)}
    with directory.prepare_multiprocess(environ):
        assert environ == {directory.VARIABLE: str(tmp_path)}
    assert tmp_path.is_dir()
    assert environ == {directory.VARIABLE: str(tmp_path)}


def page(server: ServerProcess) -> Figures:
    """Read the page on a connection of its own, which any worker may take."""
    return Figures(httpx2.get(f"http://127.0.0.1:{server.port}/metrics", timeout=30).text)


def spread(server: ServerProcess, until: int) -> tuple[set[int], int]:
    """Make calls until so many workers have answered; give their process ids and how many calls were made."""
    seen: set[int] = set()
    made = 0
    with ThreadPoolExecutor(4) as pool:
        deadline = time.monotonic() + 60
        while len(seen) < until:
            assert time.monotonic() < deadline, f"only {seen} answered"
            call = mcp.tool("pid", {"hold": 0.05})
            calls = [
                pool.submit(httpx2.post, server.url, headers=mcp.headers(), json=call, timeout=30) for _ in range(4)
            ]
            seen |= {int(each.result().json()["result"]["content"][0]["text"]) for each in calls}
            made += 4
    return seen, made


def asked(server: ServerProcess) -> int:
    """Ask for the process id of the worker that answers."""
    call = mcp.tool("pid", {"hold": 0.05})
    answer = httpx2.post(server.url, headers=mcp.headers(), json=call, timeout=30)
    return int(answer.json()["result"]["content"][0]["text"])


def two_workers(_folder: Path) -> ServerProcess:
    return serve(program("launched"), "--workers", "2")


def two_of_hypercorns(folder: Path) -> ServerProcess:
    env = {"MCP_HYBRID_TARGET": program("launched"), directory.VARIABLE: str(folder)}
    return hypercorn("-w", "2", env=env)


@pytest.mark.process
@pytest.mark.parametrize("start", [two_workers, two_of_hypercorns], ids=["serve --workers 2", "hypercorn -w 2"])
def test_whichever_worker_is_asked_answers_for_all(start: Callable[[Path], ServerProcess], tmp_path: Path) -> None:
    with start(tmp_path) as server:
        workers, made = spread(server, 2)
        for _ in range(6):
            found = page(server)
            assert found("requests_total", route="stateless", method="tools/call", status="200") == made
            assert found("request_duration_seconds_count", route="stateless") == made
            assert found("workers") == 2
            assert found("calls_in_flight") == 0
        assert len(workers) == 2


@pytest.mark.process
def test_a_killed_worker_no_longer_holds_anything_and_what_it_counted_stays(tmp_path: Path) -> None:
    env = {directory.VARIABLE: str(tmp_path)}
    with serve(program("launched"), env=env) as one, serve(program("launched"), env=env) as other:
        for server in (one, other):
            opened = httpx2.post(server.url, headers=mcp.headers(), json=mcp.initialize(), timeout=SLOW).headers[
                "mcp-session-id"
            ]
            confirmed = mcp.notification("notifications/initialized")
            httpx2.post(server.url, headers=mcp.headers(opened), json=confirmed, timeout=SLOW)
        before = page(other)
        assert (before("workers"), before("sessions_live"), before("sessions_claimed_total")) == (2, 2, 2)
        one.kill()
        after = page(other)
        assert (after("workers"), after("sessions_live"), after("sessions_claimed_total")) == (1, 1, 2)
        assert after("backplane_available") == 1
