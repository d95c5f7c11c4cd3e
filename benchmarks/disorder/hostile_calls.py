"""Clients that call what no program should do (`tests/programs/hostile_tools.py`), and judge what they are answered.

The clients themselves keep to the protocol: each has a session with a GET stream, and a `subscriptions/listen`.
Whatever a tool does, its call has one answer, which is JSON-RPC and for its id; a stream that was closed early can be
resumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import httpx2
import trio

from harness import mcp
from harness.programs import load_program
from harness.sse import EventReader

REQUEST_TIMEOUT: Final = 2
"""Seconds after which the server answers a call, whatever it does."""
PATIENCE: Final = 60.0
"""Seconds within which a hostile call is answered; its server is kept from its work for much of the time."""
COMES_BACK: Final = 5
"""Times a client comes back for a stream that was closed."""
LARGE: Final = 5_000_000

_PROGRAM: Final = load_program("hostile_tools")
KINDS: Final = [*_PROGRAM.EXCEPTIONS, *_PROGRAM.BUILTIN, "argparse"]

Make = Callable[[Random], mcp.Json]


def _tool(name: str, **arguments: Any) -> Make:
    return lambda _: {"method": "tools/call", "params": {"name": name, "arguments": arguments}}


def _raising(name: str) -> Make:
    return lambda chance: _tool(name, kind=chance.choice(KINDS))(chance)


def _prompt(chance: Random) -> mcp.Json:
    return {"method": "prompts/get", "params": {"name": "raising_prompt", "arguments": {"kind": chance.choice(KINDS)}}}


def _resource(chance: Random) -> mcp.Json:
    return {"method": "resources/read", "params": {"uri": f"raising://{chance.choice(KINDS)}"}}


def _completion(chance: Random) -> mcp.Json:
    argument = {"name": "name", "value": chance.choice(KINDS)}
    return {
        "method": "completion/complete",
        "params": {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": argument},
    }


CALLS: Final[dict[str, tuple[int, Make]]] = {
    "raises": (20, _raising("raises")),
    "raises in a thread": (10, _raising("raises_in_thread")),
    "raises in a prompt": (5, _prompt),
    "raises in a resource": (5, _resource),
    "raises in a completion": (5, _completion),
    "leaves a clean-up that raises": (5, _raising("leave_clean_up")),
    "hangs beyond its limit": (2, _tool("hang", seconds=REQUEST_TIMEOUT + 1)),
    "hangs, async": (2, _tool("hang_in_thread", seconds=REQUEST_TIMEOUT + 1)),
    "hangs for 0.1 s": (5, _tool("hang", seconds=0.1)),
    "ignores cancellation": (2, _tool("ignore_cancellation", seconds=REQUEST_TIMEOUT + 2)),
    "never yields for 50 ms": (5, _tool("hog")),
    "computes for 50 ms": (3, _tool("hog", compute=True)),
    "returns 5 MB": (4, _tool("large", size=LARGE)),
    "streams 5 MB": (2, _tool("large", size=LARGE, report=True)),
    "bursts": (4, _tool("burst", messages=200)),
    "bursts on every stream": (4, _tool("burst_everywhere", messages=100)),
    "cancels itself": (5, _tool("cancel_self")),
    "leaves a scope open": (3, _tool("leave_scope_open")),
    "leaves tasks behind": (3, _tool("leave_tasks_behind")),
    "closes its own stream": (5, _tool("close_own_stream")),
    "closes the GET stream": (3, _tool("close_get_stream")),
    "uses another event loop": (4, _tool("other_loop")),
    "reports no numbers": (4, _tool("bad_progress")),
}
"""What is called, with its weight and how the message is made."""


@dataclass
class Tally:
    """What all of them saw."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each kind of call was answered by what."""
    heard: Counter[str] = field(default_factory=Counter)
    """Messages on GET streams and those of `subscriptions/listen`, and how often these were opened."""
    wrong: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many calls were answered."""
        return sum(self.answers.values())


class Hostile:
    """One client."""

    def __init__(self, url: str, chance: Random, first: int, tally: Tally) -> None:
        self._url = url
        self._chance = chance
        self._id = first
        self._tally = tally
        self._session = ""

    async def run(self, calls: int, pause: float) -> None:
        """Make so many calls, in a session that is ended afterwards or left to itself. `pause`: seconds, on average."""
        async with httpx2.AsyncClient(timeout=PATIENCE) as self._http:
            answer = await self._post(mcp.initialize(), mcp.headers())
            self._session = answer.headers["mcp-session-id"]
            await self._post(mcp.notification("notifications/initialized"), self._headers())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_open, "GET", self._get)
                nursery.start_soon(self._keep_open, "listen", self._listen)
                for _ in range(calls):
                    await self._call()
                    await trio.sleep(2 * pause * self._chance.random())
                nursery.cancel_scope.cancel()
            if self._chance.random() < 0.5:
                await self._http.request("DELETE", self._url, headers=self._headers())

    async def _call(self) -> None:
        names = list(CALLS)
        name = self._chance.choices(names, [CALLS[each][0] for each in names])[0]
        route = self._chance.choice(["session", "modern", "stateless"])
        self._id += 1
        message = mcp.request(id=self._id, token=self._id, **CALLS[name][1](self._chance))
        try:
            outcome = await self._outcome(name, route, message)
        except (httpx2.HTTPError, ValueError, LookupError, AssertionError, trio.TooSlowError) as error:
            outcome = "wrong"
            self._tally.wrong.append(f"{name}, {route}, {message['params']}: {error!r}"[:1000])
        self._tally.answers[name, outcome] += 1

    async def _outcome(self, name: str, route: str, message: mcp.Json) -> str:
        """Call, and say what the answer was."""
        with trio.fail_after(PATIENCE):
            if route == "modern":
                sent = mcp.modern(message)
                answer = await self._post(sent, mcp.modern_headers(sent))
            else:
                answer = await self._post(message, self._headers() if route == "session" else mcp.headers())
            messages, last = self._messages(answer)
            ends = [each for each in messages if "id" in each]
            if not ends and route == "session" and name == "closes its own stream":
                ends = await self._come_back(last)
        assert [end["id"] for end in ends] == [message["id"]], f"{answer.status_code} {answer.content[:300]!r}"
        (end,) = ends
        assert end["jsonrpc"] == "2.0", end
        assert ("result" in end) != ("error" in end), end
        if "error" in end:
            return f"error {end['error']['code']}"
        if name in ("returns 5 MB", "streams 5 MB"):
            assert len(end["result"]["content"][0]["text"]) == LARGE
        return "error of the tool" if end["result"].get("isError") else "result"

    @staticmethod
    def _messages(answer: httpx2.Response) -> tuple[list[mcp.Json], str | None]:
        """Return the messages of an answer, which must be JSON-RPC whatever its status is, and the last event's id."""
        kind = answer.headers.get("content-type", "")
        if kind == "application/json":
            return [answer.json()], None
        assert kind == "text/event-stream", f"{answer.status_code} {kind!r}"
        events = EventReader().feed(answer.content)
        ids = [event.id for event in events if event.id is not None]
        return [event.json() for event in events if event.data], ids[-1] if ids else None

    async def _come_back(self, last: str | None) -> list[mcp.Json]:
        """Return the answer that was to come on a stream that was closed."""
        for _ in range(COMES_BACK):
            assert last is not None, "a stream was closed before its first event"
            wanted = self._headers(("last-event-id", last))
            answer = await self._http.request("GET", self._url, headers=wanted)
            assert answer.status_code == 200, f"coming back: {answer.status_code} {answer.content[:300]!r}"
            messages, newer = self._messages(answer)
            last = newer or last
            ends = [each for each in messages if "id" in each]
            if ends:
                return ends
        return []

    async def _keep_open(self, kind: str, hear: Callable[[], Any]) -> None:
        """Keep a stream open: the program may close it."""
        while True:
            try:
                await hear()
            except (httpx2.HTTPError, AssertionError, ValueError) as error:
                self._tally.wrong.append(f"{kind} stream: {error!r}"[:1000])
            await trio.sleep(0.05)

    async def _get(self) -> None:
        await self._hear("GET", self._http.stream("GET", self._url, headers=self._headers()))

    async def _listen(self) -> None:
        self._id += 1
        message = mcp.modern(
            mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, self._id)
        )
        body, headers = mcp.body(message), mcp.modern_headers(message)
        await self._hear("listen", self._http.stream("POST", self._url, headers=headers, content=body))

    async def _hear(self, kind: str, opening: Any) -> None:
        async with opening as answer:
            assert answer.status_code == 200, f"{answer.status_code} {await answer.aread()!r}"
            self._tally.heard[f"{kind} streams"] += 1
            reader = EventReader()
            async for piece in answer.aiter_bytes():
                self._tally.heard[f"{kind} messages"] += sum(event.data is not None for event in reader.feed(piece))

    def _headers(self, *extra: tuple[str, str]) -> list[tuple[str, str]]:
        return mcp.headers(self._session, mcp.LEGACY, *extra)

    async def _post(self, message: mcp.Json, headers: list[tuple[str, str]]) -> httpx2.Response:
        return await self._http.post(self._url, headers=headers, content=mcp.body(message))


async def mix(url: str, calls: int, clients: int, pause: float, seed: int) -> Tally:
    """Have so many calls made by so many clients at a time; return what they saw."""
    tally = Tally()
    shares = [calls // clients + (number < calls % clients) for number in range(clients)]
    async with trio.open_nursery() as nursery:
        for number, share in enumerate(shares):
            hostile = Hostile(url, Random(f"{seed}/{number}"), number * 1_000_000, tally)
            nursery.start_soon(hostile.run, share, pause)
    return tally
