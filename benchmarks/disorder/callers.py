"""Clients that behave. Each knows what it must be answered, and to which worker it is connected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar, Final

import h11
import trio
from fuzzing.probe import add_over_http2

from harness import mcp
from harness.raw import Head, RawClient

PATIENCE: Final = 30.0
"""Seconds within which everything is answered."""
PAUSE: Final = 0.05
"""Seconds a client thinks between two calls."""
ON_ONE_LINE: Final = 10
"""Calls on one connection."""
TRIES: Final = 5
"""Connections over which an answer to a question is sent, before it is given up."""
DYING: Final = 2.0
"""Seconds after a kill in which a connection may still be made to the dead, or be reset before it says who it is."""

CUT: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError)
"""What it looks like when the other end is gone."""
WRONG: Final = (AssertionError, LookupError, ValueError, TypeError, trio.TooSlowError)


class EndedError(h11.RemoteProtocolError):
    """A stream ended before the answer had come."""


@dataclass
class Load:
    """What all clients share."""

    port: int
    several: bool
    """Whether there are several workers, of which one may be killed."""
    over: bool = False
    killed: set[int] = field(default_factory=set)
    last_kill: float = float("-inf")
    workers: set[int] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    """Calls that were answered as they must be, by kind."""
    lost: Counter[str] = field(default_factory=Counter)
    """Calls that were on a worker when it was killed, by kind."""
    wrong: list[str] = field(default_factory=list)
    """Everything else that went wrong."""
    slowest: dict[str, float] = field(default_factory=dict)
    """Seconds, by kind."""
    changed: trio.Event = field(default_factory=trio.Event)
    """Set, and made anew, whenever something is counted."""

    def goes_on(self) -> bool:
        """Whether there is more to be called."""
        return not self.over

    def excuses(self, worker: int | None) -> bool:
        """Whether the end of a connection to a worker is no wonder: it was killed."""
        if worker is None:
            return trio.current_time() < self.last_kill + DYING
        return worker in self.killed


@dataclass
class Line:
    """A connection."""

    client: RawClient

    async def ask(self, message: mcp.Json, session: str | None = None) -> Any:
        """Send a request; give its result. A call that takes longer may be answered by an event stream."""
        answers = [answer async for answer in self.follow(message, session)]
        if not answers:
            raise EndedError("the stream ended before the result")
        (answer,) = answers
        assert answer["id"] == message["id"], answer
        return answer["result"]

    async def open_session(self) -> str:
        """Open a session as a client that can be asked; give its id."""
        with trio.fail_after(PATIENCE):
            head = await self.send(mcp.initialize(capabilities={"elicitation": {}}))
            assert head.status == 200, head
            session = head.headers["mcp-session-id"]
            await self.client.answer_body()
            self.client.next_request()
            await self.tell(mcp.notification("notifications/initialized"), session)
        return session

    async def tell(self, message: mcp.Json, session: str) -> None:
        """Send what is not answered."""
        head = await self.send(message, session)
        assert head.status == 202, (head, await self.client.answer_body())
        await self.client.answer_body()
        self.client.next_request()

    async def send(self, message: mcp.Json, session: str | None = None) -> Head:
        """Send a message, and wait for the head of the answer."""
        if "params" in message and f"{mcp.META}protocolVersion" in message["params"].get("_meta", {}):
            await self.client.send("POST", mcp.modern_headers(message), mcp.body(message))
        else:
            await self.client.post(message, session, mcp.LEGACY if session else None)
        return await self.client.answer_head()

    async def follow(self, message: mcp.Json, session: str | None = None) -> AsyncIterator[mcp.Json]:
        """Send a request; give the messages of its event stream, the response last."""
        head = await self.send(message, session)
        assert head.status == 200, (head, await self.client.answer_body())
        if head.headers["content-type"] == "application/json":
            yield await self.client.answer_json()
        else:
            while (event := await self.client.event_or_end()) is not None:
                if event.data:
                    yield event.json()
        self.client.next_request()


class Caller(ABC):
    """One client."""

    kind: ClassVar[str]
    pause: ClassVar[float] = PAUSE

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.number = number
        self.session: str | None = None
        self.ids = count(1)

    async def run(self) -> None:
        """Talk on one connection after the other, until the load is over."""
        while self.load.goes_on():
            await self.on_a_line(self.talk)

    async def talk(self, line: Line) -> None:
        """Make a few calls."""
        if self.session is None:
            await self.open(line)
        calls = 0
        while self.load.goes_on() and calls < ON_ONE_LINE:
            calls += 1
            started = trio.current_time()
            with trio.fail_after(PATIENCE):
                await self.call(line)
            self.count(trio.current_time() - started)
            await trio.sleep(self.pause)

    @abstractmethod
    async def call(self, line: Line) -> None:
        """Call once, and check the answer."""

    def count(self, seconds: float) -> None:
        """Count a call that was answered right."""
        self.load.done[self.kind] += 1
        self.load.slowest[self.kind] = max(self.load.slowest.get(self.kind, 0), seconds)
        self.load.changed.set()
        self.load.changed = trio.Event()

    async def on_a_line(self, talk: Callable[[Line], Awaitable[None]]) -> bool:
        """Connect, and talk; say whether that came to its end. Whatever goes wrong is judged here."""
        worker: int | None = None
        try:
            async with RawClient.open(self.load.port) as client:
                line = Line(client)
                if self.load.several:
                    with trio.fail_after(PATIENCE):
                        worker = (await line.ask(mcp.tool("worker")))["structuredContent"]["result"]
                    self.load.workers.add(worker)
                await talk(line)
                return True
        except CUT as exc:
            if self.load.excuses(worker):
                self.load.lost[self.kind] += 1
            else:
                self.load.wrong.append(f"{self.kind}: cut, though its worker was not killed: {exc!r}")
        except WRONG as exc:
            self.load.wrong.append(f"{self.kind}: {exc!r}"[:600])
        return False

    async def open(self, line: Line) -> None:
        """Open a session, for clients that want one."""
        self.session = await line.open_session()


class Stateless(Caller):
    """Adds numbers without a session."""

    kind = "stateless"

    async def open(self, _line: Line) -> None:
        """Want none."""

    async def call(self, line: Line) -> None:
        """Add two numbers."""
        id_ = next(self.ids)
        result = await line.ask(mcp.tool("add", {"a": self.number, "b": id_}, id_), None)
        assert result["structuredContent"] == {"result": self.number + id_}, result


class InSession(Caller):
    """Adds numbers in one session, which must outlive everything."""

    kind = "session"

    async def call(self, line: Line) -> None:
        """Add two numbers."""
        id_ = next(self.ids)
        result = await line.ask(mcp.tool("add", {"a": self.number, "b": id_}, id_), self.session)
        assert result["structuredContent"] == {"result": self.number + id_}, result


class Following(Caller):
    """Follows progress in a session."""

    kind = "progress"
    steps: ClassVar[int] = 5
    delay: ClassVar[float] = 0.02

    def message(self, id_: int) -> mcp.Json:
        """Build the call."""
        return mcp.tool("countdown", {"steps": self.steps, "delay": self.delay}, id_, token=f"{self.number}/{id_}")

    async def call(self, line: Line) -> None:
        """Follow a countdown to its end."""
        id_ = next(self.ids)
        seen: list[float] = []
        text = None
        async for message in line.follow(self.message(id_), self.session):
            if "method" in message:
                assert message["params"]["progressToken"] == f"{self.number}/{id_}", message
                seen.append(message["params"]["progress"])
            else:
                assert message["id"] == id_, message
                text = message["result"]["content"][0]["text"]
        if text is None:
            raise EndedError("the stream ended before the result")
        assert text == "lift-off"
        assert seen == sorted(set(seen)), seen
        assert seen[-1] == self.steps, seen


class Modern(Following):
    """Follows progress at 2026-07-28."""

    kind = "modern"

    async def open(self, _line: Line) -> None:
        """Want none."""

    def message(self, id_: int) -> mcp.Json:
        """Build the call."""
        return mcp.modern(super().message(id_))


class Asked(Caller):
    """Is asked for a name, and answers on a connection of its own."""

    kind = "elicitation"

    async def call(self, line: Line) -> None:
        """Be asked, answer, and be greeted."""
        id_ = next(self.ids)
        text = None
        async for message in line.follow(mcp.tool("ask_name", {}, id_), self.session):
            if message.get("method") == "elicitation/create":
                await self.answer(message["id"], f"{self.number}/{id_}")
            else:
                assert message["id"] == id_, message
                text = message["result"]["content"][0]["text"]
        if text is None:
            raise EndedError("the stream ended before the result")
        assert text == f"Hello, {self.number}/{id_}.", text

    async def answer(self, question: mcp.Id, name: str) -> None:
        """Answer a question; once more, if that was on a worker that was killed."""
        message = mcp.result(question, {"action": "accept", "content": {"name": name}})

        async def tell(line: Line) -> None:
            assert self.session is not None
            await line.tell(message, self.session)

        for _ in range(TRIES):
            if await self.on_a_line(tell):
                return


class Listening(Caller):
    """Listens on the standalone stream, comes back when it is cut, and is told something again and again."""

    kind = "GET stream"

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(load, number)
        self._heard: Counter[str] = Counter()
        self._news = trio.Event()
        self._last: str | None = None
        self._has_session = trio.Event()
        self._is_open = trio.Event()

    async def open(self, line: Line) -> None:
        """Open the session, and let listening begin."""
        await super().open(line)
        self._has_session.set()

    async def run(self) -> None:
        """Listen and be told, until the load is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await super().run()
            nursery.cancel_scope.cancel()

    async def call(self, line: Line) -> None:
        """Have something told, and wait until it was heard, once."""
        id_ = next(self.ids)
        await self._is_open.wait()
        told = f"told://{self.number}/{id_}"
        await line.ask(mcp.tool("tell", {"text": f"{self.number}/{id_}"}, id_), self.session)
        while not self._heard[told]:
            await self._news.wait()
        assert self._heard[told] == 1, f"{told} was heard {self._heard[told]} times"

    async def _listen(self) -> None:
        await self._has_session.wait()
        while True:
            await self.on_a_line(self._hear)

    async def _hear(self, line: Line) -> None:
        since = [("last-event-id", self._last)] if self._last is not None else []
        wanted = mcp.headers(self.session, mcp.LEGACY, *since, accept="text/event-stream", content_type=None)
        await line.client.send("GET", wanted)
        head = await line.client.answer_head()
        assert head.status == 200, (head, await line.client.answer_body())
        while (event := await line.client.event_or_end()) is not None:
            self._last = event.id or self._last
            self._is_open.set()
            if event.data:
                self._heard[event.json()["params"]["uri"]] += 1
                self._news.set()
                self._news = trio.Event()
        raise EndedError("the standalone stream ended")


class OverHttp2(Caller):
    """Adds numbers over HTTP/2, each on a connection of its own."""

    kind = "HTTP/2"

    async def run(self) -> None:
        """Call until the load is over. Which worker answers is not known beforehand."""
        while self.load.goes_on():
            started = trio.current_time()
            try:
                with trio.fail_after(PATIENCE):
                    await add_over_http2(self.load.port)
                self.count(trio.current_time() - started)
            except (*CUT, *WRONG) as exc:
                if started - DYING < self.load.last_kill:
                    self.load.lost[self.kind] += 1
                else:
                    self.load.wrong.append(f"{self.kind}: {exc!r}"[:600])
            await trio.sleep(PAUSE)

    async def call(self, line: Line) -> None:
        """Have no use for a line of HTTP/1."""


KINDS: Final[tuple[type[Caller], ...]] = (Stateless, InSession, Following, Modern, Asked, Listening, OverHttp2)
