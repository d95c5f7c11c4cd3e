"""What is asked of every client: one check for each column of the table.

A check returns where everything was as it should be, and otherwise says what was missing. It judges by what came, never
by how long it took; what does not come at all is bounded by whoever runs the check.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import httpx2

from clients.steering import Driver, Json, RefusedError
from harness.mcp import LEGACY, MODERN, body, headers, modern, modern_headers, request, tool


class MissingError(Exception):
    """Something was not as it should be: what, in a few words."""


class Hand:
    """Calls of our own, beside the client: at 2026-07-28, which needs no session on any server."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self.url = url
        self._http = http

    async def call(self, name: str, **arguments: object) -> str:
        message = modern(tool(name, arguments))
        answer = await self._http.post(self.url, headers=modern_headers(message), content=body(message))
        text: str = answer.json()["result"]["content"][0]["text"]
        return text

    async def ping(self, session: str) -> int:
        """Say what a request in a session is answered with."""
        answer = await self._http.post(self.url, headers=headers(session, LEGACY), content=body(request("ping")))
        return answer.status_code


@dataclass
class Visit:
    """One client on its way through the columns."""

    name: str
    """Its own among all who share the server."""
    driver: Driver
    hand: Hand
    version: str
    shows_http: bool
    turn: int = 1
    """1 before the restart of the server, 2 after."""
    since: int = 0
    """The number of its first event in this turn."""
    waiting_for: str = ""
    """What a check that ran out of time had been waiting for."""
    kept: bool | None = None
    """Whether a subscription of the first turn was still known in the second."""

    @property
    def modern(self) -> bool:
        return self.version == MODERN

    async def call(self, name: str, **arguments: object) -> str:
        """Have the client call a tool, which must not fail, and give its text."""
        self.waiting_for = f"the result of {name}"
        return text_of(await self.driver.do("call", tool=name, arguments=arguments, progress=False))

    async def until(self, what: str, happened: Callable[[], object]) -> None:
        self.waiting_for = what
        await self.driver.until(happened)


def text_of(result: Json) -> str:
    text: str = result["text"]
    if result["is_error"]:
        raise MissingError(f"the tool failed: {text}")
    return text


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise MissingError(f"{what} was {found!r} instead of {wanted!r}")


# The checks


async def listing(visit: Visit) -> None:
    """The tools are listed."""
    visit.waiting_for = "the list"
    if "test_simple_text" not in await visit.driver.do("list"):
        raise MissingError("the list lacks a tool")


async def calling(visit: Visit) -> None:
    """A tool is called."""
    expect(await visit.call("test_simple_text"), "This is a simple text response for testing.", "the result")


def reported_or_over(driver: Driver, call: int, value: int) -> bool:
    return bool(driver.told("progress", call=call, value=value)) or driver.answered(call)


async def progress(visit: Visit) -> None:
    """Each value comes while the tool runs: it goes on only when the value before has come."""
    name, count = f"{visit.name}/{visit.turn}", 3
    arguments = {"name": name, "count": count}
    call = await visit.driver.begin("call", tool="steps", arguments=arguments, progress=True)
    for step in range(1, count + 1):
        await visit.until(f"progress {step}", partial(reported_or_over, visit.driver, call, step))
        if visit.driver.answered(call):
            break
        await visit.hand.call("let_go", gate=f"{name}/{step}")
    visit.waiting_for = "the result"
    expect(text_of(await visit.driver.wait(call)), f"{count} steps", "the result")
    values = [one["value"] for one in visit.driver.told("progress", call=call)]
    expect(values, [1, 2, 3], "progress")


async def logging(visit: Visit) -> None:
    """Log messages come, in order."""
    visit.waiting_for = "the answer to logging/setLevel"
    await visit.driver.do("log_level", level="info")
    since = len(visit.driver.events)
    await visit.call("test_tool_with_logging")
    await visit.until("the log messages", lambda: len(visit.driver.told("log", since)) >= 3)
    heard = [one["data"] for one in visit.driver.told("log", since)]
    expect(heard, ["Tool execution started", "Tool processing data", "Tool execution completed"], "the log")


async def subscription(visit: Visit) -> None:
    """A subscription is accepted, and an update that somebody else causes is delivered."""
    uri = f"test://template/{visit.name}/data"
    if not visit.modern and visit.shows_http:
        await visit.until("the GET stream", lambda: opened_stream(visit))
    if visit.turn == 2 and not visit.modern:
        visit.kept = await visit.hand.call("touch", uri=uri) != "0"
    visit.waiting_for = "the answer to the subscription"
    await visit.driver.do("subscribe", uri=uri)
    since = len(visit.driver.events)
    await visit.hand.call("touch", uri=uri)
    await visit.until("the update", lambda: visit.driver.told("updated", since, uri=uri))


def opened_stream(visit: Visit) -> bool:
    """Whether the client has opened its GET stream in this turn."""
    answers = [one["status"] for one in visit.driver.told("http", visit.since, method="GET")]
    if answers and 200 not in answers and answers[-1] != 503:
        raise MissingError(f"its GET stream was answered with {answers[-1]}")
    return 200 in answers


async def elicitation(visit: Visit) -> None:
    """The person at the client is asked, and the tool gets the answer."""
    if visit.modern:
        text = await visit.call("test_input_required_result_elicitation")
        expect(text, "Hello, Ada!", "the result")
    else:
        text = await visit.call("test_elicitation", message="Who is there?")
        expect(text, 'User response: action=accept, content={"username":"Ada","email":"Ada"}', "the result")


async def sampling(visit: Visit) -> None:
    """The client's model is asked, and the tool gets the answer."""
    if visit.modern:
        expect(await visit.call("test_input_required_result_sampling"), "The model said: Ada", "the result")
    else:
        expect(await visit.call("test_sampling", prompt="Who?"), "LLM response: Ada", "the result")


async def polling(visit: Visit) -> None:
    """A tool closes its call's stream, and the result comes on the one that the client resumes."""
    since = len(visit.driver.events)
    expect(await visit.call("test_reconnection"), "Reconnection test completed successfully", "the result")
    if visit.shows_http and not resumed(visit, since):
        raise MissingError("the result came without a resumed stream")


def resumed(visit: Visit, since: int) -> bool:
    gets = visit.driver.told("http", since, method="GET", status=200)
    return any(one["resumes"] is not None for one in gets)


async def closing(visit: Visit) -> None:
    """The client leaves without an error, and ends its session where it has one."""
    visit.waiting_for = "the end"
    await visit.driver.do("close")
    sessions = [one["session"] for one in visit.driver.told("http") if one["session"] is not None]
    if sessions:
        if not visit.driver.told("http", method="DELETE"):
            raise MissingError("it never sends DELETE")
        expect(await visit.hand.ping(sessions[-1]), 404, "a request with the ended session")


# What must happen instead, where a client or a route cannot have it by protocol


async def only_the_result(visit: Visit, name: str, wanted: str) -> None:
    """The call is answered all the same, with nothing before."""
    since = len(visit.driver.events)
    visit.waiting_for = f"the result of {name}"
    result = await visit.driver.do("call", tool=name, arguments={}, progress=True)
    expect(text_of(result), wanted, "the result")
    more = [one["event"] for one in visit.driver.events[since:] if one["event"] != "http"]
    expect(more, [], "what came beside the result")


async def refusal(visit: Visit, check: Callable[[Visit], Awaitable[None]]) -> None:
    """It is refused at once, and nothing else is."""
    try:
        await check(visit)
    except (RefusedError, MissingError):
        await listing(visit)
    else:
        raise MissingError("it was not refused")


async def no_progress(visit: Visit) -> None:
    await only_the_result(visit, "test_tool_with_progress", "done")


async def no_logging(visit: Visit) -> None:
    await only_the_result(visit, "test_tool_with_logging", "Tool with logging executed successfully")


async def no_polling(visit: Visit) -> None:
    await only_the_result(visit, "test_reconnection", "Reconnection test completed successfully")


async def no_subscription(visit: Visit) -> None:
    async def subscribing(visit: Visit) -> None:
        visit.waiting_for = "the answer to the subscription"
        await visit.driver.do("subscribe", uri="test://watched-resource")

    await refusal(visit, subscribing)


async def no_elicitation(visit: Visit) -> None:
    await refusal(visit, elicitation)


async def no_sampling(visit: Visit) -> None:
    await refusal(visit, sampling)


Check = Callable[[Visit], Awaitable[None]]

CHECKS: Final[Mapping[str, Check]] = {
    "list": listing,
    "call": calling,
    "progress": progress,
    "logging": logging,
    "subscribe": subscription,
    "elicitation": elicitation,
    "sampling": sampling,
    "SSE polling": polling,
    "close": closing,
}
"""By column, in the order of the table."""

INSTEAD: Final[Mapping[str, Check]] = {
    "progress": no_progress,
    "logging": no_logging,
    "subscribe": no_subscription,
    "elicitation": no_elicitation,
    "sampling": no_sampling,
    "SSE polling": no_polling,
    "close": closing,
}
"""What must happen where the column cannot be had."""
