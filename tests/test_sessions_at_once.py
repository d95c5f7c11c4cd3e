"""Two things at the same time in one session, and in several: ids, ends, clean-ups, questions, signals."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from mcp.server import MCPServer
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context
from mcp.server.subscriptions import ResourceUpdated, ServerEvent, ToolsListChanged
from mcp_types import ListRootsRequest, ListRootsResult, NotificationParams
from pydantic_core import to_json
from trio.testing import wait_all_tasks_blocked

from harness import mcp
from harness.asgi import AsgiClient
from harness.example import Example
from harness.hybrid import KEY, Setup, running
from harness.mcp import Conversation
from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.backplane import BackplaneUnavailableError, MemoryBackplane, Signal, SignalKind, StreamKey
from mcp_hybrid.counts import Count
from mcp_hybrid.errors import only_exception
from mcp_hybrid.service import background, words
from mcp_hybrid.service.background import BackgroundTasks
from mcp_hybrid.sessions import cleanup, registry
from mcp_hybrid.sessions.live import LiveSession
from mcp_hybrid.sessions.registry import SessionOverError

BATCHING = "2025-03-26"
WAIT: Any = mcp.tool("wait", id=7)


class Shared(MemoryBackplane):
    """A memory that says that other workers are there; what is sent to them is kept, or waits, or fails."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.sent: list[Signal] = []
        self.gate = anyio.Event()
        self.gate.set()
        self.entered = 0
        """How many times somebody came to the gate."""

    @property
    def available(self) -> bool:
        return not self.away

    async def send(self, worker: str, signal: Signal) -> None:  # noqa: ARG002 - the protocol's
        await self.broadcast(signal)

    async def broadcast(self, signal: Signal) -> None:
        await self.pass_gate()
        self.sent.append(signal)

    async def forget(self, session: str) -> None:
        await self.pass_gate()
        await super().forget(session)

    async def tail(self, stream: StreamKey) -> str:
        await self.pass_gate()
        return await super().tail(stream)

    async def pass_gate(self) -> None:
        if self.away:
            raise BackplaneUnavailableError
        self.entered += 1
        await self.gate.wait()

    async def until_entered(self, times: int) -> None:
        while self.entered < times:
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def running_on(backplane: MemoryBackplane, server: object = None, **settings: Any) -> AsyncIterator[Setup]:
    example = Example()
    sessions = {"keys": [KEY], **settings.pop("sessions", {})}
    app = HybridApp(server or example.server, Settings(sessions=sessions, **settings), backplane=backplane)
    async with AsgiClient(app) as client:
        yield Setup(client, app, example)


# Request ids


@pytest.mark.parametrize("first", ["call", "batch"])
@pytest.mark.parametrize("second", ["call", "batch"])
async def test_a_request_id_that_is_running_is_refused(first: str, second: str) -> None:
    sent = {"call": WAIT, "batch": [WAIT, mcp.tool("add", {"a": 1, "b": 1}, id=8)]}
    async with running() as setup:
        talk = await Conversation.open(setup.client, BATCHING)
        async with talk.stream(sent[first]) as call:
            await setup.example.until_started("wait")
            refused = await talk.post(sent[second])
            assert (refused.status, refused.json()["error"]["code"]) == (400, -32600)
            setup.example.release()
            assert (await call.answer()).status == 200
        assert (await talk.post(sent[second])).status == 200  # it was given back


async def test_of_equal_batches_at_once_all_but_one_are_refused() -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client, BATCHING)
        statuses: Counter[int] = Counter()

        async def post() -> None:
            statuses[(await talk.post([WAIT])).status] += 1
            if statuses[400] == 4:
                setup.example.release()

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(post)
        assert statuses == {200: 1, 400: 4}
        assert not setup.registry.sessions()[0].busy


async def test_a_batch_can_cancel_a_request_of_its_own(autojump_clock: object) -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client, BATCHING)
        (answer,) = (await talk.post([WAIT, mcp.cancelled(7)], accept="application/json")).json()
        assert (answer["id"], answer["error"]["code"]) == (7, -32800)


@pytest.mark.parametrize("batch", [False, True])
async def test_without_the_backplane_what_needs_it_is_503(batch: bool) -> None:
    backplane = Shared()
    async with running_on(backplane) as setup:
        talk = await Conversation.open(setup.client, BATCHING)
        backplane.away = True
        elsewhere = mcp.result("aaaaaaaaaaaa.AAAAAAAAAAAA", {})
        answer = await talk.post([mcp.tool("add", {"a": 1, "b": 1}), elsewhere] if batch else elsewhere)
        assert (answer.status, answer.header("retry-after"), answer.json()["error"]["code"]) == (503, "1", -32000)
        assert setup.example.started == []  # or the same batch, sent again, would do it twice
        assert not setup.registry.sessions()[0].busy


def test_a_group_is_taken_for_what_all_in_it_are() -> None:
    one, two = BackplaneUnavailableError(), BackplaneUnavailableError()
    assert only_exception(one) is one
    assert only_exception(ExceptionGroup("", [ExceptionGroup("", [one]), two])) is one
    mixed = ExceptionGroup("", [one, ValueError()])
    assert only_exception(mixed) is mixed


# What keeps a session


class Noticing:
    """A server that takes its time over a notification, and leaves something to clean up."""

    def __init__(self) -> None:
        self.server: Server[Any] = Server("noticing")
        self.server.add_notification_handler("notifications/roots/list_changed", NotificationParams, self._notice)
        self.noticing, self.gate = anyio.Event(), anyio.Event()
        self.done: list[str] = []

    async def _notice(self, ctx: Any, params: NotificationParams | None) -> None:  # noqa: ARG002 - the SDK's
        ctx.session._connection.exit_stack.callback(self.done.append, "before")
        self.noticing.set()
        try:
            await self.gate.wait()
            self.done.append("noticed")
        except anyio.get_cancelled_exc_class():
            ctx.session._connection.exit_stack.callback(self.done.append, "after")
            raise


CHANGED: Any = mcp.notification("notifications/roots/list_changed")


async def test_a_session_that_handles_a_notification_is_not_put_away(autojump_clock: object) -> None:
    program = Noticing()
    async with running(server=program.server, sessions={"idle_timeout": 10, "max_live": 1}) as setup:
        talk = await Conversation.open(setup.client)
        assert (await talk.post(CHANGED)).status == 202
        await program.noticing.wait()
        await anyio.sleep(60)
        other = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.initialize()))
        session = other.header("mcp-session-id")
        refused = await setup.client.request("POST", "/mcp", mcp.headers(session), mcp.body(mcp.request("ping")))
        assert (refused.status, program.done) == (503, [])
        program.gate.set()
        await anyio.sleep(60)
        assert (len(setup.registry), program.done) == (0, ["noticed", "before"])


async def test_the_end_of_a_session_stops_the_handling_of_its_notifications(autojump_clock: object) -> None:
    program = Noticing()
    async with running(server=program.server) as setup:
        talk = await Conversation.open(setup.client)
        await talk.post(CHANGED)
        await program.noticing.wait()
        assert (await talk.delete()).status == 204
        await anyio.sleep(1)
        assert program.done == ["before", "after"]  # what was pushed after the clean-up is cleaned up, too


async def test_a_sweep_leaves_a_session_alone_that_came_back_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    paused, gate = anyio.Event(), anyio.Event()

    async def pause() -> None:
        paused.set()
        await gate.wait()

    monkeypatch.setattr(registry, "_SWEPT_AT_ONCE", 1)
    monkeypatch.setattr(registry, "checkpoint", pause)
    async with running() as setup:
        talks = [await Conversation.open(setup.client) for _ in range(2)]
        listed = setup.registry.sessions()
        for session in listed:
            session.last_used = -1e9
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(setup.registry.sweep)
            await paused.wait()
            setup.registry._hibernate(listed[1])
            async with talks[1].stream(WAIT) as call:
                await setup.example.until_started("wait")
                gate.set()
                await wait_all_tasks_blocked()
                (back,) = setup.registry.sessions()
                assert (back.busy, back is listed[1]) == (True, False)
                await talks[1].post(mcp.cancelled(7))
                assert (await talks[1].answers(call))["error"]["code"] == -32800


async def test_who_lets_go_of_a_session_of_old_does_not_touch_its_successor() -> None:
    async with running() as setup:
        talk = await Conversation.open(setup.client)
        async with talk.stream(WAIT) as call:
            await setup.example.until_started("wait")
            await setup.registry.close()
            assert (await talk.post(mcp.request("ping", id=8))).status == 200
            (successor,) = setup.registry.sessions()
            setup.example.release()
            assert "result" in await talk.answers(call)
        assert list(setup.registry._held._idle.values()) == [successor]


async def test_a_refused_request_looks_at_none_of_the_busy_sessions() -> None:
    async with running(sessions={"max_live": 50}) as setup:
        held, looked = setup.registry._held, Counter[str]()
        for _ in range(50):
            await Conversation.open(setup.client)
        for session in held.all():
            session.pin()

        class Watched(dict[str, LiveSession]):
            def values(self) -> Any:
                looked["values"] += 1
                return super().values()

            __iter__ = items = values

        held._all, all_of_them = Watched(held._all), held._all
        answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.initialize()))
        headers = mcp.headers(answer.header("mcp-session-id"))
        for _ in range(3):
            assert (await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.request("ping")))).status == 503
        assert (looked, list(held._idle)) == (Counter(), [])
        held._all = all_of_them
        for session in held.all():
            session.unpin()
        assert (await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.request("ping")))).status == 200


# Ends


async def test_a_session_that_ended_while_its_stream_was_being_opened_is_404() -> None:
    backplane = Shared()
    async with running_on(backplane) as setup:
        talk = await Conversation.open(setup.client)
        backplane.gate = anyio.Event()
        async with talk.get() as stream:
            await backplane.until_entered(1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(talk.delete)
                await backplane.until_entered(2)  # the end: it forgets the session's logs
                backplane.gate.set()
            assert (await stream.answer()).status == 404
        assert len(setup.registry) == 0


async def test_calls_end_with_their_session_even_if_its_delete_is_cancelled(autojump_clock: object) -> None:
    backplane, done = Shared(), list[str]()
    async with running_on(backplane) as setup:
        talk = await Conversation.open(setup.client)
        (session,) = setup.registry.sessions()
        session.connection.exit_stack.callback(done.append, "cleaned")
        found = await setup.registry.find(talk.session, session.owner)
        async with talk.stream(WAIT) as call:
            await setup.example.until_started("wait")
            backplane.gate = anyio.Event()
            with anyio.move_on_after(1):  # a host's own limit
                await setup.registry.end(found)
            assert "was ended" in (await talk.answers(call))["error"]["message"]
        assert (len(setup.registry), done) == (0, ["cleaned"])
        with pytest.raises(SessionOverError):
            setup.registry.attach(found)


async def test_an_end_that_was_told_counts_even_if_its_telling_is_cancelled(autojump_clock: object) -> None:
    class Slow(Shared):
        async def revoke(self, session: str, until: float) -> None:
            await super().revoke(session, until)
            await anyio.sleep(3)  # for the others to say that they have heard

    async with running_on(Slow()) as setup:
        talk = await Conversation.open(setup.client)
        async with talk.stream(WAIT) as call:
            await setup.example.until_started("wait")
            with anyio.move_on_after(1):
                await setup.registry.end_by_hash(setup.registry.sessions()[0].hash)
            assert "was ended" in (await talk.answers(call))["error"]["message"]


# Clean-ups


async def hang() -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize("how", ["hibernates", "expires", "is evicted"])
async def test_a_hung_clean_up_holds_nothing_up(how: str, autojump_clock: object) -> None:
    settings = {"idle_timeout": 10, "max_live": 2, "max_age": 100 if how == "expires" else 10000}
    async with running(sessions=settings) as setup:
        done: list[str] = []
        for clean_up in (hang, None):
            await Conversation.open(setup.client)
            session = setup.registry.sessions()[-1]
            if clean_up is not None:
                session.connection.exit_stack.push_async_callback(clean_up)
            else:
                session.connection.exit_stack.callback(done.append, "cleaned")
        if how == "expires":
            setup.clock.now += 200
        if how == "is evicted":
            for _ in range(2):
                await Conversation.open(setup.client)
        pruned = list[float]()
        prune = setup.app._backplane.prune

        async def note() -> None:
            pruned.append(anyio.current_time())
            await prune()

        setup.app._backplane.prune = note  # type: ignore[method-assign]
        began = anyio.current_time()
        while not pruned:  # noqa: ASYNC110 - the sweep is not announced
            await anyio.sleep(0.1)
        if how != "expires":
            await setup.registry.sweep()
        assert pruned[0] - began < 3  # the period is 2.5 s, and the clean-up hangs for 5
        while not done:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.1)


async def test_the_end_waits_as_long_as_one_hung_clean_up_not_as_all(autojump_clock: object) -> None:
    done: list[str] = []
    async with running(sessions={"max_live": 500}) as setup:
        for _ in range(3 * cleanup.AT_ONCE):
            await Conversation.open(setup.client)
        for number, session in enumerate(setup.registry.sessions()):
            session.connection.exit_stack.callback(done.append, str(number))
            session.connection.exit_stack.push_async_callback(hang)
        began = anyio.current_time()
    assert anyio.current_time() - began < 7  # a clean-up has 5 s
    assert len(done) == len(set(done)) == 3 * cleanup.AT_ONCE


async def test_while_too_many_clean_ups_wait_no_session_comes_to_life(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(cleanup, "AT_ONCE", 1)
    monkeypatch.setattr(cleanup, "BACKLOG", 2)
    async with running(sessions={"max_live": 10}) as setup:
        talks = [await Conversation.open(setup.client) for _ in range(4)]
        for session in setup.registry.sessions():
            session.connection.exit_stack.push_async_callback(hang)
            setup.registry._hibernate(session)
        assert (await talks[0].post(mcp.request("ping"))).status == 503
        await anyio.sleep(12)  # two of them are over
        assert (await talks[0].post(mcp.request("ping"))).status == 200


async def test_a_clean_up_that_is_asked_for_twice_is_not_run_beside_itself(autojump_clock: object) -> None:
    async with running() as setup:
        await Conversation.open(setup.client)
        (session,) = setup.registry.sessions()
        done: list[str] = []

        async def last() -> None:
            await anyio.sleep(1)
            done.append("last in")

        session.connection.exit_stack.callback(done.append, "first in")
        session.connection.exit_stack.push_async_callback(last)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.connection.clean_up)
            await anyio.sleep(0.5)
            await session.connection.clean_up()
        assert done == ["last in", "first in"]


# Questions


class Asking:
    """A server that asks so many questions at a time as it is told to."""

    def __init__(self) -> None:
        self.server = MCPServer("asking")
        self.refused: list[str] = []

        @self.server.tool()
        async def ask(ctx: Context, questions: int) -> str:
            async with anyio.create_task_group() as tasks:
                for _ in range(questions):
                    tasks.start_soon(self._ask, ctx)
            return "asked"

    async def _ask(self, ctx: Context) -> None:
        try:
            await ctx.session.send_request(ListRootsRequest(), ListRootsResult)
        except Exception as exc:  # noqa: BLE001 - what it says is looked at
            self.refused.append(str(exc))


ROOTS: Any = {"roots": {}}


async def test_questions_of_one_session_have_a_bound_and_room_comes_back(autojump_clock: object) -> None:
    program = Asking()
    async with running(server=program.server, sessions={"max_questions_per_session": 2}) as setup:
        talk = await Conversation.open(setup.client, capabilities=ROOTS)
        for _ in range(2):
            async with talk.stream(mcp.tool("ask", {"questions": 3})) as call:
                asked = [await call.message() for _ in range(2)]
                await anyio.sleep(1)
                assert ["2 questions to answer already" in why for why in program.refused] == [True]
                program.refused.clear()
                for question in asked:
                    await talk.post(mcp.result(question["id"], {"roots": []}))
                assert "result" in await talk.answers(call)
        assert setup.registry._held.questions.waiting == 0


async def test_questions_of_all_sessions_have_a_bound(autojump_clock: object) -> None:
    program = Asking()
    async with running(server=program.server, sessions={"max_questions": 2}) as setup:
        talks = [await Conversation.open(setup.client, capabilities=ROOTS) for _ in range(2)]
        async with talks[0].stream(mcp.tool("ask", {"questions": 2})) as call:
            await call.message()
            await call.message()
            assert "result" in (await talks[1].post(mcp.tool("ask", {"questions": 1}))).json()
            assert ["as many answers as it may" in why for why in program.refused] == [True]
            assert (await talks[0].delete()).status == 204
        assert setup.registry._held.questions.waiting == 0


# Signals


async def signal(setup: Setup, kind: SignalKind, body: Any, session: str = "") -> None:
    service: Any = setup.app._service
    before = anyio.current_time()
    await service.words.on_signal(Signal(kind, session, to_json(body)))
    assert anyio.current_time() == before


async def test_signals_do_not_wait_and_what_they_start_has_a_bound(autojump_clock: object) -> None:
    backplane = Shared()
    async with running_on(backplane) as setup:
        backplane.gate = anyio.Event()
        for number in range(background.AT_ONCE + 5):
            await signal(setup, SignalKind.ROLL_CALL, ["another", number, ""])
        await backplane.until_entered(background.AT_ONCE)
        backplane.gate.set()
        await anyio.sleep(1)
        assert len(backplane.sent) == background.AT_ONCE
        await signal(setup, SignalKind.ROLL_CALL, ["another", 0, ""])
        await anyio.sleep(1)
        assert len(backplane.sent) == background.AT_ONCE + 1


async def test_a_signal_that_a_session_ended_does_not_wait_for_its_clean_up(autojump_clock: object) -> None:
    backplane = Shared()
    async with running_on(backplane) as setup:
        await Conversation.open(setup.client)
        (session,) = setup.registry.sessions()
        session.connection.exit_stack.push_async_callback(hang)
        await signal(setup, SignalKind.END, [], session.hash)
        assert len(setup.registry) == 0


async def test_changes_from_elsewhere_are_published_in_order_and_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(words, "LATE_CHANGES", 3)
    published: list[ServerEvent] = []
    gate = anyio.Event()

    async def publish(event: ServerEvent) -> None:
        await gate.wait()
        published.append(event)

    async with running_on(Shared()) as setup:
        service: Any = setup.app._service
        service.words.publish_here = publish
        updated = [ResourceUpdated(uri=f"test://{number}") for number in range(5)]
        await signal(setup, SignalKind.CHANGE, ["ToolsListChanged", {}])
        await anyio.sleep(1)  # it is being published: another of the same may come too late for it
        for uri in (0, 0, 1, 0):
            await signal(setup, SignalKind.CHANGE, ["ResourceUpdated", {"uri": updated[uri].uri}])
        await signal(setup, SignalKind.CHANGE, ["ToolsListChanged", {}])
        await signal(setup, SignalKind.CHANGE, ["ResourceUpdated", {"uri": updated[4].uri}])  # one too many
        gate.set()
        await anyio.sleep(1)
        assert published == [ToolsListChanged(), updated[0], updated[1], ToolsListChanged()]


async def test_background_tasks_that_fail_give_their_places_back() -> None:
    started: list[Callable[[], Awaitable[None]]] = []
    tasks = BackgroundTasks(started.append, 1)

    async def fail() -> None:
        raise ValueError

    assert tasks.start(fail, "a test")
    assert not tasks.start(fail, "a test")
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        await started[0]()
    assert tasks.start(fail, "a test")


async def test_the_handshake_confirmed_in_a_batch_is_a_claim() -> None:
    async with running() as setup:
        opening = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(mcp.initialize(BATCHING)))
        talk = Conversation(setup.client, opening.header("mcp-session-id") or "", BATCHING, "/mcp")
        assert (await talk.post([mcp.notification("notifications/initialized"), mcp.request("ping")])).status == 200
        assert setup.registry.counts[Count.CLAIMED] == 1
