"""The servers that are compared: ours, its peers, and the floor that no server on the same stack gets below."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from comparing import installing
from comparing.installing import SERVERS
from comparing.processes import Program
from comparing.workloads import Can, Workload

COMMAND = "from mcp_hybrid.cli import main; main()"


class Family(StrEnum):
    """What a contender is to the others."""

    OURS = "ours"
    PEER = "peer"
    FLOOR = "floor"


Argv = Callable[[int], list[str]]


@dataclass(frozen=True)
class Contender:
    """One server program, in one configuration."""

    name: str
    title: str
    family: Family
    can: frozenset[Can]
    prepare: Callable[[], Argv]
    """Installs what it needs; returns what makes its command line for a port."""

    def program(self, workload: Workload, env: dict[str, str] | None = None) -> Program:
        """Return how it is started for a workload."""
        tools = {"BENCH_TOOLS": str(workload.tools)} if workload.tools else {}
        return Program(self.prepare(), tools | (env or {}))

    def uses_session_for(self, workload: Workload) -> bool:
        """Whether it does this work in sessions: where that is what is measured, or it cannot do without."""
        if workload.needs in (Can.SESSION, Can.SESSION_PROGRESS):
            return True
        return workload.needs is Can.MCP and Can.STATELESS not in self.can


def _ours() -> Argv:
    target = f"{SERVERS / 'sdk.py'}:server"
    return lambda port: [sys.executable, "-c", COMMAND, "serve", target, "--port", str(port)]


def _script(python: Path, name: str, *options: str) -> Argv:
    return lambda port: [str(python), str(SERVERS / name), str(port), *options]


def _sdk(stack: str, state: str, form: str) -> Contender:
    on = {"hypercorn": "Hypercorn-Trio", "uvicorn": "uvicorn + uvloop"}[stack]
    return Contender(
        f"sdk-{stack}-{state}-{form}",
        f"SDK on {on}, {state}, {form.upper()}",
        Family.PEER,
        _abilities(state, streams=form == "sse", modern=state == "stateless"),
        lambda: _script(installing.python("sdk"), "on_sdk.py", stack, state, form),
    )


def _fastmcp(state: str) -> Contender:
    return Contender(
        f"fastmcp-{state}",
        f"FastMCP on uvicorn + uvloop, {state}",
        Family.PEER,
        _abilities(state, streams=True, modern=state == "stateless"),
        lambda: _script(installing.python("fastmcp"), "on_fastmcp.py", state),
    )


def _typescript(state: str, form: str) -> Contender:
    def prepare() -> Argv:
        node, script = installing.node()
        return lambda port: [node, str(script), str(port), state]

    can = _abilities(state, streams=form == "sse", modern=False)
    return Contender(
        f"typescript-{state}", f"TypeScript SDK on Node, {state}, {form.upper()}", Family.PEER, can, prepare
    )


def _hello(stack: str, on: str) -> Contender:
    def prepare() -> Argv:
        python = Path(sys.executable) if stack == "hardened" else installing.python("sdk")
        return _script(python, "hello.py", stack)

    return Contender(f"hello-{stack}", f"bare ASGI hello on {on}", Family.FLOOR, frozenset({Can.HELLO}), prepare)


def _abilities(state: str, *, streams: bool, modern: bool) -> frozenset[Can]:
    """Say what a peer can do. What it does alike in both of its states, it is given to do in one of them."""
    can = {Can.MCP}
    if state == "stateful":
        can |= {Can.SESSION, Can.BROADCAST}
        can |= {Can.SESSION_PROGRESS} if streams else set()
    else:
        can |= {Can.STATELESS}
    if modern:
        can |= {Can.MODERN, Can.MODERN_PROGRESS} if streams else {Can.MODERN}
    return frozenset(can)


OURS = Contender("ours", "mcp-hybrid serve", Family.OURS, frozenset(Can) - {Can.HELLO}, _ours)
SDK = tuple(
    _sdk(stack, state, form)
    for stack in ("hypercorn", "uvicorn")
    for state in ("stateless", "stateful")
    for form in ("json", "sse")
)
PLAIN = _hello("hypercorn", "Hypercorn-Trio")
HARDENED = _hello("hardened", "our worker")

CONTENDERS = (
    OURS,
    *SDK,
    _fastmcp("stateless"),
    _fastmcp("stateful"),
    _typescript("stateless", "json"),
    _typescript("stateful", "sse"),
    PLAIN,
    _hello("uvicorn", "uvicorn + uvloop"),
    HARDENED,
)
