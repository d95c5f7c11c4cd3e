"""JSON-RPC messages that a client might send, and what becomes of them in the hands of a mutator."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any, Final

from harness import mcp

Json = dict[str, Any]

VERSIONS: Final = (
    "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "2099-01-01", "1999-12-31", "", "latest",
    "2025-11-25 ", "\uff12025-11-25",
)  # fmt: skip
METHODS: Final = (
    "initialize", "ping", "tools/list", "tools/call", "resources/list", "resources/templates/list", "resources/read",
    "resources/subscribe", "resources/unsubscribe", "prompts/list", "prompts/get", "logging/setLevel",
    "completion/complete", "server/discover", "subscriptions/listen", "tasks/get", "roots/list",
    "sampling/createMessage", "elicitation/create", "notifications/initialized", "notifications/cancelled",
    "notifications/progress", "notifications/roots/list_changed", "rpc.discover", "no/such", "", "\x00", "é" * 50,
)  # fmt: skip
TOOLS: Final = ("add", "countdown", "slow_echo", "ask_name", "bump", "log", "no_such_tool", "")

RAW: Final = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-0", "00", "01", "1.", ".5", "1e-400", "0.1e1", "9" * 400,
    "-" + "9" * 5000, str(2**63), str(-(2**63) - 1), str(2**64), str(2**53 + 1), '"\\ud800"', '"\\udfff\\ud800"',
    '"\\u0000"', '"\\x41"', "'single'", "nul", "True", "undefined", "/* comment */ 1", "{}{}", "[1,]", '{"a":1,}',
    '{"a":1,"a":2}', '"\t"', '"\n"', "{1:2}", '"unterminated', "\ufeff1", '{"__proto__":{}}', '"' + "x" * 70_000 + '"',
)  # fmt: skip
"""Fragments that no JSON encoder would write."""
_RAW_AT: Final = re.compile(r'"@raw:(\d+)@"')


def plain(rng: Random) -> Json:
    """Choose a message that is right, or nearly so."""
    return deepcopy(rng.choice(_MESSAGES))


def _call(name: str, arguments: Json, **more: Any) -> Json:
    return mcp.tool(name, arguments, **more)


_LEGACY_MESSAGES: Final[list[Json]] = [
    mcp.initialize(),
    mcp.initialize("2025-03-26", {"elicitation": {}, "sampling": {}, "roots": {"listChanged": True}}),
    mcp.notification("notifications/initialized"),
    mcp.notification("notifications/progress", {"progressToken": 1, "progress": 1}),
    mcp.cancelled(1),
    mcp.cancelled("a"),
    mcp.request("ping"),
    mcp.request("ping", id="a"),
    mcp.request("tools/list"),
    mcp.request("tools/list", {"cursor": "x"}),
    mcp.request("resources/list"),
    mcp.request("resources/read", {"uri": "demo://counter"}),
    mcp.request("resources/subscribe", {"uri": "demo://counter"}),
    mcp.request("resources/unsubscribe", {"uri": "demo://counter"}),
    mcp.request("prompts/get", {"name": "greeting", "arguments": {"name": "Ada", "style": "formal"}}),
    mcp.request("logging/setLevel", {"level": "debug"}),
    mcp.request(
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "greeting"}, "argument": {"name": "style", "value": "f"}},
    ),
    _call("add", {"a": 1, "b": 2}),
    _call("add", {"a": 1, "b": 2}, id="b", token="t"),
    _call("countdown", {"steps": 3, "delay": 0}, token=0),
    _call("countdown", {"steps": 200, "delay": 0}, token="t"),
    _call("countdown", {"steps": 1000, "delay": 0.001}, token=""),
    _call("slow_echo", {"text": "héllo", "seconds": 0.01}),
    _call("ask_name", {}),
    _call("bump", {}),
    _call("log", {"text": "a line", "level": "warning"}),
    mcp.result(1, {"action": "accept", "content": {"name": "Ada"}}),
    mcp.result("x", {}),
    {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no"}},
]
_MESSAGES: Final[list[Json]] = [
    *_LEGACY_MESSAGES,
    *(mcp.modern(message) for message in _LEGACY_MESSAGES if "method" in message),
    mcp.modern(_call("countdown", {"steps": 3, "delay": 0}, token="t"), log_level="debug"),
    mcp.modern(mcp.request("server/discover")),
    mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})),
]


def encoded(rng: Random) -> bytes:
    """Make the body of a POST: mostly one message, mostly mutated, and sometimes no JSON at all."""
    message: Any = plain(rng)
    if rng.random() < 0.12:
        message = [message, *(plain(rng) for _ in range(rng.choice((0, 1, 2, 5, 99, 100))))]
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        message = _mutated(rng, message)
    text = json.dumps(message, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, None, 1)))
    text = _RAW_AT.sub(lambda found: RAW[int(found[1])], text)
    body = text.encode(errors="surrogatepass")
    return rng.choice(_BYTES)(rng, body) if rng.random() < 0.15 else body


# Values


def value(rng: Random) -> Any:
    """Make something that does not belong where it is put."""
    return rng.choice(_VALUES)(rng)


_VALUES: Final[tuple[Callable[[Random], Any], ...]] = (
    lambda rng: rng.choice((None, True, False, 0, 1, -1, 0.5, "", "a", [], {}, [[]], {"": None})),
    lambda rng: rng.choice((None, True, False, 0, 1, -1, 0.5, "", "a", [], {}, [[]], {"": None})),
    lambda rng: f"@raw:{rng.randrange(len(RAW))}@",
    lambda rng: f"@raw:{rng.randrange(len(RAW))}@",
    lambda rng: rng.choice((2**31, 2**53, 2**63, -(2**63), 10**30, 1e308, 5e-324, -0.0)),
    lambda rng: "".join(chr(rng.choice((0, 9, 10, 13, 34, 92, 127, 233, 0x2028, 0xFFFF, 0x1F600))) for _ in range(5)),
    lambda rng: rng.choice("\ud800\udc80\udfff") * rng.randrange(1, 4),
    lambda rng: rng.choice(("x", "é", "\U0001f600")) * rng.choice((10, 1000, 20_000)),
    lambda rng: nested(rng.choice((3, 30, 90, 120, 190)), rng.choice(([], {}, 1, "x"))),
    lambda rng: {str(number): number for number in range(rng.choice((10, 1000)))},
    lambda rng: list(range(rng.choice((10, 1000)))),
    lambda rng: rng.choice((*METHODS, *TOOLS, *VERSIONS)),
    plain,
)


def nested(depth: int, core: Any) -> Any:
    """Wrap a value in so many lists and objects."""
    for level in range(depth):
        core = [core] if level % 2 else {"k": core}
    return core


# Places


def _mutated(rng: Random, message: Any) -> Any:
    holder, key = _place(rng, message)
    if holder is None:
        return value(rng)
    action = rng.random()
    if action < 0.6:
        holder[key] = _fitting(rng, key)
    elif action < 0.75:
        del holder[key]
    elif isinstance(holder, dict):
        holder[_fresh_key(rng)] = value(rng)
    else:
        holder.insert(0, value(rng))
    return message


def _fitting(rng: Random, key: str | int) -> Any:
    """Make a value: half of the time one that gets past the first check."""
    if isinstance(key, str) and rng.random() < 0.5 and key in _FITTING:
        return rng.choice(_FITTING[key])
    return value(rng)


_FITTING: Final[Json] = {
    "method": METHODS,
    "id": (0, 1, -1, "", "1", None, 1.5, True, 2**63, 10**30, "x" * 5000, [], {}),
    "name": TOOLS,
    "protocolVersion": VERSIONS,
    f"{mcp.META}protocolVersion": VERSIONS,
    "progressToken": (0, "", 1, -1, 1.5, None, True, "x" * 5000, 2**70, [], {}),
    "uri": ("demo://counter", "demo://", "file:///etc/passwd", "", "::", "http://[", "demo://counter\x00", "x" * 9000),
    "steps": (0, 1, 1000, 1001, "3", 2.5, -1),
    "delay": (0, 0.0001, "0", -1, 61, 1e308),
    "capabilities": (
        {},
        {"elicitation": {"form": {}}},
        {"experimental": {"x": {}}},
        {"roots": None},
        {"x": "y" * 9000},
    ),
    "clientInfo": ({"name": "", "version": ""}, {"name": "x" * 5000, "version": "1"}, {}, {"name": "é", "version": 1}),
    "level": ("debug", "emergency", "no such level"),
    "jsonrpc": ("1.0", "2", 2.0, "2.0 ", None),
    "requestId": (0, 1, "a", None, True, 1.0),
    "action": ("accept", "decline", "cancel", "other"),
}


def _fresh_key(rng: Random) -> str:
    return rng.choice((*_FITTING, "_meta", "params", "result", "error", "", "\x00", "é", "\ud800", "x" * 3000))


def _place(rng: Random, message: Any) -> tuple[Any, Any]:
    """Choose a place anywhere in a message: what holds it, and its key there."""
    holder, key = None, None
    at = message
    while isinstance(at, dict | list) and at and (holder is None or rng.random() < 0.75):
        holder = at
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        at = at[key]
    return holder, key


# Bytes


def _deep(rng: Random, _body: bytes) -> bytes:
    depth = rng.choice((100, 199, 200, 201, 1000, 20_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    core = opening * depth + b"1" + closing * rng.choice((depth, depth, depth - 1, 0))
    return rng.choice((core, b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":' + core + b"}}"))


def _flipped(rng: Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.choice((1, 2, 8)) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


_BYTES: Final[tuple[Callable[[Random, bytes], bytes], ...]] = (
    _deep,
    _flipped,
    _flipped,
    lambda rng, body: body[: rng.randrange(len(body) + 1)],
    lambda rng, body: body + rng.choice((b"\x00", b" ", b"]", b"}", b"{}", b"\r\n", body)),
    lambda rng, body: rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" \n\t", b"\x00", b"\x1e", b")]}'\n")) + body,
    lambda rng, body: body.decode(errors="replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-7"))),
    lambda rng, _body: rng.randbytes(rng.choice((0, 1, 10, 1000))),
    lambda rng, _body: rng.choice((b"", b"null", b"0", b'""', b"[]", b"{}", b"[[]]", b"[{}]", b"true", b"[" * 9)),
)
